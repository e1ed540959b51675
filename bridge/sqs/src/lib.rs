//! SQS with DynamoDB as the broker. A table is the truth, queues of SQS are the line: a message only wakes a worker up, and
//! whether a job may run is decided by a conditional write of its record.
//!
//! # Layout
//!
//! - [`config`]: what a person configures. `connect`: clients of both services, and what their errors mean;
//!   `attempts` (which of a call's attempts had no answer).
//! - The table: `table` (calls), `item` (values), `names` (keys), `schema` (how it is made), `record` (a job's).
//! - The line: `line` (calls of SQS), `message` (what a message says), `coalesce` (many small calls as few large ones).
//! - Submitting: `jobs` (the capability), `enqueue`, `quota` (`max_queued`), `runs` (cancel, rerun, erase), `list`, `sweep`.
//!   `count` (how a queue stands), with `spares` (messages that no job waits for).
//! - Working: `leasing` (the capability), `poll` (who receives for whom), `asks` (who waits), `claim` (from a message to a
//!   delivery), `receipt`, `settle`, `slots` (clients with a bound on what runs), `recording` (what a result means), `finish`
//!   (the one place where runs end).
//! - Reading: `results` (the capability), `log` (pages of a client's log), `waiting`, `replies` (told by other processes).
//!   `dead_letters`.
//! - [`forward`]: results for clients that read SQS themselves. [`share`]: queues that other accounts use.
//! - Operating: `policy`, `provision`, [`iam`].
//! - [`plain`]: a queue of others, for a bridge.
//!
//! # What repairs a crash
//!
//! `docs/decisions/0013-sqs-layout.md` has the table: crash point, what repairs it, which test shows it.

mod aws;
pub mod config;
mod jobs;
mod leases;
mod operate;
mod others;
mod results;
mod stored;

mod names;

pub use crate::operate::iam;
pub use crate::others::{forward, plain, share};

use crate::aws::queue as line;
use crate::jobs::{quota, spares, sweep};
use crate::leases::{held, line as asks, running_limit as slots};
use crate::results::{finish, replies, waiting};
use crate::stored::schema;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::aws::connect::Clients;
use crate::aws::table::Table;
use crate::stored::policies::Policies;
use config::SqsConfig;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use relay_bridge::broker::{Broker, Capabilities, Durability};
use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::contract::{ClientId, JobId, QueueName};
use relay_bridge::error::BrokerError;
use relay_bridge::newer_jobs::NewerJobs;

/// The largest payload or result in bytes: an item of DynamoDB holds 400 KiB with everything about it, a dead letter's
/// reason included.
pub const PAYLOAD_MAX: u64 = 350 * 1_024;

/// How long the end of an adapter waits for calls that are on their way, beyond the time that it is given.
const LAST_CALLS_MAX: Duration = Duration::from_secs(10);

/// What holds for all of an adapter's work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The envelope version that is written.
    pub wire_version: WireVersion,
    /// The clock of deadlines, leases and retention, which processes share: see `skew`.
    pub clock: Clock,
    /// How far the clocks of two processes may be apart: for so long after its end a lease is given to nobody else.
    /// Default 5 s.
    pub skew: Duration,
    /// How often this process looks for what time demands in each queue, however often it is told to sweep. Default 5 s.
    pub sweep_every: Duration,
    /// How often who waits for a job looks by itself, where another process would tell it: messages can be lost. Default 2 s.
    pub look_every: Duration,
    /// How often this process says that its reply queue is in use, and looks for queues of dead processes, which are those
    /// that said nothing for 5 minutes. Default 60 s.
    pub reply_beat: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            wire_version: WireVersion::default(),
            clock: Clock::default(),
            skew: Duration::from_secs(5),
            sweep_every: Duration::from_secs(5),
            look_every: Duration::from_secs(2),
            reply_beat: Duration::from_secs(60),
        }
    }
}

/// A connected adapter. Clones share it.
#[derive(Clone)]
pub struct Sqs(Arc<Inner>);

/// What all parts of the adapter share.
struct Inner {
    settings: Settings,
    /// How often the rules corrected or refused what a worker said.
    rule_counts: Arc<relay_bridge::rules::Counts>,
    table: Table,
    queues: Arc<line::SqsQueues>,
    policies: Arc<Policies>,
    meta: OnceCell<schema::Meta>,
    endings: finish::Endings,
    replies: Arc<replies::Replies>,
    lines: Mutex<HashMap<QueueName, Arc<asks::Line>>>,
    counts: quota::Counts,
    spares: Arc<spares::Spares>,
    sweeping: sweep::Sweeping,
    /// Places for messages whose jobs were accepted.
    sending: Arc<Semaphore>,
    held: held::Held,
    owed: slots::Owed,
    /// Who waits in this process for a job's result, and for a client's next one.
    waiting_jobs: waiting::Wakes<JobId>,
    waiting_clients: waiting::Wakes<ClientId>,
    newer_jobs: Arc<NewerJobs>,
    /// Every task that the adapter spawned, for [`Sqs::close`].
    tasks: TaskTracker,
    /// Cancelled when the adapter is being closed.
    closing: CancellationToken,
    /// Cancelled when it waits for receives no longer.
    dropping: CancellationToken,
    /// Ends what runs for nobody once the last clone is gone.
    _unused: DropGuard,
}

impl Sqs {
    /// An adapter. Nothing is asked of AWS yet: that the table and the queues are there is found by the first call.
    ///
    /// # Errors
    /// `Invalid` if the configuration is wrong, or no region is known.
    pub async fn connect(config: SqsConfig, settings: Settings) -> Result<Self, BrokerError> {
        let clients = Clients::new(&config).await?;
        let table = Table::new(clients.table.clone(), &config.table);
        let tasks = TaskTracker::new();
        let queues = Arc::new(line::SqsQueues::new(clients, config, tasks.clone()));
        let policies = Arc::new(Policies::new(table.clone(), queues.clone()));
        let (waiting_jobs, closing) = (waiting::Wakes::default(), CancellationToken::new());
        let replies = replies::Replies::new(
            table.clone(),
            queues.clone(),
            settings.clone(),
            waiting_jobs.clone(),
            tasks.clone(),
            closing.clone(),
        );
        let spares = spares::Spares::new(table.clone(), tasks.clone(), closing.clone());
        Ok(Self(Arc::new(Inner {
            endings: finish::Endings::new(table.clone(), settings.clock.clone(), tasks.clone(), replies.clone()),
            replies,
            settings,
            rule_counts: Arc::default(),
            table,
            queues,
            policies,
            meta: OnceCell::new(),
            lines: Mutex::default(),
            counts: quota::Counts::default(),
            spares: Arc::new(spares),
            sweeping: sweep::Sweeping::default(),
            sending: Arc::new(Semaphore::new(crate::jobs::enqueue::SENDING_MAX)),
            held: held::Held::default(),
            owed: slots::Owed::default(),
            waiting_jobs,
            waiting_clients: waiting::Wakes::default(),
            newer_jobs: Arc::default(),
            tasks,
            _unused: closing.clone().drop_guard(),
            closing,
            dropping: CancellationToken::new(),
        })))
    }

    /// The capabilities, all of them backed by one table and its queues.
    #[must_use]
    pub fn broker(&self) -> Broker {
        let this = Arc::new(self.clone());
        Broker {
            capabilities: Capabilities {
                adapter: "sqs",
                payload_max: PAYLOAD_MAX,
                // DynamoDB answers when the item is on disks of more than one availability zone.
                durability: Durability::Replicated,
                lease_lost_certain: true,
                // SQS keeps a client's backlog from others, and knows no weights.
                fair: false,
                one_line: false,
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

    /// The jobs that this adapter hands back because a newer relay wrote them.
    #[must_use]
    pub fn newer_jobs(&self) -> Arc<NewerJobs> {
        Arc::clone(&self.0.newer_jobs)
    }

    /// As [`Sqs::close_by`], with time for every receive to end by itself, which takes up to 20 s.
    pub async fn close(&self) {
        self.close_by(Instant::now() + line::RECEIVE_WAIT_MAX).await;
    }

    /// Begins no receive any more, hands back what is at hand, what the last receives bring and what was leased for nobody,
    /// and joins every task. A receive that has not ended by `until` is dropped: what SQS hands out to it comes again only
    /// after a lease. Other calls that are on their way then have 10 s more; those that AWS has not answered by then are left
    /// to end with the runtime: their messages are the sweep's, or come again after a lease.
    pub async fn close_by(&self, until: Instant) {
        self.0.closing.cancel();
        self.0.tasks.close();
        let ended = async {
            self.give_back_at_hand().await;
            self.0.tasks.wait().await;
            // Claims that were on their way may have put something there.
            self.give_back_at_hand().await;
        };
        if tokio::time::timeout_at(until, ended).await.is_ok() {
            return;
        }
        self.0.dropping.cancel();
        let ended = async {
            self.0.tasks.wait().await;
            self.give_back_at_hand().await;
        };
        if tokio::time::timeout(LAST_CALLS_MAX, ended).await.is_err() {
            tracing::warn!(
                "AWS has not answered every call: their messages are sent by a sweep, or come again after a lease"
            );
        }
    }

    fn table(&self) -> &Table {
        &self.0.table
    }

    fn policies(&self) -> &Policies {
        &self.0.policies
    }

    fn clock(&self) -> &Clock {
        &self.0.settings.clock
    }

    fn wire(&self) -> WireVersion {
        self.0.settings.wire_version
    }

    fn is_fifo(&self) -> bool {
        self.0.queues.config().fifo
    }

    /// What is known about the table, read once.
    async fn meta(&self, operation: &'static str) -> Result<schema::Meta, BrokerError> {
        self.0.meta.get_or_try_init(|| schema::read_meta(&self.0.table, operation)).await.copied()
    }

    /// The queue of SQS for `queue`.
    async fn sqs_queue(&self, queue: &QueueName, operation: &'static str) -> Result<Arc<line::SqsQueue>, BrokerError> {
        self.0.queues.of(queue, operation).await
    }
}
