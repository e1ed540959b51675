//! From relay to relay: a handler that has a job of the source done at a target.
//!
//! The job is submitted under the key `run_id`, so that a second attempt, here or on another replica, finds the first
//! one's. Lease, heartbeat, redelivery and drain are the worker's; how many wait at once is its number of slots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::backoff::random;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Failure, IdempotencyKey, Job, JobId, Outcome, QueueName, Submission};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::{Finished, Lookup};
use relay_workers::{Attempt, Context, Handler, Output};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hops::one_more;
use super::stats::{RelayStats, count};
use super::target::{AWAY, Placed, TO_BE_MENDED, Target, may_pass};

/// The longest single wait for a result, so that a target which lost the job is asked again.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a job of a client that is at its limit at the target keeps its slot, and after how long, about, it is tried
/// again.
const QUOTA_PATIENCE: Duration = Duration::from_secs(2);
const QUOTA_AGAIN: Duration = Duration::from_secs(5);
/// How long the target may take to cancel a job that nobody wants any more.
const GRACE: Duration = Duration::from_secs(5);

/// Whose job it is at the target, and in which queue.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    /// The client at the target. `None`: the same as at the source.
    pub client: Option<ClientId>,
    /// The queues at the target, by those at the source. Where there are none, each is the same there; else a job of another queue
    /// stays at the source, whatever it says.
    pub queues: BTreeMap<QueueName, QueueName>,
}

impl Mapping {
    /// The queue at the target; `None` for one whose jobs are not forwarded.
    fn queue(&self, source: &QueueName) -> Option<QueueName> {
        if self.queues.is_empty() { Some(source.clone()) } else { self.queues.get(source).cloned() }
    }
}

/// Has jobs done at a target.
pub struct RelayHandler {
    target: Target,
    mapping: Mapping,
    stats: Arc<RelayStats>,
}

/// Why the target is not asked any more.
enum Stop {
    /// The attempt is over.
    Ended(Attempt),
    /// The worker asked to stop.
    Cancelled,
}

impl RelayHandler {
    /// A handler that submits to `target`, whose clock is `clock`.
    #[must_use]
    pub fn new(target: Broker, clock: Clock, mapping: Mapping) -> Self {
        Self { target: Target::new(target, clock), mapping, stats: Arc::default() }
    }

    /// The handler's counters.
    #[must_use]
    pub fn stats(&self) -> Arc<RelayStats> {
        Arc::clone(&self.stats)
    }

    /// Submits and waits, for as long as the worker lets it.
    async fn see_through(&self, job: &Job, context: &Context, at: &At) -> Attempt {
        let cancelled = context.cancelled();
        let mut lost = 0_u32;
        loop {
            let id = match self.persist(&cancelled, || self.submit(job, context, at)).await {
                Ok(id) => id,
                Err(Stop::Ended(attempt)) => return attempt,
                Err(Stop::Cancelled) => return self.stopped(context, at, None).await,
            };
            loop {
                match self.persist(&cancelled, || self.look(at, id)).await {
                    Ok(Lookup::Finished(finished)) => return attempt_of(*finished),
                    Ok(Lookup::Open(_)) => {}
                    Ok(Lookup::Absent) => break,
                    Err(Stop::Ended(attempt)) => return attempt,
                    Err(Stop::Cancelled) => return self.stopped(context, at, Some(id)).await,
                }
            }
            // The target was replaced by one that knows nothing: it is submitted again, but not in a hurry.
            lost = lost.saturating_add(1);
            count(&self.stats.submitted_again);
            tokio::select! {
                () = cancelled.cancelled() => return self.stopped(context, at, Some(id)).await,
                () = tokio::time::sleep(AWAY.backoff(lost, random())) => {}
            }
        }
    }

    async fn look(&self, at: &At, id: JobId) -> Result<Lookup, Refused> {
        Ok(self.target.broker.results.wait(&at.client, id, WAIT_MAX).await?)
    }

    async fn submit(&self, job: &Job, context: &Context, at: &At) -> Result<JobId, Refused> {
        let submission = Submission {
            client: at.client.clone(),
            queue: at.queue.clone(),
            key: Some(at.key.clone()),
            content_type: job.content_type.clone(),
            content_encoding: job.content_encoding.clone(),
            headers: one_more(job.headers.clone()).map_err(|failure| Attempt::Reject { failure })?,
            payload: job.payload.clone(),
            delay: Duration::ZERO,
            // The rest of the run: the handler's time, and the time that the run has beyond the longest lease.
            expires_in: Some(context.time_left() + job.expires_at.since(context.deadline)),
        };
        match self.target.submit(submission).await? {
            Placed::Created(id) => {
                count(&self.stats.created);
                Ok(id)
            }
            Placed::Found(id) => {
                count(&self.stats.found);
                Ok(id)
            }
            Placed::Conflict(first) => {
                let detail = format!("the target has another body under the key {} (job {})", at.key, first);
                Err(Attempt::reject("idempotency-conflict", detail).into())
            }
            Placed::NotTaken(failure) => Err(Attempt::Reject { failure }.into()),
            Placed::Forbidden(error) => Err(error.into()),
        }
    }

    /// The worker asked to stop. If the run ended at the source, nobody wants it at the target either. Otherwise the
    /// target goes on, and the next attempt finds its result, so this one is not spent. `id` is the job at the target;
    /// without one its submission may still be on the way, and it is looked for under its key.
    async fn stopped(&self, context: &Context, at: &At, id: Option<JobId>) -> Attempt {
        if context.run_ended().is_some() {
            let id = id.unwrap_or_else(|| JobId::derive(&at.client, &at.queue, &at.key));
            match self.target.broker.jobs.cancel(&at.client, id).await {
                Ok(_) => count(&self.stats.cancelled),
                Err(error) if error.kind() == BrokerErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(run_id = %at.key, %error, "not cancelled at the target, its deadline ends it");
                }
            }
        }
        Attempt::HandBack { after: Duration::ZERO }
    }

    /// Repeats a call for as long as the target is away or full, which spends no attempt: the lease is kept meanwhile.
    async fn persist<T, F>(&self, cancelled: &CancellationToken, call: impl Fn() -> F) -> Result<T, Stop>
    where
        F: Future<Output = Result<T, Refused>>,
    {
        let (mut tries, since) = (0_u32, Instant::now());
        loop {
            let called = tokio::select! {
                biased;
                () = cancelled.cancelled() => return Err(Stop::Cancelled),
                called = call() => called,
            };
            let error = match called {
                Ok(value) => return Ok(value),
                Err(Refused::Ended(attempt)) => return Err(Stop::Ended(attempt)),
                Err(Refused::Error(error)) => error,
            };
            let Some(floor) = may_pass(&error) else { return Err(Stop::Ended(refused(&error))) };
            // One client's limit must not keep the slots from the others.
            if matches!(error.kind(), BrokerErrorKind::QuotaExceeded { .. }) && since.elapsed() >= QUOTA_PATIENCE {
                return Err(Stop::Ended(Attempt::HandBack { after: QUOTA_AGAIN.mul_f64(0.5 + random()) }));
            }
            tries = tries.saturating_add(1);
            count(&self.stats.refused);
            let wait = AWAY.backoff(tries, random()).max(floor);
            tracing::debug!(%error, ?wait, "the target is away or full");
            tokio::select! {
                () = cancelled.cancelled() => return Err(Stop::Cancelled),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

#[async_trait]
impl Handler for RelayHandler {
    async fn handle(&self, job: &Job, context: &Context) -> Attempt {
        let key = match job.run_id.to_string().parse() {
            Ok(key) => key,
            Err(error) => return Attempt::reject("invalid-key", format!("the run's id is no key: {error}")),
        };
        let client = self.mapping.client.as_ref().unwrap_or(&job.client).clone();
        let Some(queue) = self.mapping.queue(&job.queue) else {
            // No relay gives one. The source may be none, and want a way into other queues of the target.
            tracing::error!(job_id = %job.id, queue = %job.queue, "the source gave a job of a queue that this bridge does not forward; it is handed back");
            return Attempt::HandBack { after: TO_BE_MENDED };
        };
        self.see_through(job, context, &At { client, queue, key }).await
    }

    fn grace(&self) -> Duration {
        GRACE
    }
}

/// Where a job is at the target.
struct At {
    client: ClientId,
    queue: QueueName,
    key: IdempotencyKey,
}

/// A call of the target that did not do what was asked.
enum Refused {
    Error(BrokerError),
    Ended(Attempt),
}

impl From<BrokerError> for Refused {
    fn from(error: BrokerError) -> Self {
        Self::Error(error)
    }
}

impl From<Attempt> for Refused {
    fn from(attempt: Attempt) -> Self {
        Self::Ended(attempt)
    }
}

/// The attempt's result after a refusal that waiting does not mend.
fn refused(error: &BrokerError) -> Attempt {
    match error.kind() {
        BrokerErrorKind::TooLarge { .. } => Attempt::reject("payload-too-large", error.to_string()),
        // The target is not as it should be, which is not the job's fault.
        BrokerErrorKind::NotFound | BrokerErrorKind::Unauthorized | BrokerErrorKind::NewerVersion { .. } => {
            tracing::error!(%error, "the target refuses the bridge; jobs are handed back until that is mended");
            Attempt::HandBack { after: TO_BE_MENDED }
        }
        // It may be this job's fault: its attempts bound how often it is tried.
        _ => Attempt::retry("target-refused", error.to_string()),
    }
}

/// The attempt's result at the source, from the target's result: the run ends as it did there.
fn attempt_of(finished: Finished) -> Attempt {
    let result = finished.result;
    let failure = result.failure.unwrap_or_else(|| Failure::new(result.outcome.as_str(), ""));
    match result.outcome {
        Outcome::Succeeded if finished.erased => {
            Attempt::reject("result-expired", "the target's result was erased before the bridge read it")
        }
        Outcome::Succeeded => Attempt::Done(Output::new(result.content_type, result.payload)),
        Outcome::Failed => Attempt::Reject { failure },
        Outcome::Exhausted => Attempt::Exhausted { failure },
        Outcome::Expired => Attempt::Expired { failure },
        Outcome::Cancelled => Attempt::Cancelled { failure },
    }
}
