//! A queue from which this process leases: the lease calls that wait at it, and the received messages whose clients run
//! as many jobs as they may.

use relay_bridge::support::lock;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::adapter::aws::queue::{BATCH_MAX, SqsQueue};
use crate::adapter::leases::received::Received;
use relay_bridge::contract::{ClientId, JobId, QueueName, RunId};
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::Delivery;
use relay_bridge::policy::QueuePolicy;

const OPERATION: &str = "lease";
/// The most messages kept at hand whose clients run as many jobs as they may.
const BOUNDED_MAX: usize = 100;
/// The time between two tries of those messages while others wait behind them, unless a slot becomes free in this
/// process.
pub(crate) const BOUNDED_EVERY: Duration = Duration::from_secs(1);
/// The pause before more messages are received, and how long a client that was at its bound is assumed to be there.
pub(crate) const BOUNDED_PAUSE: Duration = Duration::from_millis(250);
/// After so many receives in a row that brought only such messages, and as many as they asked for, receiving rests.
const FRUITLESS_MAX: u32 = 10;
const REST: Duration = Duration::from_secs(1);

type Answer = Result<Vec<Delivery>, BrokerError>;

/// A lease call that waits.
pub(crate) struct Ask {
    pub(crate) max: usize,
    deadline: Instant,
    give: Mutex<Option<oneshot::Sender<Answer>>>,
}

impl Ask {
    pub(crate) fn new(max: usize, deadline: Instant, give: oneshot::Sender<Answer>) -> Self {
        Self { max, deadline, give: Mutex::new(Some(give)) }
    }

    /// Closes the call, which takes no answer any more. `false` if it was answered before.
    pub(crate) fn close(&self) -> bool {
        lock(&self.give).take().is_some()
    }

    pub(crate) fn is_open(&self) -> bool {
        lock(&self.give).as_ref().is_some_and(|give| !give.is_closed())
    }

    /// Answers the call, or gives the answer back.
    pub(crate) fn answer(&self, answer: Answer) -> Result<(), Answer> {
        match lock(&self.give).take() {
            Some(give) => give.send(answer),
            None => Err(answer),
        }
    }
}

/// A queue from which this process leases.
pub(crate) struct Line {
    pub(crate) name: QueueName,
    pub(crate) queue: Arc<SqsQueue>,
    state: Mutex<State>,
    /// Woken when a client may run one job more, as far as this process knows.
    pub(crate) freed: Notify,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) asks: Vec<Arc<Ask>>,
    pub(crate) receives: usize,
    /// Received messages of clients that run as many jobs as they may.
    pub(crate) bounded: VecDeque<Received>,
    /// Clients that were found to run as many as they may, and when.
    pub(crate) full: HashMap<ClientId, Instant>,
    /// The last receive brought as many messages as it asked for: behind them there may be jobs that can run.
    pub(crate) more_behind: bool,
    /// How many such receives in a row brought only messages of clients at their bounds.
    fruitless: u32,
    /// Until then nobody receives, because many receives brought no job.
    rests_until: Option<Instant>,
}

/// The outcome of claiming the messages of a receive.
pub(crate) struct Taken {
    pub(crate) deliveries: Vec<Delivery>,
    /// Some are of clients at their bounds.
    pub(crate) bounded: bool,
}

impl Line {
    pub(crate) fn new(name: QueueName, queue: Arc<SqsQueue>) -> Self {
        Self { name, queue, state: Mutex::default(), freed: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// How many jobs are wanted, and until when, by calls whose callers are still there.
    pub(crate) fn wanted(&self) -> Option<(usize, Instant)> {
        let mut state = self.lock();
        state.asks.retain(|ask| ask.is_open());
        let deadline = state.asks.iter().map(|ask| ask.deadline).max()?;
        Some((state.asks.iter().map(|ask| ask.max).sum(), deadline))
    }

    /// Whether this receiver ends because nobody asks. It is decided under the lock under which a new receiver begins.
    pub(crate) fn ends(&self) -> bool {
        let mut state = self.lock();
        state.asks.retain(|ask| ask.is_open());
        let ends = state.asks.is_empty();
        if ends {
            state.receives -= 1;
        }
        ends
    }

    /// Takes out the message of a run, if it is at hand and SQS still hides it from other processes.
    pub(crate) fn take_of(&self, job: JobId, run: RunId) -> Option<Received> {
        let mut state = self.lock();
        let is_it = |received: &Received| received.wake.job == job && received.wake.run == run;
        let at = state.bounded.iter().position(is_it)?;
        state.bounded.remove(at).filter(|received| received.visible_at() > Instant::now())
    }

    pub(crate) fn take_bounded(&self) -> Vec<Received> {
        let mut state = self.lock();
        let now = Instant::now();
        state.bounded.retain(|received| received.visible_at() > now + BOUNDED_EVERY);
        state.bounded.drain(..).collect()
    }

    /// Keeps messages of clients at their bounds at hand, as far as there is room; returns the others.
    pub(crate) fn keep(&self, mut bounded: Vec<Received>) -> Vec<Received> {
        let mut state = self.lock();
        let more = bounded.split_off(bounded.len().min(BOUNDED_MAX.saturating_sub(state.bounded.len())));
        state.bounded.extend(bounded);
        more
    }

    /// Whether nothing but messages of clients at their bounds is in line, as far as this process knows.
    pub(crate) fn has_bounded_alone(&self) -> bool {
        let state = self.lock();
        !state.bounded.is_empty() && !state.more_behind
    }

    /// Whether nobody receives now.
    pub(crate) fn rests(&self) -> bool {
        self.lock().rests_until.is_some_and(|until| until > Instant::now())
    }

    /// How many messages a receive asks for when at most `wanted` jobs are delivered: as many as a receive can bring
    /// while messages of clients at their bounds are in the way.
    pub(crate) fn asks_for(&self, wanted: usize) -> usize {
        if self.lock().fruitless > 0 { BATCH_MAX } else { wanted.min(BATCH_MAX) }
    }

    /// Notes the outcome of a receive.
    pub(crate) fn note(&self, taken: &Taken, full: bool) {
        let mut state = self.lock();
        state.fruitless = if full && taken.bounded && taken.deliveries.is_empty() { state.fruitless + 1 } else { 0 };
        if state.fruitless > 0 && state.fruitless.is_multiple_of(FRUITLESS_MAX) {
            state.rests_until = Some(Instant::now() + REST);
        }
    }

    pub(crate) fn is_full(&self, client: &ClientId) -> bool {
        let mut state = self.lock();
        state.full.retain(|_, found| found.elapsed() < BOUNDED_PAUSE);
        state.full.contains_key(client)
    }

    /// Answers every call with an error.
    pub(crate) fn fail(&self, error: &BrokerError) {
        for ask in std::mem::take(&mut self.lock().asks) {
            // A call that was answered meanwhile needs no error.
            drop(ask.answer(Err(BrokerError::new(error.kind(), OPERATION, error.detail()))));
        }
    }
}

/// Takes up to `wanted` out of `received`, of each client with a bound up to `at_once`.
pub(crate) fn in_turn(
    received: &mut Vec<Received>,
    policy: &QueuePolicy,
    wanted: usize,
    at_once: usize,
) -> Vec<Received> {
    let (mut turn, mut taken) = (Vec::new(), HashMap::<ClientId, usize>::new());
    let mut left = Vec::new();
    for one in received.drain(..) {
        let client = &one.wake.client;
        let bounded = policy.client(client).max_running != u32::MAX;
        if turn.len() == wanted || bounded && taken.get(client).is_some_and(|taken| *taken >= at_once) {
            left.push(one);
            continue;
        }
        *taken.entry(client.clone()).or_default() += 1;
        turn.push(one);
    }
    *received = left;
    turn
}
