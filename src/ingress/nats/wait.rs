//! `Relay-Wait`: the result of a job instead of its receipt, or of its state, if it comes in time. A wait is a task without
//! the request that began it: neither its payload and its headers nor its place among the requests are kept.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use relay_bridge::contract::{ClientId, Job, JobId, JobState, JobStatus};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::{Finished, Lookup};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span, warn};

use super::Ingress;
use super::answer::{Outbox, Reply};
use super::desk::Desk;
use super::gate::{Answer, Step, panicked};
use super::places::Place;
use super::results::{self, Seen};
use crate::api::{Slug, header};
use crate::ingress::budget::Share;
use crate::ingress::jobs;
use crate::ingress::refusal::Refusal;

/// For how long a request wants to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// As it was asked for, within the limit. Zero asks for what there is now.
    pub(super) asked: Duration,
    /// The time at which it is over.
    pub(super) until: Instant,
}

/// A wait that has a place.
pub(super) struct Wait {
    client: ClientId,
    job: JobId,
    span: Span,
    /// The submission, if the request is one.
    submitted: Option<Box<Submitted>>,
    _place: Place,
}

/// A job that was accepted: whatever becomes of the wait, no answer says otherwise.
struct Submitted {
    status: JobStatus,
    replayed: bool,
    ahead: Ahead,
}

/// Hears of the result of a run that is new.
enum Ahead {
    /// It goes on listening.
    Listens(BoxFuture<'static, Heard>),
    /// It has said what it had to say.
    Heard(Option<Box<Finished>>),
}

type Heard = Result<Option<Box<Finished>>, BrokerError>;

impl Ahead {
    /// Listens for the result of `job`, which is enqueued only then.
    fn begin(ingress: &Ingress, job: &Job, span: Span) -> Self {
        if span.asked.is_zero() {
            return Self::Heard(None);
        }
        let (results, client) = (Arc::clone(&ingress.broker.results), job.client.clone());
        let (id, run, left) = (job.id, job.run_id, span.left());
        Self::Listens(async move { results.wait_ahead(&client, id, run, left).await }.boxed())
    }

    /// Ends when it has heard something it had not said before.
    async fn listen(&mut self) {
        match self {
            Self::Listens(listening) => *self = Self::Heard(listening.await.ok().flatten()),
            Self::Heard(_) => std::future::pending().await,
        }
    }

    /// The result, once it is heard of; `None` if that is not in time.
    async fn heard(&mut self) -> Option<Box<Finished>> {
        if matches!(self, Self::Listens(_)) {
            self.listen().await;
        }
        match std::mem::replace(self, Self::Heard(None)) {
            Self::Heard(heard) => heard,
            Self::Listens(_) => None,
        }
    }
}

impl Submitted {
    /// The answer about the job, which stands so after its wait.
    fn told(self, ingress: &Ingress, outbox: &Outbox, span: Span, seen: Result<Seen, Refusal>) -> Answer {
        let Self { status, replayed, .. } = self;
        match seen.map(|seen| (seen.found, seen.room)) {
            // One that did not wait for it gets the receipt: a retry does not look like a failure.
            Ok((Lookup::Finished(finished), room)) if !finished.erased || !span.asked.is_zero() => {
                let state = JobState::Finished(finished.result.outcome);
                match results::finished(ingress, outbox, &status.client, (*finished, room)) {
                    Ok(reply) if replayed => Ok(reply.with(header::IDEMPOTENCY_REPLAYED, "true")),
                    // There is no room for it now, and the job is accepted: the result can be asked for.
                    Err(refusal) if matches!(refusal.0.slug, Slug::Overloaded | Slug::RateLimited) => {
                        Ok(receipt(&JobStatus { state, ..status }, replayed))
                    }
                    answer => answer,
                }
            }
            Ok((Lookup::Open(now), _)) => Ok(receipt(&now, replayed)),
            Ok(_) => Ok(receipt(&status, replayed)),
            Err(Refusal(problem)) => {
                let (job_id, why) = (status.job_id, &problem.detail);
                warn!(%job_id, why, "waiting for a result failed; answered with the receipt");
                Ok(receipt(&status, replayed))
            }
        }
    }
}

impl Span {
    /// How much of it is left.
    pub(super) fn left(self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

impl Wait {
    /// A wait for the result of a job that is there.
    pub(super) fn of_result(client: ClientId, job: JobId, span: Span, place: Place) -> Step {
        Step::Waits(Self { client, job, span, submitted: None, _place: place })
    }

    /// Enqueues `job` and begins to wait for its result; the answer is its receipt if the time is up by then.
    ///
    /// # Errors
    /// As [`jobs::enqueue`].
    pub(super) async fn submit(ingress: &Ingress, job: Job, span: Span, place: Place) -> Result<Step, Refusal> {
        let (client, id) = (job.client.clone(), job.id);
        let mut ahead = Ahead::begin(ingress, &job, span);
        let mut place = Some(place);
        let (status, replayed) = {
            let mut enqueued = pin!(jobs::enqueue(&ingress.broker, job));
            loop {
                tokio::select! {
                    // First, so that it listens before there is anything to hear.
                    biased;
                    () = ahead.listen() => {}
                    enqueued = &mut enqueued => break enqueued?,
                    () = sleep_until(span.until), if place.is_some() && !span.asked.is_zero() => place = None,
                }
            }
        };
        let Some(place) = place else { return Ok(Step::Answered(receipt(&status, replayed))) };
        let submitted = Some(Box::new(Submitted { status, replayed, ahead }));
        Ok(Step::Waits(Self { client, job: id, span, submitted, _place: place }))
    }

    /// Waits: how the job stands then, unless that is to be looked up, at the beginning of a drain for one.
    async fn pass(&mut self, ingress: &Ingress, drain: &CancellationToken) -> Option<Result<Seen, Refusal>> {
        if let Some(submitted) = &mut self.submitted
            && !submitted.replayed
        {
            let heard = drain.run_until_cancelled(submitted.ahead.heard()).await.flatten();
            // In a drain it may listen still.
            submitted.ahead = Ahead::Heard(None);
            if let Some(finished) = heard.filter(|heard| heard.result.run_id >= submitted.status.run_id) {
                return Some(Ok(Seen { found: Lookup::Finished(finished), room: None }));
            }
        }
        if self.submitted.as_ref().is_none_or(|submitted| submitted.replayed) {
            // Its run may have ended: it is looked up in the client's turn, and only what has not ended is waited for.
            let seen = drain.run_until_cancelled(Box::pin(self.look(ingress))).await?;
            let is_open = seen.as_ref().is_ok_and(|seen| matches!(seen.found, Lookup::Open(_)));
            if !is_open || self.span.left().is_zero() {
                return Some(seen);
            }
        }
        let left = self.span.left();
        if left.is_zero() {
            return None;
        }
        // A broker that has no room for another wait still says how the job stands.
        let waited = ingress.broker.results.wait(&self.client, self.job, left);
        let found = drain.run_until_cancelled(waited).await?.ok()?;
        Some(Ok(Seen { found, room: None }))
    }

    /// Where the job stands now, once it is the client's turn.
    async fn look(&mut self, ingress: &Ingress) -> Result<Seen, Refusal> {
        let left = self.span.left();
        let seen = timeout(left + ingress.limits.answer_within, results::look(ingress, &self.client, self.job, left));
        seen.await.unwrap_or_else(|_| Err(unanswered().into()))
    }

    /// The answer about a job that stands so.
    fn told(&mut self, ingress: &Ingress, outbox: &Outbox, seen: Result<Seen, Refusal>) -> Answer {
        match self.submitted.take() {
            Some(submitted) => submitted.told(ingress, outbox, self.span, seen),
            None => results::told(ingress, outbox, &self.client, seen?),
        }
    }
}

fn unanswered() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, "wait", "the broker behind relay does not answer")
}

/// The receipt of a job whose result was waited for in vain: it says how the job stands.
pub(super) fn receipt(status: &JobStatus, replayed: bool) -> Reply {
    Reply::accepted(status, replayed).with(header::STATE, status.state.as_str())
}

/// A wait, and what is needed to answer it.
pub(super) struct Waiting {
    pub(super) desk: Desk,
    pub(super) outbox: Outbox,
    /// Of the request.
    pub(super) id: String,
    pub(super) wait: Wait,
    /// Cancelled at the beginning of a drain.
    pub(super) drain: CancellationToken,
    /// Counts it.
    pub(super) counted: Option<Share>,
}

/// The payload of a panic.
type Panic = Box<dyn Any + Send>;

impl Waiting {
    /// Waits, answers and counts, unless `kill` is cancelled. Never fails and never panics.
    pub(super) async fn attend(mut self: Box<Self>, kill: &CancellationToken) {
        let passed = AssertUnwindSafe(self.wait.pass(&self.desk.ingress, &self.drain)).catch_unwind().await;
        // Boxed: it is large, and nothing of it is needed during the wait. Nor is a span of the log kept for so long.
        let span = info_span!("request", request_id = self.id, job_id = %self.wait.job);
        kill.run_until_cancelled(Box::pin(self.end(passed).instrument(span))).await;
    }

    async fn end(self: Box<Self>, passed: Result<Option<Result<Seen, Refusal>>, Panic>) {
        let Self { desk, outbox, id, mut wait, counted, .. } = *self;
        let (ingress, job) = (&*desk.ingress, wait.job);
        let answer = match passed {
            Ok(seen) => {
                let seen = match seen {
                    Some(seen) => seen,
                    None => wait.look(ingress).await,
                };
                catch_unwind(AssertUnwindSafe(|| wait.told(ingress, &outbox, seen)))
            }
            Err(panic) => Err(panic),
        };
        let answer = answer.unwrap_or_else(|panic| Err(panicked(&*panic, Some(job))));
        desk.answer(&outbox, &id, answer).await;
        // Kept until then: answers that can't leave must not be more than there are places.
        drop((wait, counted));
    }
}
