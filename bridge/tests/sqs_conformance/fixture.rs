//! SQS and DynamoDB in real time: one emulator for all tests, a table and queues of its own for each.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials as Keys, Region};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::conformance::newer_envelope;
use relay_bridge::contract::{Job, JobId, Timestamp};
use relay_bridge::sqs::config::{Credentials, SqsConfig};
use relay_bridge::sqs::{Settings, Sqs};
use relay_bridge::testing::AwsEmulator;
use tokio::task::JoinSet;

/// The emulator of all tests; started by the first of them.
static SHARED: tokio::sync::Mutex<Option<Arc<AwsEmulator>>> = tokio::sync::Mutex::const_new(None);

/// Which kind of queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Standard queues.
    Standard,
    /// FIFO queues.
    Fifo,
}

/// A table of its own for each test, in an emulator that all share.
pub(crate) struct Fixture {
    emulator: Arc<AwsEmulator>,
    config: SqsConfig,
    /// By how much every span of time is longer than usual.
    stretch: u32,
    sqs: Arc<Mutex<Sqs>>,
    clock: Clock,
    /// On FIFO queues a delay ends by the sweep, which a server runs all the time.
    _sweeping: JoinSet<()>,
}

impl Fixture {
    pub(crate) async fn open(kind: Kind, stretch: u32) -> Self {
        let emulator = {
            let mut shared = SHARED.lock().await;
            match &*shared {
                Some(emulator) => emulator.clone(),
                None => shared.insert(Arc::new(AwsEmulator::start().await)).clone(),
            }
        };
        let unique: String = JobId::mint().to_string().chars().rev().take(10).collect();
        let config = SqsConfig {
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(emulator.url()),
            credentials: Credentials::keys("test", "test"),
            table: format!("relay-{unique}"),
            queue_prefix: format!("r-{unique}-"),
            fifo: kind == Kind::Fifo,
            ..SqsConfig::default()
        };
        let sqs = Arc::new(Mutex::new(connect(&config).await));
        let mut sweeping = JoinSet::new();
        if kind == Kind::Fifo {
            sweeping.spawn(keep_sweeping(sqs.clone()));
        }
        Self { emulator, config, stretch, sqs, clock: Clock::system(), _sweeping: sweeping }
    }

    pub(crate) async fn close(&self) {
        self.sqs().close().await;
    }

    fn sqs(&self) -> Sqs {
        self.sqs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn keep_sweeping(sqs: Arc<Mutex<Sqs>>) {
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let jobs = sqs.lock().unwrap_or_else(PoisonError::into_inner).broker().jobs;
        // Before the first queue there is nothing to sweep.
        drop(jobs.sweep(100).await);
    }
}

async fn connect(config: &SqsConfig) -> Sqs {
    // One clock for all, and a sweep whenever a test asks for it.
    let settings = Settings { skew: Duration::ZERO, sweep_every: Duration::ZERO, ..Settings::default() };
    Sqs::connect(config.clone(), settings).await.unwrap()
}

#[async_trait]
impl relay_bridge::conformance::Fixture for Fixture {
    fn broker(&self) -> Broker {
        self.sqs().broker()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn lease(&self) -> Duration {
        // SQS hides messages for whole seconds.
        Duration::from_secs(5) * self.stretch
    }

    fn slack(&self) -> Duration {
        Duration::from_millis(1_600) * self.stretch
    }

    fn span(&self) -> u32 {
        10
    }

    fn edge(&self) -> Duration {
        self.slack()
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(1_000) * self.stretch
    }

    async fn reopen(&self) -> bool {
        // What a crash of a process leaves to the next one: AWS itself goes on. The old one says no farewell; what it
        // received and nobody took comes back when its time is over.
        let again = connect(&self.config).await;
        *self.sqs.lock().unwrap_or_else(PoisonError::into_inner) = again;
        true
    }

    async fn make_newer(&self, job: &Job) -> bool {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("eu-central-1"))
            .endpoint_url(self.emulator.url())
            .credentials_provider(Keys::new("test", "test", None, None, "test"))
            .build();
        aws_sdk_dynamodb::Client::from_conf(config)
            .update_item()
            .table_name(&self.config.table)
            .key("pk", AttributeValue::S(format!("job#{}", job.id)))
            .key("sk", AttributeValue::S("record".to_owned()))
            .update_expression("SET #job = :job")
            .expression_attribute_names("#job", "job")
            .expression_attribute_values(":job", AttributeValue::B(Blob::new(newer_envelope(job).to_vec())))
            .send()
            .await
            .unwrap();
        true
    }
}

/// Ends the emulator, after all tests: a static is never dropped.
pub(crate) fn stop_shared() {
    drop(SHARED.blocking_lock().take());
}
