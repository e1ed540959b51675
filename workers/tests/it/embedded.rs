//! The worker runtime on the embedded broker: real jobs, real results.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Job, JobId, JobResult, Outcome};
use relay_bridge::policy::{QueuePolicy, RetryPolicy};
use relay_bridge::result_log::Lookup;
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_workers::{Attempt, Handler, Output, Worker, WorkerReport};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{config, done, handler, job};

const LONG: Duration = Duration::from_secs(60);

struct World {
    store: Embedded,
    broker: Broker,
}

impl World {
    async fn new(lease: Duration) -> Self {
        let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
        let broker = store.broker();
        let retry = RetryPolicy { base: Duration::from_millis(1), ..RetryPolicy::default() };
        let policy = QueuePolicy { retry, max_attempts: 3, lease, ..QueuePolicy::default() };
        broker.policies.put_policy(&"work".parse().unwrap(), &policy, None).await.unwrap();
        Self { store, broker }
    }

    async fn submit(&self, payload: &str) -> JobId {
        let mut job = job(payload);
        job.id = JobId::mint();
        job.key = None;
        self.broker.jobs.enqueue(job).await.unwrap().status().job_id
    }

    fn work(
        &self,
        handler: Arc<dyn Handler>,
        slots: u32,
        drain: Duration,
    ) -> (CancellationToken, JoinSet<WorkerReport>) {
        let worker = Worker::new(self.broker.leasing.clone(), handler, Clock::system(), config(slots, drain));
        let (shutdown, mut task) = (CancellationToken::new(), JoinSet::new());
        task.spawn(worker.run(shutdown.clone()));
        (shutdown, task)
    }

    async fn result(&self, job: JobId) -> JobResult {
        match self.broker.results.wait(&client(), job, LONG).await.unwrap() {
            Lookup::Finished(finished) => finished.result,
            other => panic!("no result: {other:?}"),
        }
    }
}

fn client() -> ClientId {
    "acme".parse().unwrap()
}

async fn stop((shutdown, mut task): (CancellationToken, JoinSet<WorkerReport>)) -> WorkerReport {
    shutdown.cancel();
    task.join_next().await.unwrap().unwrap()
}

#[tokio::test]
async fn every_job_ends_in_the_outcome_that_its_handler_decided() {
    let world = World::new(LONG).await;
    let mut jobs = Vec::new();
    for n in 0..200 {
        let kind = ["fine", "flaky", "bad", "hopeless"][n % 4];
        jobs.push((kind, world.submit(kind).await));
    }
    let handler = handler(|job: Job, context| async move {
        match &job.payload[..] {
            b"fine" => Attempt::Done(Output::new("text/plain", job.payload)),
            b"flaky" if context.attempt == 2 => Attempt::Done(Output::new("text/plain", job.payload)),
            b"bad" => Attempt::reject("bad", "never"),
            _ => Attempt::retry("not-yet", "later"),
        }
    });
    let worker = world.work(handler, 8, LONG);
    for (kind, job) in jobs {
        let result = world.result(job).await;
        let expected = match kind {
            "fine" => (Outcome::Succeeded, 1),
            "flaky" => (Outcome::Succeeded, 2),
            "bad" => (Outcome::Failed, 1),
            _ => (Outcome::Exhausted, 3),
        };
        assert_eq!((result.outcome, result.attempt), expected, "{kind}");
    }
    let report = stop(worker).await;
    assert_eq!((report.succeeded, report.failed, report.exhausted), (100, 50, 50));
    assert_eq!((report.started, report.retried), (50 + 100 + 50 + 150, 50 + 100));
    assert_eq!((report.superseded, report.leases_lost, report.unconfirmed, report.running()), (0, 0, 0, 0));
    assert_eq!(world.broker.dead_letters.list(None, None, None, 1_000).await.unwrap().letters.len(), 100);
    world.store.close().await;
}

#[tokio::test]
async fn cancelling_a_running_job_stops_its_handler() {
    let world = World::new(Duration::from_secs(3)).await;
    let (started, stopped) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let job = world.submit("x").await;
    let handler = handler({
        let (started, stopped) = (started.clone(), stopped.clone());
        move |_, context| {
            let (started, stopped) = (started.clone(), stopped.clone());
            async move {
                started.add_permits(1);
                context.cancelled().cancelled().await;
                stopped.add_permits(1);
                done()
            }
        }
    });
    let worker = world.work(handler, 1, LONG);
    started.acquire().await.unwrap().forget();
    world.broker.jobs.cancel(&client(), job).await.unwrap();
    stopped.acquire().await.unwrap().forget();
    let report = stop(worker).await;
    assert_eq!((report.ended_elsewhere, report.succeeded), (1, 0));
    assert_eq!(world.result(job).await.outcome, Outcome::Cancelled);
    world.store.close().await;
}

/// A handler that tells each attempt's number, and ends only if it is allowed to.
fn telling(tell: mpsc::Sender<u32>, ends: Arc<AtomicU32>) -> Arc<dyn Handler> {
    handler(move |_, context| {
        let (tell, ends) = (tell.clone(), ends.clone());
        async move {
            tell.send(context.attempt).await.unwrap();
            if ends.load(Ordering::SeqCst) == 0 {
                std::future::pending::<()>().await;
            }
            done()
        }
    })
}

#[tokio::test]
async fn a_drain_spends_no_attempt_and_a_crash_spends_one() {
    let world = World::new(Duration::from_secs(1)).await;
    let job = world.submit("x").await;
    let (tell, mut attempts) = mpsc::channel(8);
    let ends = Arc::new(AtomicU32::new(0));
    let drained = world.work(telling(tell.clone(), ends.clone()), 1, Duration::ZERO);
    assert_eq!(attempts.recv().await, Some(1));
    assert_eq!(stop(drained).await.handed_back, 1);

    let (_shutdown, mut crashed) = world.work(telling(tell.clone(), ends.clone()), 1, Duration::ZERO);
    assert_eq!(attempts.recv().await, Some(1), "the drain spent none");
    crashed.shutdown().await;

    ends.store(1, Ordering::SeqCst);
    let third = world.work(telling(tell, ends), 1, Duration::ZERO);
    assert_eq!(attempts.recv().await, Some(2), "the crash spent one");
    let result = world.result(job).await;
    assert_eq!((result.outcome, result.attempt), (Outcome::Succeeded, 2));
    stop(third).await;
    world.store.close().await;
}
