//! Creating what a broker needs before the first job: apart from the data plane, because it has other credentials.

use async_trait::async_trait;

use crate::broker::Broker;
use crate::contract::QueueName;
use crate::error::{BrokerError, BrokerErrorKind};
use crate::policy::{MERGES_MAX, QueuePolicy, replaces, same_settings};

/// Compares what is wanted with what there is, and makes it so.
#[async_trait]
pub trait Provision: Send + Sync {
    /// The changes that `apply` would make for these queues, in order; empty if there are none.
    async fn plan(&self, queues: &[Wanted]) -> Result<Vec<Change>, BrokerError>;

    /// Makes it so, and says what it changed. Idempotent. Queues that are not named are left alone. Each policy is
    /// written as [`PolicyStore::put_policy`](crate::policy::PolicyStore::put_policy) writes it: over the one that its
    /// writer saw.
    ///
    /// # Errors
    /// `StateConflict` if somebody else wrote the policy of a queue since it was seen, or if a change is destructive and
    /// `force` is not set: nothing was changed. If a policy is written by somebody else while this call works, queues
    /// before it may have been changed already: read anew and apply again. [`provision_queues`] does so.
    async fn apply(&self, queues: &[Wanted], force: bool) -> Result<Vec<Change>, BrokerError>;
}

/// A queue's policy as somebody wants it, and the one that was stored when it was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The queue.
    pub queue: QueueName,
    /// Its policy as it shall be.
    pub policy: QueuePolicy,
    /// The policy that was stored when `policy` was made; `None`: there was no such queue.
    pub seen: Option<QueuePolicy>,
}

/// Makes a queue's policy out of the one that is stored, or out of [`QueuePolicy::of_new`].
pub type Merge<'a> = &'a (dyn Fn(&QueueName, QueuePolicy) -> QueuePolicy + Send + Sync);

impl Wanted {
    /// The policies that `merge` makes of those of `queues` as they are stored now.
    ///
    /// # Errors
    /// Those of [`PolicyStore::policy`](crate::policy::PolicyStore::policy).
    pub async fn read(broker: &Broker, queues: &[QueueName], merge: Merge<'_>) -> Result<Vec<Self>, BrokerError> {
        let mut wanted = Vec::with_capacity(queues.len());
        for queue in queues {
            let seen = broker.policies.policy(queue).await?;
            let of_new = || QueuePolicy::of_new(broker.capabilities.payload_max);
            let policy = merge(queue, seen.clone().unwrap_or_else(of_new));
            wanted.push(Self { queue: queue.clone(), policy, seen });
        }
        Ok(wanted)
    }

    /// Whether `policy` is to be written over `stored`.
    ///
    /// # Errors
    /// `StateConflict` if that is another one than was seen.
    pub fn replaces(&self, stored: Option<&QueuePolicy>) -> Result<bool, BrokerError> {
        replaces(&self.queue, stored, &self.policy, self.seen.as_ref())
    }
}

/// Reads the policies of `queues` and applies what `merge` makes of them. If somebody else wrote one of them meanwhile,
/// it does so again with the policies that are stored then: no setting that `merge` leaves alone is lost. Answers the
/// changes that were made, without those that an application had made before it was refused midway.
///
/// # Errors
/// Those of [`Provision::apply`]; `StateConflict` only if a change is destructive and `force` is not set, if the broker
/// can't make it, or if others kept writing.
pub async fn provision_queues(
    broker: &Broker,
    queues: &[QueueName],
    merge: Merge<'_>,
    force: bool,
) -> Result<Vec<Change>, BrokerError> {
    let mut wanted = Wanted::read(broker, queues, merge).await?;
    let mut merged = 1;
    loop {
        let refused = match broker.provision.apply(&wanted, force).await {
            Ok(changes) => return Ok(changes),
            Err(error) if error.kind() == BrokerErrorKind::StateConflict && merged < MERGES_MAX => error,
            Err(error) => return Err(error),
        };
        let anew = Wanted::read(broker, queues, merge).await?;
        let pairs = || anew.iter().zip(&wanted);
        if pairs().all(|(now, before)| same_settings(now.seen.as_ref(), before.seen.as_ref())) {
            // Nobody wrote them: the change itself is refused.
            return Err(refused);
        }
        (wanted, merged) = (anew, merged + 1);
    }
}

/// One difference between what is wanted and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The queue.
    pub queue: QueueName,
    /// The difference, with the old and the new value: `retention: 24h -> 1h`.
    pub what: String,
    /// Whether it can shorten what a client relies on; then it needs `force`.
    pub destructive: bool,
}

/// The differences between the policy that is wanted for `queue` and the one there is (`None`: no such queue), field by
/// field. Whether the queue is paused is no difference: a pause stands until it is resumed.
#[must_use]
pub fn policy_changes(queue: &QueueName, found: Option<&QueuePolicy>, wanted: &QueuePolicy) -> Vec<Change> {
    let change = |what: String, destructive| Change { queue: queue.clone(), what, destructive };
    let Some(found) = found else { return vec![change("create the queue".to_owned(), false)] };
    let fields = |policy: &QueuePolicy| match serde_json::to_value(policy) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (fields(found), fields(wanted));
    let mut changed = Vec::new();
    // A field that is in one of them alone has its default in the other.
    let gone = old.keys().filter(|field| !new.contains_key(*field));
    for field in new.keys().chain(gone).filter(|field| *field != "paused") {
        let of = |fields: &serde_json::Map<_, _>| fields.get(field).cloned().unwrap_or_default();
        let (before, value) = (of(&old), of(&new));
        if before != value {
            let kept = ["retention_ms", "dead_retention_ms", "job_ttl_ms"].contains(&field.as_str());
            let shorter = kept && value.as_u64() < before.as_u64();
            changed.push(change(format!("{field}: {before} -> {value}"), shorter));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_to_and_from_what_is_left_out_by_default_is_a_change() {
        let queue = "mail".parse().unwrap();
        let some = QueuePolicy { allowed_clients: ["shop".parse().unwrap()].into(), ..QueuePolicy::default() };
        for (found, wanted, what) in [
            (&QueuePolicy::default(), &some, "allowed_clients: null -> [\"shop\"]"),
            (&some, &QueuePolicy::default(), "allowed_clients: [\"shop\"] -> null"),
        ] {
            let [change] = &policy_changes(&queue, Some(found), wanted)[..] else { panic!("one change: {what}") };
            assert_eq!((change.what.as_str(), change.destructive), (what, false));
        }
        assert!(policy_changes(&queue, Some(&some), &some).is_empty());
    }
}
