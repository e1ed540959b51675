//! The broker on SQS with DynamoDB. A table of DynamoDB is the truth, and queues of SQS are the line: a message only
//! wakes a worker up, and a conditional write of a job's record decides whether the job may run.
//!
//! # Layout
//!
//! From the top floor down, with the names of the NATS adapter's floors where they fit. A file uses files on its own
//! floor and below; only claims, the ends of leases and the ends of runs also use files above: the counts and the
//! sender in `jobs`, and the messages at hand in `leases`. No two files need each other, and no file but this one knows
//! the whole.
//!
//! - This file makes the parts, and gives each the parts that it uses.
//! - `operate`: the operators' calls: dead letters and provisioning. `others`: queues of SQS that are not relay's own.
//! - `jobs`: the submitter's half: submissions and their bounds, cancels, reruns, erasure, listings, counts, and the
//!   sweep.
//! - `leases`: the worker's half: receives, claims, and how leases go on and end.
//! - `results`: the reader's half: waiting for results and reading a client's log; and the one place where runs end.
//! - `stored`: the forms of things in the table and in the queues, and the code that reads and writes them.
//! - `aws`: AWS as relay needs it, without relay's rules: clients, the table, the queues of SQS, and many small calls
//!   as few large ones.
//!
//! # Repair after a crash
//!
//! `docs/decisions/0013-sqs-layout.md` has a table of the crash points, each with its repair and the test that shows
//! it.

mod aws;
mod jobs;
mod leases;
mod operate;
pub(crate) mod others;
mod results;
mod stored;

use crate::adapter::aws::queue;
use crate::forward::Render;
use crate::limits::PAYLOAD_MAX;
use crate::settings::Settings;
pub use others::plain;
use relay_bridge::broker::{Broker, Capabilities, Durability, LoadSight};

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::adapter::aws::connect::Clients;
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::Table;
use crate::adapter::jobs::Jobs;
use crate::adapter::jobs::attempts::Attempts;
use crate::adapter::jobs::count::Counting;
use crate::adapter::jobs::enqueue::Submissions;
use crate::adapter::jobs::list::Listing;
use crate::adapter::jobs::quota::{Counts, Places};
use crate::adapter::jobs::runs::Runs;
use crate::adapter::jobs::sending::{SENDING_MAX, Sender};
use crate::adapter::jobs::spares::Spares;
use crate::adapter::jobs::sweep::{Sweep, Sweeping};
use crate::adapter::leases::Leases;
use crate::adapter::leases::claim::Claims;
use crate::adapter::leases::held::HeldJobs;
use crate::adapter::leases::lines::Lines;
use crate::adapter::leases::poll::Polls;
use crate::adapter::leases::running_limit::{Owed, Slots};
use crate::adapter::leases::settle::Settling;
use crate::adapter::operate::dead_letters::Operator;
use crate::adapter::operate::provision::Provisioning;
use crate::adapter::others::forwarder::Forwards;
use crate::adapter::results::Results;
use crate::adapter::results::end::Ends;
use crate::adapter::results::finish::Endings;
use crate::adapter::results::log::LogReader;
use crate::adapter::results::recording::Recording;
use crate::adapter::results::replies::Replies;
use crate::adapter::results::waiting::Wakes;
use crate::adapter::stored::letters::LetterStore;
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::records::Records;
use crate::adapter::stored::schema::TableMeta;
use crate::config::SqsConfig;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::newer_jobs::NewerJobs;
use relay_bridge::rules;

/// How old the counts of SQS may be that a look is made of.
const LOOK_AGE: Duration = Duration::from_secs(5);
/// How long the end of an adapter waits for calls that are on their way, beyond the time that it is given.
const LAST_CALLS_MAX: Duration = Duration::from_secs(10);

/// A connected adapter. Clones share it.
#[derive(Clone)]
pub struct Sqs(Arc<Parts>);

/// The capabilities, and the tasks and tokens by which the adapter ends.
struct Parts {
    rule_counts: Arc<rules::Counts>,
    newer_jobs: Arc<NewerJobs>,
    policies: Arc<Policies>,
    lines: Arc<Lines>,
    jobs: Arc<Jobs>,
    leases: Arc<Leases>,
    results: Arc<Results>,
    dead_letters: Arc<Operator>,
    provision: Arc<Provisioning>,
    forwards: Arc<Forwards>,
    /// Every task that the adapter spawned, for [`Sqs::close`].
    tasks: TaskTracker,
    /// Cancelled when the adapter is being closed.
    closing: CancellationToken,
    /// Cancelled when the closing adapter waits for receives no longer.
    dropping: CancellationToken,
    /// Ends the background tasks once the adapter and the last capability that holds this guard are dropped.
    _alive: Arc<DropGuard>,
}

impl Sqs {
    /// An adapter. It makes no call of SQS or DynamoDB yet: the first call shows whether the table and the queues
    /// exist.
    ///
    /// # Errors
    /// `Invalid` if the configuration is wrong, or no region is known.
    pub async fn connect(config: SqsConfig, settings: Settings) -> Result<Self, BrokerError> {
        let clients = Clients::new(&config).await?;
        Ok(Self(Arc::new(Parts::compose(clients, config, settings))))
    }

    /// The capabilities, all of them backed by one table and its queues.
    #[must_use]
    pub fn broker(&self) -> Broker {
        let Parts { policies, jobs, leases, results, dead_letters, provision, rule_counts, .. } = &*self.0;
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
                counts_stored: false,
                load: LoadSight { foresees: false, knows_limits: false, times_attempts: false, age: LOOK_AGE },
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

    /// The jobs that this adapter hands back because a newer relay wrote them.
    #[must_use]
    pub fn newer_jobs(&self) -> Arc<NewerJobs> {
        Arc::clone(&self.0.newer_jobs)
    }

    /// Checks that the table and the queues of `queues` exist, for a process that may not create them.
    ///
    /// # Errors
    /// `NotFound` or `StateConflict` with everything that is missing, and the remedy.
    pub async fn check_provisioned(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        self.0.provision.check_provisioned(queues).await
    }

    /// Sends the results of every client in `SqsConfig::forward` to that client's queue, until `stop`. Any number of
    /// processes may do so at once: one of them is at work for each client. A result that a queue refuses is logged and
    /// tried again, and does not hold up other clients' results.
    pub async fn forward(&self, render: Render, stop: CancellationToken) {
        self.0.forwards.forward(render, stop).await;
    }

    /// As [`Sqs::close_by`], with time for every receive to end by itself, which takes up to 20 s.
    pub async fn close(&self) {
        self.close_by(Instant::now() + queue::RECEIVE_WAIT_MAX).await;
    }

    /// Begins no more receives and joins every task. Messages at hand, messages that the last receives bring, and
    /// leases that no caller took are handed back. A receive that has not ended by `until` is dropped: messages that
    /// SQS hands out to it come again only after a lease. Other calls that are still on their way then have 10 s more.
    /// Calls that AWS has not answered by then are left to end with the runtime: the sweep sends their messages, or
    /// they come again after a lease.
    pub async fn close_by(&self, until: Instant) {
        self.0.closing.cancel();
        self.0.tasks.close();
        let ended = async {
            self.0.lines.give_back_at_hand().await;
            self.0.tasks.wait().await;
            // Claims that were on their way may have put messages there.
            self.0.lines.give_back_at_hand().await;
        };
        if tokio::time::timeout_at(until, ended).await.is_ok() {
            return;
        }
        self.0.dropping.cancel();
        let ended = async {
            self.0.tasks.wait().await;
            self.0.lines.give_back_at_hand().await;
        };
        if tokio::time::timeout(LAST_CALLS_MAX, ended).await.is_err() {
            tracing::warn!(
                "AWS has not answered every call: their messages are sent by a sweep, or come again after a lease"
            );
        }
    }
}

impl Parts {
    /// Makes the parts from the bottom up, and gives each the parts that it uses.
    fn compose(clients: Clients, config: SqsConfig, settings: Settings) -> Self {
        let (tasks, closing, dropping) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let alive = Arc::new(closing.clone().drop_guard());
        let (rule_counts, newer_jobs) = (Arc::<rules::Counts>::default(), Arc::<NewerJobs>::default());
        let table = Table::new(clients.table.clone(), &config.table);
        let queues = Arc::new(SqsQueues::new(clients, config, tasks.clone()));
        let policies = Arc::new(Policies::new(table.clone(), queues.clone()));
        let meta = Arc::new(TableMeta::new(table.clone()));
        let (waiting_jobs, waiting_clients) = (Wakes::default(), Wakes::default());
        let replies = Replies::new(
            table.clone(),
            queues.clone(),
            settings.clone(),
            waiting_jobs.clone(),
            tasks.clone(),
            closing.clone(),
        );
        let spares = Arc::new(Spares::new(table.clone(), tasks.clone(), closing.clone()));
        let attempts = Arc::new(Attempts::new(table.clone(), tasks.clone(), closing.clone()));
        let (sending, held) = (Arc::new(Semaphore::new(SENDING_MAX)), Arc::<HeldJobs>::default());
        let records = Arc::new(Records { settings: settings.clone(), table: table.clone() });
        let counting = Arc::new(Counting {
            queues: queues.clone(),
            settings: settings.clone(),
            spares: spares.clone(),
            table: table.clone(),
        });
        let places = Arc::new(Places {
            counts: Counts::default(),
            policies: policies.clone(),
            queues: queues.clone(),
            settings: settings.clone(),
            table: table.clone(),
            counting: counting.clone(),
        });
        let sender = Arc::new(Sender {
            queues: queues.clone(),
            sending: sending.clone(),
            settings: settings.clone(),
            spares: spares.clone(),
            tasks: tasks.clone(),
        });
        let ends = Arc::new(Ends {
            endings: Endings::new(table.clone(), settings.clock.clone(), tasks.clone(), replies.clone()),
            settings: settings.clone(),
            table: table.clone(),
            waiting_clients: waiting_clients.clone(),
            waiting_jobs: waiting_jobs.clone(),
        });
        let log = Arc::new(LogReader { meta: meta.clone(), settings: settings.clone(), table: table.clone() });
        let letters = Arc::new(LetterStore {
            policies: policies.clone(),
            rule_counts: rule_counts.clone(),
            settings: settings.clone(),
            table: table.clone(),
            records: records.clone(),
        });
        let lines = Arc::new(Lines { open: Mutex::default(), queues: queues.clone() });
        let slots = Arc::new(Slots { settings: settings.clone(), table: table.clone() });
        let recording = Arc::new(Recording {
            held: held.clone(),
            policies: policies.clone(),
            queues: queues.clone(),
            rule_counts: rule_counts.clone(),
            settings: settings.clone(),
            spares: spares.clone(),
            table: table.clone(),
            records: records.clone(),
            letters: letters.clone(),
            ends: ends.clone(),
            places: places.clone(),
            lines: lines.clone(),
        });
        let settling = Arc::new(Settling {
            held: held.clone(),
            policies: policies.clone(),
            queues: queues.clone(),
            settings: settings.clone(),
            table: table.clone(),
            records: records.clone(),
            places: places.clone(),
            attempts: attempts.clone(),
            sender: sender.clone(),
            slots: slots.clone(),
            lines: lines.clone(),
            owed: Owed::default(),
        });
        let claims = Arc::new(Claims {
            held: held.clone(),
            newer_jobs: newer_jobs.clone(),
            settings: settings.clone(),
            spares: spares.clone(),
            table: table.clone(),
            records: records.clone(),
            slots: slots.clone(),
            places: places.clone(),
            recording: recording.clone(),
            settling: settling.clone(),
        });
        let polls = Arc::new(Polls {
            closing: closing.clone(),
            dropping: dropping.clone(),
            policies: policies.clone(),
            settings: settings.clone(),
            tasks: tasks.clone(),
            lines: lines.clone(),
            claims: claims.clone(),
            settling: settling.clone(),
        });
        let runs = Arc::new(Runs {
            policies: policies.clone(),
            queues: queues.clone(),
            settings: settings.clone(),
            table: table.clone(),
            records: records.clone(),
            letters: letters.clone(),
            places: places.clone(),
            recording: recording.clone(),
            log: log.clone(),
            sender: sender.clone(),
        });
        let submissions = Arc::new(Submissions {
            policies: policies.clone(),
            queues: queues.clone(),
            settings: settings.clone(),
            table: table.clone(),
            records: records.clone(),
            places: places.clone(),
            sender: sender.clone(),
        });
        let listing = Arc::new(Listing { settings: settings.clone(), table: table.clone() });
        let sweep = Arc::new(Sweep {
            policies: policies.clone(),
            queues: queues.clone(),
            replies: replies.clone(),
            settings: settings.clone(),
            spares: spares.clone(),
            sweeping: Sweeping::default(),
            table: table.clone(),
            tasks: tasks.clone(),
            records: records.clone(),
            recording: recording.clone(),
            sender: sender.clone(),
            sending: sending.clone(),
        });
        let leases = Arc::new(Leases {
            closing: closing.clone(),
            policies: policies.clone(),
            tasks: tasks.clone(),
            lines: lines.clone(),
            polls: polls.clone(),
            settling: settling.clone(),
            letters: letters.clone(),
            recording: recording.clone(),
            _alive: alive.clone(),
        });
        let jobs = Arc::new(Jobs {
            policies: policies.clone(),
            settings: settings.clone(),
            records: records.clone(),
            submissions: submissions.clone(),
            runs: runs.clone(),
            listing: listing.clone(),
            attempts: attempts.clone(),
            counting: counting.clone(),
            places: places.clone(),
            sweep: sweep.clone(),
            _alive: alive.clone(),
        });
        let results = Arc::new(Results {
            closing: closing.clone(),
            replies: replies.clone(),
            settings: settings.clone(),
            waiting_clients: waiting_clients.clone(),
            waiting_jobs: waiting_jobs.clone(),
            records: records.clone(),
            log: log.clone(),
            _alive: alive.clone(),
        });
        let dead_letters = Arc::new(Operator {
            policies: policies.clone(),
            queues: queues.clone(),
            settings: settings.clone(),
            table: table.clone(),
            letters: letters.clone(),
            records: records.clone(),
            places: places.clone(),
            runs: runs.clone(),
            reads: Default::default(),
            _alive: alive.clone(),
        });
        let provision = Arc::new(Provisioning { meta: meta.clone(), policies: policies.clone() });
        let forwards = Arc::new(Forwards {
            queues: queues.clone(),
            table: table.clone(),
            settings: settings.clone(),
            results: results.clone(),
        });
        Self {
            rule_counts,
            newer_jobs,
            policies,
            lines,
            jobs,
            leases,
            results,
            dead_letters,
            provision,
            forwards,
            tasks,
            closing,
            dropping,
            _alive: alive,
        }
    }
}
