//! Creating what a broker needs before the first job: apart from the data plane, because it has other credentials.

use async_trait::async_trait;

use crate::contract::QueueName;
use crate::error::BrokerError;
use crate::policy::QueuePolicy;

/// Compares what is wanted with what there is, and makes it so.
#[async_trait]
pub trait Provision: Send + Sync {
    /// What `apply` would change for these queues, in order; empty if nothing.
    async fn plan(&self, queues: &[(QueueName, QueuePolicy)]) -> Result<Vec<Change>, BrokerError>;

    /// Makes it so, and says what it changed. Idempotent. Queues that are not named are left alone.
    ///
    /// # Errors
    /// `StateConflict` if a change is destructive and `force` is not set: nothing was changed.
    async fn apply(&self, queues: &[(QueueName, QueuePolicy)], force: bool) -> Result<Vec<Change>, BrokerError>;
}

/// One difference between what is wanted and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The queue.
    pub queue: QueueName,
    /// What differs, from what to what: `retention: 24h -> 1h`.
    pub what: String,
    /// Whether it can shorten what a client relies on; then it needs `force`.
    pub destructive: bool,
}
