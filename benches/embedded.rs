//! The embedded broker beside a bare SQLite loop that writes the same rows, and beside itself at depth.
//!
//! `cargo bench --bench embedded`. Both sides: 128 producers that wait for the durable answer, 16 workers that lease 16
//! at a time, payloads of 256 bytes, one writer thread, one commit for whatever waits.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking and prints its figures"
)]

mod bare;
mod support;

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Job, JobResult, Submission};
use relay_bridge::embedded::{Embedded, EmbeddedConfig};
use relay_bridge::leasing::LeaseRequest;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use support::{Sample, measure, median, pairs, report};
use tempfile::TempDir;
use tokio::task::JoinSet;

const PRODUCERS: u64 = 128;
const WORKERS: u64 = 16;
const LEASED_AT_ONCE: u32 = 16;
const JOBS: u64 = 40_000;

#[tokio::main]
async fn main() {
    let mut cycles = Vec::new();
    for _ in 0..pairs() {
        let ours = ours(JOBS).await;
        cycles.push((ours, bare::cycle(JOBS, PRODUCERS, WORKERS, LEASED_AT_ONCE).await));
    }
    report("full cycle through the seam / bare SQLite", 0.6, &cycles);
    backlog().await;
}

async fn open(path: &Path) -> Embedded {
    let config = EmbeddedConfig { path: Some(path.to_owned()), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    let policy = policy();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &policy).await.unwrap();
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

async fn ours(jobs: u64) -> Sample {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    let broker = store.broker();
    let done = Arc::new(AtomicU64::new(0));
    let sample = measure(async {
        let mut tasks = JoinSet::new();
        produce(&mut tasks, &broker, 0, jobs);
        for _ in 0..WORKERS {
            tasks.spawn(work(broker.clone(), Arc::clone(&done), jobs));
        }
        tasks.join_all().await;
        jobs
    })
    .await;
    store.close().await;
    sample
}

fn produce(tasks: &mut JoinSet<()>, broker: &Broker, from: u64, jobs: u64) {
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

async fn work(broker: Broker, done: Arc<AtomicU64>, jobs: u64) {
    let request = LeaseRequest {
        worker: "w".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: NonZeroU32::new(LEASED_AT_ONCE).unwrap(),
        wait: Duration::from_millis(20),
    };
    let clock = Clock::system();
    while done.load(Ordering::Relaxed) < jobs {
        let deliveries = broker.leasing.lease(&request).await.unwrap();
        let mut ends = JoinSet::new();
        for delivery in deliveries {
            let (leasing, now) = (Arc::clone(&broker.leasing), clock.now());
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

/// Enqueueing and leasing with little waiting and with a million.
async fn backlog() {
    const STRETCH: u64 = 50_000;
    const DEEP: u64 = 1_000_000;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let broker = store.broker();
    let fill = async |from: u64, jobs: u64| {
        measure(async {
            let mut tasks = JoinSet::new();
            produce(&mut tasks, &broker, from, jobs);
            tasks.join_all().await;
            jobs
        })
        .await
    };
    let drain = async |jobs: u64| {
        let mut rates = Vec::new();
        let request = LeaseRequest {
            worker: "w".parse().unwrap(),
            queues: vec!["work".parse().unwrap()],
            max: NonZeroU32::MIN,
            wait: Duration::ZERO,
        };
        for _ in 0..5 {
            let sample = measure(async {
                let mut tasks = JoinSet::new();
                for _ in 0..WORKERS {
                    let (broker, request) = (broker.clone(), request.clone());
                    tasks.spawn(async move {
                        for _ in 0..jobs / WORKERS {
                            broker.leasing.lease(&request).await.unwrap();
                        }
                    });
                }
                tasks.join_all().await;
                jobs
            })
            .await;
            rates.push(sample.rate());
        }
        median(rates)
    };
    let shallow = fill(0, STRETCH).await;
    let shallow_lease = drain(2_000).await;
    let mut fills = vec![shallow];
    for filled in (STRETCH..DEEP).step_by(STRETCH as usize) {
        fills.push(fill(filled, STRETCH).await);
    }
    let deep_lease = drain(2_000).await;
    let ends = |figure: fn(&Sample) -> f64| {
        let of = |samples: &[Sample]| median(samples.iter().map(figure).collect());
        (of(&fills[..4]), of(&fills[fills.len() - 4..]))
    };
    let ((shallow, deep), (shallow_cpu, deep_cpu)) = (ends(Sample::rate), ends(Sample::cpu_us));
    println!(
        "enqueue, first and last 200,000 of a million        {shallow:>9.0}/s {deep:>9.0}/s | ratio {:.2}, by CPU {:.2} (goal >= 0.70)",
        deep / shallow,
        shallow_cpu / deep_cpu
    );
    println!(
        "lease one at a time, 40,000 and 990,000 waiting     {shallow_lease:>9.0}/s {deep_lease:>9.0}/s | ratio {:.2} (goal: within noise of 1)",
        deep_lease / shallow_lease
    );
    println!(
        "resident memory with a million waiting             {:>9.1} MiB",
        support::resident(std::process::id()) as f64 / 1048576.0
    );
    store.close().await;
    let start = Instant::now();
    let store = open(&path).await;
    println!("open with a million stored                         {:>9.1} ms", start.elapsed().as_secs_f64() * 1e3);
    store.close().await;
}
