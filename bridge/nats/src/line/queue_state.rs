//! The queue state: a queue as one worker process sees it. It knows which lanes have work, which jobs came and wait to
//! be taken, and the recheck mark, up to which the queue's consumers are in doubt.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::line::order::{Delivered, Order, Orders};
use crate::line::ready::Ready;
use crate::line::rounds::{Rounds, Unleased};
use crate::line::turns::Turns;
use crate::stored::names::Lane;
use relay_bridge::contract::QueueName;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::support::lock;

/// For how long after its last job a process that knows of more jobs counts as busy.
const BUSY_FOR: Duration = Duration::from_millis(50);
/// For how long after a lane's last job standing pulls are made for its next one.
const EXPECTED_WITHIN: Duration = Duration::from_secs(60);

/// The state of one queue from which this process leases.
pub(crate) struct QueueState {
    pub(crate) queue: QueueName,
    /// The policy, as the last call or round knew it.
    policy: Mutex<Arc<QueuePolicy>>,
    turns: Mutex<Turns>,
    /// The lane whose job came last, and when.
    last: Mutex<Option<(Lane, Instant)>>,
    orders: Mutex<Orders>,
    pub(crate) ready: Ready,
    pub(crate) rounds: Rounds,
    /// Changed by the task that makes a round.
    pub(crate) unleased: Mutex<Unleased>,
    /// Pulls in flight, without standing pulls. A call that waits for them to end watches this.
    pub(crate) pulls: watch::Sender<usize>,
    /// Whether there is a standing pull.
    pub(crate) has_standing_pull: AtomicBool,
    /// Woken for each job that is there to take.
    pub(crate) woken: Notify,
    /// Whether hints come to this process.
    pub(crate) hears: AtomicBool,
    /// Whether it is going to be checked whether hints should still come.
    stops_hearing: AtomicBool,
    /// Woken when hints should come to this process, or might stop.
    pub(crate) places_changed: Notify,
    /// The recheck mark: jobs up to this sequence may have been settled although their consumer says otherwise, so they
    /// are looked up before they are given out.
    recheck_below: AtomicU64,
    /// Incremented each time the mark is raised. A task that asked the server for the mark on behalf of an earlier
    /// raise compares this, and drops its answer.
    recheck_raised: AtomicU64,
    /// How often the connection had been made when the recheck mark was set.
    pub(crate) connections: AtomicU64,
}

impl QueueState {
    pub(crate) fn new(queue: QueueName, policy: Arc<QueuePolicy>) -> Self {
        Self {
            queue,
            policy: Mutex::new(policy),
            turns: Mutex::default(),
            last: Mutex::default(),
            orders: Mutex::default(),
            ready: Ready::default(),
            rounds: Rounds::default(),
            unleased: Mutex::default(),
            pulls: watch::Sender::new(0),
            has_standing_pull: AtomicBool::new(false),
            woken: Notify::new(),
            hears: AtomicBool::new(false),
            stops_hearing: AtomicBool::new(false),
            places_changed: Notify::new(),
            recheck_below: AtomicU64::new(u64::MAX),
            recheck_raised: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        }
    }

    pub(crate) fn policy(&self) -> Arc<QueuePolicy> {
        Arc::clone(&lock(&self.policy))
    }

    /// Takes over the policy that holds now.
    pub(crate) fn goes_by(&self, policy: &Arc<QueuePolicy>) {
        let mut known = lock(&self.policy);
        if Arc::ptr_eq(&known, policy) {
            return;
        }
        if known.paused && !policy.paused {
            // Nobody looked for jobs meanwhile.
            self.rounds.soon();
        }
        *known = Arc::clone(policy);
    }

    /// Whether the result is to be looked for before the job with this sequence is given out.
    pub(crate) fn is_below_recheck_mark(&self, seq: u64) -> bool {
        seq <= self.recheck_below.load(Ordering::Acquire)
    }

    /// Raises the recheck mark above all jobs: every job is looked up first, until the mark is known again. Returns the
    /// number of this raise, for [`Self::set_recheck_mark`].
    pub(crate) fn recheck_all(&self) -> u64 {
        let raised = self.recheck_raised.fetch_add(1, Ordering::AcqRel) + 1;
        self.recheck_below.store(u64::MAX, Ordering::Release);
        raised
    }

    /// Sets the recheck mark to `seq`: the server said that jobs after it are not in doubt. Without effect if the mark
    /// was raised again since raise number `asked`.
    pub(crate) fn set_recheck_mark(&self, asked: u64, seq: u64) {
        if self.recheck_raised.load(Ordering::Acquire) == asked {
            self.recheck_below.store(seq, Ordering::Release);
        }
    }

    /// Whether the lane's consumer goes on where it was.
    pub(crate) fn saw(&self, lane: &Lane, delivered: Delivered) -> Order {
        lock(&self.orders).saw(lane, delivered, Instant::now())
    }

    /// Notes that a job of this lane was given out.
    pub(crate) fn served(&self, lane: &Lane) {
        let now = Instant::now();
        match &mut *lock(&self.last) {
            Some((last, at)) if last == lane => *at = now,
            last => *last = Some((lane.clone(), now)),
        }
    }

    /// Whether this process takes one job after the other, and knows of more: a job that it is told of gets its turn.
    pub(crate) fn is_busy(&self) -> bool {
        let serves = lock(&self.last).as_ref().is_some_and(|(_, at)| at.elapsed() < BUSY_FOR);
        serves && self.turns().has_more()
    }

    /// No standing pull is to be made before the next job.
    pub(crate) fn expects_nothing(&self) {
        *lock(&self.last) = None;
    }

    /// The lane whose next job is likely to come soon.
    pub(crate) fn expected(&self) -> Option<Lane> {
        let last = lock(&self.last);
        last.as_ref().filter(|(_, at)| at.elapsed() < EXPECTED_WITHIN).map(|(lane, _)| lane.clone())
    }

    /// Has it checked whether hints should still come, because there are no places any more.
    pub(crate) fn might_stop_hearing(&self) {
        if self.hears.load(Ordering::Acquire) && !self.stops_hearing.swap(true, Ordering::AcqRel) {
            self.places_changed.notify_one();
        }
    }

    /// Notes the answer to that check: whether hints come to this process.
    pub(crate) fn hears(&self, hears: bool) {
        self.hears.store(hears, Ordering::Release);
        self.stops_hearing.store(false, Ordering::Release);
    }

    /// Notes that the lane may give one more, or has more than was hinted.
    pub(crate) fn more(&self, lane: &Lane) {
        self.turns().more(lane);
    }

    pub(crate) fn turns(&self) -> MutexGuard<'_, Turns> {
        lock(&self.turns)
    }
}
