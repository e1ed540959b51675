//! The operators' view at the admin port: queues, and jobs that ended badly.

use std::collections::BTreeMap;

use relay_bridge::contract::{ClientId, Failure, IdempotencyKey, JobId, Outcome, QueueName, RunId, Timestamp};
use relay_bridge::dead_letters::LetterPlace;
use relay_bridge::policy::QueuePolicy;
use serde::{Deserialize, Serialize};

/// The largest payload that a dead letter is shown with, in bytes; of a larger one the first bytes.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// The most dead letters of a page.
pub const LETTERS_MAX: u32 = 500;

/// Every queue, as it was a few seconds ago.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueuesView {
    /// In the order of names.
    pub queues: Vec<QueueView>,
    /// Why the broker can't be used now, if it can't: the queues are as they were before.
    pub trouble: Option<String>,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueView {
    /// Its name.
    pub name: QueueName,
    /// Jobs that a worker could take now.
    pub waiting: u64,
    /// Jobs whose time has not come: delays, and the backoff between attempts.
    pub parked: u64,
    /// Jobs in workers' hands.
    pub leased: u64,
    /// How long the job waits that waits longest; `null` if none does, or the broker can't say it cheaply.
    pub oldest_seconds: Option<f64>,
    /// Jobs accepted a second, by this process.
    pub submitted_rate: f64,
    /// Runs ended a second, as far as this process sees them.
    pub settled_rate: f64,
    /// The numbers of jobs that waited, and were parked, at the last looks, oldest first.
    pub history: Vec<u64>,
    /// The queue's policy; durations in milliseconds.
    pub policy: QueuePolicy,
}

/// Whether a queue gives out jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedView {
    /// The queue.
    pub queue: QueueName,
    /// Whether taking jobs is stopped; submitting goes on.
    pub paused: bool,
}

/// How many slots a queue's workers should have, and what that is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleView {
    /// The queue.
    pub queue: QueueName,
    /// The slots that it needs; 0 without work, else at least 1.
    pub slots_wanted: f64,
    /// The same in workers of `slotsPerWorker` slots each, not rounded.
    pub workers_wanted: f64,
    /// Jobs that could start within `leadSeconds`.
    pub waiting: u64,
    /// Jobs that workers hold.
    pub leased: u64,
    /// How long one attempt holds a slot; `None` while none has ended that relay knows of.
    pub service_seconds: Option<f64>,
    /// Attempts that come due.
    pub arrivals_per_second: f64,
}

/// A job whose run ended `failed` or `exhausted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterView {
    /// The job.
    pub job_id: JobId,
    /// The run that ended.
    pub run_id: RunId,
    /// The run's number, from 1.
    pub generation: u32,
    /// Whose job it is.
    pub client: ClientId,
    /// Where it was.
    pub queue: QueueName,
    /// The idempotency key, if there is one.
    pub key: Option<IdempotencyKey>,
    /// The `Relay-Meta-*` headers, without the prefix, in lower case.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    /// `failed` or `exhausted`.
    pub outcome: Outcome,
    /// The attempt that ended it.
    pub attempt: u32,
    /// Why.
    pub failure: Failure,
    /// When.
    pub at: Timestamp,
    /// The payload's content type.
    pub content_type: String,
    /// The payload's size in bytes.
    pub size: u64,
    /// The payload in base64 (RFC 4648, padded), [`PAYLOAD_BYTES_MAX`] at most, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// A page of dead letters, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLettersPage {
    /// The letters.
    pub letters: Vec<DeadLetterView>,
    /// Pass it as `before` for the next page; `null` on the last one.
    pub next: Option<LetterPlace>,
}

/// The parts of a process that have read their files again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// Whether all of them have what their files say.
    pub ok: bool,
    /// Each part.
    pub parts: Vec<ReloadedPart>,
    /// The files that are not read again before the process is started again.
    pub needs_restart: String,
}

/// A part that has read its files again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadedPart {
    /// Its name: `keys`, `admin`, `audit` and so on.
    pub part: String,
    /// Whether what its files say holds now.
    pub ok: bool,
    /// Everything that is wrong with them, each with its file; the part is as it was before then.
    #[serde(default)]
    pub mistakes: Vec<String>,
}

impl ReloadView {
    /// The answer about these parts.
    #[must_use]
    pub fn of(parts: Vec<ReloadedPart>) -> Self {
        let needs_restart = "flags, variables and relay.toml".to_owned();
        Self { ok: parts.iter().all(|part| part.ok), parts, needs_restart }
    }
}
