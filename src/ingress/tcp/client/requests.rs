//! The effect of each request: the code that HTTP uses, and around it a place among its client's requests, a line of the audit,
//! and a net under panics.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use relay_bridge::contract::wire::client::{Request, Submit, ToClient};
use relay_bridge::contract::{JobId, TraceParent};
use relay_bridge::job_queue::Enqueued;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, debug, error, info_span};

use super::audited::Audited;
use super::session::{Desk, Session};
use super::writer::Outgoing;
use super::{Counted, answers, submit, wait};
use crate::api::{Problem, Slug};
use crate::auth::rights::Right;
use crate::ingress::budget::Share;
use crate::ingress::http::connection::Running;
use crate::ingress::http::whoami;
use crate::ingress::refusal::{Refusal, scarce};
use crate::ingress::{grants, jobs, request_id};

/// How long an answer waits for its room.
const ROOM_WITHIN: Duration = Duration::from_secs(2);

/// The answer to a request, and the room that it takes until it has left.
pub(super) type Answer = Result<(ToClient, Option<Share>), Refusal>;

/// A request that was let in: its name, its place, and its line of the audit.
pub(super) struct Begun {
    pub(super) request_id: String,
    pub(super) place: Share,
    pub(super) audited: Audited,
    /// Its connection is not idle as long as this is there.
    pub(super) running: Running,
}

impl Begun {
    /// Lets a request in.
    ///
    /// # Errors
    /// `draining`, `overloaded`, or `rate-limited` if the client has as many as it may.
    pub(super) fn new(session: &Session, request: &Request) -> Result<Self, Refusal> {
        if session.stop.shutdown.is_cancelled() {
            let detail = "this relay is shutting down; nothing was done: send it again on a new connection";
            return Err(Refusal::new(Slug::Draining, detail));
        }
        if session.is_old() {
            let detail = "this connection has lasted long enough; nothing was done: send it again on a new connection";
            return Err(Refusal::new(Slug::Draining, detail));
        }
        let request_id = request_id::mint();
        let audited = Audited::begin(session, request, &request_id)?;
        let ingress = &session.clients.ingress;
        let taken = match request {
            Request::Follow(_) => {
                ingress.followers.take(&session.owner, 1).map_err(|full| Refusal::full(full, scarce::STREAMS))
            }
            _ => ingress.requests.take(&session.owner, 1).map_err(|full| Refusal::full(full, scarce::REQUESTS)),
        };
        match taken {
            Ok(place) => Ok(Self { request_id, place, audited, running: session.connection.begin() }),
            Err(refusal) => {
                audited.end(session, Some((refusal.0.status, refusal.0.slug)), &request_id);
                Err(refusal)
            }
        }
    }

    /// The span of the log for what the request does.
    pub(super) fn span(&self, operation: &str) -> Span {
        info_span!("request", request_id = self.request_id, trace_id = Empty, operation)
    }
}

/// The name of a request as problems have it.
pub(super) fn instance(request_id: &str) -> String {
    format!("urn:relay:request:{request_id}")
}

/// Does what is asked for, and answers. Never fails and never panics. `share` is what the request's bytes take of their budget
/// until the broker has them.
pub(super) async fn attend(
    desk: Desk,
    id: u64,
    request: Request,
    stop: CancellationToken,
    begun: Begun,
    share: Option<Arc<Share>>,
) {
    let session = Arc::clone(&desk.session);
    let counted = Counted::new(&session.clients.in_flight);
    let span = begun.span(request.operation());
    let Begun { request_id, place, mut audited, running: _running } = begun;
    let job = OnceLock::new();
    let work = perform(&session, id, request, &stop, share, &job);
    let answer = AssertUnwindSafe(work).catch_unwind().instrument(span.clone()).await;
    let answer = answer.unwrap_or_else(|panic| Err(span.in_scope(|| panicked(&*panic, job.get().copied()))));
    audited.note(|record| record.job = record.job.or(job.get().copied()));
    let (message, room) = finish(&session, id, answer, audited, &request_id);
    drop(counted);
    desk.answer(id, place, Outgoing { message, room }).await;
}

/// The message of an answer, which is counted, and the end of its line in the audit.
pub(super) fn finish(
    session: &Session,
    id: u64,
    answer: Answer,
    audited: Audited,
    request_id: &str,
) -> (ToClient, Option<Share>) {
    match answer {
        Ok(answer) => {
            audited.end(session, None, request_id);
            answer
        }
        Err(Refusal(mut problem)) => {
            problem.instance = instance(request_id);
            session.clients.refusals.add(problem.slug);
            debug!(request_id, slug = %problem.slug, "a request was refused");
            audited.end(session, Some((problem.status, problem.slug)), request_id);
            (answers::problem(id, *problem), None)
        }
    }
}

/// `job` is set when the broker is asked to change something of it.
async fn perform(
    session: &Session,
    id: u64,
    request: Request,
    stop: &CancellationToken,
    share: Option<Arc<Share>>,
    job: &OnceLock<JobId>,
) -> Answer {
    session.still_stands()?;
    // Boxed, so that a request costs what its own kind needs.
    match request {
        Request::Submit(submit) => {
            Span::current().record("trace_id", trace_id(&submit));
            Box::pin(submit::submit(session, id, *submit, stop, share, job)).await
        }
        Request::Wait { job, wait } => Box::pin(wait::of_job(session, id, job, wait, stop)).await,
        Request::Status(job) => Box::pin(status(session, id, job)).await,
        Request::Cancel(of) => Box::pin(cancel(session, id, *job.get_or_init(|| of))).await,
        Request::Rerun { job: of, from } => Box::pin(rerun(session, id, *job.get_or_init(|| of), from)).await,
        Request::Whoami => Box::pin(who(session, id)).await,
        Request::Follow(_) => Err(Refusal::new(Slug::Internal, "a follow request is no other one")),
    }
}

fn trace_id(submit: &Submit) -> Option<String> {
    submit.traceparent.as_ref()?.parse::<TraceParent>().ok().map(|parent| parent.trace())
}

async fn status(session: &Session, id: u64, job: JobId) -> Answer {
    is_theirs(session, job, Right::Read).await?;
    let _room = session.room_to_read().await?;
    let ingress = &session.clients.ingress;
    let view = jobs::find(&ingress.broker, &ingress.policies, &session.caller.client, job).await?;
    Ok((ToClient::Job { id, document: answers::document(&view)? }, None))
}

async fn cancel(session: &Session, id: u64, job: JobId) -> Answer {
    is_theirs(session, job, Right::Manage).await?;
    let _room = session.room_to_read().await?;
    let ingress = &session.clients.ingress;
    let view = jobs::cancel(&ingress.broker, &ingress.policies, &session.caller.client, job).await?;
    Ok((ToClient::Job { id, document: answers::document(&view)? }, None))
}

async fn rerun(session: &Session, id: u64, job: JobId, from: u32) -> Answer {
    is_theirs(session, job, Right::Submit).await?;
    let _room = session.room_to_read().await?;
    let ingress = &session.clients.ingress;
    let of = (&ingress.broker, &ingress.policies, &*ingress.rates);
    let enqueued = jobs::rerun(of, &session.caller.client, job, from).await?;
    let replayed = matches!(enqueued, Enqueued::Known(_));
    Ok((answers::receipt(id, enqueued.status(), replayed), None))
}

async fn who(session: &Session, id: u64) -> Answer {
    let (ingress, caller) = (&session.clients.ingress, session.caller.clone());
    let view = whoami::of(ingress, caller, &session.owner, (session.endpoint.clone(), session.peer)).await?;
    Ok((ToClient::Whoami { id, document: answers::document(&view)? }, None))
}

/// Refuses a call that needs `right` about a job that the caller may not use: it looks like one that is not there.
pub(super) async fn is_theirs(session: &Session, job: JobId, right: Right) -> Result<(), Refusal> {
    let caller = &session.caller;
    grants::require(caller, right)?;
    if let Some(queues) = &caller.queues {
        // In its turn; a broker that does not keep queues apart from payloads reads one.
        let _room = session.room_to_read().await?;
        if !session.clients.ingress.broker.jobs.is_in(&caller.client, job, queues).await? {
            return Err(Refusal::no_job());
        }
    }
    Ok(())
}

impl Session {
    /// Room to read one result of any queue, within two seconds: as much as the largest may have, and no more than half of the
    /// caller's share.
    ///
    /// # Errors
    /// `rate-limited` if the caller has not read what it was sent; `overloaded` if all others together have not.
    pub(super) async fn room_to_read(&self) -> Result<Share, Refusal> {
        self.room_to_read_within(ROOM_WITHIN).await
    }

    /// The same, but within `within` if that is longer.
    pub(super) async fn room_to_read_within(&self, within: Duration) -> Result<Share, Refusal> {
        let ingress = &self.clients.ingress;
        let half = ingress.answers.share_of(&self.owner) as u64 / 2;
        let bytes = ingress.policies.result_max().await?.min(half);
        let reserved = ingress.answers.reserve(&self.owner, bytes, Some(within.max(ROOM_WITHIN))).await;
        reserved.map_err(|full| Refusal::full(full, scarce::ANSWERS))
    }

    /// Room for `bytes` of an answer that is free now.
    pub(super) fn room_now(&self, bytes: u64) -> Option<Share> {
        self.clients.ingress.answers.take_now(&self.owner, bytes).ok()
    }
}

/// The refusal of a request that relay failed at; `job` is what it is about, if that is known.
pub(super) fn panicked(panic: &(dyn std::any::Any + Send), job: Option<JobId>) -> Refusal {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    error!(panic = text.unwrap_or("no text"), "a handler panicked");
    let detail = "relay failed, and this may or may not have been done: send it again with the same key, and tell the \
                  operator of relay the request id";
    let problem = Problem::new(Slug::Internal, detail);
    match job {
        Some(job) => problem.with_job(job).into(),
        None => problem.into(),
    }
}
