//! SQS and DynamoDB in real time: two emulators for all tests, a table and queues of its own for each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials as Keys, Region};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, JobId, Timestamp};
use relay_bridge::support::lock;
use relay_conformance::testing::AwsEmulator;
use relay_conformance::{Calls, Pace, newer_envelope};
use relay_sqs::config::{Credentials, SqsConfig};
use relay_sqs::{Settings, Sqs};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;

/// The emulators of all tests, each started by the first test that uses it. One of them keeps one core busy and no more, so
/// tests take turns.
static SHARED: [tokio::sync::Mutex<Option<Arc<AwsEmulator>>>; 2] = [const { tokio::sync::Mutex::const_new(None) }; 2];
/// How many tests have begun.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Tests at once, on a machine that does nothing else.
static AT_ONCE: Semaphore = Semaphore::const_new(20);
/// The calls of each column.
static CALLS: LazyLock<[Calls; 2]> = LazyLock::new(|| [Calls::new(24), Calls::new(24)]);
/// How long a call takes where the times below are long enough.
const ROUND_TRIP: Duration = Duration::from_millis(150);

/// Which kind of queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Standard queues.
    Standard,
    /// FIFO queues.
    Fifo,
}

impl Kind {
    /// The calls of its column.
    pub(crate) fn calls(self) -> &'static Calls {
        &CALLS[self as usize]
    }
}

/// A table of its own for each test, in an emulator that all share.
pub(crate) struct Fixture {
    emulator: Arc<AwsEmulator>,
    config: SqsConfig,
    kind: Kind,
    pace: Pace,
    /// Its place among the fixtures that the machine runs at once.
    _place: SemaphorePermit<'static>,
    sqs: Arc<Mutex<Sqs>>,
    clock: Clock,
    /// On FIFO queues a delay ends by the sweep, which a server runs all the time.
    _sweeping: JoinSet<()>,
}

impl Fixture {
    pub(crate) async fn open(kind: Kind) -> Self {
        let emulator = {
            let mut shared = SHARED[TURN.fetch_add(1, Ordering::Relaxed) % SHARED.len()].lock().await;
            match &*shared {
                Some(emulator) => emulator.clone(),
                None => shared.insert(Arc::new(AwsEmulator::start().await)).clone(),
            }
        };
        let place = AT_ONCE.acquire_many(kind.calls().weight(ROUND_TRIP)).await.unwrap();
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
        let broker = lock(&sqs).broker();
        let pace = kind.calls().pace(&broker, ROUND_TRIP).await;
        Self { emulator, config, kind, pace, _place: place, sqs, clock: Clock::system(), _sweeping: sweeping }
    }

    pub(crate) async fn close(&self) {
        self.sqs().close_by(tokio::time::Instant::now()).await;
    }

    fn sqs(&self) -> Sqs {
        lock(&self.sqs).clone()
    }
}

async fn keep_sweeping(sqs: Arc<Mutex<Sqs>>) {
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let jobs = lock(&sqs).broker().jobs;
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
impl relay_conformance::Fixture for Fixture {
    fn broker(&self) -> Broker {
        self.sqs().broker()
    }

    fn calls(&self) -> Option<&Calls> {
        Some(self.kind.calls())
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn lease(&self) -> Duration {
        // SQS hides messages for whole seconds.
        let lease = self.pace.of(Duration::from_secs(5));
        Duration::from_secs(lease.as_secs() + u64::from(lease.subsec_nanos() > 0))
    }

    fn slack(&self) -> Duration {
        self.pace.of(Duration::from_millis(1_600))
    }

    fn span(&self) -> u32 {
        10
    }

    fn edge(&self) -> Duration {
        self.slack()
    }

    fn patience(&self) -> Duration {
        self.kind.calls().now(Duration::from_millis(1_000), ROUND_TRIP)
    }

    async fn reopen(&self) -> bool {
        // The next process finds the state that a crash leaves: AWS itself goes on. The old process says no farewell;
        // messages that it received and nobody took come back when their time is over.
        let again = connect(&self.config).await;
        *lock(&self.sqs) = again;
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

/// Ends the emulators, after all tests: a static is never dropped.
pub(crate) fn stop_shared() {
    SHARED.iter().for_each(|shared| drop(shared.blocking_lock().take()));
}
