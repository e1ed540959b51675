//! Lists and sweeps on a real server: what they read, and what they pass over.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::time::Duration;

use futures_util::StreamExt as _;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{JobId, QueueName, Submission};
use relay_bridge::job_queue::{JobFilter, Listed};
use relay_bridge::nats::config::NatsConfig;
use relay_bridge::nats::connection::Wait;
use relay_bridge::nats::{Nats, Settings};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::testing::NatsServer;

const CONNECT: Duration = Duration::from_secs(30);
/// Calls in flight at once.
const AT_ONCE: usize = 64;

struct Stage {
    server: NatsServer,
    broker: Broker,
    queue: QueueName,
    policy: QueuePolicy,
    clock: Clock,
}

impl Stage {
    async fn open() -> Self {
        let server = NatsServer::start().await;
        let clock = Clock::manual(Clock::system().now());
        let settings = Settings { clock: clock.clone(), ..Settings::default() };
        let nats = Nats::connect(NatsConfig::new([server.url()]), Wait::AtMost(CONNECT), settings).await.unwrap();
        let stage = Self {
            server,
            broker: nats.broker(),
            queue: "work".parse().unwrap(),
            policy: QueuePolicy::default(),
            clock,
        };
        stage.broker.policies.put_policy(&stage.queue, &stage.policy).await.unwrap();
        stage
    }

    async fn submit(&self, client: &str, key: Option<String>, payload: Vec<u8>) -> JobId {
        let submission = Submission {
            client: client.parse().unwrap(),
            queue: self.queue.clone(),
            key: key.map(|key| key.parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: payload.into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        let enqueued = self.broker.jobs.enqueue(submission.accept(&self.policy, self.clock.now())).await.unwrap();
        enqueued.status().job_id
    }

    async fn submit_many(&self, client: &str, count: usize, size: usize) -> Vec<JobId> {
        let submit = |number| self.submit(client, Some(format!("{client}-{number}")), vec![7; size]);
        futures_util::stream::iter(0..count).map(submit).buffered(AT_ONCE).collect().await
    }

    async fn list(&self, client: &str, after: Option<JobId>, limit: u32) -> Listed {
        let filter = JobFilter { queue: None, state: None, after, limit };
        self.broker.jobs.list(&client.parse().unwrap(), &filter).await.unwrap()
    }

    /// How many bytes the server has sent so far.
    async fn sent(&self) -> u64 {
        self.server.monitor("/varz").await.unwrap()["out_bytes"].as_u64().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_list_reads_little_more_than_what_is_on_it_wherever_it_is() {
    const JOBS: usize = 600;
    const SIZE: usize = 32 * 1024;
    let stage = Stage::open().await;
    let mut jobs = stage.submit_many("acme", JOBS, SIZE).await;
    stage.submit_many("other", 3_000, 0).await;
    let (mut listed, mut after, mut most) = (Vec::new(), None, 0);
    loop {
        let before = stage.sent().await;
        let page = stage.list("acme", after, 10).await;
        most = most.max(stage.sent().await - before);
        assert!(page.jobs.len() <= 10 && page.jobs.iter().all(|job| job.size == SIZE as u64));
        listed.extend(page.jobs.iter().map(|job| job.job_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    // What is on a page has 320 KiB, all jobs 19 MiB; a read brings a MiB.
    assert!(most < 4 * 1024 * 1024, "a page of 10 took {most} bytes");
    assert_eq!(listed.len(), JOBS);
    listed.sort();
    jobs.sort();
    assert!(listed == jobs, "each job is on one page");
}
