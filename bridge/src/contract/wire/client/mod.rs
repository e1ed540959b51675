//! The messages of the client role as types. Values that a client gives are text here and are judged by the server, with
//! the words that it has over HTTP.
//!
//! # Layout
//!
//! - [`answer`]: the messages that go to a client.
//! - `encode`, `decode`: messages to maps and back.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::Problem;
use crate::contract::{ClientId, JobId, QueueName};

pub mod answer;
mod decode;
mod encode;

pub use answer::{ToClient, Welcome, WireProblem, WireReceipt, WireResult};

/// The most entries of one `submit_many`.
pub const ENTRIES_MAX: usize = 1_024;
/// The most names in the `meta` of a submission, and the most bytes that it takes in the message.
pub const SUBMIT_META_NAMES_MAX: u32 = 64;
pub(super) const SUBMIT_META_BYTES_MAX: usize = 8 * 1024;
/// The most names in the `meta` of a job in an answer: of a name and a value of one byte each, as many as there may be bytes.
pub const META_NAMES_MAX: u32 = 1_024;
/// The most bytes of credit, or of one payload, that count for a follow.
pub const CREDIT_BYTES_MAX: i64 = 1 << 40;

/// Bytes of credit or of a payload, as far as both sides of a follow count them: [`CREDIT_BYTES_MAX`] at most. Their balance may be
/// below 0, by what a result has more than was left.
#[must_use]
pub fn credit_bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).map_or(CREDIT_BYTES_MAX, |bytes| bytes.min(CREDIT_BYTES_MAX))
}

/// A client's first message. Nothing is answered before it.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest protocol version the client speaks.
    pub version_min: u16,
    /// The newest protocol version the client speaks.
    pub version_max: u16,
    /// The client's name, which only a server without authentication looks at.
    pub client: Option<ClientId>,
    /// The whole key, or a token of an issuer.
    pub key: Option<String>,
    /// Program and version, for logs; at most 128 bytes.
    pub build: String,
    /// The longest frame the client takes, in bytes without its length.
    pub frame_max: u32,
}

impl fmt::Debug for Hello {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("versions", &(self.version_min..=self.version_max))
            .field("client", &self.client)
            .field("key", &self.key.as_ref().map(|_| "..."))
            .field("build", &self.build)
            .finish_non_exhaustive()
    }
}

/// A message from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromClient {
    /// The client introduces itself; first and once.
    Hello(Hello),
    /// A request that is answered under the same `id`, in any order.
    Request {
        /// Chosen by the client; not that of a request that is unanswered.
        id: u64,
        /// The request.
        request: Request,
    },
    /// Several submissions, of which each is answered as if it had come alone.
    SubmitMany(Vec<Entry>),
    /// More credit for the follow request `id`.
    Credit {
        /// Of the follow request.
        id: u64,
        /// Results.
        results: u32,
        /// Bytes of payloads.
        bytes: u64,
    },
    /// The wait or follow request `id` is not wanted any more: it is answered now.
    Stop {
        /// Of the request.
        id: u64,
    },
    /// Answered by a pong with the same number.
    Ping(u64),
    /// The answer to a ping.
    Pong(u64),
}

/// One submission of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As that of a request.
    pub id: u64,
    /// The submission, or the problem with its fields.
    pub submit: Result<Box<Submit>, Problem>,
}

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Answered by a receipt, or by a result if it comes within `wait`.
    Submit(Box<Submit>),
    /// Answered by the result, or by the job if it does not come in time.
    Wait {
        /// The job.
        job: JobId,
        /// How long; zero asks for what there is now.
        wait: Duration,
    },
    /// Answered by the job.
    Status(JobId),
    /// Answered by the job.
    Cancel(JobId),
    /// Answered by the receipt of the next run.
    Rerun {
        /// The job.
        job: JobId,
        /// The generation that ended.
        from: u32,
    },
    /// Answered by any number of results, and by `followed` at the end.
    Follow(Follow),
    /// Answered by a document.
    Whoami,
}

impl Request {
    /// The word for it in messages and logs.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Submit(_) => "submit",
            Self::Wait { .. } => "wait",
            Self::Status(_) => "status",
            Self::Cancel(_) => "cancel",
            Self::Rerun { .. } => "rerun",
            Self::Follow(_) => "follow",
            Self::Whoami => "whoami",
        }
    }
}

/// A job that comes in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Submit {
    /// Its queue.
    pub queue: String,
    /// Its idempotency key.
    pub key: Option<String>,
    /// The payload's content type.
    pub content_type: Option<String>,
    /// The payload's content encoding.
    pub content_encoding: Option<String>,
    /// No attempt before this has passed.
    pub delay: Option<Duration>,
    /// The job expires this long after its delay.
    pub expires_in: Option<Duration>,
    /// The client's own notes, by name without a prefix.
    pub meta: BTreeMap<String, String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// W3C trace state.
    pub tracestate: Option<String>,
    /// The payload.
    pub payload: Bytes,
    /// How long to wait for the result; `None` asks for the receipt.
    pub wait: Option<Duration>,
}

/// A wish for all results from a cursor on, and for those to come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Follow {
    /// A cursor, or `now`; `None` begins at the oldest result that is kept.
    pub after: Option<String>,
    /// Only results of this queue.
    pub queue: Option<QueueName>,
    /// Only results of jobs whose key begins so.
    pub key_prefix: Option<String>,
    /// The first credit: results.
    pub results: u32,
    /// The first credit: bytes of payloads.
    pub bytes: u64,
}
