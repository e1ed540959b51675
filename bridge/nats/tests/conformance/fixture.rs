//! The NATS broker in real time: a server for each test, or one cluster for all that don't crash it.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::jetstream::stream::DirectGetErrorKind;
use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, QueueName, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::policy::{PolicyStore, QueuePolicy};
use relay_bridge::support::lock;
use relay_conformance::testing::{NatsCluster, NatsServer};
use relay_conformance::{Calls, Pace, newer_envelope};
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::names::{Address, jobs_stream};
use relay_nats::{Nats, Settings, StreamSettings};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The tests that stop the broker, on three nodes: each has a cluster of its own.
const CRASHING: &[&str] =
    &["a_replay_is_answered_after_the_first_write_is_durable", "the_same_result_again_is_the_first_one"];
const CRASHING_WORDS: &str = "survive_a_crash_of_the_broker";

/// The cluster of all tests that don't stop it; started by the first of them.
static SHARED: tokio::sync::Mutex<Option<Arc<NatsCluster>>> = tokio::sync::Mutex::const_new(None);
/// Clusters at once, beside the shared one: three servers each.
static CLUSTERS: Semaphore = Semaphore::const_new(1);
/// Tests at once on the shared cluster: each stream and each consumer is a group of its own, which its servers keep up.
static SHARES: Semaphore = Semaphore::const_new(14);

/// Tests at once, on a machine that does nothing else.
static AT_ONCE: Semaphore = Semaphore::const_new(40);
/// Streams that are made at once.
static CREATING: Semaphore = Semaphore::const_new(2);

/// The calls of each column. The servers of one are in the way of the others: their times are alike.
static CALLS: LazyLock<[Calls; 3]> = LazyLock::new(|| [Calls::new(64), Calls::new(64), Calls::new(48)]);
/// How long a call takes where the times below are long enough.
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// How many servers a test's broker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// One.
    One,
    /// One, and queues have one line for all clients.
    OneWithoutTurns,
    /// Three, and three copies of everything.
    Three,
}

impl Nodes {
    /// The calls of its column.
    pub(crate) fn calls(self) -> &'static Calls {
        &CALLS[self as usize]
    }
}

enum Servers {
    One(NatsServer),
    Three(NatsCluster, #[expect(dead_code, reason = "held")] SemaphorePermit<'static>),
    Shared(Arc<NatsCluster>, #[expect(dead_code, reason = "held")] SemaphorePermit<'static>),
}

impl Servers {
    fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(),
            Self::Three(cluster, _) => cluster.url(),
            Self::Shared(cluster, _) => cluster.url(),
        }
    }
}

/// A broker of its own for each test; the servers may be shared.
pub(crate) struct Fixture {
    servers: tokio::sync::Mutex<Servers>,
    nodes: Nodes,
    pace: Pace,
    /// Its part of what the machine does at once.
    _place: SemaphorePermit<'static>,
    nats: Mutex<Nats>,
    clock: Clock,
    /// The queues that are to be deleted when the test is over.
    queues: Arc<Queues>,
}

impl Fixture {
    pub(crate) async fn open(nodes: Nodes, promise: &str) -> Self {
        let servers = match nodes {
            Nodes::One | Nodes::OneWithoutTurns => Servers::One(NatsServer::start().await),
            Nodes::Three if promise.contains(CRASHING_WORDS) || CRASHING.contains(&promise) => {
                let permit = CLUSTERS.acquire().await.unwrap();
                Servers::Three(NatsCluster::start(3).await, permit)
            }
            Nodes::Three => {
                let permit = SHARES.acquire().await.unwrap();
                let mut shared = SHARED.lock().await;
                let cluster = match &*shared {
                    Some(cluster) => Arc::clone(cluster),
                    None => Arc::clone(shared.insert(Arc::new(NatsCluster::start(3).await))),
                };
                Servers::Shared(cluster, permit)
            }
        };
        let place = AT_ONCE.acquire_many(nodes.calls().weight(ROUND_TRIP)).await.unwrap();
        let nats = connect(&servers.url(), nodes).await;
        let pace = nodes.calls().pace(&nats.broker(), ROUND_TRIP).await;
        Self {
            servers: tokio::sync::Mutex::new(servers),
            nodes,
            pace,
            _place: place,
            nats: Mutex::new(nats),
            clock: Clock::system(),
            queues: Arc::default(),
        }
    }

    /// Leaves nothing on servers that others use.
    pub(crate) async fn close(&self) {
        if let servers @ Servers::Shared(..) = &*self.servers.lock().await {
            let client = async_nats::connect(servers.url().split(',').next().unwrap()).await.unwrap();
            let jetstream = async_nats::jetstream::new(client);
            let queues = std::mem::take(&mut *self.queues.lock());
            for queue in queues {
                // Best effort: a queue that is left slows the others down, and fails none of them.
                jetstream.delete_stream(jobs_stream(&queue)).await.ok();
            }
        }
        self.nats().close().await;
    }

    fn nats(&self) -> Nats {
        lock(&self.nats).clone()
    }
}

async fn connect(url: &str, nodes: Nodes) -> Nats {
    let replicas = if nodes == Nodes::Three { 3 } else { 1 };
    let streams = StreamSettings { replicas: replicas.try_into().unwrap(), ..StreamSettings::default() };
    let (config, settings) = (NatsConfig::new(url.split(',')), Settings { streams, ..Settings::default() });
    Nats::connect(config, Wait::AtMost(Duration::from_secs(30)), settings).await.unwrap()
}

#[async_trait]
impl relay_conformance::Fixture for Fixture {
    fn broker(&self) -> Broker {
        let mut broker = self.nats().broker();
        let turns = self.nodes != Nodes::OneWithoutTurns;
        broker.policies = Arc::new(Noting { queues: self.queues.clone(), policies: broker.policies, turns });
        // Of its queues, whatever the adapter could do.
        broker.capabilities.fair &= turns;
        broker
    }

    fn calls(&self) -> Option<&Calls> {
        Some(self.nodes.calls())
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn lease(&self) -> Duration {
        // The smallest that a busy machine of two cores keeps.
        let lease = match self.nodes {
            Nodes::One | Nodes::OneWithoutTurns => Duration::from_secs(3),
            Nodes::Three => Duration::from_secs(4),
        };
        self.pace.of(lease)
    }

    fn slack(&self) -> Duration {
        let slack = match self.nodes {
            Nodes::One | Nodes::OneWithoutTurns => Duration::from_millis(900),
            Nodes::Three => Duration::from_millis(1_300),
        };
        self.pace.of(slack)
    }

    fn span(&self) -> u32 {
        10
    }

    fn edge(&self) -> Duration {
        self.slack()
    }

    fn patience(&self) -> Duration {
        let patience = match self.nodes {
            Nodes::One | Nodes::OneWithoutTurns => Duration::from_millis(500),
            Nodes::Three => Duration::from_secs(1),
        };
        self.nodes.calls().now(patience, ROUND_TRIP)
    }

    async fn reopen(&self) -> bool {
        let mut servers = self.servers.lock().await;
        let nats = self.nats();
        match &mut *servers {
            Servers::One(server) => {
                server.kill();
                nats.close().await;
                server.restart().await;
            }
            Servers::Three(cluster, _) => {
                cluster.crash().await;
                nats.close().await;
            }
            Servers::Shared(..) => panic!("this test stops the broker: it must be among CRASHING"),
        }
        let again = connect(&servers.url(), self.nodes).await;
        agreed(&servers.url()).await;
        *lock(&self.nats) = again;
        true
    }

    async fn replace(&self) -> bool {
        let again = connect(&self.servers.lock().await.url(), self.nodes).await;
        let before = std::mem::replace(&mut *lock(&self.nats), again);
        before.close().await;
        true
    }

    async fn make_newer(&self, job: &Job) -> bool {
        let url = self.servers.lock().await.url();
        let client = async_nats::connect(url.split(',').next().unwrap()).await.unwrap();
        let jetstream = async_nats::jetstream::new(client);
        let (stream, address) = (jobs_stream(&job.queue), Address::new(&job.queue, &job.client, job.id));
        let stream = jetstream.get_stream(stream).await.unwrap();
        let record = stream.get_last_raw_message_by_subject(&address.anywhere()).await.unwrap();
        jetstream.publish(record.subject, newer_envelope(job)).await.unwrap().await.unwrap();
        true
    }
}

/// Waits until every stream answers and every consumer has a leader: servers are up before their groups have voted.
async fn agreed(url: &str) {
    let servers: Vec<async_nats::ServerAddr> = url.split(',').map(|url| url.parse().unwrap()).collect();
    let jetstream = async_nats::jetstream::new(async_nats::connect(servers).await.unwrap());
    let all = async {
        while has_leaders(&jetstream).await.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("the servers agree within a minute");
}

async fn has_leaders(jetstream: &async_nats::jetstream::Context) -> Option<()> {
    let streams: Vec<_> = jetstream.stream_names().try_collect().await.ok()?;
    for name in streams {
        let stream = jetstream.get_stream(&name).await.ok()?;
        // Replicas answer reads later than the leader.
        match stream.direct_get_last_for_subject("relay.nothing").await {
            Err(error) if error.kind() != DirectGetErrorKind::NotFound => return None,
            _ => {}
        }
        let consumers: Vec<_> = stream.consumer_names().try_collect().await.ok()?;
        for name in consumers {
            stream.consumer_info(&name).await.ok()?;
        }
    }
    Some(())
}

/// The queues that a test made.
#[derive(Default)]
struct Queues(Mutex<BTreeSet<QueueName>>);

impl Queues {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<QueueName>> {
        lock(&self.0)
    }
}

/// Notes which queues a test makes.
struct Noting {
    queues: Arc<Queues>,
    policies: Arc<dyn PolicyStore>,
    /// Whether clients have turns.
    turns: bool,
}

#[async_trait]
impl PolicyStore for Noting {
    async fn policy(&self, queue: &QueueName) -> Result<Option<QueuePolicy>, BrokerError> {
        self.policies.policy(queue).await
    }

    async fn recent(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        self.policies.recent(queue).await
    }

    async fn policies(&self) -> Result<Vec<(QueueName, QueuePolicy)>, BrokerError> {
        self.policies.policies().await
    }

    async fn put_policy(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
        seen: Option<&QueuePolicy>,
    ) -> Result<(), BrokerError> {
        self.queues.lock().insert(queue.clone());
        // A cluster that is asked for many streams at once answers none of them in time.
        let _turn = CREATING.acquire().await.unwrap();
        let one_line = QueuePolicy { fair: self.turns && policy.fair, ..policy.clone() };
        // A policy with shares, for a promise about them, needs turns.
        let policy = if one_line.shares_without_turns().is_empty() { &one_line } else { policy };
        self.policies.put_policy(queue, policy, seen).await
    }

    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<(), BrokerError> {
        self.policies.set_paused(queue, paused).await
    }
}

/// Ends the shared cluster, after all tests: a static is never dropped.
pub(crate) fn stop_shared() {
    drop(SHARED.blocking_lock().take());
}
