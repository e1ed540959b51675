//! Which workers ask this process for jobs, as far as it sees them: workers that lease from the broker themselves it does
//! not see.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use relay_bridge::contract::{QueueName, WorkerId};
use relay_bridge::leasing::LeaseRequest;
use relay_bridge::support::lock;

/// Workers that are remembered. Each asks every 20 s or so, so this many is far more than one process serves.
const WORKERS_MAX: usize = 4_096;
/// How long a worker is remembered after it asked last: several times the longest it waits in one call.
const FORGET_AFTER: Duration = Duration::from_secs(180);

/// The workers that asked lately.
#[derive(Debug, Default)]
pub struct WorkersSeen(Mutex<HashMap<WorkerId, Seen>>);

/// The facts that are known of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The queues that it named last, most wanted first.
    pub queues: Vec<QueueName>,
    /// When it asked last, on the monotonic clock.
    pub asked_at: Duration,
    /// Jobs that it was given.
    pub leased: u64,
}

impl WorkersSeen {
    /// A worker asks for jobs.
    pub(super) fn asks(&self, request: &LeaseRequest, now: Duration) {
        let mut workers = lock(&self.0);
        if workers.len() >= WORKERS_MAX && !workers.contains_key(&request.worker) {
            workers.retain(|_, seen| now.saturating_sub(seen.asked_at) < FORGET_AFTER);
            if workers.len() >= WORKERS_MAX {
                return;
            }
        }
        let seen = workers.entry(request.worker.clone()).or_default();
        seen.asked_at = now;
        if seen.queues != request.queues {
            seen.queues.clone_from(&request.queues);
        }
    }

    /// It was given `jobs`.
    pub(super) fn given(&self, worker: &WorkerId, jobs: u64) {
        if let Some(seen) = lock(&self.0).get_mut(worker) {
            seen.leased += jobs;
        }
    }

    /// Those that asked within the last three minutes, by name.
    #[must_use]
    pub fn lately(&self, now: Duration) -> Vec<(WorkerId, Seen)> {
        let mut workers = lock(&self.0);
        workers.retain(|_, seen| now.saturating_sub(seen.asked_at) < FORGET_AFTER);
        let mut all: Vec<_> = workers.iter().map(|(worker, seen)| (worker.clone(), seen.clone())).collect();
        drop(workers);
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_worker_that_asks_no_more_is_forgotten() {
        let workers_seen = WorkersSeen::default();
        let request = |worker: &str| LeaseRequest {
            worker: worker.parse().unwrap(),
            queues: vec!["mail".parse().unwrap()],
            max: NonZeroU32::MIN,
            wait: Duration::ZERO,
        };
        workers_seen.asks(&request("a"), Duration::ZERO);
        workers_seen.asks(&request("b"), FORGET_AFTER);
        workers_seen.given(&"b".parse().unwrap(), 3);
        let lately = workers_seen.lately(FORGET_AFTER);
        let names: Vec<_> = lately.iter().map(|(worker, seen)| (worker.as_str(), seen.leased)).collect();
        assert_eq!(names, [("b", 3)]);
    }
}
