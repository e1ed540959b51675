//! How a run ended and what it left: one result per run, whichever attempt recorded it first.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::extra::Extra;
use super::trace::TRACEPARENT;
use super::{ClientId, IdempotencyKey, Job, JobId, QueueName, RunId, Timestamp};

/// The content type of a result without handler output: JSON `{reason, detail}`.
pub const FAILURE_CONTENT_TYPE: &str = "application/vnd.relay.failure+json";
/// The longest [`Failure::reason`], in bytes.
pub const REASON_BYTES_MAX: usize = 64;
/// The longest [`Failure::detail`], in bytes; longer text is cut at a character boundary.
pub const DETAIL_BYTES_MAX: usize = 8 * 1024;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The handler finished and left a result.
    Succeeded,
    /// The handler rejected the job for good; it is dead-lettered.
    Failed,
    /// Every attempt was spent; the job is dead-lettered.
    Exhausted,
    /// The deadline passed first.
    Expired,
    /// The client cancelled it.
    Cancelled,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Succeeded, Self::Failed, Self::Exhausted, Self::Expired, Self::Cancelled];

    /// The lower-case word that APIs, logs and stores use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Exhausted => "exhausted",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Outcome {
    type Err = super::ids::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text).ok_or_else(|| Self::Err {
            what: "outcome",
            problem: "must be succeeded, failed, exhausted, expired or cancelled".to_owned(),
        })
    }
}

/// Why a run did not succeed, for people and for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A short word for programs, at most [`REASON_BYTES_MAX`] bytes: `exit-code`, `timeout`, `result-too-large`.
    pub reason: String,
    /// A description for people, at most [`DETAIL_BYTES_MAX`] bytes. It may hold the end of a handler's stderr.
    pub detail: String,
}

impl Failure {
    /// A failure; both texts are cut to their limits.
    #[must_use]
    pub fn new(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { reason: cut(reason.into(), REASON_BYTES_MAX), detail: cut(detail.into(), DETAIL_BYTES_MAX) }
    }
}

/// The one result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobResult {
    /// The job.
    pub job_id: JobId,
    /// The run that ended; a result of a smaller run never replaces one of a greater.
    pub run_id: RunId,
    /// The run's number, from 1.
    pub generation: u32,
    /// The client that owns it.
    pub client: ClientId,
    /// Where the job was.
    pub queue: QueueName,
    /// The idempotency key, if the client gave one.
    pub key: Option<IdempotencyKey>,
    /// The client's `relay-meta-*` headers, by their names without that prefix. Gone when the job is erased.
    pub meta: BTreeMap<String, String>,
    /// How it ended.
    pub outcome: Outcome,
    /// The attempt that ended it; 0 if no handler ever started.
    pub attempt: u32,
    /// The content type of `payload`.
    pub content_type: String,
    /// The handler's output, or the [`Failure`] as JSON when there is none.
    pub payload: Bytes,
    /// Why it did not succeed; `None` exactly if it did.
    pub failure: Option<Failure>,
    /// When relay accepted the job.
    pub accepted_at: Timestamp,
    /// When the attempt that ended it started; `None` if no handler ever started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// How long the result is kept from the moment it is recorded: the run's `job_ttl + retention`, in milliseconds.
    pub keep_ms: u64,
    /// The `traceparent` that the job carries, so that a reader of the result can go on with the trace.
    pub traceparent: Option<String>,
    /// Over how many bridges the job came.
    pub hops: u32,
    /// The claim that the worker sent, where relay recorded something else: see [`claim`](Self::claim).
    pub claimed: Option<Claim>,
    /// Fields of a newer writer, kept as they came.
    pub extra: Extra,
}

impl JobResult {
    /// The result of a run that succeeded.
    #[must_use]
    pub fn succeeded(job: &Job, end: End, content_type: impl Into<String>, payload: Bytes) -> Self {
        Self::new(job, Outcome::Succeeded, end, content_type.into(), payload, None)
    }

    /// The result of a run that ended otherwise; its payload is the failure as JSON.
    #[must_use]
    pub fn unsuccessful(job: &Job, outcome: Outcome, end: End, failure: Failure) -> Self {
        Self::new(job, outcome, end, FAILURE_CONTENT_TYPE.to_owned(), words_of(&failure), Some(failure))
    }

    /// About how many bytes it takes in a page: its texts and its payload.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        let failure = self.failure.as_ref().map_or(0, |failure| failure.reason.len() + failure.detail.len());
        let meta: usize = self.meta.iter().map(|(name, value)| name.len() + value.len()).sum();
        let key = self.key.as_ref().map_or(0, |key| key.as_str().len());
        self.payload.len() + self.content_type.len() + failure + meta + key + self.extra.byte_len()
    }

    /// Names what a worker says of the run: attempt, outcome, content type and payload, as the worker sent them. Two results
    /// of one run with the same claim are one result that was sent twice. For a result that relay keeps: of one that a worker
    /// sends, [`words`](Self::words) are the claim, because `claimed` is the worker's word as well.
    #[must_use]
    pub fn claim(&self) -> Claim {
        self.claimed.unwrap_or_else(|| self.words())
    }

    /// The claim that attempt, outcome, content type and payload make as they stand here.
    #[must_use]
    pub fn words(&self) -> Claim {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.attempt.to_be_bytes());
        for part in [self.outcome.as_str().as_bytes(), self.content_type.as_bytes(), &self.payload] {
            hash.update(&(part.len() as u64).to_be_bytes()).update(part);
        }
        let mut claim = [0; 16];
        hash.finalize_xof().fill(&mut claim);
        Claim(claim)
    }

    fn new(
        job: &Job,
        outcome: Outcome,
        end: End,
        content_type: String,
        payload: Bytes,
        failure: Option<Failure>,
    ) -> Self {
        Self {
            job_id: job.id,
            run_id: job.run_id,
            generation: job.generation,
            client: job.client.clone(),
            queue: job.queue.clone(),
            key: job.key.clone(),
            meta: job.meta(),
            outcome,
            attempt: end.attempt,
            content_type,
            payload,
            failure,
            accepted_at: job.accepted_at,
            started_at: end.started_at,
            finished_at: end.finished_at,
            keep_ms: job.keep_ms,
            traceparent: job.headers.get(TRACEPARENT).cloned(),
            hops: job.hops(),
            claimed: None,
            extra: Extra::default(),
        }
    }
}

/// The first 16 bytes of a BLAKE3 hash over what a worker said of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim([u8; 16]);

impl Claim {
    /// From bytes that a store kept.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// A failure as the payload of a result that has no other, of type [`FAILURE_CONTENT_TYPE`].
#[must_use]
pub fn words_of(failure: &Failure) -> Bytes {
    serde_json::to_vec(failure).unwrap_or_default().into()
}

/// When and at which attempt a run ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The attempt that ended it; 0 if no handler ever started.
    pub attempt: u32,
    /// When that attempt started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

fn cut(mut text: String, bytes_max: usize) -> String {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
