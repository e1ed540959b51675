//! The adapter for NATS JetStream (nats-server 2.12 or newer). One message is both a job's record and its place in
//! line. Each change of a job is one conditional write, and the condition covers the job's whole address: every subject
//! on which its record may be.
//!
//! # Layout
//!
//! From the top layer down. A file uses files of its own layer and below, with two exceptions: `wire` uses `stored` as
//! well, and `jobs` one constant of `operate`. No files use each other in a circle, and only this file and `compose`
//! know all parts.
//!
//! - This file: the adapter and its capabilities. `compose`: builds the parts. [`config`]: the settings that a person
//!   writes. `closing`: ends the tasks of an adapter that nobody closed.
//! - `operate`: for operators: dead letters and their redrive, provisioning, estimates.
//! - `jobs`: for submitters: submissions and what bounds them, reruns, cancels, lists, and the sweep.
//! - `leases`: for workers: rounds, hints, pulls, deliveries, and how they end.
//! - `results`: for readers: waiting for one result, and reading a client's results in order.
//! - `line`: decides whose job is next: a queue as one process sees it, its lanes and their turns.
//! - `records`: the stored state of jobs: records, result entries, dead letters, timers, policies; and the deliveries
//!   that this process holds.
//! - `stored`: the layout of data at the server: [`names`], messages, streams. No I/O.
//! - `wire`: access to NATS: the [`connection`], requests, calls of JetStream.
//!
//! # What repairs a crash
//!
//! `docs/decisions/0010-nats-layout.md` has the table: crash point, what repairs it, which test shows it.

mod closing;
mod compose;
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

use std::sync::Arc;
use std::time::Duration;

use crate::config::NatsConfig;
use crate::wire::connection::{Connection, Wait};
use tokio_util::task::TaskTracker;

use crate::closing::Alive;
use crate::jobs::Jobs;
use crate::leases::Leases;
use crate::operate::dead_letters::Operator;
use crate::operate::provision::Provisioning;
use crate::records::policies::Policies;
use crate::results::Results;
use crate::stored::kept::{Copies, Kept};
use crate::wire::api::Api;
use relay_bridge::broker::{Broker, Capabilities, Durability, LoadSight};
use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::error::BrokerError;
use relay_bridge::newer_jobs::NewerJobs;

/// Settings that apply to everything an adapter does.
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
pub struct Nats(Arc<Parts>);

/// The parts of the adapter that [`Nats`] itself uses: the capabilities, and the handles that end them.
struct Parts {
    api: Api,
    kept: Arc<Kept>,
    payload_max: u64,
    rule_counts: Arc<relay_bridge::rules::Counts>,
    newer_jobs: Arc<NewerJobs>,
    policies: Arc<Policies>,
    jobs: Arc<Jobs>,
    leases: Arc<Leases>,
    results: Arc<Results>,
    dead_letters: Arc<Operator>,
    provision: Arc<Provisioning>,
    /// Every task that the adapter spawned, for [`Nats::close`].
    tasks: TaskTracker,
    alive: Arc<Alive>,
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
        Ok(Self(Arc::new(compose::compose(api, settings, payload_max))))
    }

    /// The capabilities, all of them backed by this connection.
    #[must_use]
    pub fn broker(&self) -> Broker {
        let Parts { policies, jobs, leases, results, dead_letters, provision, rule_counts, .. } = &*self.0;
        Broker {
            capabilities: Capabilities {
                adapter: "nats",
                payload_max: self.0.payload_max,
                durability: self.durability(),
                lease_lost_certain: false,
                fair: true,
                one_line: true,
                counts_stored: false,
                load: LoadSight { foresees: false, knows_limits: true, times_attempts: false, age: Duration::ZERO },
            },
            jobs: jobs.clone(),
            leasing: leases.clone(),
            results: results.clone(),
            dead_letters: dead_letters.clone(),
            policies: policies.clone(),
            provision: provision.clone(),
            counts: rule_counts.clone(),
        }
    }

    /// The durability of an accepted job in the streams as `Provision::apply` or [`Self::check_provisioned`] last found
    /// them; before either call, in streams newly made with these settings. Servers can't be asked whether they flush
    /// before they confirm.
    fn durability(&self) -> Durability {
        let Copies { replicas_least, memory, .. } = self.0.kept.get();
        self.connection().config().durability(replicas_least, memory)
    }

    /// Checks that the streams of `queues` and the streams that all queues share exist and are as relay needs them;
    /// they may do more. This is for a process that may not create streams. From here on, the durability of accepted
    /// jobs is reported for these streams.
    ///
    /// # Errors
    /// `NotFound` if a stream is missing, `StateConflict` if one is not as needed. The error names all of them, and
    /// says what to do.
    pub async fn check_provisioned(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        self.0.provision.check_provisioned(queues).await
    }

    /// Ends all waits and joins every task. Leases that nobody took are handed back first.
    pub async fn close(&self) {
        self.0.alive.0.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.connection().close().await;
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
}

/// The largest payload or result that relay takes: the server's `max_payload` less a reserve for headers and envelopes,
/// among them the two envelopes of a dead letter.
fn payload_max(server: usize) -> u64 {
    const RESERVED: usize = 64 * 1024;
    u64::try_from(server.saturating_sub(RESERVED)).unwrap_or(u64::MAX)
}
