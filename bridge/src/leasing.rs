//! The worker's half of the line: lease, extend, report progress, dead-letter, record, settle. One method per request
//! of the TCP protocol's worker role, and nothing else: a worker never enqueues and never reads results.
//!
//! A delivery ends in this order: dead letter (if any), result, settle. A crash between any two repeats the step
//! before, harmlessly, because every method here may be repeated.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::contract::{ClientId, Job, JobId, JobResult, Outcome, QueueName, RunId, Timestamp, WorkerId};
use crate::dead_letters::DeadLetter;
use crate::error::BrokerError;
use crate::policy::QueuePolicy;
use crate::settlement::Settlement;

/// The most jobs one [`lease`](Leasing::lease) asks for.
pub const LEASE_BATCH_MAX: u32 = 1_024;
/// The most bytes of payloads that one [`lease`](Leasing::lease) gives, unless its first job alone has more: 16 MiB.
pub const LEASE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The most queues one [`lease`](Leasing::lease) names.
pub const LEASE_QUEUES_MAX: usize = 64;
/// The longest one [`lease`](Leasing::lease) waits.
pub const LEASE_WAIT_MAX: Duration = Duration::from_secs(60);

/// Gives jobs to workers and takes what they decided.
#[async_trait]
pub trait Leasing: Send + Sync {
    /// Up to `request.max` jobs, at once if there are any, else as soon as there is one; empty after `request.wait`. Their payloads
    /// have [`LEASE_BYTES_MAX`] together at most, or it is one job: what is behind them is for the next call.
    ///
    /// Queues are asked in the order given; within a queue the clients that have work share by weight. Each delivery
    /// has spent an attempt: one whose attempts were all spent before comes with `attempt > max_attempts`, and the
    /// worker ends it as `exhausted` without starting it. Dropping the future loses nothing: jobs that it had leased go
    /// back without spending an attempt.
    ///
    /// # Errors
    /// `Unavailable`, `NotFound` (a queue is not there), `Unauthorized`.
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError>;

    /// Holds the job for one more lease from now, up to the queue's `lease_max` in all.
    ///
    /// # Errors
    /// `LeaseLost`: the job is someone else's, or its run has ended in another way. Stop the handler.
    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError>;

    /// Returns when there is a reason to [`extend`](Self::extend) at once: the broker heard that the run may have ended
    /// elsewhere, or lost its connection since it gave the job out and may have missed that. The answer of `extend`
    /// counts. It may stay silent, and always does where a broker does not tell: the holder of a job sends its
    /// heartbeats all the same.
    async fn ended_early(&self, receipt: &Receipt);

    /// Tells all watchers how far the handler is. Best effort.
    ///
    /// # Errors
    /// `LeaseLost`.
    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError>;

    /// Keeps the job and why it ended among the dead letters. Idempotent by run; without effect if the job is in a later
    /// run already.
    ///
    /// # Errors
    /// `NotFound` if there is no such job of this client in this queue.
    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError>;

    /// Takes back the dead letter of a run that did not fail after all. Without effect on a run that is open, `failed`
    /// or `exhausted`, for every caller. Idempotent. A caller that may touch some queues only names them as `within`; a job of
    /// another one is not touched. `remote` leaves that to its server, which knows the worker's key.
    ///
    /// # Errors
    /// `Unauthorized` if the job is of a queue that is not `within`.
    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError>;

    /// Records the run's one result. The first one wins, whichever attempt it came from, with or without a lease; sent again,
    /// it is the first one still. Of a worker's word, how the handler ended is taken and nothing else: see
    /// [`rules::record`](crate::rules::record()), also for what can't be kept and ends the run as `failed`.
    ///
    /// # Errors
    /// `NotFound` if relay keeps no such job; `Invalid` for a run that no relay gave out; `StateConflict` never: a run that
    /// ended is `Superseded`.
    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError>;

    /// Ends the delivery. It may be repeated: the second call is `Ok` or `LeaseLost`, never a second effect.
    ///
    /// # Errors
    /// `LeaseLost`: nothing was done. `Invalid` for `Complete` and `DeadLetter` while the run has no result: every run
    /// ends in an outcome, so the lease stands.
    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError>;

    /// The policy of a queue, as it is now. `NotFound` if there is no such queue.
    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError>;
}

/// A worker's request for jobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// The worker that asks.
    pub worker: WorkerId,
    /// From which queues, most wanted first; 1 to 64.
    pub queues: Vec<QueueName>,
    /// At most this many, up to [`LEASE_BATCH_MAX`].
    pub max: NonZeroU32,
    /// How long to wait for the first one, up to [`LEASE_WAIT_MAX`]; zero asks once.
    pub wait: Duration,
}

/// The jobs that one [`lease`](Leasing::lease) gives, as long as its bounds allow more.
#[derive(Debug)]
pub struct Taking {
    max: usize,
    deliveries: Vec<Delivery>,
    bytes: u64,
    is_full: bool,
}

impl Taking {
    /// None yet, of at most `max`.
    #[must_use]
    pub fn up_to(max: usize) -> Self {
        Self { max, deliveries: Vec::new(), bytes: 0, is_full: max == 0 }
    }

    /// Whether a job with a payload of `size` bytes fits, which then counts. Once one does not, nothing more does: jobs keep their
    /// order.
    pub fn fits(&mut self, size: u64) -> bool {
        self.is_full |= self.bytes > 0 && self.bytes.saturating_add(size) > LEASE_BYTES_MAX;
        if !self.is_full {
            self.bytes = self.bytes.saturating_add(size);
        }
        !self.is_full
    }

    /// Adds a job, which [`fits`](Self::fits).
    pub fn push(&mut self, delivery: Delivery) {
        self.deliveries.push(delivery);
        self.is_full |= self.deliveries.len() >= self.max || self.bytes >= LEASE_BYTES_MAX;
    }

    /// How many jobs may still come, whatever their size.
    #[must_use]
    pub fn left(&self) -> usize {
        if self.is_full { 0 } else { self.max.saturating_sub(self.deliveries.len()) }
    }

    /// How many bytes the payloads have that fit so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// The jobs.
    #[must_use]
    pub fn take(self) -> Vec<Delivery> {
        self.deliveries
    }
}

/// A job handed to one worker under a lease.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The job, with its payload.
    pub job: Job,
    /// Names this delivery to the broker.
    pub receipt: Receipt,
    /// This attempt's number in the run, from 1. More than `max_attempts`: end it, don't start it.
    pub attempt: u32,
    /// When the broker handed it out, on the broker's wall clock.
    pub leased_at: Timestamp,
    /// How long it is held without a heartbeat, from the moment the lease was asked for.
    pub lease: Duration,
}

/// Names one delivery to its broker. Good for one lease: after it, every call with it is `LeaseLost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The job.
    pub job_id: JobId,
    /// The run.
    pub run_id: RunId,
    /// Whose job.
    pub client: ClientId,
    /// From which queue.
    pub queue: QueueName,
    /// The adapter's means to find the delivery again; at most 1 KiB; opaque to all others.
    #[serde(with = "serde_bytes")]
    pub token: Vec<u8>,
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The job is held for this much longer, from the moment the call was made.
    Until(Duration),
    /// The run ended without this worker: cancelled, expired, or finished by another attempt. Stop the handler,
    /// record nothing, settle `Complete`.
    Ended(Outcome),
}

/// How far a handler is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100, or `None` if the handler does not know.
    pub percent: Option<f32>,
    /// A line for people, at most 1 KiB; longer text is cut.
    pub message: String,
}

/// Whether a result became the run's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It did.
    First,
    /// The run, or a greater one, had ended before with this outcome: the new result was dropped.
    Superseded(Outcome),
}
