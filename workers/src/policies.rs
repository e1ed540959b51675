//! Queue policies as the broker has them, kept for a few seconds, so that a change applies live without a call per job.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::Leasing;
use relay_bridge::policy::QueuePolicy;
use tokio::time::Instant;

use crate::retry::{CALL_MAX, answered};
use relay_bridge::support::lock;

/// How old a policy may be before it is read again.
pub(crate) const FRESH: Duration = Duration::from_secs(3);

/// The cache. It holds one entry per queue that the worker serves.
pub(crate) struct Policies {
    leasing: Arc<dyn Leasing>,
    known: Mutex<BTreeMap<QueueName, Known>>,
}

#[derive(Clone)]
struct Known {
    policy: Arc<QueuePolicy>,
    read_at: Instant,
}

impl Policies {
    pub(crate) fn new(leasing: Arc<dyn Leasing>) -> Self {
        Self { leasing, known: Mutex::default() }
    }

    /// The policy, at most [`FRESH`] old while the broker answers; the last one known while it does not.
    ///
    /// # Errors
    /// The broker's, if the policy was never read.
    pub(crate) async fn get(&self, queue: &QueueName) -> Result<Arc<QueuePolicy>, BrokerError> {
        let stale = {
            let mut known = lock(&self.known);
            match known.get_mut(queue) {
                Some(entry) if entry.read_at.elapsed() < FRESH => return Ok(entry.policy.clone()),
                // Callers that come while this one is reading take the old policy: one call, not one per slot.
                Some(entry) => {
                    entry.read_at = Instant::now();
                    Some(entry.policy.clone())
                }
                None => None,
            }
        };
        match (answered("queue policy", CALL_MAX, self.leasing.queue_policy(queue)).await, stale) {
            (Ok(policy), _) => Ok(self.keep(queue, policy)),
            (Err(error), Some(policy)) => {
                tracing::debug!(%queue, %error, "policy not read, the last one stands");
                Ok(policy)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The policy as it was last read, of whatever age; read now if it never was.
    pub(crate) async fn last_known(&self, queue: &QueueName) -> Result<Arc<QueuePolicy>, BrokerError> {
        let known = lock(&self.known).get(queue).cloned();
        match known {
            Some(entry) => Ok(entry.policy),
            None => self.get(queue).await,
        }
    }

    fn keep(&self, queue: &QueueName, policy: QueuePolicy) -> Arc<QueuePolicy> {
        let policy = Arc::new(policy);
        let entry = Known { policy: policy.clone(), read_at: Instant::now() };
        lock(&self.known).insert(queue.clone(), entry);
        policy
    }
}
