//! The policy of a queue, remembered for a second: a submission needs it before the body, it changes rarely, and to ask the
//! broker's adapter costs something too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::{PolicyStore, QueuePolicy};
use relay_bridge::support::lock;

const KEEP: Duration = Duration::from_secs(1);
/// Queues remembered at once. Only queues that exist are, so this is reached by relays with very many queues alone.
const QUEUES_MAX: usize = 10_000;

/// Policies as the adapter knew them within the last second.
pub(super) struct Policies {
    store: Arc<dyn PolicyStore>,
    clock: Clock,
    known: Mutex<HashMap<QueueName, (Arc<QueuePolicy>, Duration)>>,
}

impl Policies {
    pub(super) fn new(store: Arc<dyn PolicyStore>, clock: Clock) -> Self {
        Self { store, clock, known: Mutex::default() }
    }

    /// The policy of `queue`, or `None` if there is no such queue.
    pub(super) async fn get(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        let now = self.clock.monotonic();
        if let Some((policy, until)) = lock(&self.known).get(queue)
            && now < *until
        {
            return Ok(Some(Arc::clone(policy)));
        }
        let policy = self.store.recent(queue).await?;
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
}
