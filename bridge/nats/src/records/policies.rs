//! Policies of queues, kept as JSON in the metadata of each queue's stream, and a copy in this process.
//!
//! A copy is at most [`AGE_MAX`](relay_bridge::policy_copies::AGE_MAX) old, and a change made through relay is told on the queue's control subject, so that
//! other processes forget their copies at once. The pause has a field of its own: writing a configuration again does
//! not end it. The server takes a stream's configuration without a condition, so writers take turns by a message that
//! only one of them can create. The writer that has the turn compares the stored policy with the one that its caller
//! saw, and then writes.

use crate::records::changed_streams::ChangedStreams;
use crate::stored::control;
use crate::stored::streams::Difference;
use async_trait::async_trait;
use relay_bridge::backoff::random;
use relay_bridge::policy::PolicyStore;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::account::Account;
use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::stored::names;
use crate::stored::record::Outgoing;
use crate::stored::streams::{self, Mend, StreamSettings, reconcile};
use crate::wire::api::{Api, Written};
use crate::wire::direct_get::SERVED_WITHIN;
use crate::wire::single_flight::SingleFlight;
use crate::wire::stream_calls::{self, Created};
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::policy_copies::PolicyCopies;
use relay_bridge::provision::Wanted;
use relay_bridge::rules::refusal::{no_queue, stored_not_counted};
use relay_bridge::support::lock;

/// The largest policy in bytes of JSON: the server takes 128 KiB of metadata a stream.
const BYTES_MAX: usize = 120 * 1024;

/// How long a writer that crashed holds up the others, in seconds: its calls take at most half of that together.
const TURN_SECS: u64 = 30;
/// How long a writer waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(40);

/// The most queues, existing or not, whose single flights are remembered.
const ASKING_MAX: usize = 16_384;

const POLICY: &str = "relay.policy";
const PAUSED: &str = "relay.paused";
const OPERATION: &str = "read policy";

/// Reads and writes policies.
pub(crate) struct Policies {
    api: Api,
    settings: StreamSettings,
    payload_max: u64,
    /// The most consumers that the account allows a stream, once the server was asked; `i32::MAX` if it does not care.
    consumers_max: OnceCell<i32>,
    copies: PolicyCopies,
    /// The single flight of each queue, in which its policy is asked for.
    asking: Mutex<HashMap<QueueName, Arc<SingleFlight>>>,
    changed: ChangedStreams,
}

impl Policies {
    pub(crate) fn new(api: Api, settings: StreamSettings, payload_max: u64) -> Self {
        let (consumers_max, copies, asking) = (OnceCell::new(), PolicyCopies::default(), Mutex::default());
        Self { api, settings, payload_max, consumers_max, copies, asking, changed: ChangedStreams::default() }
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    /// How streams are kept.
    pub(crate) fn settings(&self) -> &StreamSettings {
        &self.settings
    }

    /// The policy of `queue`, at most [`AGE_MAX`] old, or `None` if there is no such queue.
    pub(crate) async fn current(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        if let Some(policy) = self.copies.get(queue) {
            return Ok(Some(policy));
        }
        self.asking(queue).run(|| self.copies.get(queue).map(Some), self.fresh(queue)).await
    }

    fn asking(&self, queue: &QueueName) -> Arc<SingleFlight> {
        let mut asking = lock(&self.asking);
        if asking.len() >= ASKING_MAX {
            asking.clear();
        }
        asking.entry(queue.clone()).or_default().clone()
    }

    /// The policy of `queue`, asked of the stream's leader now.
    async fn fresh(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        let asked = Instant::now();
        let found = stream_calls::find(&self.api, &names::jobs_stream(queue), OPERATION).await?;
        let Some(found) = found else {
            self.copies.remove(queue);
            return Ok(None);
        };
        let policy = read(&found.info.config)?;
        self.changed.saw(&found.info.config, &self.settings.jobs(queue, &policy));
        Ok(Some(self.copies.keep(queue, policy, asked)))
    }

    /// The policy of `queue`, which must be there.
    pub(crate) async fn require(
        &self,
        queue: &QueueName,
        operation: &'static str,
    ) -> Result<Arc<QueuePolicy>, BrokerError> {
        self.current(queue).await?.ok_or_else(|| no_queue(operation, queue))
    }

    /// Notes how the stream of results is kept.
    pub(crate) fn saw_results(&self, found: &Config) {
        self.changed.saw(found, &self.settings.results());
    }

    /// The names of all queues, in their order; their policies are kept on the way.
    pub(crate) async fn queues(&self) -> Result<Vec<(QueueName, Arc<QueuePolicy>)>, BrokerError> {
        let asked = Instant::now();
        let mut queues = Vec::new();
        for stream in stream_calls::list(&self.api, streams::ALL_JOBS, OPERATION).await? {
            if let Some(queue) = names::queue_of_stream(&stream.info.config.name) {
                let policy = self.copies.keep(&queue, read(&stream.info.config)?, asked);
                queues.push((queue, policy));
            }
        }
        // The order of stream names is not that of queues where one name begins with another.
        queues.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(queues)
    }

    /// The copies, to be told of changes.
    pub(crate) fn copies(&self) -> &PolicyCopies {
        &self.copies
    }

    /// Creates the stream of a queue and what all queues share, or changes it to what its policy needs, if its policy is
    /// the one that was seen.
    pub(crate) async fn put(&self, wanted: &Wanted, mend: Mend) -> Result<(), BrokerError> {
        const OPERATION: &str = "write policy";
        let Wanted { queue, policy, .. } = wanted;
        self.check(policy)?;
        let needed = self.within_account(self.settings.jobs(queue, policy)).await?;
        match stream_calls::find(&self.api, &needed.name, OPERATION).await? {
            Some(found) if changed(&found.info.config, &needed, wanted, mend)?.is_none() => return Ok(()),
            Some(_) => {}
            None => {
                wanted.replaces(None)?;
                for shared in self.settings.shared() {
                    self.ensure(&shared, mend).await?;
                }
            }
        }
        // Boxed: it is large, and every caller's future would be.
        Box::pin(self.alone(queue, OPERATION, self.put_in_turn(&needed, wanted, mend))).await?;
        self.told(queue).await;
        Ok(())
    }

    /// Creates or changes the stream of a queue as `needed`. The caller has the queue's turn: nobody else writes, so what is
    /// compared here stands until it is written. Streams are created in turn as well: a cluster that is asked for one name
    /// with two configurations refuses the second while the first is not there yet.
    async fn put_in_turn(&self, needed: &Config, wanted: &Wanted, mend: Mend) -> Result<(), BrokerError> {
        const OPERATION: &str = "write policy";
        let found = match stream_calls::find(&self.api, &needed.name, OPERATION).await? {
            Some(found) => found,
            None => {
                wanted.replaces(None)?;
                let mut new = needed.clone();
                write(&mut new, &wanted.policy)?;
                match stream_calls::create(&self.api, &new, OPERATION).await? {
                    Created::New => return Ok(()),
                    // It was created by somebody who takes no turns.
                    Created::Known(found) => *found,
                }
            }
        };
        if let Some(next) = changed(&found.info.config, needed, wanted, mend)? {
            stream_calls::update(&self.api, &found, &next, OPERATION).await?;
        }
        Ok(())
    }

    /// Does `work` while nobody else changes the stream of `queue`: anything that `work` reads of it stands until it is
    /// written.
    async fn alone(
        &self,
        queue: &QueueName,
        operation: &'static str,
        work: impl Future<Output = Result<(), BrokerError>>,
    ) -> Result<(), BrokerError> {
        self.ensure(&self.settings.states(), Mend::Needed).await?;
        let began = Instant::now();
        let give_up = began + TURN_WITHIN;
        let turn = loop {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
            headers.insert(NATS_MESSAGE_TTL, format!("{TURN_SECS}s"));
            let message = Outgoing { subject: names::turn(queue), headers, payload: Bytes::new(), hint: None };
            let asked = Instant::now();
            match self.api.publish(message, operation).await {
                Ok(Written::At(seq)) => break seq,
                Ok(Written::Conflict(_)) => {}
                // The stream was made just now on another server, and this one has not heard of it yet.
                Err(error) if error.kind() == BrokerErrorKind::Unavailable && asked < began + SERVED_WITHIN => {}
                Err(error) => return Err(error),
            }
            if asked > give_up {
                let why = format!("somebody else keeps changing queue `{queue}`: try again");
                return Err(BrokerError::new(BrokerErrorKind::StateConflict, operation, why));
            }
            tokio::time::sleep(Duration::from_millis(20) + Duration::from_millis(80).mul_f64(random())).await;
        };
        let done = work.await;
        // A change in doubt may still be made: others wait until the turn ends by itself.
        if done.as_ref().is_err_and(|error| error.kind() == BrokerErrorKind::Ambiguous) {
            return done;
        }
        if let Err(error) = self.api.delete(names::STATE_STREAM, turn, operation).await {
            tracing::warn!(%queue, %error, "others can change the queue in {TURN_SECS} s only");
        }
        done
    }

    /// Creates a stream that all queues share, or changes one that is there as `mend` says.
    pub(crate) async fn ensure(&self, wanted: &Config, mend: Mend) -> Result<(), BrokerError> {
        const OPERATION: &str = "provision";
        let wanted = &self.within_account(wanted.clone()).await?;
        let found = match stream_calls::find(&self.api, &wanted.name, OPERATION).await? {
            Some(found) => found,
            None => match stream_calls::create(&self.api, wanted, OPERATION).await? {
                Created::New => return Ok(()),
                Created::Known(found) => *found,
            },
        };
        let (next, differences) = reconcile(&found.info.config, wanted, mend);
        if let Some(difference) = differences.iter().find(|difference| difference.impossible) {
            return Err(impossible(&wanted.name, difference, OPERATION));
        }
        if next != found.info.config {
            stream_calls::update(&self.api, &found, &next, OPERATION).await?;
        }
        Ok(())
    }

    /// `wanted` with no more consumers than the account allows a stream: the server refuses it otherwise.
    pub(crate) async fn within_account(&self, mut wanted: Config) -> Result<Config, BrokerError> {
        let ask = || async {
            let account: Account = self.api.call("INFO".to_owned(), &serde_json::Value::Null, "provision").await?;
            let limit = account.limits.max_consumers.and_then(|limit| i32::try_from(limit).ok());
            Ok::<_, BrokerError>(limit.filter(|limit| *limit > 0).unwrap_or(i32::MAX))
        };
        let consumers_max = *self.consumers_max.get_or_try_init(ask).await?;
        wanted.max_consumers = wanted.max_consumers.min(consumers_max);
        Ok(wanted)
    }

    pub(crate) fn check(&self, policy: &QueuePolicy) -> Result<(), BrokerError> {
        let invalid = |why| Err(BrokerError::new(BrokerErrorKind::Invalid, "write policy", why));
        for (name, wanted) in [("payload_max", policy.payload_max), ("result_max", policy.result_max)] {
            if wanted > self.payload_max {
                return invalid(format!(
                    "{name} is {wanted} bytes, the server takes {}: lower it, or raise the server's `max_payload`",
                    self.payload_max
                ));
            }
        }
        if policy.bounds_stored() {
            return Err(stored_not_counted("write policy"));
        }
        if let Some((client, key)) = policy.shares_without_turns().first() {
            let whose = client.map_or_else(|| "every client".to_owned(), |client| format!("client `{client}`"));
            return invalid(format!(
                "{key} is set for {whose}, and in a queue with `fair = false` nobody has turns: leave it out, or share the \
                 queue fairly"
            ));
        }
        Ok(())
    }

    /// Forgets this process's copy and tells the others. A process that is not told asks again by itself.
    async fn told(&self, queue: &QueueName) {
        self.copies.changed(queue);
        self.api.tell(names::control(queue), HeaderMap::new(), control::POLICY_CHANGED.into()).await;
    }
}

#[async_trait]
impl PolicyStore for Policies {
    async fn policy(&self, queue: &QueueName) -> Result<Option<QueuePolicy>, BrokerError> {
        Ok(self.fresh(queue).await?.map(|policy| (*policy).clone()))
    }

    async fn recent(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        self.current(queue).await
    }

    async fn policies(&self) -> Result<Vec<(QueueName, QueuePolicy)>, BrokerError> {
        Ok(self.queues().await?.into_iter().map(|(queue, policy)| (queue, (*policy).clone())).collect())
    }

    async fn put_policy(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
        seen: Option<&QueuePolicy>,
    ) -> Result<(), BrokerError> {
        let wanted = Wanted { queue: queue.clone(), policy: policy.clone(), seen: seen.cloned() };
        self.put(&wanted, Mend::Needed).await
    }

    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<(), BrokerError> {
        const OPERATION: &str = "pause";
        let stream = names::jobs_stream(queue);
        let found =
            stream_calls::find(&self.api, &stream, OPERATION).await?.ok_or_else(|| no_queue(OPERATION, queue))?;
        if read(&found.info.config)?.paused != paused {
            self.alone(queue, OPERATION, async {
                let found = stream_calls::get(&self.api, &stream, OPERATION).await?;
                let mut next = found.info.config.clone();
                next.metadata.insert(PAUSED.to_owned(), paused.to_string());
                stream_calls::update(&self.api, &found, &next, OPERATION).await.map(drop)
            })
            .await?;
        }
        self.told(queue).await;
        Ok(())
    }
}

/// The configuration that the stream of a queue is to have instead of `found`, if that is another one. A pause stands.
///
/// # Errors
/// `StateConflict` if the policy in `found` is another one than was seen.
fn changed(found: &Config, needed: &Config, wanted: &Wanted, mend: Mend) -> Result<Option<Config>, BrokerError> {
    let stored = read(found)?;
    wanted.replaces(Some(&stored))?;
    let (mut next, differences) = reconcile(found, needed, mend);
    if let Some(difference) = differences.iter().find(|difference| difference.impossible) {
        return Err(impossible(&needed.name, difference, "write policy"));
    }
    write(&mut next, &QueuePolicy { paused: stored.paused, ..wanted.policy.clone() })?;
    Ok((next != *found).then_some(next))
}

/// The error for a change that the server can't make to a stream that exists.
fn impossible(stream: &str, difference: &Difference, operation: &'static str) -> BrokerError {
    let why = format!(
        "stream `{stream}`: {}: the server can't change that: keep it as it is, or delete the stream with all that is in it",
        difference.what
    );
    BrokerError::new(BrokerErrorKind::StateConflict, operation, why)
}

/// The policy in a stream's metadata. A stream without one has the default policy.
pub(crate) fn read(config: &Config) -> Result<QueuePolicy, BrokerError> {
    let policy = config.metadata.get(POLICY).map_or(Ok(QueuePolicy::default()), |text| serde_json::from_str(text));
    let policy: QueuePolicy = policy.map_err(|error| {
        let why = format!(
            "`{POLICY}` in the metadata of stream `{}` is no policy: put back what was there, or take the entry away, which \
             gives the queue the default policy, and run `relay provision` with the queue's settings",
            config.name
        );
        BrokerError::new(BrokerErrorKind::Corrupt, OPERATION, why).with_source(error)
    })?;
    let paused = config.metadata.get(PAUSED).map_or(policy.paused, |paused| paused == "true");
    Ok(QueuePolicy { paused, ..policy })
}

/// Writes `policy` into the metadata of `config`. A policy that is there already is not touched, so that JSON which
/// another release wrote in another order is no change.
pub(crate) fn write(config: &mut Config, policy: &QueuePolicy) -> Result<(), BrokerError> {
    if config.metadata.contains_key(POLICY) && read(config).is_ok_and(|found| found == *policy) {
        return Ok(());
    }
    let text = serde_json::to_string(&QueuePolicy { paused: false, ..policy.clone() }).unwrap_or_default();
    if text.len() > BYTES_MAX {
        let why = format!("the policy has {} bytes as JSON, allowed are {BYTES_MAX}: name fewer clients", text.len());
        return Err(BrokerError::new(BrokerErrorKind::Invalid, "write policy", why));
    }
    config.metadata.insert(POLICY.to_owned(), text);
    config.metadata.insert(PAUSED.to_owned(), policy.paused.to_string());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_was_written_and_a_stream_without_one_has_the_default() {
        let mut config = Config::default();
        assert_eq!(read(&config).unwrap(), QueuePolicy::default());
        let mut policy = QueuePolicy { max_attempts: 3, paused: true, ..QueuePolicy::default() };
        policy.clients.insert("acme".parse().unwrap(), Default::default());
        write(&mut config, &policy).unwrap();
        assert_eq!(read(&config).unwrap(), policy);
        let written = config.clone();
        write(&mut config, &policy).unwrap();
        assert_eq!(config, written);
    }

    #[test]
    fn metadata_that_is_no_policy_is_told_and_not_taken_for_the_default() {
        let mut config = Config { name: "relay-jobs-work".to_owned(), ..Config::default() };
        config.metadata.insert(POLICY.to_owned(), "{".to_owned());
        let refused = read(&config).unwrap_err();
        assert_eq!(refused.kind(), BrokerErrorKind::Corrupt);
        assert!(refused.detail().contains("`relay provision`"), "{refused}");
    }

    #[test]
    fn a_policy_that_no_stream_can_hold_is_refused() {
        let mut policy = QueuePolicy::default();
        for number in 0..4_000 {
            policy.clients.insert(format!("client-{number}").parse().unwrap(), Default::default());
        }
        assert_eq!(write(&mut Config::default(), &policy).unwrap_err().kind(), BrokerErrorKind::Invalid);
    }
}
