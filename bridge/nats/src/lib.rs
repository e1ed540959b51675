//! The NATS JetStream broker, 2.12 or newer. A job's record and its place in line are one message; every change of it is
//! one write under a condition on its whole address.
//!
//! # Layout
//!
//! - [`names`]: streams, consumers, subjects. `record`: a record as a message. `api` and `batch`: JetStream calls as relay
//!   needs them; `requests`, `alone` and `refusal`: how they are sent, asked once for many, and refused.
//! - [`config`]: what a person configures. [`connection`]: one connection that comes back; `link`: what is known about it;
//!   `version`: which servers are too old.
//! - Submitting: `jobs` (the capability), `enqueue`, `find` (a record, wherever it is), `cancel`, `list`, `sweep` and `look_back`,
//!   which go by what is `remembered`.
//! - Working: `leasing` (the capability); `line`, what this process knows of a queue; `places`, how many jobs it may take; `turns`, of which
//!   lane; `pulls` and `ready`, how they come; `hints`, `listening` and `rounds`, how it learns of them; `order` and `consumers`. `deliver`:
//!   from a message to a delivery; `receipt`; `settle`, `acks` and `park`: how it ends; `state`: what is held.
//! - Reading: `results`, `entry` (a result as a message), `follow`, `waiting`, by `subscriptions` that waiters share. `dead_letters`; `letters`, which of them are kept; `redrive`.
//! - The connection: [`config`], what a person configures; [`connection`], which comes back by itself; `link`, how it stands;
//!   `version`, which servers are too old.
//! - Operating: `streams` (as values), `stream_api` (asking the server for them), `policy` (in a stream's metadata),
//!   `policy_changes`, `provision`, `estimate` (the memory and disk that a queue will take), `admission` (whether storage takes new jobs), by `storage` (what
//!   is used) and `bookings` (what this process adds).
//!
//! # What repairs a crash
//!
//! `docs/decisions/0010-nats-layout.md` has the table: crash point, what repairs it, which test shows it.

pub mod config;
mod jobs;
mod leases;
mod line;
mod operate;
mod records;
mod results;
mod stored;
mod wire;

pub use crate::operate::estimate::{Estimate, ExpectedLoad, estimate};
pub use crate::stored::names;
pub use crate::stored::streams::StreamSettings;
pub use crate::wire::connection;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use crate::jobs::storage_limit::Admission;
use crate::jobs::sweep::Sweeping;
use crate::leases::acks::Acks;
use crate::line::lanes::Consumers;
use crate::line::line::Line;
use crate::line::places::Places;
use crate::records::find::Queues;
use crate::records::held::Holding;
use crate::records::policies::Policies;
use crate::results::follow::Positions;
use crate::wire::api::Api;
use crate::wire::connection::{Connection, Wait};
use config::NatsConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::results::waiting::Waits;

use relay_bridge::broker::{Broker, Capabilities, Durability};
use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::error::BrokerError;
use relay_bridge::newer_jobs::NewerJobs;

/// What holds for all of an adapter's work.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The envelope version that is written.
    pub wire_version: WireVersion,
    /// The clock of deadlines and retention. Leases and waits run on the machine's monotonic clock.
    pub clock: Clock,
    /// How streams are kept.
    pub streams: StreamSettings,
}

/// A connected adapter. Clones share it.
#[derive(Clone)]
pub struct Nats(Arc<Inner>);

/// What all parts of the adapter share.
struct Inner {
    api: Api,
    settings: Settings,
    /// How often the rules corrected or refused what a worker said.
    rule_counts: Arc<relay_bridge::rules::Counts>,
    policies: Arc<Policies>,
    /// Whether it hears of changes of all of them.
    hears_of_policies: AtomicBool,
    admission: Admission,
    positions: Positions,
    waits: Waits,
    /// Grows whenever announcements may have been missed.
    missed: watch::Receiver<u64>,
    payload_max: u64,
    /// How streams are kept, as far as they were looked at.
    kept: Mutex<Kept>,
    line: LineState,
    newer_jobs: Arc<NewerJobs>,
    /// Every task that the adapter spawned, for [`Nats::close`].
    tasks: TaskTracker,
    /// Cancelled when the adapter is being closed.
    closing: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The tasks of an adapter that nobody closed end too, and with them its connection.
        self.closing.cancel();
    }
}

/// How several streams are kept.
#[derive(Clone, Copy)]
struct Kept {
    replicas_least: usize,
    replicas_most: usize,
    /// Whether one of them is in the servers' memory.
    memory: bool,
}

impl Kept {
    fn by(replicas: usize, memory: bool) -> Self {
        Self { replicas_least: replicas, replicas_most: replicas, memory }
    }

    fn and(self, other: Self) -> Self {
        Self {
            replicas_least: self.replicas_least.min(other.replicas_least),
            replicas_most: self.replicas_most.max(other.replicas_most),
            memory: self.memory || other.memory,
        }
    }
}

/// What the line's side keeps in this process.
struct LineState {
    holding: Holding,
    acks: Acks,
    consumers: Consumers,
    queues: Queues,
    waiting: crate::jobs::enqueue::Waiting,
    sweeping: Sweeping,
    /// The queues of which this process leases.
    lines: tokio::sync::Mutex<HashMap<QueueName, Arc<Line>>>,
    /// How many jobs of these may be on their way.
    places: Mutex<Places>,
    /// Where leases that nobody took are handed back, whoever drops them.
    runtime: tokio::runtime::Handle,
}

impl Nats {
    /// Connects, waiting as `wait` says, and opens the adapter.
    ///
    /// # Errors
    /// As [`Connection::open`] and [`Self::open`].
    pub async fn connect(config: NatsConfig, wait: Wait, settings: Settings) -> Result<Self, BrokerError> {
        Self::open(Connection::open(config, wait).await?, settings).await
    }

    /// An adapter on a connection.
    ///
    /// # Errors
    /// `Unavailable` if the connection is closed.
    pub async fn open(connection: Connection, settings: Settings) -> Result<Self, BrokerError> {
        let payload_max = payload_max(connection.client().server_info().max_payload);
        let api = Api::new(connection).await?;
        let policies = Arc::new(Policies::new(api.clone(), settings.streams.clone(), payload_max));
        let kept = Kept::by(usize::from(settings.streams.replicas.get()), settings.streams.memory);
        let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
        let missed = api.connection().missed();
        let line = LineState {
            holding: Holding::default(),
            acks: Acks::default(),
            consumers: Consumers::default(),
            queues: Queues::default(),
            waiting: crate::jobs::enqueue::Waiting::default(),
            sweeping: Sweeping::default(),
            lines: tokio::sync::Mutex::default(),
            places: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        };
        let inner = Arc::new(Inner {
            api,
            settings,
            rule_counts: Arc::default(),
            policies,
            hears_of_policies: AtomicBool::new(false),
            admission: Admission::default(),
            positions: Positions::default(),
            waits: Waits::default(),
            missed,
            payload_max,
            kept: Mutex::new(kept),
            line,
            newer_jobs: Arc::default(),
            tasks,
            closing,
        });
        inner.tasks.spawn(crate::records::held::keep_telling(Arc::downgrade(&inner)));
        inner.tasks.spawn(crate::records::hints::keep_hinting(inner.api.clone(), inner.closing.clone()));
        Ok(Self(inner))
    }

    /// The capabilities, all of them backed by this connection.
    #[must_use]
    pub fn broker(&self) -> Broker {
        let this = Arc::new(self.clone());
        Broker {
            capabilities: Capabilities {
                adapter: "nats",
                payload_max: self.payload_max(),
                durability: self.durability(),
                lease_lost_certain: false,
                fair: true,
                one_line: true,
            },
            jobs: this.clone(),
            leasing: this.clone(),
            results: this.clone(),
            dead_letters: this.clone(),
            policies: self.0.policies.clone(),
            provision: this,
            counts: self.0.rule_counts.clone(),
        }
    }

    /// What an accepted job survives in the streams as they were found by `Provision::apply` or
    /// [`Self::check_provisioned`], before that in new ones. Whether servers flush before they confirm can't be asked of
    /// them.
    fn durability(&self) -> Durability {
        let kept = self.kept();
        self.connection().config().durability(kept.replicas_least, kept.memory)
    }

    fn kept(&self) -> Kept {
        *self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_kept(&self, kept: Kept) {
        *self.0.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    /// Ends all waits and joins every task. Leases that nobody took are handed back first.
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.api.connection().close().await;
    }

    /// The jobs that this adapter hands back because a newer relay wrote them.
    #[must_use]
    pub fn newer_jobs(&self) -> Arc<NewerJobs> {
        Arc::clone(&self.0.newer_jobs)
    }

    /// The connection: how it stands, and what went wrong.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.0.api.connection()
    }

    fn api(&self) -> &Api {
        &self.0.api
    }

    fn holding(&self) -> &Holding {
        &self.0.line.holding
    }

    fn rule_counts(&self) -> &relay_bridge::rules::Counts {
        &self.0.rule_counts
    }

    fn consumers(&self) -> &Consumers {
        &self.0.line.consumers
    }

    fn policies(&self) -> &Policies {
        &self.0.policies
    }

    fn admission(&self) -> &Admission {
        &self.0.admission
    }

    fn positions(&self) -> &Positions {
        &self.0.positions
    }

    fn waits(&self) -> &Waits {
        &self.0.waits
    }

    /// Changes when announcements may have been missed from now on.
    fn missed(&self) -> watch::Receiver<u64> {
        let mut missed = self.0.missed.clone();
        missed.mark_unchanged();
        missed
    }

    fn closing(&self) -> &CancellationToken {
        &self.0.closing
    }

    fn payload_max(&self) -> u64 {
        self.0.payload_max
    }

    fn clock(&self) -> &Clock {
        &self.0.settings.clock
    }

    fn wire(&self) -> WireVersion {
        self.0.settings.wire_version
    }
}

/// What is left of the server's `max_payload` for a payload or a result: the rest is for headers and envelopes, a dead
/// letter's two included.
fn payload_max(server: usize) -> u64 {
    const RESERVED: usize = 64 * 1024;
    u64::try_from(server.saturating_sub(RESERVED)).unwrap_or(u64::MAX)
}
