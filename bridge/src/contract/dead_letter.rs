//! Dead letters.

use super::extra::Extra;
use super::{Failure, IdempotencyKey, Job, Outcome, Timestamp};

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

impl DeadLetter {
    /// Whether its job's key begins with `prefix`. Without a prefix each letter counts.
    #[must_use]
    pub fn has_key_prefix(&self, prefix: Option<&str>) -> bool {
        IdempotencyKey::begins_with(self.job.key.as_ref(), prefix)
    }
}
