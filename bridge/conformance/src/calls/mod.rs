//! How the suite calls a broker in real time: as users do, who repeat what a busy broker did not answer.
//!
//! A call that failed as `Unavailable` or `Ambiguous` is repeated, with backoff and at most [`REPEATS_MAX`] times, and is
//! counted. No other answer is ever asked for again: an assertion about content that fails has failed.
//!
//! # What a repeated call answers
//!
//! A call that got no answer may have taken effect, so that its repetition finds the effect: `Known` instead of `Created`,
//! `LeaseLost` instead of `Ok`. Its user knows that it was its own call, and so does the decorator, for as long as
//! nobody else was told of that effect. A lease that got no answer may have given out jobs to nobody: they come back when it
//! ends, with an attempt spent, and a promise that counts attempts fails then.
//!
//! # What is remembered
//!
//! From when on a run may be in line again, because its lease or its delay is over by then. A test that looks later than it
//! meant to, on a machine that stood still, is told a job that came in time from one that came too early.

mod leasing;
mod others;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use relay_bridge::broker::Broker;
use relay_bridge::contract::{JobStatus, QueueName, RunId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, Leasing, Receipt};
use relay_bridge::result_log::ResultLog;
use relay_bridge::support::lock;

/// How often one call is repeated at most.
const REPEATS_MAX: u32 = 6;
/// Before the first repetition; each later one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// The longest wait between two repetitions.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How many of the last calls [`Calls::round_trip`] is taken from.
const MEASURED: usize = 128;

/// How many calls a test that begins makes, to see how long they take.
const PROBES: usize = 8;
/// By how much times are longer at most: beyond it a machine is too slow for tests in real time.
const SLOWER_MAX: f64 = 4.0;

/// As many threads for each core want to run where nothing but the suite does.
const BUSY: f64 = 3.0;

/// By how much a machine is slower than the times of a fixture are made for; at least 1.
#[derive(Clone, Copy, Debug)]
pub struct Pace(f64);

impl Pace {
    /// `span` at this pace, in whole tenths of a second where it is longer: brokers keep milliseconds, and tests halve spans.
    #[must_use]
    pub fn of(self, span: Duration) -> Duration {
        if self.0 <= 1.0 {
            return span;
        }
        Duration::from_millis(u64::try_from(span.mul_f64(self.0).as_millis().div_ceil(100) * 100).unwrap_or(u64::MAX))
    }
}

/// How many threads wanted to run for each core, over the last minute; 0 where the system does not say.
fn busy() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let told = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let threads: f64 = told.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default();
    threads / f64::from(u32::try_from(cores).unwrap_or(1))
}

/// The calls of all tests of one column. Clones share counts and memory.
#[derive(Clone, Debug)]
pub struct Calls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bounds the calls at once that don't wait for anything, to as many as the broker serves in time.
    turns: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    calls: u64,
    repeated: BTreeMap<&'static str, u64>,
    /// How long the last calls took that were answered, repetitions included.
    took: VecDeque<Duration>,
    /// Runs that somebody was told to have started.
    started: HashSet<RunId>,
    /// Until when a receipt is surely good.
    held: HashMap<Token, Instant>,
    /// From when on a run may be in line again.
    back: HashMap<RunId, Instant>,
    /// Receipts of deliveries that came when their run might be in line again.
    due: HashSet<Token>,
}

/// A run, and the token of a receipt.
type Token = (RunId, Vec<u8>);

fn token(receipt: &Receipt) -> Token {
    (receipt.run_id, receipt.token.clone())
}

impl Calls {
    /// Calls to a broker that serves `at_once` of them in time.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        Self(Arc::new(Inner { turns: Semaphore::new(at_once), state: Mutex::default() }))
    }

    /// `broker`, called as users do.
    #[must_use]
    pub fn broker(&self, broker: Broker) -> Broker {
        Broker {
            capabilities: broker.capabilities,
            leasing: self.leasing(broker.leasing, broker.results.clone()),
            jobs: Arc::new(others::Repeating { inner: broker.jobs, calls: self.clone() }),
            results: Arc::new(others::Repeating { inner: broker.results, calls: self.clone() }),
            dead_letters: Arc::new(others::Repeating { inner: broker.dead_letters, calls: self.clone() }),
            policies: Arc::new(others::Repeating { inner: broker.policies, calls: self.clone() }),
            provision: Arc::new(others::Repeating { inner: broker.provision, calls: self.clone() }),
            counts: broker.counts,
        }
    }

    /// A worker's handle, called as workers do; `results` of the same broker tell whose result was recorded.
    #[must_use]
    pub fn leasing(&self, leasing: Arc<dyn Leasing>, results: Arc<dyn ResultLog>) -> Arc<dyn Leasing> {
        Arc::new(leasing::Repeating { inner: leasing, results, calls: self.clone() })
    }

    /// How many calls were repeated, each repetition counted.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.state().repeated.values().sum()
    }

    /// A line for the end of a run of the column `name`: `nats_3: 3 of 20114 calls repeated: enqueue 2, settle 1; 12 ms a call`.
    #[must_use]
    pub fn summary(&self, name: &str) -> String {
        let round_trip = self.round_trip().as_millis();
        let state = self.state();
        let by_operation: Vec<_> = state.repeated.iter().map(|(name, times)| format!("{name} {times}")).collect();
        let of_them = if by_operation.is_empty() { String::new() } else { format!(": {}", by_operation.join(", ")) };
        let repeated: u64 = state.repeated.values().sum();
        format!("{name}: {repeated} of {} calls repeated{of_them}; {round_trip} ms a call", state.calls)
    }

    /// Times for a test that begins now. Asks `broker` a few times, so that there is something to go by.
    pub async fn pace(&self, broker: &Broker, round_trip: Duration) -> Pace {
        let broker = self.broker(broker.clone());
        let nowhere = QueueName::from_str("nowhere");
        for _ in 0..PROBES {
            if let Ok(nowhere) = &nowhere {
                // How long it takes is all that counts.
                broker.policies.policy(nowhere).await.ok();
            }
        }
        self.paced(round_trip)
    }

    fn paced(&self, usual: Duration) -> Pace {
        let slower = self.round_trip().as_secs_f64() / usual.as_secs_f64();
        Pace(slower.max(busy() / BUSY).clamp(1.0, SLOWER_MAX))
    }

    /// How many of the usual number of tests one test stands for that begins now: a slow machine runs fewer at once.
    #[must_use]
    pub fn weight(&self, round_trip: Duration) -> u32 {
        // A small number: no more than `SLOWER_MAX`.
        (1..).find(|weight| f64::from(*weight) >= self.paced(round_trip).0).unwrap_or(1)
    }

    /// `span`, and longer where a call takes longer than `round_trip` by now.
    #[must_use]
    pub fn now(&self, span: Duration, round_trip: Duration) -> Duration {
        self.paced(round_trip).of(span)
    }

    /// How long a call takes on this machine now: nine of ten of the last ones took no longer. Zero before the first.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        let mut took: Vec<_> = self.state().took.iter().copied().collect();
        took.sort();
        took.get(took.len() * 9 / 10).or(took.last()).copied().unwrap_or_default()
    }

    /// Whether `delivery` came at a time at which its run might be in line again, after a lease or a delay.
    pub(super) fn was_due(&self, delivery: &Delivery) -> bool {
        self.state().due.contains(&token(&delivery.receipt))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// Makes a call that waits for nothing, and repeats it.
    async fn call<T, F>(&self, operation: &'static str, mut call: impl FnMut() -> F) -> Answered<T>
    where
        F: Future<Output = Result<T, BrokerError>>,
    {
        self.repeat(operation, || {
            let next = call();
            async {
                let _turn = self.0.turns.acquire().await;
                let began = Instant::now();
                let answer = next.await;
                let mut state = self.state();
                state.took.push_back(began.elapsed());
                if state.took.len() > MEASURED {
                    state.took.pop_front();
                }
                answer
            }
        })
        .await
    }

    /// Makes a call that may wait for something, and repeats it.
    async fn repeat<T, F>(&self, operation: &'static str, mut call: impl FnMut() -> F) -> Answered<T>
    where
        F: Future<Output = Result<T, BrokerError>>,
    {
        self.state().calls += 1;
        let (mut in_doubt, mut wait) = (false, FIRST_WAIT);
        for _ in 0..REPEATS_MAX {
            match call().await {
                Err(error) if may_be_repeated(error.kind()) => in_doubt |= !error.had_no_effect(),
                answer => return Answered { answer, in_doubt },
            }
            *self.state().repeated.entry(operation).or_default() += 1;
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
        Answered { answer: call().await, in_doubt }
    }

    /// The answer to a call that starts a run: the run is the call's own if an earlier one without an answer may have
    /// started it, and nobody was told so.
    fn started(
        &self,
        answered: Answered<Enqueued>,
        is_own: impl Fn(&JobStatus) -> bool,
    ) -> Result<Enqueued, BrokerError> {
        let mut state = self.state();
        Ok(match answered.answer? {
            Enqueued::Created(status) => {
                state.started.insert(status.run_id);
                Enqueued::Created(status)
            }
            Enqueued::Known(status) if answered.in_doubt && is_own(&status) && state.started.insert(status.run_id) => {
                Enqueued::Created(status)
            }
            known => known,
        })
    }
}

/// The answer to a call that was repeated as often as it needed.
struct Answered<T> {
    answer: Result<T, BrokerError>,
    /// Whether an earlier call got no answer and may have taken effect.
    in_doubt: bool,
}

/// Whether nothing is known but that there was no answer in time. Everything else that is transient is the broker's own word.
fn may_be_repeated(kind: BrokerErrorKind) -> bool {
    matches!(kind, BrokerErrorKind::Unavailable | BrokerErrorKind::Ambiguous)
}
