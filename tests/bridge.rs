//! The bridge from relay to relay, between two stores in memory: what comes back, what never happens twice, and what a
//! job that the target will not take ends as.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use relay::bridge::relay::{Mapping, RelayHandler};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, JobState, Outcome, QueueName, Submission};
use relay_bridge::embedded::{Embedded, EmbeddedConfig};
use relay_bridge::job_queue::JobFilter;
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::result_log::Lookup;
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Attempt, Context, Handler, QueueOrder, Worker, WorkerConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

async fn store(policy: QueuePolicy) -> Broker {
    let broker = Embedded::open(EmbeddedConfig::default()).await.unwrap().broker();
    broker.policies.put_policy(&queue(), &policy).await.unwrap();
    broker
}

fn queue() -> QueueName {
    "orders".parse().unwrap()
}

fn job(payload: impl Into<Bytes>) -> Job {
    let submission = Submission {
        client: "acme".parse().unwrap(),
        queue: queue(),
        key: None,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: [("relay-meta-tenant".to_owned(), "blue".to_owned())].into(),
        payload: payload.into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(&QueuePolicy { keep_keyless: true, ..QueuePolicy::default() }, Clock::system().now())
}

fn bridge(source: &Broker, target: &Broker) -> RelayHandler {
    RelayHandler::new(Arc::clone(&source.results), target.clone(), Clock::system(), Mapping::default())
}

fn context(cancel: &CancellationToken) -> Context {
    Context::detached(1, &QueuePolicy::default(), LONG, cancel.clone())
}

fn worker(broker: &Broker, name: &str, handler: Arc<dyn Handler>) -> Worker {
    let config = WorkerConfig {
        id: name.parse().unwrap(),
        queues: vec![(queue(), 1)],
        order: QueueOrder::Weighted,
        slots: NonZeroU32::new(16).unwrap(),
        drain: Duration::from_secs(5),
    };
    Worker::new(Arc::clone(&broker.leasing), handler, Clock::system(), config)
}

async fn at_target(target: &Broker) -> Vec<JobState> {
    let filter = JobFilter { queue: None, state: None, after: None, limit: 1000 };
    let listed = target.jobs.list(&"acme".parse().unwrap(), &filter).await.unwrap();
    listed.jobs.into_iter().map(|status| status.state).collect()
}

/// Waits until the target has a job: its worker is not there, so the first thing that can be seen is its record.
async fn arrived(target: &Broker) {
    let seen = async {
        while at_target(target).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, seen).await.unwrap();
}

/// Runs `count` jobs through two bridges and one worker at the target; every result must be the right one.
async fn run_through(count: u32, target_policy: QueuePolicy) -> u32 {
    let (source, target) = (store(QueuePolicy::default()).await, store(target_policy).await);
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let shout = function(move |job: Job, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, HandlerError>(String::from_utf8_lossy(&job.payload).to_uppercase()) }
    });
    let stop = CancellationToken::new();
    let mut workers = JoinSet::new();
    for (name, broker, handler) in [
        ("bridge-1", &source, Arc::new(bridge(&source, &target)) as Arc<dyn Handler>),
        ("bridge-2", &source, Arc::new(bridge(&source, &target))),
        ("target", &target, Arc::new(shout)),
    ] {
        let (worker, stop) = (worker(broker, name, handler), stop.clone());
        workers.spawn(async move { worker.run(stop).await });
    }
    let mut jobs = Vec::new();
    for n in 0..count {
        let job = job(format!("job {n}"));
        jobs.push((job.client.clone(), job.id));
        source.jobs.enqueue(job).await.unwrap();
    }
    for (n, (client, id)) in jobs.iter().enumerate() {
        let Lookup::Finished(finished) = source.results.wait(client, *id, LONG).await.unwrap() else {
            panic!("job {n} has no result");
        };
        assert_eq!(finished.result.outcome, Outcome::Succeeded, "{:?}", finished.result.failure);
        assert_eq!(finished.result.payload, format!("JOB {n}"));
    }
    stop.cancel();
    while workers.join_next().await.is_some() {}
    runs.load(Ordering::Relaxed)
}

#[tokio::test]
async fn every_job_is_done_once_at_the_target_and_its_result_comes_back() {
    assert_eq!(run_through(300, QueuePolicy::default()).await, 300);
}

#[tokio::test]
async fn a_target_that_takes_one_job_at_a_time_loses_none() {
    let client_defaults = ClientPolicy { max_queued: 1, ..ClientPolicy::default() };
    assert_eq!(run_through(12, QueuePolicy { client_defaults, ..QueuePolicy::default() }).await, 12);
}

#[tokio::test]
async fn a_second_attempt_finds_the_job_of_the_first_and_its_context() {
    let (source, target) = (store(QueuePolicy::default()).await, store(QueuePolicy::default()).await);
    let (first, second) = (bridge(&source, &target), bridge(&source, &target));
    let (job, cancel) = (job("x"), CancellationToken::new());
    let context = context(&cancel);
    let (_, _, ()) = tokio::join!(first.handle(&job, &context), second.handle(&job, &context), async {
        arrived(&target).await;
        cancel.cancel();
    });
    let filter = JobFilter { queue: None, state: None, after: None, limit: 10 };
    let listed = target.jobs.list(&job.client, &filter).await.unwrap().jobs;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].key.as_ref().unwrap().as_str(), job.run_id.to_string());
    assert_eq!(listed[0].headers, job.headers);
}

#[tokio::test]
async fn a_job_that_is_cancelled_at_the_source_is_cancelled_at_the_target() {
    let (source, target) = (store(QueuePolicy::default()).await, store(QueuePolicy::default()).await);
    let (job, cancel) = (job("x"), CancellationToken::new());
    source.jobs.enqueue(job.clone()).await.unwrap();
    let (handler, context) = (bridge(&source, &target), context(&cancel));
    tokio::join!(handler.handle(&job, &context), async {
        arrived(&target).await;
        source.jobs.cancel(&job.client, job.id).await.unwrap();
        cancel.cancel();
    });
    assert_eq!(at_target(&target).await, [JobState::Finished(Outcome::Cancelled)]);
}

#[tokio::test]
async fn a_bridge_that_drains_leaves_the_job_at_the_target_for_the_next_attempt() {
    let (source, target) = (store(QueuePolicy::default()).await, store(QueuePolicy::default()).await);
    let (job, cancel) = (job("x"), CancellationToken::new());
    source.jobs.enqueue(job.clone()).await.unwrap();
    let (handler, context) = (bridge(&source, &target), context(&cancel));
    let (attempt, ()) = tokio::join!(handler.handle(&job, &context), async {
        arrived(&target).await;
        cancel.cancel();
    });
    assert!(matches!(attempt, Attempt::Retry { .. }), "{attempt:?}");
    assert_eq!(at_target(&target).await, [JobState::Queued]);
}

#[tokio::test]
async fn what_the_target_will_never_take_fails_with_the_reason() {
    let source = store(QueuePolicy::default()).await;
    let small = store(QueuePolicy { payload_max: 3, ..QueuePolicy::default() }).await;
    let elsewhere = Mapping { client: None, queue: Some("nowhere".parse().unwrap()) };
    let unknown = RelayHandler::new(Arc::clone(&source.results), small.clone(), Clock::system(), elsewhere);
    for (handler, reason) in [(bridge(&source, &small), "payload-too-large"), (unknown, "unknown-queue")] {
        let attempt = handler.handle(&job("four"), &context(&CancellationToken::new())).await;
        let Attempt::Reject { failure } = attempt else { panic!("{attempt:?}") };
        assert_eq!(failure.reason, reason, "{}", failure.detail);
    }
    assert_eq!(at_target(&small).await, []);
}
