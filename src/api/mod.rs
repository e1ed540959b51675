//! The contract's shapes of HTTP (`docs/contract.md`, section 5) as types, for server and client alike. No server crate and no broker is needed to use them.
//!
//! # Layout
//!
//! - [`slug`]: the names of everything that can be refused, each with its status, title and whether a retry is safe.
//! - [`problem`]: the answer to whatever was refused (RFC 9457).
//! - [`receipt`]: what a submission is answered with, and a job as its client sees it.
//! - [`batch`]: many submissions in one request.
//! - [`event`]: what happens to a job while its client watches.
//! - [`result`]: results as list entries, and a page of them.
//! - `fit`: what of a result can be told, whatever wrote it.
//! - [`whoami`]: who relay thinks the caller is.
//! - [`operator`]: what the admin port answers operators.
//! - `schema`: how ids, times and words look in the OpenAPI document.
//! - [`duration`]: durations as text, `20s`.

pub mod batch;
pub mod duration;
pub mod event;
pub(crate) mod fit;
pub mod operator;
pub mod problem;
pub mod receipt;
pub mod result;
#[cfg(feature = "server")]
pub(crate) mod schema;
pub mod slug;
#[cfg(test)]
pub(crate) mod testing;
pub mod whoami;

pub use batch::{BatchAnswer, BatchEntry, BatchItem};
pub use duration::DurationText;
pub use event::{JobEvent, JobEventKind};
pub use problem::Problem;
pub use receipt::{JobView, JobsPage, Links, Receipt};
pub use result::{ResultView, ResultsPage};
pub use slug::{Retry, Slug};
pub use whoami::{FactorView, LimitsView, ListenerView, QueueLimits, RateLimit, ShareView, Whoami};

/// The largest body that goes there and back by `POST /v1/echo`, in bytes: more than one packet of any network carries (9,001
/// bytes within a VPC), so that a way that loses large packets is found.
pub const ECHO_BYTES_MAX: u64 = 16 * 1024;

/// The names of relay's own headers, in lower case as HTTP/2 wants them.
pub mod header {
    /// Request: the client's key for one logical submission.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// Response: `true` if an earlier request did the work.
    pub const IDEMPOTENCY_REPLAYED: &str = "idempotency-replayed";
    /// Request: the last event that a reader of a stream has seen; it goes on behind it.
    pub const LAST_EVENT_ID: &str = "last-event-id";
    /// Request: `wait=SECONDS` or `respond-async` (RFC 7240).
    pub const PREFER: &str = "prefer";
    /// Response: what of `Prefer` was honoured.
    pub const PREFERENCE_APPLIED: &str = "preference-applied";
    /// Request: no attempt before this duration has passed, `10s`; at most 7 days.
    pub const DELAY: &str = "relay-delay";
    /// Request: the job expires this long after its delay.
    pub const EXPIRES_IN: &str = "relay-expires-in";
    /// Request: every header that begins so reaches the handler; 2 KiB together.
    pub const META_PREFIX: &str = relay_bridge::contract::job::META_PREFIX;
    /// Request, without authentication only: which client this is.
    pub const CLIENT: &str = "relay-client";
    /// Response: how the run ended.
    pub const OUTCOME: &str = "relay-outcome";
    /// Response: the attempt that ended the run.
    pub const ATTEMPT: &str = "relay-attempt";
    /// Response: the run that ended; clients deduplicate results on it.
    pub const RUN_ID: &str = "relay-run-id";
    /// Response: the job.
    pub const JOB_ID: &str = "relay-job-id";
    /// Response: where the result is in the client's results.
    pub const CURSOR: &str = "relay-cursor";
    /// Request over NATS: read the results after this cursor, or from `now`.
    pub const AFTER: &str = "relay-after";
    /// Request over NATS: how many results at most.
    pub const LIMIT: &str = "relay-limit";
    /// Response over NATS: how many results came before this end of them.
    pub const COUNT: &str = "relay-count";
    /// Request over NATS: answer the result if it comes within this duration, `10s`.
    pub const WAIT: &str = "relay-wait";
    /// Response over NATS: where a job stands whose result is not the answer.
    pub const STATE: &str = "relay-state";
    /// Response over NATS: why reading restarted at the oldest result that is kept.
    pub const RESET: &str = "relay-reset";
    /// Response: names the request in relay's log.
    pub const REQUEST_ID: &str = "relay-request-id";
    /// W3C trace context: of a request it reaches the handler, of a result it is what the job carries.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace context; reaches the handler.
    pub const TRACESTATE: &str = "tracestate";
}
