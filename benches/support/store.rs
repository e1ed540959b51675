//! A store on disk with one queue, producers that fill it and workers that finish its jobs.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Job, JobResult, Submission};
use relay_bridge::leasing::{LeaseRequest, Leasing};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_embedded::{Embedded, EmbeddedConfig};
use tokio::task::JoinSet;

/// Producers that wait for the durable answer, at a time.
pub const PRODUCERS: u64 = 128;
/// Workers that lease, at a time.
pub const WORKERS: u64 = 16;
/// Jobs that a worker leases at once.
pub const LEASED_AT_ONCE: u32 = 16;

/// Opens a store that takes any number of jobs in its queue `work`.
pub async fn open(path: &Path) -> Embedded {
    let config = EmbeddedConfig { path: Some(path.to_owned()), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &policy(), None).await.unwrap();
    store
}

fn policy() -> QueuePolicy {
    let mut policy = QueuePolicy::default();
    policy.client_defaults.max_queued = u64::MAX >> 1;
    policy
}

fn job(number: u64, policy: &QueuePolicy, clock: &Clock) -> Job {
    let submission = Submission {
        client: "bench".parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: Some(format!("key-{number}").parse().unwrap()),
        content_type: "application/json".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: Bytes::from(vec![b'x'; 256]),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(policy, clock.now())
}

/// Starts producers that enqueue `jobs` jobs, whose keys are numbered from `from`.
pub fn produce(tasks: &mut JoinSet<()>, broker: &Broker, from: u64, jobs: u64) {
    let next = Arc::new(AtomicU64::new(from));
    for _ in 0..PRODUCERS {
        let (broker, next) = (broker.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            let (policy, clock) = (policy(), Clock::system());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= from + jobs {
                    break;
                }
                broker.jobs.enqueue(job(number, &policy, &clock)).await.unwrap();
            }
        });
    }
}

/// Leases and finishes jobs until all workers that share `done` have finished `jobs`.
pub async fn work(leasing: Arc<dyn Leasing>, done: Arc<AtomicU64>, jobs: u64) {
    let request = LeaseRequest {
        worker: "w".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: NonZeroU32::new(LEASED_AT_ONCE).unwrap(),
        wait: Duration::from_millis(20),
    };
    let clock = Clock::system();
    while done.load(Ordering::Relaxed) < jobs {
        let deliveries = leasing.lease(&request).await.unwrap();
        let mut ends = JoinSet::new();
        for delivery in deliveries {
            let (leasing, now) = (Arc::clone(&leasing), clock.now());
            let done = Arc::clone(&done);
            ends.spawn(async move {
                let end = End { attempt: delivery.attempt, started_at: Some(now), finished_at: now };
                let result = JobResult::succeeded(&delivery.job, end, "text/plain", Bytes::from_static(&[b'r'; 32]));
                leasing.record(&result).await.unwrap();
                leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        ends.join_all().await;
    }
}
