//! A process's counts of its jobs, whichever ingress they come through: a decorator around the broker's seams.
//!
//! Counting is a relaxed addition; nothing is kept per event, so nothing has to be drained. Numbers are per process and
//! begin at zero with it: a reader of several replicas adds them up.
//!
//! # Layout
//!
//! - `flows`: the jobs that came in and went out, by queue and client.
//! - `handlers`: how long attempts took, by queue.
//! - `workers_seen`: which workers ask for jobs.
//! - `storage`: the writes that the broker's storage refused lately.
//! - `metered`: the decorators that count.
//! - `traces`: spans of the calls that go through them.
//! - [`exposition`]: the text that Prometheus reads; `report`: these numbers in it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::histogram::Histogram;
use relay_bridge::leasing::Leasing;

pub mod exposition;
mod flows;
mod handlers;
mod metered;
mod report;
mod storage;
mod traces;
mod workers_seen;

use handlers::Handlers;

pub use flows::{Counts, Flow, Flows};
pub use storage::{LATELY, Storage};
pub use traces::{Traces, check_endpoint};
pub use workers_seen::{Seen, WorkersSeen};

/// Upper bounds of latencies in microseconds: 1 ms to 1 h. Jobs may take either.
const LATENCIES: &[u64] = &[
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    3_600_000_000,
];

/// The counts that one process keeps of its jobs. Clones count together.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("flows", &self.0.flows).finish_non_exhaustive()
    }
}

/// Is told of a job, by its queue.
type Told = Box<dyn Fn(&QueueName) + Send + Sync>;

struct Inner {
    clock: Clock,
    traces: Option<Traces>,
    flows: Flows,
    workers_seen: WorkersSeen,
    storage: Storage,
    handlers: Handlers,
    end_to_end: Histogram,
    leased: Counter,
    completed: Counter,
    retried: Counter,
    dead_lettered: Counter,
    handed_back: Counter,
    superseded: Counter,
    extended: Counter,
    leases_lost: Counter,
    reruns: Counter,
    /// Told of each job that was accepted; unset where nobody waits for them.
    came: OnceLock<Told>,
    /// The corrections by the rules of the broker in this process; unset where it is another process's.
    rules: OnceLock<Arc<relay_bridge::rules::Counts>>,
}

impl Telemetry {
    /// Nothing counted yet. `clock` is the broker's; with `traces` what is counted is traced, too.
    #[must_use]
    pub fn new(clock: Clock, traces: Option<Traces>) -> Self {
        Self(Arc::new(Inner {
            clock,
            traces,
            flows: Flows::default(),
            workers_seen: WorkersSeen::default(),
            storage: Storage::default(),
            handlers: Handlers::default(),
            end_to_end: Histogram::new(LATENCIES),
            leased: Counter::default(),
            completed: Counter::default(),
            retried: Counter::default(),
            dead_lettered: Counter::default(),
            handed_back: Counter::default(),
            superseded: Counter::default(),
            extended: Counter::default(),
            leases_lost: Counter::default(),
            reruns: Counter::default(),
            came: OnceLock::new(),
            rules: OnceLock::new(),
        }))
    }

    /// `broker`, with what is done through it counted.
    #[must_use]
    pub fn broker(&self, broker: Broker) -> Broker {
        self.0.rules.get_or_init(|| broker.counts.clone());
        Broker {
            jobs: Arc::new(metered::Jobs { inner: broker.jobs, telemetry: self.clone() }),
            leasing: self.leasing(broker.leasing),
            ..broker
        }
    }

    /// `leasing`, with what a worker does through it counted.
    #[must_use]
    pub fn leasing(&self, leasing: Arc<dyn Leasing>) -> Arc<dyn Leasing> {
        Arc::new(metered::Work { inner: leasing, telemetry: self.clone() })
    }

    /// Tells `came` of each job that is accepted from now on, before its client is answered. It must not take long.
    pub fn tells(&self, came: impl Fn(&QueueName) + Send + Sync + 'static) {
        // A second call would be about the same process.
        self.0.came.set(Box::new(came)).ok();
    }

    /// The jobs that came in and went out, by queue and client.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.0.flows
    }

    /// Which workers asked for jobs lately.
    #[must_use]
    pub fn workers_seen(&self) -> &WorkersSeen {
        &self.0.workers_seen
    }

    /// The writes that the broker's storage refused lately.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// Where spans go, if they are wanted.
    fn traces(&self) -> Option<&Traces> {
        self.0.traces.as_ref()
    }

    /// The clock that the numbers go by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Microseconds, as latencies are counted.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
