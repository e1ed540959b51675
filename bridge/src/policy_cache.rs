//! The policies of queues, remembered for a second: each submission needs one, a policy changes rarely, and to ask the broker's
//! adapter costs something too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::contract::QueueName;
use crate::error::BrokerError;
use crate::policy::{PolicyStore, QueuePolicy};
use crate::support::lock;

const KEEP: Duration = Duration::from_secs(1);
/// Queues remembered at once. Only queues that exist are, so this is reached by relays with very many queues alone.
const QUEUES_MAX: usize = 10_000;

/// For how long the largest result of all queues is remembered: to ask for it costs more, and a result that is larger after
/// all is only counted late.
const KEEP_LARGEST: Duration = Duration::from_secs(10);

/// Policies as the adapter knew them within the last second, and within the sizes that the broker takes.
pub struct PolicyCache {
    store: Arc<dyn PolicyStore>,
    /// The largest payload of the broker, in bytes.
    payload_max: u64,
    clock: Clock,
    known: Mutex<HashMap<QueueName, (Arc<QueuePolicy>, Duration)>>,
    /// The largest `result_max`, and until when it is remembered.
    result_max: Mutex<Option<(u64, Duration)>>,
}

impl PolicyCache {
    /// An empty cache of the policies of `broker`, whose clock is `clock`.
    #[must_use]
    pub fn new(broker: &Broker, clock: Clock) -> Self {
        let (store, payload_max) = (Arc::clone(&broker.policies), broker.capabilities.payload_max);
        Self { store, payload_max, clock, known: Mutex::default(), result_max: Mutex::default() }
    }

    /// The policy of `queue` as [`PolicyStore::recent`] told it at most a second ago, or `None` if there is no such queue. Its
    /// `payload_max` and `result_max` are no more than the broker takes.
    ///
    /// # Errors
    /// The store's.
    pub async fn get(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        let now = self.clock.monotonic();
        if let Some((policy, until)) = lock(&self.known).get(queue)
            && now < *until
        {
            return Ok(Some(Arc::clone(policy)));
        }
        let policy = self.store.recent(queue).await?.map(|policy| self.within(policy));
        let mut known = lock(&self.known);
        match &policy {
            Some(policy) => {
                if known.len() >= QUEUES_MAX {
                    known.clear();
                }
                known.insert(queue.clone(), (Arc::clone(policy), now + KEEP));
            }
            None => {
                known.remove(queue);
            }
        }
        Ok(policy)
    }

    /// The largest `result_max` of all queues, as it was at most ten seconds ago.
    ///
    /// # Errors
    /// The store's, if it was never told.
    pub async fn result_max(&self) -> Result<u64, BrokerError> {
        let (now, known) = (self.clock.monotonic(), *lock(&self.result_max));
        if let Some((largest, until)) = known
            && now < until
        {
            return Ok(largest);
        }
        let largest = match (self.store.policies().await, known) {
            (Ok(policies), _) => policies.iter().map(|(_, policy)| policy.result_max).max().unwrap_or(0),
            (Err(_), Some((largest, _))) => largest,
            (Err(error), None) => return Err(error),
        };
        let largest = largest.min(self.payload_max);
        *lock(&self.result_max) = Some((largest, now + KEEP_LARGEST));
        Ok(largest)
    }

    fn within(&self, policy: Arc<QueuePolicy>) -> Arc<QueuePolicy> {
        match policy.payload_max.max(policy.result_max) > self.payload_max {
            true => Arc::new(Arc::unwrap_or_clone(policy).within(self.payload_max)),
            false => policy,
        }
    }
}
