//! A queue on the emulator, and processes that share it: each an adapter of its own, some behind a proxy.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials as Keys, Region};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{ClientId, Failure, Job, JobId, JobResult, Outcome, QueueName, Submission};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, LeaseRequest};
use relay_bridge::policy::QueuePolicy;
use relay_conformance::testing::AwsEmulator;
use relay_sqs::config::{Credentials, SqsConfig};
use relay_sqs::forward::Forward;
use relay_sqs::{Settings, Sqs};

/// Far longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A queue that no other test sees. Its emulator ends with it.
pub(crate) struct Stage {
    pub(crate) emulator: Arc<AwsEmulator>,
    config: SqsConfig,
    pub(crate) clock: Clock,
    pub(crate) queue: QueueName,
    pub(crate) policy: QueuePolicy,
    pub(crate) broker: Broker,
}

impl Stage {
    /// On the machine's clock.
    pub(crate) async fn open() -> Self {
        Self::at(Clock::system()).await
    }

    /// On a clock that a test moves; messages in SQS keep to real time.
    pub(crate) async fn at_a_clock_that_is_moved() -> Self {
        Self::at(Clock::manual(Clock::system().now())).await
    }

    /// On queues of the FIFO kind.
    pub(crate) async fn on_fifo() -> Self {
        Self::with(Clock::system(), true).await
    }

    async fn at(clock: Clock) -> Self {
        Self::with(clock, false).await
    }

    async fn with(clock: Clock, fifo: bool) -> Self {
        let emulator = Arc::new(AwsEmulator::start().await);
        let config = SqsConfig {
            fifo,
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(emulator.url()),
            credentials: Credentials::keys("test", "test"),
            ..SqsConfig::default()
        };
        let broker = connect(&config, &clock).await;
        let (queue, policy): (QueueName, _) = ("work".parse().unwrap(), QueuePolicy::default());
        broker.policies.put_policy(&queue, &policy, None).await.unwrap();
        Self { emulator, config, clock, queue, policy, broker }
    }

    /// Another process on the same table, which reaches AWS at `url`.
    pub(crate) async fn process(&self, url: String) -> Broker {
        connect(&SqsConfig { endpoint: Some(url), ..self.config.clone() }, &self.clock).await
    }

    /// The same, with settings that a test changes.
    pub(crate) async fn process_with(&self, url: String, change: impl FnOnce(&mut Settings)) -> Sqs {
        let mut settings = settings(&self.clock);
        change(&mut settings);
        Sqs::connect(SqsConfig { endpoint: Some(url), ..self.config.clone() }, settings).await.unwrap()
    }

    /// Another process, which sends results to queues of clients.
    pub(crate) async fn process_that_forwards(&self, url: String, forward: Vec<Forward>) -> Sqs {
        let config = SqsConfig { endpoint: Some(url), forward, ..self.config.clone() };
        Sqs::connect(config, settings(&self.clock)).await.unwrap()
    }

    pub(crate) fn client(&self) -> ClientId {
        "shop".parse().unwrap()
    }

    pub(crate) fn job(&self, key: Option<&str>) -> Job {
        self.job_of(key, "payload".into())
    }

    /// The same with this payload.
    pub(crate) fn job_of(&self, key: Option<&str>, payload: Vec<u8>) -> Job {
        let plain = Submission::plain(self.client(), self.queue.clone(), "text/plain", payload);
        Submission { key: key.map(|key| key.parse().unwrap()), ..plain }.accept(&self.policy, self.clock.now())
    }

    /// A new job in line.
    pub(crate) async fn submit(&self) -> Job {
        self.submit_payload("payload".into()).await
    }

    pub(crate) async fn submit_payload(&self, payload: Vec<u8>) -> Job {
        let job = self.job_of(Some(&JobId::mint().to_string()), payload);
        let enqueued = self.broker.jobs.enqueue(job.clone()).await.unwrap();
        assert!(matches!(enqueued, Enqueued::Created(_)), "{enqueued:?}");
        job
    }

    pub(crate) fn request(&self, max: u32, wait: Duration) -> LeaseRequest {
        LeaseRequest {
            worker: "worker-1".parse().unwrap(),
            queues: vec![self.queue.clone()],
            max: NonZeroU32::new(max).unwrap(),
            wait,
        }
    }

    /// The next delivery, which must come.
    pub(crate) async fn lease(&self, broker: &Broker) -> Delivery {
        let mut held = broker.leasing.lease(&self.request(1, PATIENCE)).await.unwrap();
        held.pop().expect("a job is in line")
    }

    /// Nothing is in line now.
    pub(crate) async fn assert_nothing_in_line(&self) {
        let held = self.broker.leasing.lease(&self.request(10, Duration::ZERO)).await.unwrap();
        assert!(held.is_empty(), "leased {held:?}");
    }

    pub(crate) fn success(&self, delivery: &Delivery) -> JobResult {
        let end =
            End { attempt: delivery.attempt, started_at: Some(delivery.leased_at), finished_at: self.clock.now() };
        JobResult::succeeded(&delivery.job, end, "text/plain", "done".into())
    }

    /// A failure whose payload is the handler's own output.
    pub(crate) fn failure(&self, delivery: &Delivery, detail: &str) -> JobResult {
        let failure = Some(Failure::new("exit-code", detail));
        JobResult { outcome: Outcome::Failed, failure, ..self.success(delivery) }
    }

    pub(crate) fn letter(&self, delivery: &Delivery) -> DeadLetter {
        DeadLetter {
            job: delivery.job.clone(),
            outcome: Outcome::Failed,
            failure: Failure::new("exit-code", "1"),
            attempt: delivery.attempt,
            at: self.clock.now(),
            extra: Default::default(),
        }
    }

    /// The places of everything that the table has of a job.
    pub(crate) async fn items_of(&self, job: &Job) -> Vec<String> {
        let call = self.dynamodb().query().table_name("relay").key_condition_expression("pk = :pk");
        let call = call.expression_attribute_values(":pk", AttributeValue::S(format!("job#{}", job.id)));
        let found = call.send().await.unwrap();
        found.items().iter().map(|item| item["sk"].as_s().unwrap().clone()).collect()
    }

    /// SQS without relay in between.
    pub(crate) fn sqs(&self) -> aws_sdk_sqs::Client {
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("eu-central-1"))
            .endpoint_url(self.emulator.url())
            .credentials_provider(Keys::new("test", "test", None, None, "test"))
            .build();
        aws_sdk_sqs::Client::from_conf(config)
    }

    /// DynamoDB without relay in between.
    pub(crate) fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::v2026_01_12())
            .region(aws_sdk_dynamodb::config::Region::new("eu-central-1"))
            .endpoint_url(self.emulator.url())
            .credentials_provider(Keys::new("test", "test", None, None, "test"))
            .build();
        aws_sdk_dynamodb::Client::from_conf(config)
    }

    /// How many messages are in the queue, hidden or not.
    pub(crate) async fn messages(&self) -> u64 {
        use aws_sdk_sqs::types::QueueAttributeName::{
            ApproximateNumberOfMessages as Seen, ApproximateNumberOfMessagesNotVisible as Hidden,
        };
        let suffix = if self.config.fifo { ".fifo" } else { "" };
        let name = format!("relay-{}{suffix}", self.queue);
        let url = self.sqs().get_queue_url().queue_name(name).send().await.unwrap().queue_url.unwrap();
        let call = self.sqs().get_queue_attributes().queue_url(url).attribute_names(Seen).attribute_names(Hidden);
        let counts = call.send().await.unwrap().attributes.unwrap();
        counts.values().map(|count| count.parse::<u64>().unwrap()).sum()
    }

    /// Puts a message into the queue that is none of relay's.
    pub(crate) async fn send_strange(&self, body: &str) {
        let client = self.sqs();
        let url = client.get_queue_url().queue_name(format!("relay-{}", self.queue)).send().await.unwrap();
        client.send_message().queue_url(url.queue_url().unwrap()).message_body(body).send().await.unwrap();
    }

    /// Removes every message from the queue, as if it had never been sent.
    pub(crate) async fn lose_all_messages(&self) {
        let client = self.sqs();
        let url = client.get_queue_url().queue_name(format!("relay-{}", self.queue)).send().await.unwrap();
        client.purge_queue().queue_url(url.queue_url().unwrap()).send().await.unwrap();
    }
}

/// How many of these are different: the SDK repeats a call that a busy machine answers late as it was.
pub(crate) fn distinct(all: impl IntoIterator<Item = serde_json::Value>) -> usize {
    all.into_iter().map(|one| one.to_string()).collect::<HashSet<_>>().len()
}

fn settings(clock: &Clock) -> Settings {
    Settings { clock: clock.clone(), skew: Duration::ZERO, sweep_every: Duration::ZERO, ..Settings::default() }
}

async fn connect(config: &SqsConfig, clock: &Clock) -> Broker {
    Sqs::connect(config.clone(), settings(clock)).await.unwrap().broker()
}
