//! Acknowledges deliveries whose run has its result. Acknowledgements that come while another one is being confirmed go
//! together, and the last of them is confirmed for all.
//!
//! The server works off a connection's messages for one consumer in their order, so it has seen the others when it
//! answers the last. If one is lost all the same, because the connection broke in between, its delivery comes again, is
//! found to have its result, and is acknowledged then.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::stored::names::Lane;
use crate::wire::api::{Api, taken};
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::support::lock;

const ACK: Bytes = Bytes::from_static(b"+ACK");
/// The most that are confirmed together.
const TOGETHER_MAX: usize = 256;

pub(crate) type Consumer = (QueueName, Lane);

#[derive(Debug)]
pub(crate) struct Waiting {
    /// The subject on which the server takes answers to the delivery.
    reply: String,
    done: oneshot::Sender<Result<(), Failed>>,
}

/// A failure that is the same for all acknowledgements that went together.
#[derive(Clone, Debug)]
struct Failed(BrokerErrorKind, String);

/// Acknowledges deliveries.
pub(crate) struct Acks {
    pub(crate) api: Api,
    pub(crate) tasks: TaskTracker,
    /// The acknowledgements that wait, by consumer: an entry for each whose confirmation is awaited. Bounded by what is
    /// leased.
    pub(crate) waiting: Mutex<HashMap<Consumer, Vec<Waiting>>>,
}

impl Acks {
    /// Adds an acknowledgement. `true` if no task is at work for its consumer yet.
    fn add(&self, consumer: &Consumer, waiting: Waiting) -> bool {
        match self.all().entry(consumer.clone()) {
            Entry::Occupied(mut at_work) => {
                at_work.get_mut().push(waiting);
                false
            }
            Entry::Vacant(idle) => {
                idle.insert(vec![waiting]);
                true
            }
        }
    }

    /// The acknowledgements that go next. When none is left, no task is at work for the consumer any more.
    fn next(&self, consumer: &Consumer) -> Vec<Waiting> {
        let mut all = self.all();
        let Some(waiting) = all.get_mut(consumer) else { return Vec::new() };
        let taken: Vec<_> = waiting.drain(..waiting.len().min(TOGETHER_MAX)).collect();
        if taken.is_empty() {
            all.remove(consumer);
        }
        taken
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Consumer, Vec<Waiting>>> {
        lock(&self.waiting)
    }

    /// Acknowledges a delivery that came from `lane` and waits until the server confirmed it, or a later one of the same
    /// consumer.
    ///
    /// # Errors
    /// `Unavailable` if the consumer is gone; `Ambiguous` without an answer in time.
    pub(crate) async fn acknowledge(
        self: &Arc<Self>,
        queue: &QueueName,
        lane: &Lane,
        reply: &str,
        operation: &'static str,
    ) -> Result<(), BrokerError> {
        let consumer = (queue.clone(), lane.clone());
        let (done, confirmed) = oneshot::channel();
        if self.add(&consumer, Waiting { reply: reply.to_owned(), done }) {
            // By a task and not by the caller, which may go away while others wait for it.
            self.tasks.spawn(Arc::clone(self).acknowledge_all(consumer, operation));
        }
        let confirmed = confirmed
            .await
            .unwrap_or_else(|_| Err(Failed(BrokerErrorKind::Unavailable, "the adapter is being closed".to_owned())));
        confirmed.map_err(|Failed(kind, why)| BrokerError::new(kind, operation, why))
    }

    /// Sends the acknowledgements that wait for this consumer until none does.
    async fn acknowledge_all(self: Arc<Self>, consumer: Consumer, operation: &'static str) {
        loop {
            let mut waiting = self.next(&consumer);
            let Some(last) = waiting.pop() else { return };
            let mut sent = self.api.connection().up(operation);
            for Waiting { reply, .. } in &waiting {
                if sent.is_ok() {
                    sent = taken(self.api.client().publish(reply.clone(), ACK), operation).await;
                }
            }
            let confirmed = match sent {
                Ok(()) => {
                    self.api.answer(&last.reply, ACK, operation).await.map_err(|e| Failed(e.kind(), e.to_string()))
                }
                Err(error) => Err(Failed(BrokerErrorKind::Ambiguous, error.to_string())),
            };
            for Waiting { done, .. } in waiting.into_iter().chain([last]) {
                drop(done.send(confirmed.clone()));
            }
        }
    }
}
