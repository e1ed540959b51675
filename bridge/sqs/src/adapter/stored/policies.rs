//! Queues' policies. The table keeps each policy as JSON in an item of its own, and this process keeps a copy that is
//! at most [`AGE_MAX`] old. The pause has an attribute of its own, so that writing a configuration again does not end
//! it. A policy is written under the condition that the text of the previous one is still there.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::{Query, Table, Written};
use crate::adapter::stored::creating;
use crate::limits::PAYLOAD_MAX;
use crate::names;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::policy::{PolicyStore, QueuePolicy};
use relay_bridge::policy_copies::{AGE_MAX, PolicyCopies};
use relay_bridge::provision::Wanted;
use relay_bridge::rules::refusal::stored_not_counted;
use relay_bridge::support::lock;

/// The largest policy in bytes of JSON: an item holds 400 KiB.
const BYTES_MAX: usize = 256 * 1_024;
/// The most running jobs that a client's bound may allow, unless it allows all: the item of its leases has some 42 bytes of each,
/// and those of a few that ended.
const RUNNING_MAX: u32 = 9_000;
/// How often a policy is compared and written: more than once only if the same policy was written in another form meanwhile.
const WRITES_MAX: u32 = 4;
const WRITE: &str = "write policy";

/// Reads and writes policies.
pub(crate) struct Policies {
    table: Table,
    queues: Arc<crate::adapter::aws::queue::SqsQueues>,
    copies: PolicyCopies,
    all: Mutex<Option<(Vec<QueueName>, Instant)>>,
    /// Woken when this process changed a policy.
    pub(crate) changed: Notify,
}

impl Policies {
    pub(crate) fn new(table: Table, queues: Arc<crate::adapter::aws::queue::SqsQueues>) -> Self {
        Self { table, queues, copies: PolicyCopies::default(), all: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn queues(&self) -> &crate::adapter::aws::queue::SqsQueues {
        &self.queues
    }

    /// The policy of `queue`, at most [`AGE_MAX`] old. The queue must exist.
    ///
    /// # Errors
    /// `NotFound` if there is no such queue.
    pub(crate) async fn require(
        &self,
        queue: &QueueName,
        operation: &'static str,
    ) -> Result<Arc<QueuePolicy>, BrokerError> {
        if let Some(policy) = self.copies.get(queue) {
            return Ok(policy);
        }
        self.fresh(queue, operation).await?.ok_or_else(|| no_queue(queue, operation))
    }

    /// The policy of `queue` as it is in the table now, if there is one.
    async fn fresh(&self, queue: &QueueName, operation: &'static str) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        let asked = Instant::now();
        let found = match self.table.get(&names::policy(queue), operation).await {
            // Before the first `provision` there is no table, and no queue.
            Err(error) if error.kind() == BrokerErrorKind::StateConflict => None,
            found => found?,
        };
        match found {
            Some(item) => Ok(Some(self.copies.keep(queue, read(&item)?, asked))),
            None => {
                self.copies.remove(queue);
                Ok(None)
            }
        }
    }

    /// The names of all queues, at most [`AGE_MAX`] old, in their order.
    pub(crate) async fn names(&self, operation: &'static str) -> Result<Vec<QueueName>, BrokerError> {
        if let Some((names, at)) = &*lock(&self.all)
            && at.elapsed() < AGE_MAX
        {
            return Ok(names.clone());
        }
        let queues = self.all(operation).await?;
        Ok(queues.into_iter().map(|(queue, _)| queue).collect())
    }

    async fn all(&self, operation: &'static str) -> Result<Vec<(QueueName, Arc<QueuePolicy>)>, BrokerError> {
        let asked = Instant::now();
        let (mut queues, mut after) = (Vec::new(), None);
        loop {
            let query = Query { partition: ("pk", names::POLICIES), after, ..Query::default() };
            let found = self.table.query(query, operation).await?;
            for item in &found.items {
                let queue: QueueName = item.need_parsed("sk")?;
                let policy = self.copies.keep(&queue, read(item)?, asked);
                queues.push((queue, policy));
            }
            after = found.next;
            if after.is_none() {
                break;
            }
        }
        let names = queues.iter().map(|(queue, _)| queue.clone()).collect();
        let mut known = lock(&self.all);
        if self.copies.is_current(asked) {
            *known = Some((names, asked));
        }
        Ok(queues)
    }

    /// Drops the copies, so that the next caller gets the policy as it is now, and wakes the tasks that wait for a
    /// change.
    fn forget(&self, queue: &QueueName) {
        self.copies.changed(queue);
        *lock(&self.all) = None;
        self.changed.notify_waiters();
    }

    /// Writes the policy of a queue over the one that the caller saw. A pause stays as it is.
    pub(crate) async fn write(&self, wanted: &Wanted) -> Result<(), BrokerError> {
        let Wanted { queue, policy, .. } = wanted;
        check(policy)?;
        let text = serde_json::to_string(&QueuePolicy { paused: false, ..policy.clone() }).unwrap_or_default();
        if text.len() > BYTES_MAX {
            let why =
                format!("the policy has {} bytes as JSON, allowed are {BYTES_MAX}: name fewer clients", text.len());
            return Err(BrokerError::new(BrokerErrorKind::Invalid, WRITE, why));
        }
        let (key, change) = (names::policy(queue), "SET #policy = :policy, #paused = if_not_exists(#paused, :paused)");
        let mut found = self.table.get(&key, WRITE).await?;
        for _ in 0..WRITES_MAX {
            let stored = found.as_ref().map(read).transpose()?;
            if !wanted.replaces(stored.as_ref())? {
                self.forget(queue);
                return Ok(());
            }
            let values = Item::default().text(":policy", text.clone()).flag(":paused", policy.paused);
            let (condition, values) = match &found {
                None => ("attribute_not_exists(#pk)", values),
                Some(item) => ("#policy = :before", values.text(":before", item.need_text("policy")?)),
            };
            match self.table.update(&key, change, condition, values, WRITE).await? {
                Written::Done(_) => {
                    self.forget(queue);
                    return Ok(());
                }
                // The policy found is judged again: if the SDK repeated a call whose answer was lost, the item is this
                // call's own.
                Written::Refused(item) => found = item,
            }
        }
        let why = format!("somebody else keeps changing queue `{queue}`: try again");
        Err(BrokerError::new(BrokerErrorKind::StateConflict, WRITE, why))
    }
}

#[async_trait]
impl PolicyStore for Policies {
    async fn policy(&self, queue: &QueueName) -> Result<Option<QueuePolicy>, BrokerError> {
        Ok(self.fresh(queue, "read policy").await?.map(|policy| policy.as_ref().clone()))
    }

    async fn recent(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        // No event tells of changes here. A caller that looks once a second sees another server's change a second
        // later.
        self.fresh(queue, "read policy").await
    }

    async fn policies(&self) -> Result<Vec<(QueueName, QueuePolicy)>, BrokerError> {
        let all = self.all("read policies").await?;
        Ok(all.into_iter().map(|(queue, policy)| (queue, policy.as_ref().clone())).collect())
    }

    async fn put_policy(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
        seen: Option<&QueuePolicy>,
    ) -> Result<(), BrokerError> {
        check(policy)?;
        let wanted = Wanted { queue: queue.clone(), policy: policy.clone(), seen: seen.cloned() };
        let stored = self.fresh(queue, WRITE).await?;
        if wanted.replaces(stored.as_deref())? {
            if stored.is_none() {
                creating::create(&self.table, &self.queues, queue).await?;
            }
            self.write(&wanted).await?;
        }
        Ok(())
    }

    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<(), BrokerError> {
        let values = Item::default().flag(":paused", paused);
        let (key, operation) = (names::policy(queue), "pause");
        match self.table.update(&key, "SET #paused = :paused", "attribute_exists(#pk)", values, operation).await? {
            Written::Done(_) => {
                self.forget(queue);
                Ok(())
            }
            Written::Refused(_) => Err(no_queue(queue, operation)),
        }
    }
}

/// Refuses a policy whose limits are larger than SQS and DynamoDB can keep.
pub(crate) fn check(policy: &QueuePolicy) -> Result<(), BrokerError> {
    for (name, wanted) in [("payload_max", policy.payload_max), ("result_max", policy.result_max)] {
        if wanted > PAYLOAD_MAX {
            let why = format!("{name} is {wanted} bytes, an item of DynamoDB takes {PAYLOAD_MAX}: lower it");
            return Err(BrokerError::new(BrokerErrorKind::Invalid, WRITE, why));
        }
    }
    let defaults = ("by default".to_owned(), &policy.client_defaults);
    let named = policy.clients.iter().map(|(client, own)| (format!("for client `{client}`"), own));
    for (whose, own) in std::iter::once(defaults).chain(named) {
        if own.max_running != u32::MAX && own.max_running > RUNNING_MAX {
            let why = format!(
                "max_running is {} {whose}, the leases of one client in an item of DynamoDB are {RUNNING_MAX} at most: lower it, \
                 or leave it out and let as many run as there are workers",
                own.max_running
            );
            return Err(BrokerError::new(BrokerErrorKind::Invalid, WRITE, why));
        }
    }
    if policy.bounds_stored() {
        return Err(stored_not_counted(WRITE));
    }
    Ok(())
}

fn read(item: &Item) -> Result<QueuePolicy, BrokerError> {
    let policy: QueuePolicy = serde_json::from_str(item.need_text("policy")?).map_err(|error| {
        let why = format!(
            "what is stored as the policy of queue `{}` is none: put back what was there, or remove that item and run \
             `relay provision` with the queue's settings",
            item.get_text("sk").unwrap_or("?")
        );
        BrokerError::new(BrokerErrorKind::Corrupt, "read policy", why).with_source(error)
    })?;
    Ok(QueuePolicy { paused: item.is_set("paused"), ..policy })
}

pub(crate) fn no_queue(queue: &QueueName, operation: &'static str) -> BrokerError {
    relay_bridge::rules::refusal::no_queue(operation, queue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_bridge::policy::ClientPolicy;

    #[test]
    fn a_policy_that_no_item_can_hold_is_refused_before_it_is_written() {
        assert!(check(&QueuePolicy { payload_max: PAYLOAD_MAX, ..QueuePolicy::default() }).is_ok());
        let error = check(&QueuePolicy { result_max: PAYLOAD_MAX + 1, ..QueuePolicy::default() }).unwrap_err();
        assert_eq!(error.kind(), BrokerErrorKind::Invalid);
        assert!(error.detail().contains("result_max"));
    }

    #[test]
    fn a_bound_on_running_jobs_whose_leases_no_item_can_hold_is_refused_before_it_is_written() {
        let with = |default, own| {
            let client = ClientPolicy { max_running: own, ..ClientPolicy::default() };
            QueuePolicy {
                client_defaults: ClientPolicy { max_running: default, ..ClientPolicy::default() },
                clients: [("acme".parse().unwrap(), client)].into(),
                ..QueuePolicy::default()
            }
        };
        assert!(check(&with(RUNNING_MAX, u32::MAX)).is_ok() && check(&with(u32::MAX, 1)).is_ok());
        for (policy, whose) in [(with(RUNNING_MAX + 1, 1), "by default"), (with(1, 1_000_000), "client `acme`")] {
            let error = check(&policy).unwrap_err();
            assert_eq!(error.kind(), BrokerErrorKind::Invalid);
            assert!(error.detail().contains("max_running") && error.detail().contains(whose), "{error}");
        }
    }
}
