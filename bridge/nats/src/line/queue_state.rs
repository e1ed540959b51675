//! A queue as one worker process sees it: which of its lanes have work, what came and waits to be taken, and up to where its
//! consumers are in doubt.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::Nats;
use crate::leases::listening::{self, Listening};
use crate::line::order::{Delivered, Order, Orders};
use crate::line::places::Places;
use crate::line::ready::Ready;
use crate::line::rounds::{self, Rounds};
use crate::line::turns::Turns;
use crate::stored::names;
use crate::stored::names::Lane;
use crate::wire::stream_calls;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;

/// For how long after its last job a process that knows of more is busy with it.
const BUSY_FOR: Duration = Duration::from_millis(50);
/// For how long after a lane's last job a pull stands for its next one.
const EXPECTED_WITHIN: Duration = Duration::from_secs(60);

/// One queue of which this process leases.
pub(crate) struct Line {
    pub(crate) queue: QueueName,
    /// As the last call or round knew it.
    policy: Mutex<Arc<QueuePolicy>>,
    turns: Mutex<Turns>,
    /// The lane whose job came last, and when.
    last: Mutex<Option<(Lane, Instant)>>,
    orders: Mutex<Orders>,
    pub(crate) ready: Ready,
    pub(crate) rounds: Rounds,
    /// Pulls in flight that do not stand. A call that waits for them to end watches it.
    pub(crate) pulls: watch::Sender<usize>,
    /// Whether a pull stands.
    pub(crate) stands: AtomicBool,
    /// Woken for each job that is there to take.
    pub(crate) woken: Notify,
    /// Whether hints come to this process.
    pub(crate) hears: AtomicBool,
    /// Whether it is going to be looked whether they still should.
    stops_hearing: AtomicBool,
    /// Woken when hints should come to this process, or might stop.
    pub(crate) places_changed: Notify,
    /// Jobs up to this sequence may have been settled although their consumer says otherwise.
    mark: AtomicU64,
    /// How often the mark was raised: who asked where to for an earlier one leaves it alone.
    raised: AtomicU64,
    /// How often the connection had been made when the mark was set.
    pub(crate) connections: AtomicU64,
}

/// A lane's share of the slots. Clients that share a lane have the share of one together.
fn weight(policy: &QueuePolicy, lane: &Lane) -> u32 {
    match lane {
        Lane::Own(client) => policy.client(client).weight,
        Lane::Shared(_) => policy.client_defaults.weight,
    }
}

impl Line {
    fn new(queue: QueueName, policy: Arc<QueuePolicy>) -> Self {
        Self {
            queue,
            policy: Mutex::new(policy),
            turns: Mutex::default(),
            last: Mutex::default(),
            orders: Mutex::default(),
            ready: Ready::default(),
            rounds: Rounds::default(),
            pulls: watch::Sender::new(0),
            stands: AtomicBool::new(false),
            woken: Notify::new(),
            hears: AtomicBool::new(false),
            stops_hearing: AtomicBool::new(false),
            places_changed: Notify::new(),
            mark: AtomicU64::new(u64::MAX),
            raised: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        }
    }

    pub(crate) fn policy(&self) -> Arc<QueuePolicy> {
        Arc::clone(&lock(&self.policy))
    }

    /// The policy is this one now.
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
    pub(crate) fn is_below_mark(&self, seq: u64) -> bool {
        seq <= self.mark.load(Ordering::Acquire)
    }

    /// From here on every job is looked up first, until the mark is known again: which time of asking is meant.
    pub(crate) fn suspect(&self) -> u64 {
        let raised = self.raised.fetch_add(1, Ordering::AcqRel) + 1;
        self.mark.store(u64::MAX, Ordering::Release);
        raised
    }

    /// Whether the lane's consumer goes on where it was.
    pub(crate) fn saw(&self, lane: &Lane, delivered: Delivered) -> Order {
        lock(&self.orders).saw(lane, delivered, Instant::now())
    }

    /// A job of this lane was given out.
    pub(crate) fn served(&self, lane: &Lane) {
        let now = Instant::now();
        match &mut *lock(&self.last) {
            Some((last, at)) if last == lane => *at = now,
            last => *last = Some((lane.clone(), now)),
        }
    }

    /// Whether this process takes one job after the other, and knows of more: what it is told of has its turn.
    pub(crate) fn is_busy(&self) -> bool {
        let serves = lock(&self.last).as_ref().is_some_and(|(_, at)| at.elapsed() < BUSY_FOR);
        serves && self.turns().has_more()
    }

    /// No pull is to stand before the next job.
    pub(crate) fn expects_nothing(&self) {
        *lock(&self.last) = None;
    }

    /// The lane whose next job is likely to come soon.
    fn expected(&self) -> Option<Lane> {
        let last = lock(&self.last);
        last.as_ref().filter(|(_, at)| at.elapsed() < EXPECTED_WITHIN).map(|(lane, _)| lane.clone())
    }

    /// There are no places any more.
    pub(crate) fn might_stop_hearing(&self) {
        if self.hears.load(Ordering::Acquire) && !self.stops_hearing.swap(true, Ordering::AcqRel) {
            self.places_changed.notify_one();
        }
    }

    /// It was looked whether hints should still come.
    pub(crate) fn hears(&self, hears: bool) {
        self.hears.store(hears, Ordering::Release);
        self.stops_hearing.store(false, Ordering::Release);
    }

    /// The lane may give one more, or has more than was hinted.
    pub(crate) fn more(&self, lane: &Lane) {
        self.turns().more(lane);
    }

    pub(crate) fn turns(&self) -> MutexGuard<'_, Turns> {
        lock(&self.turns)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nats {
    /// The queue's line; begins to listen when it is asked for first.
    pub(crate) async fn line(&self, queue: &QueueName) -> Result<Arc<Line>, BrokerError> {
        let mut lines = self.0.line.lines.lock().await;
        if let Some(line) = lines.get(queue) {
            return Ok(line.clone());
        }
        let (listening, policy) = Listening::begin(self, queue).await?;
        let line = Arc::new(Line::new(queue.clone(), policy));
        let (inner, weak) = (Arc::downgrade(&self.0), Arc::downgrade(&line));
        self.0.tasks.spawn(listening.run(inner.clone(), weak.clone()));
        self.0.tasks.spawn(rounds::keep(inner, weak, self.closing().clone()));
        lines.insert(queue.clone(), line.clone());
        Ok(line)
    }

    /// The queue's line, if this process leases from it.
    pub(crate) async fn known_line(&self, queue: &QueueName) -> Option<Arc<Line>> {
        self.0.line.lines.lock().await.get(queue).cloned()
    }

    pub(crate) fn places(&self) -> MutexGuard<'_, Places> {
        lock(&self.0.line.places)
    }

    /// How many more jobs of the queue may be on their way to this process.
    pub(crate) fn free(&self, line: &Line) -> u32 {
        self.places().free(&line.queue, Instant::now())
    }

    /// Pulls what the lanes have, as far as there are places, the lanes in turns. Whether there is anything to pull.
    pub(crate) fn dispatch(&self, line: &Arc<Line>) -> bool {
        let policy = line.policy();
        if policy.paused {
            return false;
        }
        let pulls = {
            // Together: of two that look at the same time, each would take the places that are left.
            let mut places = self.places();
            let (now, mut turns) = (Instant::now(), line.turns());
            let (free, waiting) = places.room(&line.queue, now);
            let mut pulls = turns.plan(waiting, false, now, |lane| weight(&policy, lane));
            // A worker that asks again at once may ask for less: of a backlog nothing is taken for it ahead, nor of a hint that another
            // process would have heard.
            if !line.rounds.is_alone() {
                let taken = pulls.iter().map(|wanted| wanted.count).sum();
                pulls.extend(turns.plan(free.saturating_sub(taken), true, now, |lane| weight(&policy, lane)));
            }
            drop(turns);
            pulls.iter().for_each(|wanted| places.hold(&line.queue, wanted.count));
            pulls
        };
        if pulls.is_empty() {
            return false;
        }
        line.pulls.send_modify(|out| *out += pulls.len());
        for wanted in pulls {
            self.0.tasks.spawn(self.clone().pull(Arc::clone(line), Arc::clone(&policy), wanted));
        }
        true
    }

    /// Has a pull stand for the next job of the lane whose job came last, while somebody waits, nothing else is asked for, and
    /// this process is the only one that takes any: it needs neither a hint nor a request to get here then. Of several
    /// processes one would take what another one was told of.
    pub(crate) fn stand(&self, line: &Arc<Line>) {
        let policy = line.policy();
        let is_of_use = !policy.paused && *line.pulls.borrow() == 0 && line.rounds.is_alone() && self.free(line) > 0;
        if !is_of_use || line.stands.load(Ordering::Acquire) {
            return;
        }
        let Some(lane) = line.expected() else { return };
        if line.stands.swap(true, Ordering::AcqRel) {
            return;
        }
        let wanted = line.turns().stand(&lane, Instant::now());
        match wanted {
            Some(wanted) => drop(self.0.tasks.spawn(self.clone().pull(Arc::clone(line), policy, wanted))),
            None => line.stands.store(false, Ordering::Release),
        }
    }

    /// From here on every job is looked up first if the connection was made again since the mark was set, until the server
    /// said up to which.
    pub(crate) fn suspect_if_reconnected(&self, line: &Arc<Line>) {
        let connections = self.connections();
        if line.connections.swap(connections, Ordering::AcqRel) != connections {
            line.suspect();
            let (nats, line) = (self.clone(), Arc::clone(line));
            // If that fails, the next round asks again.
            self.0.tasks.spawn(async move { drop(nats.raise_mark(&line).await) });
        }
    }

    /// Raises the mark if the connection was made again since it was set.
    pub(crate) async fn raise_mark_if_reconnected(&self, line: &Line) -> Result<(), BrokerError> {
        let connections = self.connections();
        if line.connections.swap(connections, Ordering::AcqRel) != connections {
            self.raise_mark(line).await?;
        }
        Ok(())
    }

    /// From here on every job that is stored already is looked up first: its consumer was made again, or has another
    /// leader, or the connection was lost meanwhile. Until the server said how far that goes, it is all of them.
    pub(crate) async fn raise_mark(&self, line: &Line) -> Result<(), BrokerError> {
        let raised = line.suspect();
        let stream =
            stream_calls::get(self.api(), &names::jobs_stream(&line.queue), "lease").await.inspect_err(|_| {
                // As after a reconnect: the next round asks again.
                line.connections.store(u64::MAX, Ordering::Release);
                line.rounds.soon();
            })?;
        if line.raised.load(Ordering::Acquire) == raised {
            line.mark.store(stream.info.state.last_sequence, Ordering::Release);
        }
        Ok(())
    }

    /// The lane's consumer was reset, or somebody made another of its name: here and in the other processes every job that is
    /// stored is looked up from now on.
    pub(crate) async fn begins_anew(&self, line: &Line, lane: &Lane) {
        tracing::warn!(queue = %line.queue, consumer = %lane, "a consumer began anew: what it delivers is looked up first");
        let anew = listening::BEGAN_ANEW.into();
        let told = self.api().tell(names::control(&line.queue), HeaderMap::new(), anew);
        // If it fails, every job is looked up until the stream was asked again.
        drop(tokio::join!(self.raise_mark(line), told));
    }

    /// Makes a consumer that somebody deleted. It delivers everything again, so everything is looked up.
    pub(crate) async fn restore_consumer(
        &self,
        line: &Line,
        policy: &QueuePolicy,
        lane: &Lane,
    ) -> Result<(), BrokerError> {
        tracing::warn!(queue = %line.queue, consumer = %lane, "a consumer was gone: made again");
        self.raise_mark(line).await?;
        self.consumers().forget(&line.queue, lane);
        self.make_consumer(&line.queue, lane, policy).await?;
        line.more(lane);
        Ok(())
    }
}
