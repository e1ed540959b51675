//! Jobs that ended badly, with their payload and the reason, kept `dead_retention` for an operator.

use async_trait::async_trait;

use crate::contract::envelope::Extra;
use crate::contract::{Failure, Job, JobId, Outcome, QueueName, RunId, Timestamp};
use crate::error::BrokerError;
use crate::job_queue::Enqueued;

/// A job whose run ended `failed` or `exhausted`, as a worker hands it over and as an operator reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The job as it was in the run that ended, with its payload.
    pub job: Job,
    /// `Failed` or `Exhausted`.
    pub outcome: Outcome,
    /// The attempt that ended it.
    pub attempt: u32,
    /// Why.
    pub failure: Failure,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer writer, kept as they came.
    pub extra: Extra,
}

/// Lists, redrives and removes dead letters, over all clients.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Dead letters of `queue` (all queues if `None`), newest first, at most `limit` (1 to 1,000), older than run `before`.
    async fn list(
        &self,
        queue: Option<&QueueName>,
        before: Option<RunId>,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, BrokerError>;

    /// The newest dead letter of `job`, or `None`.
    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError>;

    /// Starts the run after the dead one, with a whole `job_ttl` before it, and removes the dead letter. Idempotent by
    /// generation: a second call finds the run that the first one started.
    ///
    /// # Errors
    /// `NotFound` if there is no dead letter of that run; `StateConflict` if the run succeeded after all.
    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError>;

    /// Removes the dead letter of a run for good. `false` if there was none.
    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError>;
}
