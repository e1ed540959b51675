//! A queue's policy. It lives in the broker, so that two configurations can't disagree: `provision` or `serve` write
//! it, workers read it there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::contract::{ClientId, MediaRange, QueueName, Rate};
use crate::error::{BrokerError, BrokerErrorKind};

/// The policy of one queue. Deadline and retention are fixed when a job is accepted; the rest applies live.
///
/// Stored as JSON with durations in milliseconds; a field that is missing has its default. Fields that are newer than
/// the first version of the worker protocol are left out where they have their default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueuePolicy {
    /// Handler starts per run before the job is dead-lettered as `exhausted`. At least 1; default 10.
    pub max_attempts: u32,
    /// How long to wait between attempts.
    pub retry: RetryPolicy,
    /// How long a worker holds a job without a heartbeat. Default 30 s.
    #[serde(rename = "lease_ms", with = "millis")]
    pub lease: Duration,
    /// How long a worker holds a job in all, heartbeats or not. Default 1 h.
    #[serde(rename = "lease_max_ms", with = "millis")]
    pub lease_max: Duration,
    /// The longest a run may take from its start to its outcome. Default 6 h.
    #[serde(rename = "job_ttl_ms", with = "millis")]
    pub job_ttl: Duration,
    /// How long after completion a client may rely on the result and on the replay of its key. Default 24 h.
    #[serde(rename = "retention_ms", with = "millis")]
    pub retention: Duration,
    /// How long a dead letter is kept. Default 14 days.
    #[serde(rename = "dead_retention_ms", with = "millis")]
    pub dead_retention: Duration,
    /// Whether jobs without a key keep payload and record after their result, so that they can be rerun.
    pub keep_keyless: bool,
    /// The largest payload in bytes. Default 256 KiB; at most what the broker takes.
    pub payload_max: u64,
    /// The largest result in bytes; a larger one ends the run as `failed`, reason `result-too-large`. Default 256 KiB.
    pub result_max: u64,
    /// The content types of payloads that are taken; none named means all.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub content_types: BTreeSet<MediaRange>,
    /// The clients that may submit; none named means all. Reading and cancelling are not bound by it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allowed_clients: BTreeSet<ClientId>,
    /// Whether clients have turns. Without them all jobs are in one line that a scaler can read, on brokers that have one
    /// (`Capabilities::one_line`), where `weight` and `max_running` do not hold; elsewhere it says nothing. Default `true`.
    #[serde(skip_serializing_if = "is_true")]
    pub fair: bool,
    /// Whether taking jobs is stopped. Submitting goes on. It stands until it is resumed.
    pub paused: bool,
    /// The policy for a client that has no entry in `clients`.
    pub client_defaults: ClientPolicy,
    /// The policies for single clients.
    pub clients: BTreeMap<ClientId, ClientPolicy>,
    /// Settings of a newer release, kept as they came, so that a change by this one leaves them.
    #[serde(flatten)]
    pub newer: BTreeMap<String, serde_json::Value>,
}

impl Default for QueuePolicy {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            max_attempts: 10,
            retry: RetryPolicy::default(),
            lease: Duration::from_secs(30),
            lease_max: Duration::from_secs(HOUR),
            job_ttl: Duration::from_secs(6 * HOUR),
            retention: Duration::from_secs(24 * HOUR),
            dead_retention: Duration::from_secs(14 * 24 * HOUR),
            keep_keyless: false,
            payload_max: 256 * 1024,
            result_max: 256 * 1024,
            content_types: BTreeSet::new(),
            allowed_clients: BTreeSet::new(),
            fair: true,
            paused: false,
            client_defaults: ClientPolicy::default(),
            clients: BTreeMap::new(),
            newer: BTreeMap::new(),
        }
    }
}

impl QueuePolicy {
    /// That of a new queue at a broker whose payloads and results have at most `payload_max` bytes.
    #[must_use]
    pub fn of_new(payload_max: u64) -> Self {
        Self::default().within(payload_max)
    }

    /// The policy as it holds at a broker whose payloads and results have at most `payload_max` bytes.
    #[must_use]
    pub fn within(self, payload_max: u64) -> Self {
        Self { payload_max: self.payload_max.min(payload_max), result_max: self.result_max.min(payload_max), ..self }
    }

    /// The policy for `client` in this queue.
    #[must_use]
    pub fn client(&self, client: &ClientId) -> &ClientPolicy {
        self.clients.get(client).unwrap_or(&self.client_defaults)
    }

    /// Whether a payload with this header `Content-Type` is taken.
    #[must_use]
    pub fn takes(&self, content_type: &str) -> bool {
        self.content_types.is_empty() || self.content_types.iter().any(|range| range.contains(content_type))
    }

    /// Which of the shares that need turns are set although there are none: the client, if it is one, and the key.
    #[must_use]
    pub fn shares_without_turns(&self) -> Vec<(Option<&ClientId>, &'static str)> {
        let usual = ClientPolicy::default();
        let clients = self.clients.iter().map(|(client, share)| (Some(client), share));
        let shares = clients.chain([(None, &self.client_defaults)]).filter(|_| !self.fair);
        let keys = shares.flat_map(|(client, share)| {
            let set =
                [("weight", share.weight != usual.weight), ("max_running", share.max_running != usual.max_running)];
            set.into_iter().filter(|(_, is_set)| *is_set).map(move |(key, _)| (client, key))
        });
        keys.collect()
    }

    /// Whether the bytes that some client keeps are bounded.
    #[must_use]
    pub fn bounds_stored(&self) -> bool {
        self.clients.values().chain([&self.client_defaults]).any(|client| client.max_stored.is_some())
    }

    /// Whether `client` may submit.
    #[must_use]
    pub fn allows(&self, client: &ClientId) -> bool {
        self.allowed_clients.is_empty() || self.allowed_clients.contains(client)
    }
}

/// The policy for one client in one queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientPolicy {
    /// Its share of the slots among the clients that have work: 1 to 1,000; default 1.
    pub weight: u32,
    /// Its jobs that may wait at once; more are answered `quota-exceeded`. Default 1,000,000.
    pub max_queued: u64,
    /// Its jobs that may be leased at once. Default: no limit of its own (`u32::MAX`).
    pub max_running: u32,
    /// How fast it may submit, to each process that takes submissions; `None`, the default, is without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How many submissions may come at once before `rate` holds: at least 1; default 100.
    #[serde(skip_serializing_if = "is_usual_burst")]
    pub burst: u32,
    /// Bytes of its payloads and results that may be kept in the queue, as they are stored; more are answered
    /// `quota-exceeded`. Results of jobs that were accepted are kept also beyond it. `None`, the default, is without a limit;
    /// a broker that does not count them (`Capabilities::counts_stored`) takes no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_stored: Option<u64>,
    /// As in [`QueuePolicy::newer`].
    #[serde(flatten)]
    pub newer: BTreeMap<String, serde_json::Value>,
}

const BURST: u32 = 100;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_true(flag: &bool) -> bool {
    *flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_usual_burst(burst: &u32) -> bool {
    *burst == BURST
}

impl Default for ClientPolicy {
    fn default() -> Self {
        let (weight, max_queued, max_running) = (1, 1_000_000, u32::MAX);
        Self { weight, max_queued, max_running, rate: None, burst: BURST, max_stored: None, newer: BTreeMap::new() }
    }
}

/// How long to wait after attempt n: a random part of `min(cap, base * factor^(n-1))` (full jitter), never zero.
///
/// Full jitter: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryPolicy {
    /// The longest wait after the first attempt. Default 1 s.
    #[serde(rename = "base_ms", with = "millis")]
    pub base: Duration,
    /// By how much it grows with each attempt: 1 to 10; default 2.
    pub factor: f64,
    /// The longest wait. Default 5 min.
    #[serde(rename = "cap_ms", with = "millis")]
    pub cap: Duration,
    /// As in [`QueuePolicy::newer`].
    #[serde(flatten)]
    pub newer: BTreeMap<String, serde_json::Value>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { base: Duration::from_secs(1), factor: 2.0, cap: Duration::from_secs(300), newer: BTreeMap::new() }
    }
}

impl RetryPolicy {
    /// The wait after attempt `attempt` (from 1). `jitter` is a random number from 0 to 1. At least 1 ms, so that a
    /// retry always has a delay.
    #[must_use]
    pub fn backoff(&self, attempt: u32, jitter: f64) -> Duration {
        let exponent = i32::try_from(attempt.saturating_sub(1).min(64)).unwrap_or(64);
        let ceiling = (self.base.as_secs_f64() * self.factor.powi(exponent)).min(self.cap.as_secs_f64());
        let wait = Duration::try_from_secs_f64(ceiling * jitter.clamp(0.0, 1.0)).unwrap_or(self.cap);
        wait.max(Duration::from_millis(1))
    }
}

/// Reads and writes policies where every process sees the same ones.
#[async_trait]
pub trait PolicyStore: Send + Sync {
    /// The policy of `queue`, or `None` if there is no such queue.
    async fn policy(&self, queue: &QueueName) -> Result<Option<QueuePolicy>, BrokerError>;

    /// The same as it was at most 5 s ago, with all changes that were made through this process: for what is asked with each
    /// job.
    async fn recent(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError>;

    /// Every queue with its policy, in the order of names.
    async fn policies(&self) -> Result<Vec<(QueueName, QueuePolicy)>, BrokerError>;

    /// Creates the queue, or replaces its policy, if the stored one is still `seen`: the one that the caller read
    /// before it made `policy` out of it, `None` if there was no such queue. Repeating it is harmless: a stored policy
    /// that is `policy` already is left as it is, for every `seen`. A pause stands, and is no part of the comparison:
    /// `paused` is ignored in `seen`, and in `policy` for a queue that exists. [`change_policy`] reads, changes and
    /// writes.
    ///
    /// # Errors
    /// `StateConflict` if the stored policy is neither `seen` nor `policy`: somebody else wrote it meanwhile, and it was
    /// not touched; read it anew. `Invalid` if the broker can't keep such a policy. `Unavailable`: no effect.
    /// `Ambiguous`: write it again.
    async fn put_policy(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
        seen: Option<&QueuePolicy>,
    ) -> Result<(), BrokerError>;

    /// Stops or resumes taking jobs. `NotFound` if there is no such queue.
    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<(), BrokerError>;
}

/// How often [`change_policy`] and [`provision_queues`](crate::provision::provision_queues) read and merge anew. Of any
/// number of writers one gets through each time, so that many more than usual must write at once to use them up.
pub const MERGES_MAX: u32 = 32;

/// Reads the policy of `queue`, or takes the default one if there is no such queue; writes what `change` makes of it; and
/// does so again with what is stored then, if somebody else wrote it meanwhile. Answers what was written.
///
/// # Errors
/// Those of [`PolicyStore::put_policy`]; `StateConflict` only if others kept writing, or if the broker can't make such a
/// change.
pub async fn change_policy(
    store: &dyn PolicyStore,
    queue: &QueueName,
    change: impl Fn(QueuePolicy) -> QueuePolicy + Send + Sync,
) -> Result<QueuePolicy, BrokerError> {
    let mut seen = store.policy(queue).await?;
    let mut merged = 1;
    loop {
        let policy = change(seen.clone().unwrap_or_default());
        let refused = match store.put_policy(queue, &policy, seen.as_ref()).await {
            Ok(()) => return Ok(policy),
            Err(error) if error.kind() == BrokerErrorKind::StateConflict && merged < MERGES_MAX => error,
            Err(error) => return Err(error),
        };
        let found = store.policy(queue).await?;
        if same_settings(found.as_ref(), seen.as_ref()) {
            // Nobody wrote it: the broker refuses the change itself.
            return Err(refused);
        }
        (seen, merged) = (found, merged + 1);
    }
}

/// Whether `policy` is to be written over `stored` by a writer that saw `seen`; whether the queue is paused aside.
///
/// | stored is | answer |
/// | --- | --- |
/// | `policy`, whatever was seen | `false`: it is done |
/// | `seen`, and not `policy` | `true` |
/// | neither | `StateConflict` |
pub fn replaces(
    queue: &QueueName,
    stored: Option<&QueuePolicy>,
    policy: &QueuePolicy,
    seen: Option<&QueuePolicy>,
) -> Result<bool, BrokerError> {
    if same_settings(stored, Some(policy)) {
        return Ok(false);
    }
    if same_settings(stored, seen) {
        return Ok(true);
    }
    let why = match (stored, seen) {
        (Some(_), None) => format!("somebody else created queue `{queue}` meanwhile; nothing was changed: try again"),
        (None, _) => format!("somebody else removed queue `{queue}` meanwhile; nothing was changed: try again"),
        _ => format!("somebody else changed what holds for queue `{queue}` meanwhile; nothing was changed: try again"),
    };
    Err(BrokerError::new(BrokerErrorKind::StateConflict, "write policy", why))
}

/// Whether two policies are one, as they are stored: the pause stands apart, and times have whole milliseconds.
pub fn same_settings(one: Option<&QueuePolicy>, other: Option<&QueuePolicy>) -> bool {
    let stored = |policy: &QueuePolicy| {
        serde_json::to_string(&QueuePolicy { paused: false, ..policy.clone() }).unwrap_or_default()
    };
    one.map(stored) == other.map(stored)
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_written_over_what_its_writer_saw_and_over_nothing_else() {
        let queue = "mail".parse().unwrap();
        let of = |max_attempts| QueuePolicy { max_attempts, ..QueuePolicy::default() };
        let all = [None, Some(of(1)), Some(of(2)), Some(of(3))];
        for (stored, seen) in all.iter().flat_map(|stored| all.iter().map(move |seen| (stored, seen))) {
            for policy in all.iter().flatten() {
                let asked = |stored: Option<&QueuePolicy>| {
                    replaces(&queue, stored, policy, seen.as_ref()).map_err(|error| error.kind())
                };
                let expected = match () {
                    () if stored.as_ref() == Some(policy) => Ok(false),
                    () if stored == seen => Ok(true),
                    () => Err(BrokerErrorKind::StateConflict),
                };
                assert_eq!(asked(stored.as_ref()), expected, "{stored:?}, {seen:?}, {policy:?}");
                assert_eq!(asked(Some(policy)), Ok(false), "the same call again finds it done");
            }
        }
    }

    #[test]
    fn settings_of_a_newer_release_survive_a_change() {
        let text = r#"{"max_attempts":3,"colour":"red","retry":{"factor":3.0,"jitter":"none"},"clients":{"shop":{"weight":2,"shade":[1]}}}"#;
        let stored: QueuePolicy = serde_json::from_str(text).unwrap();
        let changed = QueuePolicy { max_attempts: 4, ..stored };
        let told: QueuePolicy = rmp_serde::from_slice(&rmp_serde::to_vec_named(&changed).unwrap()).unwrap();
        assert_eq!(told, changed, "over the worker protocol as well");
        let written: serde_json::Value = serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
        assert_eq!((&written["max_attempts"], &written["colour"]), (&4.into(), &"red".into()));
        assert_eq!(written["clients"]["shop"]["shade"], serde_json::json!([1]));
        assert_eq!(written["retry"]["jitter"], "none");
    }

    #[test]
    fn a_pause_and_less_than_a_millisecond_are_no_other_policy() {
        let queue = "mail".parse().unwrap();
        let wanted = QueuePolicy { max_attempts: 3, ..QueuePolicy::default() };
        let stored = QueuePolicy { lease: Duration::from_secs(9), ..QueuePolicy::default() };
        let paused = QueuePolicy { paused: true, ..stored.clone() };
        let finer = QueuePolicy { lease: stored.lease + Duration::from_nanos(1), ..stored.clone() };
        for seen in [&paused, &finer] {
            assert!(replaces(&queue, Some(&stored), &wanted, Some(seen)).unwrap());
            assert!(!replaces(&queue, Some(&stored), seen, None).unwrap());
        }
    }
}
