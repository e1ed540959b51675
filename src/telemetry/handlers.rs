//! How long the attempts took that ended runs, by queue. Queues are the operator's and few: only those that a result was
//! recorded in are here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use relay_bridge::contract::QueueName;
use relay_bridge::histogram::{Buckets, Histogram};

use super::LATENCIES;

/// A histogram for each queue.
#[derive(Debug, Default)]
pub(super) struct Handlers(RwLock<HashMap<QueueName, Arc<Histogram>>>);

impl Handlers {
    /// Adds an attempt that took so many microseconds.
    pub(super) fn add(&self, queue: &QueueName, micros: u64) {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(queue).cloned();
        let histogram = known.unwrap_or_else(|| {
            let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(queue.clone()).or_insert_with(|| Arc::new(Histogram::new(LATENCIES))))
        });
        histogram.add(micros);
    }

    /// The counts, in the order of names.
    pub(super) fn read(&self) -> BTreeMap<QueueName, Buckets> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(queue, histogram)| (queue.clone(), histogram.read())).collect()
    }
}
