//! relay's side: the same work through the seams, and the servers that the benchmark starts as processes of their own.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use relay::auth::{Authenticator, Presented, Refused};
use relay::ingress::http::{Ingress, Limits, serve};
use relay::ingress::tcp::{WorkerAuth, WorkerGrant, serve_workers};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Job, JobResult, Submission, WorkerId};
use relay_bridge::leasing::{Delivery, LeaseRequest, Leasing};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings};
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Output, QueueOrder, Worker, WorkerConfig};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bare::WINDOW;
use crate::figures::Latencies;
use crate::support::load::{Connection, Server, listen};

/// Loops that lease, with as many slots together as the baseline's window.
const LOOPS: usize = 4;
/// A line that is new, or was away, is looked at more closely for a while: jobs of its first seconds do not count.
pub(crate) const WARM_UP: Duration = Duration::from_secs(4);
/// For a server on this machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// relay on a NATS server, with a queue `work` that takes any number of jobs.
pub(crate) struct Ours {
    nats: Nats,
    pub(crate) broker: Broker,
}

impl Ours {
    pub(crate) async fn open(url: &str) -> Self {
        let config = NatsConfig::new([url]);
        let nats = Nats::connect(config, Wait::AtMost(PATIENCE), Settings::default()).await.unwrap();
        let broker = nats.broker();
        broker.policies.put_policy(&"work".parse().unwrap(), &policy(), None).await.unwrap();
        Self { nats, broker }
    }

    pub(crate) async fn close(self) {
        drop(self.broker);
        self.nats.close().await;
    }

    /// Enqueues jobs under keys that are numbered from `first`.
    pub(crate) async fn publish(&self, first: u64, jobs: u64) {
        let (policy, clock) = (policy(), Clock::system());
        stream::iter(first..first + jobs)
            .map(|number| self.broker.jobs.enqueue(job(number, &policy, &clock)))
            .buffer_unordered(WINDOW)
            .for_each(async |enqueued| drop(enqueued.unwrap()))
            .await;
    }
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

/// Leases and finishes `jobs` jobs.
pub(crate) async fn work(leasing: Arc<dyn Leasing>, jobs: u64) {
    let left = Arc::new(AtomicU64::new(jobs));
    let mut loops = JoinSet::new();
    for _ in 0..LOOPS {
        loops.spawn(work_alone(Arc::clone(&leasing), Arc::clone(&left)));
    }
    loops.join_all().await;
}

/// One loop: as many leases as it has free slots, each finished in a task of its own.
async fn work_alone(leasing: Arc<dyn Leasing>, left: Arc<AtomicU64>) {
    let slots = Arc::new(Semaphore::new(WINDOW / LOOPS));
    let mut ends = JoinSet::new();
    while left.load(Ordering::Relaxed) > 0 {
        drop(slots.acquire().await.unwrap());
        let request = LeaseRequest {
            worker: worker(),
            queues: vec!["work".parse().unwrap()],
            max: NonZeroU32::new(slots.available_permits() as u32).unwrap(),
            wait: Duration::from_millis(20),
        };
        for delivery in leasing.lease(&request).await.unwrap() {
            let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
            let (leasing, left) = (Arc::clone(&leasing), Arc::clone(&left));
            ends.spawn(async move {
                finish(&*leasing, &delivery).await;
                left.fetch_sub(1, Ordering::Relaxed);
                drop(slot);
            });
        }
        while ends.try_join_next().is_some_and(|end| end.is_ok()) {}
    }
    ends.join_all().await;
}

async fn finish(leasing: &dyn Leasing, delivery: &Delivery) {
    let now = Clock::system().now();
    let end = End { attempt: delivery.attempt, started_at: Some(now), finished_at: now };
    let result = JobResult::succeeded(&delivery.job, end, "text/plain", Bytes::from_static(&[b'r'; 32]));
    leasing.record(&result).await.unwrap();
    leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
}

/// From the request with `Prefer: wait` until its answer, one at a time; an idle worker of relay's own runtime on a
/// connection of its own, and the server in a process of its own.
pub(crate) async fn round_trips(url: &str, rounds: u64) -> Latencies {
    let ours = Ours::open(url).await;
    let server = Server::start(&["serve-relay", url]);
    let config = WorkerConfig {
        id: worker(),
        queues: vec![("work".parse().unwrap(), 1)],
        order: QueueOrder::Strict,
        slots: NonZeroU32::MIN,
        drain: Duration::from_secs(5),
    };
    let handler =
        function(async |_, _| Ok::<_, HandlerError>(Output::new("text/plain", Bytes::from_static(&[b'r'; 32]))));
    let stop = CancellationToken::new();
    let worker = Worker::new(Arc::clone(&ours.broker.leasing), Arc::new(handler), Clock::system(), config);
    let mut running = JoinSet::new();
    running.spawn(worker.run(stop.clone()));

    let mut connection = Connection::open(server.address).await;
    let (mut taken, begun) = (Vec::new(), Instant::now());
    for number in 0_u64.. {
        let start = Instant::now();
        let status = connection.submit(&format!("prefer: wait=20\r\nidempotency-key: key-{number}\r\n")).await;
        assert_eq!(status, 200, "the result came in time");
        if begun.elapsed() > WARM_UP {
            taken.push(start.elapsed());
        }
        if taken.len() as u64 == rounds {
            break;
        }
    }
    stop.cancel();
    running.join_all().await;
    ours.close().await;
    Latencies::of(taken)
}

fn worker() -> WorkerId {
    "bench".parse().unwrap()
}

/// In a process of its own: relay's HTTP ingress on NATS.
pub(crate) async fn serve_http(url: &str) {
    let ours = Ours::open(url).await;
    let listener = listen().await;
    let ingress = Ingress::new(ours.broker, Authenticator::development(), Limits::default(), Clock::system());
    serve(vec![listener.into()], ingress, CancellationToken::new(), Duration::ZERO).await.unwrap();
}

/// In a process of its own: relay's listener for workers on NATS.
pub(crate) async fn serve_tcp(url: &str) {
    struct Anyone;
    impl WorkerAuth for Anyone {
        fn authorize<'a>(
            &'a self,
            _: &'a WorkerId,
            _: Option<&'a str>,
            _: Presented<'a>,
        ) -> BoxFuture<'a, Result<WorkerGrant, Refused>> {
            Box::pin(std::future::ready(Ok(WorkerGrant::default())))
        }
    }
    let ours = Ours::open(url).await;
    let leasing = Arc::clone(&ours.broker.leasing);
    serve_workers(listen().await, leasing, Arc::new(Anyone), CancellationToken::new(), Duration::ZERO).await.unwrap();
}
