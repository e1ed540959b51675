//! One delivery's life: admitted or not, the handler run beside the heartbeat, the end decided and applied.
//!
//! The handler runs in a task of its own, so that one that computes without a pause holds up neither the heartbeat nor
//! the settlement, and its panic ends the attempt only.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::backoff::random;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Failure, Job, Outcome, Timestamp};
use relay_bridge::leasing::{Delivery, Leasing, Progress};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::admission::{Admission, on_delivery};
use crate::decide::{Decision, Ending, decide};
use crate::handler::{Attempt, Context, Handler};
use crate::lease::{LEASE_MAX, Lease, Standing};
use crate::policies::Policies;
use crate::progress;
use crate::room::Room;
use crate::settle::{Settler, in_a_line};
use crate::starts::{StartGate, StartReport};
use crate::stats::{WorkerStats, count};

/// How long a handler that was aborted may take to be gone. One that blocks its thread is left behind.
const ABORT_MAX: Duration = Duration::from_secs(1);
/// How much of `lease_max` is left to settle in, beside the handler's grace.
const SETTLE_MARGIN: Duration = Duration::from_secs(1);

/// The parts that all deliveries of a worker share.
pub(crate) struct Runtime {
    pub(crate) leasing: Arc<dyn Leasing>,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) clock: Clock,
    pub(crate) policies: Policies,
    pub(crate) stats: Arc<WorkerStats>,
    /// Whether the handler can be started here.
    pub(crate) starts: Arc<StartGate>,
    /// Whether the broker has room for how runs end.
    pub(crate) room: Room,
    /// The drain's time is over: cancel what still runs and hand it back.
    pub(crate) drain_over: CancellationToken,
}

/// Sees one delivery through. `asked_at` is when the lease call that brought it was sent, `taken_at` when it was answered;
/// `slot` is what it takes until its run's end is recorded, or until it is settled; `start` is told how its start went.
pub(crate) async fn attend(
    runtime: Arc<Runtime>,
    delivery: Delivery,
    (asked_at, taken_at): (Instant, Instant),
    slot: OwnedSemaphorePermit,
    start: StartReport,
) {
    let lease = Lease::new(delivery.receipt.clone(), asked_at, delivery.lease);
    let (progress, latest) = watch::channel(None);
    let attended = Attended {
        runtime: &runtime,
        lease: &lease,
        asked_at,
        taken_at,
        start,
        attempt: delivery.attempt,
        leased_at: delivery.leased_at,
        arrived: runtime.clock.monotonic(),
        job: Arc::new(delivery.job),
    };
    tokio::select! {
        biased;
        () = attended.see_through(progress, slot) => {}
        never = lease.keep(&runtime.leasing) => match never {},
        never = progress::report(&runtime.leasing, lease.receipt(), latest) => match never {},
    }
    count(&runtime.stats.finished);
}

struct Attended<'a> {
    runtime: &'a Runtime,
    lease: &'a Lease,
    asked_at: Instant,
    taken_at: Instant,
    start: StartReport,
    attempt: u32,
    leased_at: Timestamp,
    arrived: Duration,
    job: Arc<Job>,
}

/// Why a handler was stopped before it returned.
enum Interrupt {
    Lapsed,
    TimedOut,
    Expired,
    Drained,
}

impl Attended<'_> {
    async fn see_through(&self, progress: watch::Sender<Option<Progress>>, slot: OwnedSemaphorePermit) {
        let runtime = self.runtime;
        let policy = self.policy().await;
        let job = &self.job;
        let now = self.now();
        let admission = on_delivery(self.attempt, policy.max_attempts, now, job.due(now), job.expires_at);
        let (ending, started_at) = match admission {
            Admission::Start if !self.lease.may_start(&runtime.leasing, self.taken_at).await => (Ending::Lapsed, None),
            Admission::Start => {
                let started_at = self.now();
                let ending = self.run(&policy, progress).await;
                self.start.ended(&ending);
                (ending, Some(started_at))
            }
            Admission::Exhausted => (Ending::Spent, None),
            Admission::Expired => (Ending::Expired, None),
            Admission::NotYetDue(wait) => (Ending::NotYetDue(wait), None),
        };
        // Read again: a handler may have run for an hour.
        let policy = self.policy().await;
        let failure = match &ending {
            Ending::Returned(Attempt::Retry { failure, .. }) => Some(failure.clone()),
            _ => None,
        };
        let decision = decide(ending, self.lease.standing(), self.attempt, &policy, random());
        if let (Decision::Settle(Settlement::RetryAfter(wait)), Some(failure)) = (&decision, failure) {
            let (attempt, max, why) = (self.attempt, policy.max_attempts, in_a_line(&failure));
            let key = job.key.as_ref().map(tracing::field::display);
            tracing::warn!(
                job_id = %job.id, queue = %job.queue, client = %job.client, key,
                "attempt {attempt} of {max} failed: {why}; again in {:.1} s", wait.as_secs_f64()
            );
        }
        let attempt = if started_at.is_some() { self.attempt } else { self.attempt.saturating_sub(1) };
        let settler = Settler {
            leasing: &runtime.leasing,
            stats: &runtime.stats,
            room: &runtime.room,
            lease: self.lease,
            job,
            attempt,
            started_at,
            finished_at: self.now(),
        };
        settler.apply(decision, slot).await;
    }

    async fn run(&self, policy: &QueuePolicy, progress: watch::Sender<Option<Progress>>) -> Ending {
        let runtime = self.runtime;
        let grace = runtime.handler.grace();
        let margin = grace.saturating_add(SETTLE_MARGIN).min(policy.lease_max / 10);
        let lease_end = self.asked_at + policy.lease_max.min(LEASE_MAX).saturating_sub(margin);
        let life = self.job.expires_at.since(self.now());
        let budget = lease_end.saturating_duration_since(Instant::now()).min(life);
        let context = Context::of_delivery(
            self.attempt,
            policy,
            (self.now() + budget, Instant::now() + budget),
            CancellationToken::new(),
            progress,
        )
        .reporting(self.start.clone());
        count(&runtime.stats.started);
        tracing::debug!(job_id = %self.job.id, queue = %self.job.queue, attempt = self.attempt, "attempt started");
        let mut task = JoinSet::new();
        let (handler, job, given) = (runtime.handler.clone(), self.job.clone(), context.clone());
        task.spawn(async move { handler.handle(&job, &given).await }.in_current_span());

        let interrupt = tokio::select! {
            biased;
            returned = task.join_next() => return Ending::Returned(attempt_of(returned)),
            () = self.lease.lapsed() => Interrupt::Lapsed,
            () = sleep(life) => Interrupt::Expired,
            () = sleep_until(lease_end) => Interrupt::TimedOut,
            () = runtime.drain_over.cancelled() => Interrupt::Drained,
        };
        context.stop(match (&interrupt, self.lease.standing()) {
            (_, Standing::Ended(outcome)) => Some(outcome),
            (Interrupt::Expired, _) => Some(Outcome::Expired),
            _ => None,
        });
        let last = match timeout(grace, task.join_next()).await {
            Ok(returned) => Some(attempt_of(returned)),
            Err(_) => None,
        };
        task.abort_all();
        if timeout(ABORT_MAX, async { while task.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!(job_id = %self.job.id, "handler does not yield, its task is left behind");
        }
        match (last, interrupt) {
            // A success is never thrown away: whether it counts is decided where results are compared.
            (Some(done @ Attempt::Done(_)), _) => Ending::Returned(done),
            (_, Interrupt::Lapsed) => Ending::Lapsed,
            (_, Interrupt::Expired) => Ending::Expired,
            (_, Interrupt::Drained) => Ending::Drained,
            (Some(back @ (Attempt::HandBack { .. } | Attempt::NotStarted { .. })), Interrupt::TimedOut) => {
                Ending::Returned(back)
            }
            (last, Interrupt::TimedOut) => Ending::Returned(timed_out(policy.lease_max, last)),
        }
    }

    /// The policy as it is now; while the broker is away, as it was.
    async fn policy(&self) -> Arc<QueuePolicy> {
        match self.runtime.policies.get(&self.job.queue).await {
            Ok(policy) => policy,
            Err(error) => {
                tracing::warn!(queue = %self.job.queue, %error, "policy not known, the defaults stand");
                Arc::new(QueuePolicy::default())
            }
        }
    }

    /// Now on the broker's wall clock: when it handed the job out, plus the time since. Clocks of hosts need not agree.
    fn now(&self) -> Timestamp {
        self.leased_at + self.runtime.clock.monotonic().saturating_sub(self.arrived)
    }
}

fn attempt_of(returned: Option<Result<Attempt, JoinError>>) -> Attempt {
    let error = match returned {
        Some(Ok(attempt)) => return attempt,
        Some(Err(error)) => error,
        None => return cancelled(),
    };
    match error.try_into_panic() {
        Ok(panic) => {
            let text = panic_text(panic.as_ref());
            tracing::error!(panic = text, "handler panicked");
            let failure = Failure::new("panic", format!("the handler panicked: {text}"));
            Attempt::Retry { failure, after: None }
        }
        Err(_) => cancelled(),
    }
}

fn cancelled() -> Attempt {
    Attempt::Retry { failure: Failure::new("cancelled", "the handler was stopped"), after: None }
}

fn timed_out(lease_max: Duration, last: Option<Attempt>) -> Attempt {
    let mut detail = format!("the handler was stopped at the queue's lease_max of {lease_max:?}");
    if let Some(Attempt::Retry { failure, .. } | Attempt::Reject { failure }) = last {
        detail = format!("{detail}: {}", failure.detail);
    }
    Attempt::Retry { failure: Failure::new("timeout", detail), after: None }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "without a message"
    }
}
