//! A run: calls by their plan, from as many slots as there may be unanswered calls, for a bounded time.
//!
//! In an open loop a call's begin is when it was due, however late it left: while a server stalls, calls that should have been made
//! are counted with the time that they waited (no coordinated omission). In a closed loop each slot makes one call after the other.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::calls::{Answered, Caller, Failure};
use super::pacer::{Pacer, due_at};
use super::tally::Tally;
use super::workload::Workload;

/// Tallies that slots share, so that few wait for each other and memory does not grow with slots.
const SHARDS: usize = 8;
/// Calls one after the other that find nobody, until the run ends.
const AWAY_MAX: usize = 10;

/// When calls are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Arrivals {
    /// Each slot makes its next call when it has the answer.
    Closed,
    /// So many calls a second, whatever the server does.
    Open(f64),
}

/// The plan of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) arrivals: Arrivals,
    pub(super) slots: usize,
    /// Calls that begin before this has passed are not counted.
    pub(super) warm_up: Duration,
    /// How long calls begin that are counted.
    pub(super) duration: Duration,
    /// How long those that are unanswered then may take.
    pub(super) timeout: Duration,
}

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By its plan.
    Done,
    /// By a signal.
    Interrupted,
    /// Nobody was there any more.
    Away,
}

/// The findings of a run.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) tally: Tally,
    /// Seconds from the end of the warm-up until the last good answer, at least as long as calls began.
    pub(super) seconds: f64,
    pub(super) ended: Ended,
}

impl Measured {
    /// Of a run that did not begin.
    pub(super) fn none() -> Self {
        Self { tally: Tally::new(), seconds: 0.0, ended: Ended::Done }
    }
}

/// How far a run is, for whoever watches.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Calls that were answered, also in the warm-up and badly.
    pub(super) answered: AtomicU64,
    /// Those that were answered badly.
    pub(super) failed: AtomicU64,
}

struct Run {
    plan: Plan,
    caller: Arc<Caller>,
    workload: Arc<Workload>,
    started: Instant,
    shards: Vec<Mutex<Tally>>,
    /// The next number of a call, over all runs.
    next: Arc<AtomicU64>,
    first: u64,
    /// Calls of an open loop that are due and not taken.
    due: Arc<Semaphore>,
    total: u64,
    begun: AtomicU64,
    ended: AtomicU64,
    /// When the last good answer came, in microseconds since the begin.
    last: AtomicU64,
    nobody: AtomicUsize,
    away: AtomicBool,
    stop: CancellationToken,
    progress: Arc<Progress>,
}

/// Makes the calls of a plan, numbered from `next` on, until it is done or `stop`. `at_begin` is called when the warm-up ends.
pub(super) async fn run(
    plan: Plan,
    caller: &Arc<Caller>,
    workload: &Arc<Workload>,
    next: &Arc<AtomicU64>,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
    at_begin: impl FnOnce(),
) -> Measured {
    let span = plan.warm_up + plan.duration;
    let total = match plan.arrivals {
        Arrivals::Closed => u64::MAX,
        // At most a million a second for an hour.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded, and never below zero")]
        Arrivals::Open(rate) => (rate * span.as_secs_f64()).ceil() as u64,
    };
    let run = Arc::new(Run {
        plan,
        caller: Arc::clone(caller),
        workload: Arc::clone(workload),
        started: Instant::now(),
        shards: (0..SHARDS).map(|_| Mutex::new(Tally::new())).collect(),
        next: Arc::clone(next),
        first: next.load(Ordering::Relaxed),
        due: Arc::new(Semaphore::new(0)),
        total,
        begun: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        last: AtomicU64::new(0),
        nobody: AtomicUsize::new(0),
        away: AtomicBool::new(false),
        stop: stop.child_token(),
        progress: Arc::clone(progress),
    });
    let pacer = match plan.arrivals {
        Arrivals::Closed => None,
        Arrivals::Open(rate) => Some(Pacer::start(rate, total, plan.slots, Arc::clone(&run.due))),
    };
    let mut slots = JoinSet::new();
    for slot in 0..plan.slots {
        slots.spawn(Arc::clone(&run).slot(slot));
    }
    let begin = async {
        tokio::time::sleep_until(run.started + plan.warm_up).await;
        at_begin();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = async { while slots.join_next().await.is_some() {} } => {}
        () = run.stop.cancelled() => {}
        () = tokio::time::sleep_until(run.started + span + plan.timeout) => {}
        () = begin => {}
    }
    slots.shutdown().await;
    drop(pacer);
    run.measured(stop.is_cancelled())
}

impl Run {
    async fn slot(self: Arc<Self>, slot: usize) {
        loop {
            let (number, began) = match self.plan.arrivals {
                Arrivals::Closed => (self.next.fetch_add(1, Ordering::Relaxed), Instant::now()),
                Arrivals::Open(rate) => {
                    let Ok(permit) = self.due.acquire().await else { return };
                    permit.forget();
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    (number, self.started + due_at(rate, number - self.first))
                }
            };
            let is_over = match self.plan.arrivals {
                Arrivals::Closed => began >= self.started + self.plan.warm_up + self.plan.duration,
                Arrivals::Open(_) => number - self.first >= self.total,
            };
            if is_over {
                return;
            }
            let counts = began >= self.started + self.plan.warm_up;
            if counts {
                self.begun.fetch_add(1, Ordering::Relaxed);
            }
            let called = self.caller.call(slot, &self.workload, number).await;
            self.take(slot, counts, began, called);
        }
    }

    /// Takes the end of a call.
    fn take(&self, slot: usize, counts: bool, began: Instant, called: Result<Answered, Failure>) {
        self.progress.answered.fetch_add(1, Ordering::Relaxed);
        match &called {
            Err(failure) if failure.away => {
                self.progress.failed.fetch_add(1, Ordering::Relaxed);
                if self.nobody.fetch_add(1, Ordering::Relaxed) + 1 >= AWAY_MAX {
                    self.away.store(true, Ordering::Release);
                    self.stop.cancel();
                }
            }
            Err(_) => {
                self.progress.failed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => self.nobody.store(0, Ordering::Relaxed),
        }
        if !counts {
            return;
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
        let mut tally = self.shards[slot % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        match called {
            Ok(answered) => {
                tally.answered(began.elapsed(), &answered);
                let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.last.fetch_max(micros, Ordering::Relaxed);
            }
            Err(failure) => tally.failed(&failure),
        }
    }

    /// All of it, once no slot is at work.
    fn measured(&self, interrupted: bool) -> Measured {
        let ended = match (self.away.load(Ordering::Acquire), interrupted) {
            (true, _) => Ended::Away,
            (false, true) => Ended::Interrupted,
            (false, false) => Ended::Done,
        };
        let mut tally = Tally::new();
        for shard in &self.shards {
            tally.merge(&shard.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let open = self.begun.load(Ordering::Relaxed) - self.ended.load(Ordering::Relaxed);
        let what = "these calls had no answer when the run ended";
        tally.error("unanswered", open, what);
        if ended == Ended::Done && self.plan.arrivals != Arrivals::Closed {
            let taken = (self.next.load(Ordering::Relaxed) - self.first).min(self.total);
            let what = "all slots were busy until the end: these calls were due and never made";
            tally.error("not-begun", self.total - taken, what);
        }
        let warm_up = self.plan.warm_up.as_secs_f64();
        let planned = match ended {
            Ended::Done => self.plan.duration.as_secs_f64(),
            _ => (self.started.elapsed().as_secs_f64() - warm_up).clamp(0.0, self.plan.duration.as_secs_f64()),
        };
        let last = Duration::from_micros(self.last.load(Ordering::Relaxed)).as_secs_f64() - warm_up;
        Measured { tally, seconds: planned.max(last), ended }
    }
}
