//! The values that go to relay and come from it: jobs, filters, receipts and results, the same over every protocol.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::contract::job::DEFAULT_CONTENT_TYPE;
pub use relay_bridge::contract::wire::client::answer::Body as Payload;
use relay_bridge::contract::{IdempotencyKey, JobId, JobState, Outcome, QueueName, RunId};
use relay_bridge::result_log::Reset;
use uuid::Uuid;

use super::error::ClientError;
use crate::api::{Receipt, ResultView};

/// The longest wait that one try asks for: what relay grants at most.
pub const WAIT_MAX: Duration = Duration::from_secs(55);

/// A job to submit.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// To which queue.
    pub queue: QueueName,
    /// The key that makes a retry the same job. Without one the client makes a random one, for all tries of one call.
    pub key: Option<IdempotencyKey>,
    /// The payload's content type; it reaches the handler unchanged.
    pub content_type: String,
    /// Opaque bytes.
    pub payload: Bytes,
    /// No attempt before this long after acceptance.
    pub delay: Option<Duration>,
    /// The job expires this long after its delay.
    pub expires_in: Option<Duration>,
    /// `Relay-Meta-*` headers by the part of the name behind the prefix; they reach the handler.
    pub meta: BTreeMap<String, String>,
    /// W3C trace context: the span that submits. It goes to the handler and comes back with the result.
    pub traceparent: Option<String>,
    /// W3C trace state, which only goes with `traceparent`.
    pub tracestate: Option<String>,
}

impl NewJob {
    /// A job without a key, whose payload is bytes.
    pub fn new(queue: QueueName, payload: impl Into<Bytes>) -> Self {
        Self {
            queue,
            key: None,
            content_type: DEFAULT_CONTENT_TYPE.to_owned(),
            payload: payload.into(),
            delay: None,
            expires_in: None,
            meta: BTreeMap::new(),
            traceparent: None,
            tracestate: None,
        }
    }

    /// The same under `key`.
    #[must_use]
    pub fn keyed(self, key: IdempotencyKey) -> Self {
        Self { key: Some(key), ..self }
    }

    /// The same job if it has a key, else one under a random key.
    pub(crate) fn with_key(&self) -> Cow<'_, Self> {
        match (&self.key, Uuid::now_v7().to_string().parse()) {
            (None, Ok(key)) => Cow::Owned(self.clone().keyed(key)),
            _ => Cow::Borrowed(self),
        }
    }
}

/// Which jobs to list.
#[derive(Clone, Debug)]
pub struct JobsFilter {
    /// Of this queue only.
    pub queue: Option<QueueName>,
    /// In this state only.
    pub state: Option<JobState>,
    /// Only jobs whose key begins so. A page may then be short, or empty, and have a `next`.
    pub key_prefix: Option<String>,
    /// Behind this job: the last page's `next`.
    pub after: Option<JobId>,
    /// How many at most, 1 to 500.
    pub limit: u32,
}

/// Which results to read.
#[derive(Clone, Debug)]
pub struct ResultsFilter {
    /// Behind this cursor, or from `now`; `None` begins at the oldest result that is kept.
    pub after: Option<String>,
    /// Of this queue only. A page may then be empty with a `next` that has moved on.
    pub queue: Option<QueueName>,
    /// Only of jobs whose key begins so, with pages as for `queue`.
    pub key_prefix: Option<String>,
    /// How many at most, 1 to 100.
    pub limit: u32,
    /// How long to wait for one if there are none, at most [`WAIT_MAX`].
    pub wait: Duration,
}

impl ResultsFilter {
    /// All results behind `after`, a cursor or `now`; `None` begins at the oldest that is kept.
    #[must_use]
    pub fn after(after: Option<String>) -> Self {
        Self { after, ..Self::default() }
    }

    /// Whether it begins at the end of the results, which moves.
    pub(super) fn is_from_now(&self) -> bool {
        self.after.as_deref() == Some("now")
    }
}

impl Default for ResultsFilter {
    /// The first hundred, at once.
    fn default() -> Self {
        Self { after: None, queue: None, key_prefix: None, limit: 100, wait: Duration::ZERO }
    }
}

/// The answer to a submission.
#[derive(Clone, Debug)]
pub enum Submitted {
    /// It is durable and in line, or finished already.
    Accepted(Box<Receipt>),
    /// It finished within the wait.
    Finished(Box<RunResult>),
}

impl Submitted {
    /// The job.
    #[must_use]
    pub fn job_id(&self) -> JobId {
        match self {
            Self::Accepted(receipt) => receipt.job_id,
            Self::Finished(result) => result.job_id,
        }
    }

    /// Whether an earlier request with the same key did the work.
    #[must_use]
    pub fn replayed(&self) -> bool {
        match self {
            Self::Accepted(receipt) => receipt.replayed,
            Self::Finished(result) => result.replayed,
        }
    }
}

/// One answer of [`submit_many`](super::Client::submit_many).
#[derive(Debug)]
pub struct Sent {
    /// Which job of the stream it is about, from 0.
    pub index: usize,
    /// The job's key: the caller's, or the one that was made for it.
    pub key: Option<IdempotencyKey>,
    /// The answer to its submission.
    pub answer: Result<Submitted, ClientError>,
}

/// One result of [`results`](super::Client::results).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultEntry {
    /// The result without its payload: neither `payload_base64` nor `link` is there.
    pub view: ResultView,
    /// The handler's output; for other outcomes than `succeeded` JSON `{reason, detail}`.
    pub payload: Payload,
    /// Reading could not go on behind the cursor, and began at the oldest result that is kept, with this one.
    pub reset: Option<Reset>,
}

/// How a run ended and what it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunResult {
    /// The job.
    pub job_id: JobId,
    /// The run; deduplicate on it.
    pub run_id: RunId,
    /// The idempotency key that the job was submitted under, if there is one.
    pub key: Option<IdempotencyKey>,
    /// The job's `Relay-Meta-*` headers by the part of the name behind the prefix, in lower case.
    pub meta: BTreeMap<String, String>,
    /// How it ended.
    pub outcome: Outcome,
    /// The attempt that ended it; 0 if no handler ever started.
    pub attempt: u32,
    /// Whether the submission that asked was a replay; `false` for other calls.
    pub replayed: bool,
    /// The payload's content type.
    pub content_type: String,
    /// The handler's output; for other outcomes than `succeeded` JSON `{reason, detail}`.
    pub payload: Bytes,
    /// Where it is in the client's results.
    pub cursor: Option<String>,
}
