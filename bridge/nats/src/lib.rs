//! The NATS JetStream broker, 2.12 or newer. A job's record and its place in line are one message; every change of it is
//! one write under a condition on its whole address.
//!
//! # Layout
//!
//! From the top floor down. A file knows only files on its own floor and below, and no file but this one knows the whole.
//!
//! - This file gives each part what it uses. [`config`]: what a person configures. `closing`: how an adapter ends.
//! - `operate`: what operators do: dead letters, their redrive, provisioning, estimates.
//! - `jobs`: the submitter's half: submissions and what bounds them, reruns, listings, and what time demands.
//! - `leases`: the worker's half: rounds, hints, pulls, deliveries, and how they end.
//! - `results`: the reader's half: waiting for results, and following them.
//! - `line`: whose job is next: a queue as one process sees it, its lanes and their turns.
//! - `records`: what is kept of jobs: records, result entries, dead letters, timers, policies, and what is held.
//! - `stored`: how things lie at the server: [`names`], messages, streams. No I/O.
//! - `wire`: NATS as relay needs it: the [`connection`], requests, calls of JetStream.
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
pub struct Nats(Arc<Parts>);

/// The capabilities, and what ends them.
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

    /// What an accepted job survives in the streams as they were found by `Provision::apply` or
    /// [`Self::check_provisioned`], before that in new ones. Whether servers flush before they confirm can't be asked of
    /// them.
    fn durability(&self) -> Durability {
        let Copies { replicas_least, memory, .. } = self.0.kept.get();
        self.connection().config().durability(replicas_least, memory)
    }

    /// Finds that the streams of `queues` and those that all queues share are there and as relay needs them; that they
    /// can do more is fine. For a process that may not create them. What an accepted job survives follows them from here on.
    ///
    /// # Errors
    /// `NotFound` if a stream is missing, `StateConflict` if one is not as needed: all of them at once, with what to do.
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

/// What is left of the server's `max_payload` for a payload or a result: the rest is for headers and envelopes, a dead
/// letter's two included.
fn payload_max(server: usize) -> u64 {
    const RESERVED: usize = 64 * 1024;
    u64::try_from(server.saturating_sub(RESERVED)).unwrap_or(u64::MAX)
}
