//! Looks at the broker now and then, so that what readers ask is answered from memory: one look at a time, whoever asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use relay_bridge::broker::Broker;
use relay_bridge::contract::{QueueName, Timestamp};
use relay_bridge::dead_letters::DeadLetters;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, JobQueue};
use relay_bridge::leasing::Leasing;
use relay_bridge::policy::QueuePolicy;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Admin;
use super::refusing::Refusing;
use crate::telemetry::Counts;

/// The shortest time between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// A look that takes long is followed by a pause of so many times as long: looking costs at most a tenth of the time.
const PAUSE_FACTOR: u32 = 10;
/// The longest pause after a look that met trouble: it took long by waiting, and the end of the trouble is to be seen soon.
const TROUBLED_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A broker that takes longer to name its queues is away, and so is a queue that takes longer to say how much waits in it.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Queues that are asked at once: one that does not answer holds up no other.
const AT_ONCE: usize = 8;
/// How often it is checked that what all queues need is there: it costs more than a look.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Queues that are looked at.
const QUEUES_MAX: usize = 1_000;
/// Depths that are remembered of each queue.
const HISTORY: usize = 60;

/// Finds that the broker has what relay needs there, as it was when the process started.
pub type Check = Box<dyn Fn() -> BoxFuture<'static, Result<(), BrokerError>> + Send + Sync>;

/// Where a process's jobs come from.
pub enum Watched {
    /// A server: every queue of its broker.
    Broker {
        /// The broker.
        broker: Broker,
        /// The queues that must be there.
        queues: Vec<QueueName>,
        /// Where a broker has more than its queues.
        check: Option<Check>,
    },
    /// A worker: whether it can ask for the policies of its queues.
    Leasing(Arc<dyn Leasing>, Vec<QueueName>),
}

/// The findings of the last look.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// When the last look was taken that reached the broker, on the monotonic clock; `None` before the first one.
    pub taken_at: Option<Duration>,
    /// Why the broker can't be used, if it can't. The fields below are then from the last look that reached it.
    pub trouble: Option<String>,
    /// Each queue that can't be used although the broker can, and why; also of what all queues share.
    pub unusable: Vec<String>,
    /// When it was last seen that jobs of a newer relay were handed back, on the monotonic clock.
    pub newer_at: Option<Duration>,
    /// Every queue, in the order of names, [`QUEUES_MAX`] at most. One that could not be read is as it was.
    pub queues: Vec<QueueSample>,
}

/// One queue.
#[derive(Clone, Debug)]
pub struct QueueSample {
    /// Its name.
    pub name: QueueName,
    /// The queue's policy.
    pub policy: QueuePolicy,
    /// How much waits and runs.
    pub depth: Depth,
    /// How long the job waits that waits longest, if the broker can say it cheaply and one waits.
    pub oldest: Option<Duration>,
    /// Its dead letters, up to [`LETTERS_MAX`], and when they were counted, on the monotonic clock; `None` where the broker
    /// doesn't count them.
    pub letters: Option<(u64, Duration)>,
    /// The numbers that this process counted for the queue.
    pub counts: Counts,
    /// Jobs accepted a second, since the look before.
    pub submitted_rate: f64,
    /// Runs ended a second, since the look before.
    pub settled_rate: f64,
    /// How much waited at the last looks, oldest first.
    pub history: VecDeque<u64>,
}

/// Dead letters of a queue are counted up to this number.
const LETTERS_MAX: u32 = 10_000;
/// How old a count of dead letters may be. On NATS each costs an answer as long as their names.
const LETTERS_AGE: Duration = Duration::from_secs(30);

/// Looks until `stop`.
pub(super) async fn watch(admin: Arc<Admin>, watched: Watched, stop: CancellationToken) {
    let mut checked = None;
    let (mut newer, mut told) = (0, Vec::new());
    let looking = async {
        loop {
            let before = Arc::clone(&admin.sample.borrow());
            let began = Instant::now();
            let mut sample = match look(&admin, &watched, &before).await {
                Ok(Looked { queues, unusable }) => {
                    let taken_at = Some(admin.telemetry.clock().monotonic());
                    Sample { taken_at, trouble: None, unusable, newer_at: before.newer_at, queues }
                }
                Err(trouble) => Sample { trouble: Some(trouble), ..(*before).clone() },
            };
            if sample.trouble.is_none()
                && let Watched::Broker { check: Some(check), .. } = &watched
            {
                sample.unusable.extend(is_there(check, &mut checked).await);
            }
            let handed_back = admin.newer_jobs();
            if handed_back > newer {
                (newer, sample.newer_at) = (handed_back, Some(admin.telemetry.clock().monotonic()));
            }
            let troubled = sample.trouble.is_some() || !sample.unusable.is_empty();
            admin.sample.send_replace(Arc::new(sample));
            let refusing = admin.refusing();
            tell(&told, &refusing);
            told = refusing;
            // A caller that changed something wants to see the change.
            let pause = EVERY.max(began.elapsed() * PAUSE_FACTOR);
            let pause = if troubled { pause.min(TROUBLED_PAUSE_MAX) } else { pause };
            tokio::select! {
                () = sleep(pause) => {}
                () = admin.look_now.notified() => {}
            }
        }
    };
    stop.run_until_cancelled(looking).await;
}

/// Logs what is refused from now on, and what no longer is.
fn tell(before: &[Refusing], now: &[Refusing]) {
    let is_among = |all: &[Refusing], one: &Refusing| all.iter().any(|refusing| refusing.what == one.what);
    for begun in now.iter().filter(|refusing| !is_among(before, refusing)) {
        tracing::warn!(what = begun.what, detail = %begun.detail, "some of what is asked is refused");
    }
    for ended in before.iter().filter(|refusing| !is_among(now, refusing)) {
        tracing::info!(what = ended.what, "no longer refused");
    }
}

/// Why what all queues need is not there, if it is not; asked at most every [`CHECK_EVERY`]. That it can't be found out says
/// nothing.
async fn is_there(check: &Check, checked: &mut Option<(Instant, Option<String>)>) -> Option<String> {
    if let Some((_, found)) = checked.as_ref().filter(|(at, _)| at.elapsed() < CHECK_EVERY) {
        return found.clone();
    }
    let found = match timeout(LOOK_MAX, check()).await {
        Ok(Err(error)) if !is_away(&error) => Some(error.to_string()),
        Ok(Ok(())) => None,
        Ok(Err(_)) | Err(_) => checked.take().and_then(|(_, found)| found),
    };
    *checked = Some((Instant::now(), found.clone()));
    found
}

/// The findings of a look at a broker that answers.
struct Looked {
    queues: Vec<QueueSample>,
    unusable: Vec<String>,
}

/// # Errors
/// Why the broker can't be used: no queue of it can.
async fn look(admin: &Admin, watched: &Watched, before: &Sample) -> Result<Looked, String> {
    match watched {
        Watched::Broker { broker, queues, .. } => look_at_broker(admin, broker, queues, before).await,
        Watched::Leasing(leasing, queues) => {
            let policy = |queue| {
                let leasing = Arc::clone(leasing);
                async move { leasing.queue_policy(&queue).await }.boxed()
            };
            look_at_source(queues, policy).await
        }
    }
}

async fn look_at_source(
    queues: &[QueueName],
    policy: impl Fn(QueueName) -> BoxFuture<'static, Result<QueuePolicy, BrokerError>>,
) -> Result<Looked, String> {
    let (mut unusable, mut away) = (Vec::new(), Vec::new());
    let until = Instant::now() + LOOK_MAX;
    let ask = |queue: &QueueName| {
        let queue = queue.clone();
        timeout_at(until, policy(queue.clone())).map(|found| (queue, found))
    };
    let asked: Vec<_> = queues.iter().map(ask).collect();
    let mut asked = stream::iter(asked).buffered(AT_ONCE);
    while let Some((queue, found)) = asked.next().await {
        match found {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if is_away(&error) => away.push(format!("{queue}: {error}")),
            Ok(Err(error)) => unusable.push(format!("{queue}: {error}")),
            Err(_) => away.push(format!("{queue}: no answer within {LOOK_MAX:?}")),
        }
    }
    // As long as one queue is answered for, it is the others that are in trouble.
    if !away.is_empty() && away.len() == queues.len() {
        return Err(away.swap_remove(0));
    }
    unusable.append(&mut away);
    Ok(Looked { queues: Vec::new(), unusable })
}

async fn look_at_broker(
    admin: &Admin,
    broker: &Broker,
    wanted: &[QueueName],
    before: &Sample,
) -> Result<Looked, String> {
    let named = match timeout(LOOK_MAX, broker.policies.policies()).await {
        Ok(Ok(policies)) => Ok(policies),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the broker did not answer within {LOOK_MAX:?}")),
    };
    let mut unusable = Vec::new();
    let policies = match &named {
        Ok(policies) => {
            let missing = wanted.iter().filter(|queue| policies.iter().all(|(name, _)| name != *queue));
            unusable.extend(missing.map(|queue| format!("{queue}: there is no such queue any more")));
            policies.clone()
        }
        // One queue may be why they can't be named: those that are known are asked.
        Err(_) => before.queues.iter().map(|queue| (queue.name.clone(), queue.policy.clone())).collect(),
    };
    let until = Instant::now() + LOOK_MAX;
    let policies = policies.into_iter().take(QUEUES_MAX);
    let sampling = Sampling::begin(admin, before);
    let asked = stream::iter(policies.map(|(name, policy)| async {
        let found = timeout_at(until, fill(admin, broker, &name)).await;
        let letters = timeout_at(until, sampling.letters(&*broker.dead_letters, &name)).await;
        (name, policy, found, letters.unwrap_or_default())
    }));
    let mut asked = asked.buffered(AT_ONCE);
    let (mut queues, mut answered) = (Vec::new(), false);
    while let Some((name, policy, found, letters)) = asked.next().await {
        let why = match found {
            Ok(Ok((depth, oldest))) => {
                answered = true;
                queues.push(QueueSample { letters, ..sampling.queue(name, policy, depth, oldest) });
                continue;
            }
            // Removed since the policies were read.
            Ok(Err(error)) if error.kind() == BrokerErrorKind::NotFound && !wanted.contains(&name) => continue,
            // That it is asked too often says nothing of what clients ask.
            Ok(Err(error)) if matches!(error.kind(), BrokerErrorKind::Overloaded { .. }) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {LOOK_MAX:?}")),
        };
        unusable.extend(why.map(|why| format!("{name}: {why}")));
        queues.extend(sampling.as_before(&name));
    }
    match named {
        Err(trouble) if !answered => Err(trouble),
        Err(trouble) => {
            unusable.push(trouble);
            Ok(Looked { queues, unusable })
        }
        Ok(_) => Ok(Looked { queues, unusable }),
    }
}

/// How much waits and runs in a queue, and since when the job waits that waits longest.
async fn fill(admin: &Admin, broker: &Broker, queue: &QueueName) -> Result<(Depth, Option<Timestamp>), BrokerError> {
    let jobs: &dyn JobQueue = &*broker.jobs;
    let depth = match admin.looks.get() {
        // One look for both: scalers are told by it as well.
        Some(looks) => looks.for_all(queue).await?,
        None => jobs.depth(queue).await?,
    };
    // Without it the rest is worth as much.
    let oldest = if depth.waiting > 0 { jobs.oldest(queue).await.ok().flatten() } else { None };
    Ok((depth, oldest))
}

/// Whether an error is of the broker as such rather than of what was asked for.
fn is_away(error: &BrokerError) -> bool {
    error.is_transient() || error.kind() == BrokerErrorKind::Unauthorized
}

/// Turns what was found of queues into samples.
struct Sampling<'a> {
    admin: &'a Admin,
    /// Since the look before.
    seconds: f64,
    known: BTreeMap<&'a QueueName, &'a QueueSample>,
    flows: BTreeMap<QueueName, Counts>,
}

impl<'a> Sampling<'a> {
    fn begin(admin: &'a Admin, before: &'a Sample) -> Self {
        let elapsed = before.taken_at.map(|taken_at| admin.telemetry.clock().monotonic().saturating_sub(taken_at));
        Self {
            admin,
            seconds: elapsed.unwrap_or_default().as_secs_f64(),
            known: before.queues.iter().map(|queue| (&queue.name, queue)).collect(),
            flows: admin.telemetry.flows().by_queue(),
        }
    }

    /// The dead letters of a queue, counted anew where that is long ago; as they were where they can't be counted now.
    async fn letters(&self, letters: &dyn DeadLetters, name: &QueueName) -> Option<(u64, Duration)> {
        let last = self.known.get(name).and_then(|queue| queue.letters);
        let now = self.admin.telemetry.clock().monotonic();
        match last {
            Some((_, at)) if now.saturating_sub(at) < LETTERS_AGE => last,
            _ => letters.count(name, LETTERS_MAX).await.map_or(last, |count| Some((count?, now))),
        }
    }

    /// A queue that could not be read.
    fn as_before(&self, name: &QueueName) -> Option<QueueSample> {
        self.known.get(name).map(|queue| (*queue).clone())
    }

    fn queue(&self, name: QueueName, policy: QueuePolicy, depth: Depth, since: Option<Timestamp>) -> QueueSample {
        let counts = self.flows.get(&name).copied().unwrap_or_default();
        let last = self.known.get(&name).copied();
        let rate = |of: fn(&Counts) -> u64| {
            let more = of(&counts).saturating_sub(last.map_or(0, |last| of(&last.counts)));
            #[expect(clippy::cast_precision_loss, reason = "a rate is rounded for people")]
            let rate = more as f64 / self.seconds;
            if last.is_some() && rate.is_finite() { rate } else { 0.0 }
        };
        let mut history = last.map(|last| last.history.clone()).unwrap_or_default();
        if history.len() >= HISTORY {
            history.pop_front();
        }
        history.push_back(depth.waiting + depth.parked);
        QueueSample {
            submitted_rate: rate(|counts| counts.submitted),
            settled_rate: rate(|counts| counts.settled.iter().sum()),
            name,
            policy,
            depth,
            letters: None,
            oldest: since.map(|since| self.admin.telemetry.clock().now().since(since)),
            counts,
            history,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn queues_that_do_not_answer_hide_none_that_does() {
        let queues = ["slow", "slower", "quick"].map(|name| name.parse::<QueueName>().unwrap());
        let policy = |queue: QueueName| -> BoxFuture<'static, _> {
            let answers_after = if queue.as_str() == "quick" { Duration::from_secs(1) } else { LOOK_MAX * 2 };
            sleep(answers_after).map(|()| Ok(QueuePolicy::default())).boxed()
        };
        let looked = look_at_source(&queues, policy).await.expect("one queue answers");
        assert_eq!(looked.unusable, ["slow: no answer within 5s", "slower: no answer within 5s"]);
        let trouble = look_at_source(&queues[..2], policy).await.err();
        assert_eq!(trouble.as_deref(), Some("slow: no answer within 5s"));
    }
}
