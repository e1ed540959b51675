//! The bridge from relay to relay, between two stores in memory: the results that come back, the effects that never
//! happen twice, and the end of a job that the target will not take.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use relay::bridge::relay::{Mapping, RelayHandler};
use relay::bridge::stats::RelayReport;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{
    ClientId, Failure, Job, JobId, JobResult, JobState, Outcome, QueueName, RunId, Submission,
};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::JobFilter;
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, ResultLog, Start};
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Attempt, Context, Handler, Output, QueueOrder, Worker, WorkerConfig, WorkerReport};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Of the trace that every job belongs to.
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const LONG: Duration = Duration::from_secs(60);

async fn store(policy: QueuePolicy) -> Broker {
    let broker = Embedded::open(EmbeddedConfig::default()).await.unwrap().broker();
    broker.policies.put_policy(&queue(), &policy, None).await.unwrap();
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
        headers: [("relay-meta-tenant", "blue"), ("traceparent", TRACE)]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .into(),
        payload: payload.into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(&QueuePolicy { keep_keyless: true, ..QueuePolicy::default() }, Clock::system().now())
}

fn bridge(target: &Broker) -> RelayHandler {
    RelayHandler::new(target.clone(), Clock::system(), Mapping::default())
}

fn context(cancel: &CancellationToken) -> Context {
    Context::detached(1, &QueuePolicy::default(), LONG, cancel.clone())
}

fn worker_config(name: &str) -> WorkerConfig {
    WorkerConfig {
        id: name.parse().unwrap(),
        queues: vec![(queue(), 1)],
        order: QueueOrder::Weighted,
        slots: NonZeroU32::new(16).unwrap(),
        drain: Duration::from_secs(5),
    }
}

fn worker(broker: &Broker, name: &str, handler: Arc<dyn Handler>) -> Worker {
    Worker::new(Arc::clone(&broker.leasing), handler, Clock::system(), worker_config(name))
}

async fn at_target(target: &Broker) -> Vec<JobState> {
    let filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 1000 };
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
        ("bridge-1", &source, Arc::new(bridge(&target)) as Arc<dyn Handler>),
        ("bridge-2", &source, Arc::new(bridge(&target))),
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
    let target = store(QueuePolicy::default()).await;
    let (first, second) = (bridge(&target), bridge(&target));
    let (job, cancel) = (job("x"), CancellationToken::new());
    let context = context(&cancel);
    let (_, _, ()) = tokio::join!(first.handle(&job, &context), second.handle(&job, &context), async {
        arrived(&target).await;
        cancel.cancel();
    });
    let filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 10 };
    let listed = target.jobs.list(&job.client, &filter).await.unwrap().jobs;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].key.as_ref().unwrap().as_str(), job.run_id.to_string());
    let hops = [("relay-hops".to_owned(), "1".to_owned())];
    assert_eq!(listed[0].headers, job.headers.into_iter().chain(hops).collect());
}

#[tokio::test]
async fn a_job_that_came_over_eight_bridges_fails_with_the_reason() {
    let target = store(QueuePolicy::default()).await;
    let over = |hops: u32| {
        let mut job = job("x");
        job.headers.insert("relay-hops".to_owned(), hops.to_string());
        job
    };
    let attempt = bridge(&target).handle(&over(8), &context(&CancellationToken::new())).await;
    let Attempt::Reject { failure } = attempt else { panic!("{attempt:?}") };
    assert_eq!(failure.reason, "too-many-hops", "{}", failure.detail);
    assert_eq!(at_target(&target).await, []);
    let (eighth, cancel) = (over(7), CancellationToken::new());
    let (handler, context) = (bridge(&target), context(&cancel));
    tokio::join!(handler.handle(&eighth, &context), async {
        arrived(&target).await;
        cancel.cancel();
    });
}

#[tokio::test]
async fn a_job_that_the_target_does_not_take_ends_and_one_of_a_client_it_is_not_for_waits_for_an_operator() {
    let (job, cancel) = (job("x"), CancellationToken::new());
    let content_types = ["image/*".parse().unwrap()].into();
    let target = store(QueuePolicy { content_types, ..QueuePolicy::default() }).await;
    let attempt = bridge(&target).handle(&job, &context(&cancel)).await;
    assert!(
        matches!(&attempt, Attempt::Reject { failure } if failure.reason == "unsupported-media-type"),
        "{attempt:?}"
    );
    let allowed_clients = ["other".parse().unwrap()].into();
    let target = store(QueuePolicy { allowed_clients, ..QueuePolicy::default() }).await;
    let attempt = bridge(&target).handle(&job, &context(&cancel)).await;
    assert!(matches!(attempt, Attempt::HandBack { .. }), "{attempt:?}");
    assert!(at_target(&target).await.is_empty());
}

/// Runs `jobs` through a bridge to a target without a worker, until `then` has seen what it waits for.
async fn bridged(
    source_policy: QueuePolicy,
    target_policy: QueuePolicy,
    jobs: Vec<Job>,
    then: impl AsyncFnOnce(&Broker, &Broker),
) -> (WorkerReport, RelayReport) {
    let (source, target) = (store(source_policy).await, store(target_policy).await);
    for job in jobs {
        source.jobs.enqueue(job).await.unwrap();
    }
    let handler = Arc::new(bridge(&target));
    let (stats, stop) = (handler.stats(), CancellationToken::new());
    let config = WorkerConfig { drain: Duration::ZERO, ..worker_config("bridge") };
    let worker = Worker::new(Arc::clone(&source.leasing), handler, Clock::system(), config);
    let (report, ()) = tokio::join!(worker.run(stop.clone()), async {
        then(&source, &target).await;
        stop.cancel();
    });
    (report, stats.report())
}

#[tokio::test]
async fn a_client_at_its_limit_at_the_target_keeps_no_slot_from_the_others() {
    let one = ClientPolicy { max_queued: 1, ..ClientPolicy::default() };
    let limited = QueuePolicy { clients: [("acme".parse().unwrap(), one)].into(), ..QueuePolicy::default() };
    // More than there are slots.
    let jobs = (0..40).map(|n| job(format!("job {n}"))).collect();
    let other = Job { client: "other".parse().unwrap(), ..job("x") };
    let (report, _) = bridged(QueuePolicy::default(), limited, jobs, async |source, target| {
        while source.jobs.depth(&queue()).await.unwrap().leased < 16 {
            tokio::task::yield_now().await;
        }
        source.jobs.enqueue(other.clone()).await.unwrap();
        let filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 10 };
        let arrived = async {
            while target.jobs.list(&other.client, &filter).await.unwrap().jobs.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, arrived).await.unwrap();
        let depth = source.jobs.depth(&queue()).await.unwrap();
        assert_eq!(depth.waiting + depth.parked + depth.leased, 41, "nothing is lost: {depth:?}");
    })
    .await;
    assert_eq!((report.failed, report.exhausted, report.retried), (0, 0, 0), "nor is an attempt spent");
}

async fn finished(broker: &Broker, job: &Job) -> JobResult {
    let Lookup::Finished(finished) = broker.results.wait(&job.client, job.id, LONG).await.unwrap() else {
        panic!("{} has no result", job.id);
    };
    finished.result
}

#[tokio::test]
async fn a_job_that_is_cancelled_at_the_source_is_cancelled_at_the_target() {
    let job = job("x");
    let quick = QueuePolicy { lease: Duration::from_secs(3), ..QueuePolicy::default() };
    let (report, stats) = bridged(quick, QueuePolicy::default(), vec![job.clone()], async |source, target| {
        arrived(target).await;
        source.jobs.cancel(&job.client, job.id).await.unwrap();
        let there = JobId::derive(&job.client, &job.queue, &job.run_id.to_string().parse().unwrap());
        let Lookup::Finished(_) = target.results.wait(&job.client, there, LONG).await.unwrap() else {
            panic!("not cancelled");
        };
        assert_eq!(at_target(target).await, [JobState::Finished(Outcome::Cancelled)]);
    })
    .await;
    assert_eq!((report.ended_elsewhere, stats.cancelled), (1, 1));
}

#[tokio::test]
async fn a_bridge_that_drains_hands_back_without_an_attempt_and_the_target_goes_on() {
    let (source, target) = (store(QueuePolicy::default()).await, store(QueuePolicy::default()).await);
    let job = job("x");
    source.jobs.enqueue(job.clone()).await.unwrap();
    for round in 0..3 {
        let (handler, stop) = (Arc::new(bridge(&target)), CancellationToken::new());
        let stats = handler.stats();
        let config = WorkerConfig { drain: Duration::ZERO, ..worker_config("bridge") };
        let worker = Worker::new(Arc::clone(&source.leasing), handler, Clock::system(), config);
        let (report, ()) = tokio::join!(worker.run(stop.clone()), async {
            while stats.report().created + stats.report().found == 0 {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        });
        assert_eq!(report.handed_back, 1, "{report:?}");
        assert_eq!(stats.report().created, u64::from(round == 0), "one job, whichever replica submits it");
        assert_eq!(at_target(&target).await, [JobState::Queued]);
        let status = source.jobs.status(&job.client, job.id).await.unwrap().unwrap();
        assert_eq!((status.state, status.attempt), (JobState::Queued, 0));
    }
}

#[tokio::test]
async fn the_run_at_the_source_ends_as_it_ended_at_the_target() {
    let worker_at_target = |target: &Broker, attempt: Attempt| {
        let handler = Arc::new(Returns(attempt));
        worker(target, "target", handler)
    };
    let failure = || Failure::new("broken", "as the handler said");
    let table = [
        (Attempt::Reject { failure: failure() }, Outcome::Failed, "broken"),
        (Attempt::Retry { failure: failure(), after: None }, Outcome::Exhausted, "broken"),
        (Attempt::Expired { failure: failure() }, Outcome::Expired, "broken"),
        (Attempt::Cancelled { failure: failure() }, Outcome::Cancelled, "broken"),
    ];
    for (attempt, outcome, reason) in table {
        let job = job("x");
        let once = QueuePolicy { max_attempts: 1, ..QueuePolicy::default() };
        let (report, _) = bridged(QueuePolicy::default(), once, vec![job.clone()], async |source, target| {
            let stop = CancellationToken::new();
            let ((), _) = tokio::join!(
                async {
                    let result = finished(source, &job).await;
                    assert_eq!((result.outcome, result.attempt), (outcome, 1));
                    let failure = result.failure.unwrap();
                    assert_eq!(failure.reason, reason);
                    assert!(failure.detail.ends_with("as the handler said"), "{}", failure.detail);
                    let letters = source.dead_letters.list(None, None, None, 10).await.unwrap();
                    let dead = matches!(outcome, Outcome::Failed | Outcome::Exhausted);
                    assert_eq!(letters.letters.len(), usize::from(dead), "{outcome}");
                    stop.cancel();
                },
                worker_at_target(target, attempt).run(stop.clone())
            );
        })
        .await;
        assert_eq!(report.retried, 0, "what ended there is not tried again: {outcome}");
    }
}

/// A handler whose every attempt goes the same way.
struct Returns(Attempt);

#[async_trait::async_trait]
impl Handler for Returns {
    async fn handle(&self, _: &Job, _: &Context) -> Attempt {
        self.0.clone()
    }
}

/// Results of which nothing is known at the first look.
struct Forgetful {
    results: Arc<dyn ResultLog>,
    looks: AtomicU32,
}

#[async_trait::async_trait]
impl ResultLog for Forgetful {
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        self.results.lookup(client, job).await
    }

    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        match self.looks.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(Lookup::Absent),
            _ => self.results.wait(client, job, wait).await,
        }
    }

    async fn wait_ahead(
        &self,
        _: &ClientId,
        _: JobId,
        _: RunId,
        _: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        Ok(None)
    }

    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        self.results.page(client, from, filter, limit, wait).await
    }
}

#[tokio::test]
async fn a_job_that_the_target_forgot_is_submitted_again() {
    let target = store(QueuePolicy::default()).await;
    let results = Arc::new(Forgetful { results: Arc::clone(&target.results), looks: AtomicU32::new(0) });
    let handler = bridge(&Broker { results, ..target.clone() });
    let (stop, cancel) = (CancellationToken::new(), CancellationToken::new());
    let done = Arc::new(Returns(Attempt::Done(Output::new("text/plain", "done"))));
    let (attempt, _) = tokio::join!(
        async {
            let attempt = handler.handle(&job("x"), &context(&cancel)).await;
            stop.cancel();
            attempt
        },
        worker(&target, "target", done).run(stop.clone())
    );
    assert_eq!(attempt, Attempt::Done(Output::new("text/plain", "done")));
    assert_eq!(handler.stats().report().submitted_again, 1);
}

#[tokio::test]
async fn a_payload_that_the_target_never_takes_fails_with_the_reason() {
    let small = store(QueuePolicy { payload_max: 3, ..QueuePolicy::default() }).await;
    let attempt = bridge(&small).handle(&job("four"), &context(&CancellationToken::new())).await;
    let Attempt::Reject { failure } = attempt else { panic!("{attempt:?}") };
    assert_eq!(failure.reason, "payload-too-large", "{}", failure.detail);
    assert_eq!(at_target(&small).await, []);
}

#[tokio::test]
async fn a_queue_that_is_missing_at_the_target_costs_no_job_an_attempt() {
    let target = store(QueuePolicy::default()).await;
    let elsewhere = Mapping { client: None, queues: [(queue(), "nowhere".parse().unwrap())].into() };
    let handler = RelayHandler::new(target.clone(), Clock::system(), elsewhere);
    let attempt = handler.handle(&job("x"), &context(&CancellationToken::new())).await;
    assert!(matches!(attempt, Attempt::HandBack { after } if after > Duration::ZERO), "{attempt:?}");
}

#[tokio::test]
async fn a_source_that_gives_a_job_of_another_queue_gets_it_into_none_of_the_target() {
    let target = store(QueuePolicy::default()).await;
    let mail: QueueName = "mail".parse().unwrap();
    let mapping = Mapping { client: None, queues: [(mail.clone(), mail)].into() };
    let handler = RelayHandler::new(target.clone(), Clock::system(), mapping);
    let (job, context) = (job("x"), context(&CancellationToken::new()));
    let attempt = tokio::select! {
        attempt = handler.handle(&job, &context) => attempt,
        () = arrived(&target) => panic!("the bridge forwards another queue"),
    };
    assert!(matches!(attempt, Attempt::HandBack { .. }), "{attempt:?}");
    assert!(at_target(&target).await.is_empty());
}
