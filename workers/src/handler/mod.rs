//! Handlers, which run jobs. A handler cannot settle: it returns how the attempt went, and the runtime does the rest.
//!
//! # Layout
//!
//! - [`function`]: an `async fn` is a handler.
//! - [`exec`]: a command is a handler: payload on stdin, result on stdout.
//! - [`http`]: a service is a handler: payload in a POST, result in the response.
//! - `metadata`: the metadata of a job that `exec` and `http` pass on, in one list.

pub mod exec;
pub mod function;
pub mod http;

mod metadata;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use relay_bridge::contract::job::DEFAULT_CONTENT_TYPE;
use relay_bridge::contract::{Failure, Job, Outcome, Timestamp};
use relay_bridge::leasing::Progress;
use relay_bridge::policy::QueuePolicy;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::progress;
use crate::starts::StartReport;

/// Runs jobs. Failing is a value; a panic becomes one.
#[async_trait]
pub trait Handler: Send + Sync {
    /// One attempt at `job`. It may be one of several, at the same time on another worker too (after a crash or a lost
    /// lease), so what it does should be idempotent by `job.run_id`.
    async fn handle(&self, job: &Job, context: &Context) -> Attempt;

    /// How long [`handle`](Self::handle) may go on after [`Context::cancelled`], before it is dropped. Default 1 s.
    fn grace(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// How an attempt went.
#[derive(Clone, Debug, PartialEq)]
pub enum Attempt {
    /// It worked; the run succeeded.
    Done(Output),
    /// It did not work and may later: the job comes again, or ends as `exhausted` if this was its last attempt.
    Retry {
        /// Why; kept if this was the last attempt.
        failure: Failure,
        /// Not before this long; `None` leaves it to the queue's retry policy. At least 1 ms, at most its `job_ttl`.
        after: Option<Duration>,
    },
    /// It will never work: the run ends as `failed`, and the job is dead-lettered.
    Reject {
        /// Why.
        failure: Failure,
    },
    /// Not here and not now: the job goes back in line, and the attempt is not spent. For a handler that could not
    /// begin, or that leaves something behind which the next one goes on with; its run's deadline is the only end to it.
    HandBack {
        /// Not before this long. At least 1 ms, at most the queue's `job_ttl`.
        after: Duration,
    },
    /// Not on this host as it is: the handler could not be started at all, for a reason that the next job would meet as
    /// well, such as a program that is gone, no room for another process, or a service that refuses connections. The
    /// job goes back in line at once, and the attempt is not spent. The worker warns, once a minute, and leases nothing more
    /// for 1 s, doubled up to 1 min; then a single job, until one could be started. Jobs that are asked for already still come.
    NotStarted {
        /// Why, for the log.
        failure: Failure,
    },
    /// The handler passed the run on, and the receiver spent all attempts: the run ends as `exhausted`, and the job is
    /// dead-lettered, however many attempts are left here.
    Exhausted {
        /// Why.
        failure: Failure,
    },
    /// The handler passed the run on, and the receiver did not end it in time: the run ends as `expired`.
    Expired {
        /// Why.
        failure: Failure,
    },
    /// The handler passed the run on, and the receiver was told to cancel it: the run ends as `cancelled`.
    Cancelled {
        /// Why.
        failure: Failure,
    },
}

impl Attempt {
    /// A retry after the queue's own backoff. `reason` is a short word for programs, `detail` a text for people.
    #[must_use]
    pub fn retry(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Retry { failure: Failure::new(reason, detail), after: None }
    }

    /// A rejection for good. `reason` is a short word for programs, `detail` a text for people.
    #[must_use]
    pub fn reject(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Reject { failure: Failure::new(reason, detail) }
    }
}

/// The output of a handler: the run's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The content type the client gets it with.
    pub content_type: String,
    /// Opaque bytes. More than the queue's `result_max` end the run as `failed`, reason `result-too-large`.
    pub payload: Bytes,
}

impl Output {
    /// An output.
    #[must_use]
    pub fn new(content_type: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { content_type: content_type.into(), payload: payload.into() }
    }

    /// A value as JSON.
    ///
    /// # Errors
    /// `serde_json`'s, if the value can't be written as JSON.
    pub fn json(value: &impl serde::Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self::new("application/json", serde_json::to_vec(value)?))
    }
}

/// No bytes.
impl From<()> for Output {
    fn from((): ()) -> Self {
        Self::new(DEFAULT_CONTENT_TYPE, Bytes::new())
    }
}

/// Bytes of no particular type.
impl From<Bytes> for Output {
    fn from(payload: Bytes) -> Self {
        Self::new(DEFAULT_CONTENT_TYPE, payload)
    }
}

/// Bytes of no particular type.
impl From<Vec<u8>> for Output {
    fn from(payload: Vec<u8>) -> Self {
        Self::new(DEFAULT_CONTENT_TYPE, payload)
    }
}

/// Plain text.
impl From<String> for Output {
    fn from(text: String) -> Self {
        Self::new("text/plain; charset=utf-8", text)
    }
}

/// The context of an attempt, which a handler is given beside the job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Context {
    /// This attempt's number in the run, from 1.
    pub attempt: u32,
    /// How many attempts the run has.
    pub max_attempts: u32,
    /// When the runtime stops the handler: the run's deadline, or the end of the longest lease if that comes first.
    pub deadline: Timestamp,
    /// The largest result of the queue, in bytes.
    pub result_max: u64,
    ends: Instant,
    cancel: CancellationToken,
    run_ended: Arc<OnceLock<Outcome>>,
    progress: watch::Sender<Option<Progress>>,
    start: Option<StartReport>,
}

impl Context {
    /// A context that no delivery stands behind, to call a handler by hand or in a test: nobody sees its progress, and
    /// it is cancelled by `cancel` alone. Its `deadline` is [`Timestamp::MAX`].
    #[must_use]
    pub fn detached(attempt: u32, policy: &QueuePolicy, time_left: Duration, cancel: CancellationToken) -> Self {
        let ends = Instant::now() + time_left;
        Self::of_delivery(attempt, policy, (Timestamp::MAX, ends), cancel, watch::Sender::new(None))
    }

    pub(crate) fn of_delivery(
        attempt: u32,
        policy: &QueuePolicy,
        (deadline, ends): (Timestamp, Instant),
        cancel: CancellationToken,
        progress: watch::Sender<Option<Progress>>,
    ) -> Self {
        let QueuePolicy { max_attempts, result_max, .. } = *policy;
        Self {
            attempt,
            max_attempts,
            deadline,
            result_max,
            ends,
            cancel,
            run_ended: Arc::default(),
            progress,
            start: None,
        }
    }

    /// With somebody to tell that the handler was started.
    pub(crate) fn reporting(self, start: StartReport) -> Self {
        Self { start: Some(start), ..self }
    }

    /// Tells that the handler could be started, where that is known before it returns: a worker whose last start failed
    /// takes more than one job again. A handler that never returns [`Attempt::NotStarted`] need not call it.
    pub fn started(&self) {
        if let Some(start) = &self.start {
            start.worked();
        }
    }

    /// How long until the runtime stops the handler, on this host's monotonic clock.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Cancelled when the handler should stop: the job was cancelled or expired, its lease was lost, its time is over,
    /// or the worker's drain is. The handler has [`Handler::grace`] to return; then it is dropped.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// How the run ended while the handler was at it, known once it is cancelled: by its client, at its deadline, or by
    /// another attempt. Nobody needs what the handler does any more. `None`: the run goes on, here or elsewhere.
    #[must_use]
    pub fn run_ended(&self) -> Option<Outcome> {
        self.run_ended.get().copied()
    }

    /// Cancels the handler. The first outcome that is given stands.
    pub(crate) fn stop(&self, run_ended: Option<Outcome>) {
        if let Some(outcome) = run_ended {
            self.run_ended.get_or_init(|| outcome);
        }
        self.cancel.cancel();
    }

    /// Tells those who watch the job how far the attempt is. It costs nothing to call it often: the latest one wins,
    /// and at most two a second leave the worker. Percent is kept within 0 to 100, the message within 1 KiB.
    pub fn progress(&self, progress: Progress) {
        self.progress.send_replace(Some(progress::bounded(progress)));
    }
}
