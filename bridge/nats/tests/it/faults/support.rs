//! A queue on NATS, with clients that try again and workers that go on, as they do in production.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Cursor, Job, JobId, JobResult, QueueName, Submission};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, LeaseRequest, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Finished, ResultFilter, Start};
use relay_bridge::settlement::Settlement;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings, StreamSettings};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// One cluster at a time: three servers each.
pub(crate) static CLUSTERS: Mutex<()> = Mutex::const_new(());
/// Far longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client waits before it tries again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Calls in flight at once.
pub(crate) const AT_ONCE: usize = 64;
/// Jobs that a worker holds at once.
pub(crate) const SLOTS: u32 = 16;

/// One process's adapter, and the queue that all of them use.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) broker: Broker,
    pub(crate) queue: QueueName,
    pub(crate) policy: QueuePolicy,
    pub(crate) clock: Clock,
}

impl Stage {
    pub(crate) async fn open(url: &str, replicas: u8, policy: QueuePolicy) -> Self {
        Self::open_as(NatsConfig::new(url.split(',')), replicas, policy).await
    }

    pub(crate) async fn open_as(config: NatsConfig, replicas: u8, policy: QueuePolicy) -> Self {
        let streams = StreamSettings { replicas: replicas.try_into().unwrap(), ..StreamSettings::default() };
        let settings = Settings { streams, ..Settings::default() };
        let nats = Nats::connect(config, Wait::AtMost(PATIENCE), settings).await.unwrap();
        let (broker, queue): (_, QueueName) = (nats.broker(), "work".parse().unwrap());
        // On a busy machine a node of a new cluster may take another one for gone, or answer late.
        let put = || async {
            let seen = broker.policies.policy(&queue).await?;
            broker.policies.put_policy(&queue, &policy, seen.as_ref()).await
        };
        insist(put).await.unwrap();
        Self { broker, queue, policy, clock: Clock::system() }
    }

    pub(crate) fn job(&self, client: &str, key: &str) -> Job {
        let submission = Submission {
            client: client.parse().unwrap(),
            queue: self.queue.clone(),
            key: Some(key.parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: "payload".into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        submission.accept(&self.policy, self.clock.now())
    }

    /// Submits as a client does: again with the same key until it is answered.
    pub(crate) async fn submit(&self, client: &str, key: &str) -> Enqueued {
        insist(|| self.broker.jobs.enqueue(self.job(client, key))).await.unwrap()
    }

    /// Submits many, some at once. Their jobs, in the order of their numbers.
    pub(crate) async fn submit_many(&self, client: &str, name: &str, count: usize) -> Vec<JobId> {
        let submit = |number| async move { self.submit(client, &format!("{name}-{number}")).await.status().job_id };
        futures_util::stream::iter(0..count).map(submit).buffered(AT_ONCE).collect().await
    }

    pub(crate) async fn lease(&self, max: u32, wait: Duration) -> Vec<Delivery> {
        let request = LeaseRequest {
            worker: "worker-1".parse().unwrap(),
            queues: vec![self.queue.clone()],
            max: max.try_into().unwrap(),
            wait,
        };
        insist(|| self.broker.leasing.lease(&request)).await.unwrap()
    }

    pub(crate) fn success(&self, delivery: &Delivery, payload: impl Into<Bytes>) -> JobResult {
        let end = End { attempt: delivery.attempt, started_at: None, finished_at: self.clock.now() };
        JobResult::succeeded(&delivery.job, end, "text/plain", payload.into())
    }

    /// Records and settles, as a worker does: again until it is answered. A lease that ended meanwhile is no trouble.
    pub(crate) async fn succeed(&self, delivery: &Delivery, payload: impl Into<Bytes>) -> Recorded {
        let recorded = self.record(delivery, payload).await;
        self.settle(delivery).await;
        recorded
    }

    pub(crate) async fn record(&self, delivery: &Delivery, payload: impl Into<Bytes>) -> Recorded {
        let result = self.success(delivery, payload);
        insist(|| self.broker.leasing.record(&result)).await.unwrap()
    }

    pub(crate) async fn settle(&self, delivery: &Delivery) {
        let settled = insist(|| self.broker.leasing.settle(&delivery.receipt, &Settlement::Complete)).await;
        if let Err(error) = settled {
            assert_eq!(error.kind(), BrokerErrorKind::LeaseLost, "{error}");
        }
    }

    pub(crate) async fn succeed_all(&self, deliveries: &[Delivery]) {
        let mut successes = Vec::new();
        for delivery in deliveries {
            successes.push(self.succeed(delivery, "done"));
        }
        futures_util::future::join_all(successes).await;
    }

    /// Runs what is in line, until `count` jobs ran. The jobs, in the order of their deliveries.
    pub(crate) async fn run(&self, count: usize) -> Vec<JobId> {
        let mut ran = Vec::new();
        while ran.len() < count {
            let deliveries = self.lease(SLOTS, PATIENCE).await;
            assert!(!deliveries.is_empty(), "{} of {count} ran, and then nothing came", ran.len());
            self.succeed_all(&deliveries).await;
            ran.extend(deliveries.iter().map(|delivery| delivery.job.id));
        }
        ran
    }

    /// Workers that go on until the set is dropped.
    pub(crate) fn work(&self) -> JoinSet<()> {
        let stage = Arc::new(self.clone());
        let mut workers = JoinSet::new();
        workers.spawn(async move {
            loop {
                let deliveries = stage.lease(SLOTS, Duration::from_secs(5)).await;
                stage.succeed_all(&deliveries).await;
            }
        });
        workers
    }

    /// All that `client` reads from `start` on, and where it stopped.
    pub(crate) async fn read(&self, client: &str, start: Start) -> (Vec<Finished>, Cursor) {
        let (client, mut start, mut read) = (client.parse().unwrap(), start, Vec::new());
        loop {
            let page = insist(|| self.broker.results.page(&client, &start, &ResultFilter::ALL, 100, Duration::ZERO))
                .await
                .unwrap();
            assert_eq!(page.reset, None);
            if page.entries.is_empty() {
                return (read, page.next);
            }
            read.extend(page.entries);
            start = Start::After(page.next);
        }
    }
}

/// The answer, once the broker gives one that is not about itself.
async fn insist<T, C>(call: impl Fn() -> C) -> Result<T, BrokerError>
where
    C: Future<Output = Result<T, BrokerError>>,
{
    let answered = async {
        loop {
            match call().await {
                Err(error) if is_passing(&error) => sleep(AGAIN_AFTER).await,
                answer => return answer,
            }
        }
    };
    tokio::time::timeout(PATIENCE * 2, answered).await.expect("NATS answers again")
}

pub(crate) fn is_passing(error: &BrokerError) -> bool {
    use BrokerErrorKind::{Ambiguous, Overloaded, Unavailable};
    matches!(error.kind(), Unavailable | Ambiguous | Overloaded { .. })
}

/// The jobs of results, in their order.
pub(crate) fn jobs(read: &[Finished]) -> Vec<JobId> {
    read.iter().map(|entry| entry.result.job_id).collect()
}
