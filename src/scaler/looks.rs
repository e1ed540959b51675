//! Looks at the broker for all who ask what a queue needs: one at a time for each queue, and none where one was taken just
//! now. However many ask, and however often, the broker is asked about as often as the measurement needs it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use relay_bridge::broker::{Broker, LoadSight};
use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, JobQueue};
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::support::lock;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::pace::Measured;
use super::trigger::LEAD;
use super::wanted::Pace;

/// Queues that are measured at a time.
const QUEUES_MAX: usize = 10_000;
/// A queue that nobody who scales asked about for so long is measured no more, and one that nobody looked at is forgotten.
const ASKED_WITHIN: Duration = Duration::from_secs(600);
/// The least time between two looks for the measurement's sake.
const EVERY: Duration = Duration::from_secs(2);
/// Looks a second for the measurement's sake, at most.
const LOOKS_A_SECOND: u32 = 100;
/// Looks at a time: a queue that does not answer holds up no other.
const AT_ONCE: usize = 8;
/// How long the broker may take for one of them, and for keeping a pace.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long somebody who asks is kept waiting, and how old figures may be that are better than none.
pub(crate) const ANSWER_MAX: Duration = Duration::from_millis(800);
const LAST_AGE: Duration = Duration::from_secs(5);
/// How long a pace that was kept before may hold up the first look.
const KEPT_MAX: Duration = Duration::from_millis(250);
/// How often a pace is kept, if it changed; and if it did not.
const KEEP_EVERY: Duration = Duration::from_secs(60);
const KEEP_AGAIN: Duration = Duration::from_secs(600);
/// The part by which a pace has to differ to be kept before its time.
const DIFFERS: f64 = 0.05;
/// Times into the future that looks of one queue are remembered for.
const LEADS_MAX: usize = 4;

/// The findings about a queue.
#[derive(Clone, Copy, Debug)]
pub struct Looked {
    /// Its work.
    pub load: Load,
    /// How fast it comes and goes.
    pub pace: Pace,
    /// When it was looked at, by the monotonic clock.
    pub at: Duration,
}

/// The looks of a process at its broker.
pub struct Looks {
    jobs: Arc<dyn JobQueue>,
    sight: LoadSight,
    clock: Clock,
    queues: Mutex<HashMap<QueueName, Arc<Queue>>>,
}

#[derive(Default)]
struct Queue {
    /// Held by who looks.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Told of jobs that came through this process.
    came: Arc<Notify>,
}

#[derive(Default)]
struct State {
    measured: Measured,
    /// The last look for each time ahead, the newest last.
    seen: Vec<Seen>,
    /// When it was looked at by anybody, and when for somebody who scales.
    used_at: Duration,
    asked_at: Option<Duration>,
    /// Whether it was looked for what was kept before.
    restored: bool,
    kept: Option<(Duration, KeptPace)>,
}

#[derive(Clone, Copy)]
struct Seen {
    within: Duration,
    at: Duration,
    load: Load,
}

impl State {
    /// The last look for `within`, if it is not from before `since`.
    fn seen(&self, within: Duration, since: Duration) -> Option<Looked> {
        let seen = self.seen.iter().find(|seen| seen.within == within && seen.at >= since)?;
        Some(Looked { load: seen.load, pace: self.measured.pace(), at: seen.at })
    }

    fn note(&mut self, seen: Seen) -> Looked {
        self.measured.note(seen.at, seen.load);
        self.seen.retain(|other| other.within != seen.within);
        if self.seen.len() >= LEADS_MAX {
            self.seen.remove(0);
        }
        self.seen.push(seen);
        Looked { load: seen.load, pace: self.measured.pace(), at: seen.at }
    }

    /// The pace, if it is worth keeping now.
    fn to_keep(&self, now: Duration) -> Option<KeptPace> {
        let pace = self.measured.kept()?;
        let Some((at, kept)) = self.kept else { return Some(pace) };
        let age = now.saturating_sub(at);
        let service = |pace: KeptPace| pace.busy / pace.attempts;
        let differs = (service(pace) / service(kept) - 1.0).abs() > DIFFERS;
        (age >= KEEP_AGAIN || differs && age >= KEEP_EVERY).then_some(pace)
    }
}

impl Looks {
    /// Looks at `broker`, by its clock.
    #[must_use]
    pub fn new(broker: &Broker, clock: Clock) -> Arc<Self> {
        let (jobs, sight) = (Arc::clone(&broker.jobs), broker.capabilities.load);
        Arc::new(Self { jobs, sight, clock, queues: Mutex::default() })
    }

    /// How long ago the look was taken that found `looked`.
    pub(super) fn ago(&self, looked: &Looked) -> Duration {
        self.clock.monotonic().saturating_sub(looked.at)
    }

    /// How old figures may be that are no use to ask for again.
    pub(super) fn age(&self) -> Duration {
        self.sight.age
    }

    /// The work of `queue` within `within`, as it was `age` ago at most.
    ///
    /// # Errors
    /// Those of [`JobQueue::load`]; `Overloaded` if more than 10,000 queues are asked about.
    pub async fn look(&self, queue: &QueueName, within: Duration, age: Duration) -> Result<Looked, BrokerError> {
        let watched = self.watched(queue)?;
        lock(&watched.state).asked_at = Some(self.clock.monotonic());
        self.look_at(queue, &watched, within, age).await
    }

    /// The same within 800 ms: of a broker that takes longer the last look, if it was taken at most 5 s ago.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub(crate) async fn answer(
        &self,
        queue: &QueueName,
        within: Duration,
        age: Duration,
    ) -> Result<Option<Looked>, BrokerError> {
        match timeout(ANSWER_MAX, self.look(queue, within, age)).await {
            Ok(looked) => looked.map(Some),
            Err(_) => Ok(self.seen(queue, within, LAST_AGE)),
        }
    }

    /// How much waits and runs in `queue` now, for those who look at all queues: they scale none, so that it is not measured
    /// for them.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub async fn for_all(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        let watched = self.watched(queue)?;
        let Load { in_line, parked, leased, .. } = self.look_at(queue, &watched, LEAD, Duration::ZERO).await?.load;
        Ok(Depth { waiting: in_line, parked, leased })
    }

    async fn look_at(
        &self,
        name: &QueueName,
        queue: &Arc<Queue>,
        within: Duration,
        age: Duration,
    ) -> Result<Looked, BrokerError> {
        let asked = self.clock.monotonic();
        if let Some(found) = lock(&queue.state).seen(within, asked.saturating_sub(age)).filter(|_| !age.is_zero()) {
            return Ok(found);
        }
        let _turn = queue.turn.lock().await;
        // Somebody else may have looked meanwhile.
        if let Some(found) = lock(&queue.state).seen(within, asked) {
            return Ok(found);
        }
        self.restore(name, queue).await;
        match self.jobs.load(name, within).await {
            Ok(load) => Ok(lock(&queue.state).note(Seen { within, at: self.clock.monotonic(), load })),
            Err(error) => {
                if error.kind() == BrokerErrorKind::NotFound {
                    self.forget(name, queue);
                }
                Err(error)
            }
        }
    }

    /// Begins with the pace that another process, or the one before, has kept.
    async fn restore(&self, name: &QueueName, queue: &Queue) {
        if lock(&queue.state).restored {
            return;
        }
        if let Ok(Ok(kept)) = timeout(KEPT_MAX, self.jobs.kept_pace(name)).await {
            let mut state = lock(&queue.state);
            state.restored = true;
            if let Some(kept) = kept {
                state.measured.remember(kept);
            }
        }
    }

    /// The last look at `queue`, if it was taken at most `age` ago.
    #[must_use]
    pub fn last(&self, queue: &QueueName, age: Duration) -> Option<Looked> {
        self.seen(queue, LEAD, age)
    }

    fn seen(&self, queue: &QueueName, within: Duration, age: Duration) -> Option<Looked> {
        let watched = lock(&self.queues).get(queue).cloned()?;
        lock(&watched.state).seen(within, self.clock.monotonic().saturating_sub(age))
    }

    /// How many queues are known.
    #[must_use]
    pub fn queues(&self) -> usize {
        lock(&self.queues).len()
    }

    /// A job for `queue` came through this process: those who wait for the first one look at once.
    pub fn came(&self, queue: &QueueName) {
        let watched = lock(&self.queues).get(queue).cloned();
        if let Some(watched) = watched {
            watched.came.notify_waiters();
        }
    }

    /// Ready once a job for `queue` came through this process after the call. Nothing if there are too many queues.
    pub(super) fn coming(&self, queue: &QueueName) -> Option<OwnedNotified> {
        let watched = self.watched(queue).ok()?;
        Some(Arc::clone(&watched.came).notified_owned())
    }

    fn watched(&self, queue: &QueueName) -> Result<Arc<Queue>, BrokerError> {
        let mut queues = lock(&self.queues);
        let now = self.clock.monotonic();
        if queues.len() >= QUEUES_MAX && !queues.contains_key(queue) {
            queues.retain(|_, queue| now.saturating_sub(lock(&queue.state).used_at) < ASKED_WITHIN);
            if queues.len() >= QUEUES_MAX {
                let retry_after = ASKED_WITHIN;
                let why = "more than 10,000 queues are asked about: ask another process about some of them";
                return Err(BrokerError::new(BrokerErrorKind::Overloaded { retry_after }, "look at queue", why));
            }
        }
        let watched = Arc::clone(queues.entry(queue.clone()).or_default());
        lock(&watched.state).used_at = now;
        Ok(watched)
    }

    fn forget(&self, name: &QueueName, queue: &Arc<Queue>) {
        let mut queues = lock(&self.queues);
        if queues.get(name).is_some_and(|known| Arc::ptr_eq(known, queue)) {
            queues.remove(name);
        }
    }

    /// Measures the queues that are asked about until `stop`, and keeps what it measured.
    pub async fn measure(&self, stop: CancellationToken) {
        let measuring = async {
            loop {
                let known = self.asked_lately();
                let pause = EVERY.max(self.sight.age).max(Duration::from_secs(1) * count(known.len()) / LOOKS_A_SECOND);
                let (until, looks) = (tokio::time::Instant::now() + pause, stream::iter(known));
                let looks = looks.map(|(name, queue)| async move {
                    // Others may look more often than this.
                    let looked = self.look_at(&name, &queue, LEAD, pause / 2);
                    if let Ok(Ok(_)) = timeout(LOOK_MAX, looked).await {
                        self.keep(&name, &queue).await;
                    }
                });
                looks.buffer_unordered(AT_ONCE).collect::<()>().await;
                tokio::time::sleep_until(until).await;
            }
        };
        stop.run_until_cancelled(measuring).await;
    }

    fn asked_lately(&self) -> Vec<(QueueName, Arc<Queue>)> {
        let mut queues = lock(&self.queues);
        let now = self.clock.monotonic();
        let lately = |at: Duration| now.saturating_sub(at) < ASKED_WITHIN;
        queues.retain(|_, queue| lately(lock(&queue.state).used_at));
        let asked = queues.iter().filter(|(_, queue)| lock(&queue.state).asked_at.is_some_and(lately));
        asked.map(|(name, queue)| (name.clone(), Arc::clone(queue))).collect()
    }

    async fn keep(&self, name: &QueueName, queue: &Queue) {
        let now = self.clock.monotonic();
        let Some(pace) = lock(&queue.state).to_keep(now) else { return };
        match timeout(LOOK_MAX, self.jobs.keep_pace(name, &pace)).await {
            Ok(Ok(())) => lock(&queue.state).kept = Some((now, pace)),
            Ok(Err(error)) => tracing::debug!(queue = %name, %error, "the pace of a queue was not kept"),
            Err(_) => tracing::debug!(queue = %name, "the pace of a queue was not kept in time"),
        }
    }
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use relay_bridge::contract::Timestamp;
    use relay_bridge::policy::QueuePolicy;
    use relay_embedded::{Embedded, EmbeddedConfig};

    use super::*;

    #[tokio::test]
    async fn a_queue_is_measured_once_somebody_who_scales_asked_about_it() {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let config = EmbeddedConfig { clock: clock.clone(), ..EmbeddedConfig::default() };
        let broker = Embedded::open(config).await.unwrap().broker();
        let mail = "mail".parse().unwrap();
        broker.policies.put_policy(&mail, &QueuePolicy::default(), None).await.unwrap();
        let looks = Looks::new(&broker, clock.clone());
        looks.for_all(&mail).await.unwrap();
        assert!(looks.last(&mail, EVERY).is_some() && looks.asked_lately().is_empty());
        looks.look(&mail, LEAD, EVERY).await.unwrap();
        assert_eq!(looks.asked_lately().len(), 1);
        clock.advance(ASKED_WITHIN);
        looks.for_all(&mail).await.unwrap();
        assert_eq!((looks.asked_lately().len(), looks.queues()), (0, 1));
    }
}
