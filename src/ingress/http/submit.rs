//! `POST /v1/queues/{queue}/jobs`: a job comes in. Accepted means that the broker has confirmed it.

use std::pin::pin;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use http::request::Parts;
use http::{HeaderValue, Method};
use http_body::Body;
use relay_bridge::contract::{ClientId, JobStatus, QueueName};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::{Finished, Lookup};
use tokio::time::Instant;

use super::answer::{self, Answer, Refusal};
use super::connection::Peer;
use super::prefer::Preference;
use super::request::{self, Parameters};
use super::{Served, body, results};
use crate::api::problem::PROBLEM_CONTENT_TYPE;
use crate::api::{Problem, Receipt, header, schema};
use crate::auth::Caller;
use crate::auth::rights::Right;
use crate::ingress::headers::JobHeaders;
use crate::ingress::jobs;

/// Where a submission goes: `/v1/queues/{queue}/jobs`.
const PATH: (&str, &str) = ("/v1/queues/", "/jobs");

/// Whether a request is a submission whose path is spelled as clients spell it. Those are most of all requests, and skip
/// the router.
pub(super) fn is_plain(head: &Parts) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    head.method == Method::POST && plain_queue(head).is_some_and(|queue| !queue.is_empty() && queue.bytes().all(plain))
}

fn plain_queue(head: &Parts) -> Option<&str> {
    head.uri.path().strip_prefix(PATH.0)?.strip_suffix(PATH.1)
}

/// Takes a submission for which [`is_plain`] holds.
pub(super) async fn submit<B>(served: &Arc<Served>, (peer, caller): (Peer, Caller), head: Parts, body: B) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let asked = Asked::read(served, caller, plain_queue(&head).unwrap_or_default(), &head)?;
    // The head's texts are slices of the connection's buffer, which can be used again only without them.
    drop(head);
    accept(served, &peer, asked, body).await
}

/// Submit a job
///
/// The body is the payload, whatever its content type: it reaches the handler as it is. The answer comes when the job is
/// durable.
// All submissions are described here; this function takes those in another spelling than clients use.
#[utoipa::path(
    post, path = "/v1/queues/{queue}/jobs", tag = "submit", operation_id = "submit_job",
    params(
        ("queue" = schema::QueueName, Path, description = "The queue."),
        ("idempotency-key" = Option<schema::Key>, Header,
            description = "What makes a retry the same job, for (client, queue), until `retention` after its end."),
        ("prefer" = Option<String>, Header,
            description = "`wait=20`: answer with the result if it comes within so many seconds. `respond-async`: don't."),
        ("relay-delay" = Option<schema::Span>, Header, description = "No attempt before this has passed; at most `7d`."),
        ("relay-expires-in" = Option<schema::Span>, Header, description = "The job expires this long after its delay."),
        ("relay-meta-*" = Option<String>, Header, description = "Any header that begins so reaches the handler; 2 KiB together."),
        ("traceparent" = Option<String>, Header, description = "W3C trace context; reaches the handler."),
    ),
    request_body(content(
        (schema::Bytes = "application/octet-stream"), (schema::Json = "application/json"), (String = "text/plain"),
    ), description = "The payload, of these or any other content type."),
    responses(
        (status = 200, description = "The result, if it was waited for and came in time.", content((schema::Bytes = "*/*")), headers(
            ("relay-outcome" = schema::Outcome, description = "How the run ended."),
            ("relay-run-id" = schema::RunId, description = "The run: deduplicate on it."),
            ("traceparent" = Option<String>, description = "The W3C trace context that the job carries, if it has one."),
            ("idempotency-replayed" = Option<bool>, description = "`true` if an earlier request did the work."),
            ("preference-applied" = Option<String>, description = "What of `Prefer` was honoured."),
        )),
        (status = 202, description = "The receipt: the job is durable.", body = Receipt, headers(
            ("location" = String, description = "The job."),
            ("idempotency-replayed" = Option<bool>, description = "`true` if an earlier request did the work."),
            ("preference-applied" = Option<String>, description = "What of `Prefer` was honoured."),
        )),
        (status = 403, description = "This client may not use the queue.", body = Problem, content_type = PROBLEM_CONTENT_TYPE),
    ),
)]
pub(super) async fn routed(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(queue): Path<String>,
    request: Request,
) -> Answer {
    let (head, body) = request.into_parts();
    let asked = Asked::read(&served, caller, &queue, &head)?;
    drop(head);
    accept(&served, &peer, asked, body).await
}

/// The contents of a submission's head.
struct Asked {
    client: ClientId,
    queue: QueueName,
    headers: JobHeaders,
    preference: Preference,
}

impl Asked {
    fn read(served: &Served, caller: Caller, queue: &str, head: &Parts) -> Result<Self, Refusal> {
        Parameters::read(&head.uri, &[])?;
        request::require(&caller, Right::Submit)?;
        let queue = request::queue(&caller, queue)?;
        let headers = JobHeaders::read(&head.headers)?;
        let mut preference = Preference::read(&head.headers, served.ingress.limits.wait_max)?;
        if !caller.may(Right::Read) {
            // Such a caller has receipts only, so there is nothing to wait for.
            preference.wait = None;
        }
        Ok(Self { client: caller.client, queue, headers, preference })
    }
}

async fn accept<B>(served: &Served, peer: &Peer, asked: Asked, body: B) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let Asked { client, queue, headers, preference } = asked;
    let policy = jobs::policy(&served.ingress.policies, &queue).await?;
    jobs::admit((&policy, &served.ingress.rates), &client, &queue, headers.content_type())?;

    let body = body::read(&served.ingress, peer, body, policy.payload_max.min(served.ingress.limits.body_bytes as u64))
        .await?;
    if peer.credential.has_ended() {
        return Err(request::credential_ended());
    }
    let (payload, budget) = body.into_parts();
    let submission = headers.submission(client, queue, payload);
    let job = submission.accept(&policy, served.ingress.clock.now());
    let (id, run, client) = (job.id, job.run_id, job.client.clone());
    let results = &served.ingress.broker.results;
    let ahead = async {
        match preference.wait.filter(|wait| !wait.is_zero()) {
            Some(wait) => results.wait_ahead(&client, id, run, wait).await,
            None => Ok(None),
        }
    };
    let mut ahead = pin!(ahead.fuse());
    let mut early = None;
    let (status, replayed) = {
        let mut enqueued = pin!(jobs::enqueue(&served.ingress.broker, job));
        loop {
            tokio::select! {
                // First, so that it listens before there is anything to hear.
                biased;
                heard = &mut ahead, if !ahead.is_terminated() => early = Some(heard),
                enqueued = &mut enqueued => break enqueued?,
            }
        }
    };
    // The broker has the bytes; a wait that follows must not hold their share of the budget.
    drop(budget);

    let heard = async {
        match early {
            Some(heard) => heard,
            None => ahead.await,
        }
    };
    let mut response = answer((served, peer), &status, replayed, preference, heard).await?;
    if let Some(applied) = preference.applied().and_then(|applied| HeaderValue::from_str(&applied).ok()) {
        response.headers_mut().insert(header::PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// The result, if it is asked for and comes in time, else the receipt. `ahead` hears of it if the job is a new one. From
/// here on the job is accepted: nothing that goes wrong may look as if it were not.
async fn answer(
    (served, peer): (&Served, &Peer),
    status: &JobStatus,
    replayed: bool,
    preference: Preference,
    ahead: impl Future<Output = Result<Option<Box<Finished>>, BrokerError>>,
) -> Answer {
    let Some(wait) = preference.wait else {
        return Ok(answer::accepted(status, replayed));
    };
    let begun = Instant::now();
    let heard = async { if replayed { Ok(None) } else { ahead.await } };
    let heard = tokio::select! {
        heard = heard => heard.ok().flatten(),
        () = served.shutdown.cancelled() => None,
        () = peer.credential.ended() => None,
    };
    if peer.credential.has_ended() {
        return Ok(answer::accepted(status, replayed));
    }
    let heard = heard.filter(|heard| heard.result.run_id >= status.run_id);
    let is_open = heard.is_none() && !replayed;
    let heard = heard.and_then(|heard| {
        let room = peer.room_now(&served.ingress, heard.result.payload.len() as u64)?;
        Some((Lookup::Finished(heard), room))
    });
    let found = match heard {
        Some(found) => Ok(found),
        None => {
            let left = wait.saturating_sub(begun.elapsed());
            let (client, job) = (&status.client, status.job_id);
            match is_open {
                true => results::wait_for_new(served, peer, client, job, left).await,
                false => results::wait(served, peer, client, job, left).await,
            }
        }
    };
    match found {
        // One who did not wait for it gets the receipt: a retry does not look like a failure.
        Ok((Lookup::Finished(finished), room)) if !finished.erased || !wait.is_zero() => {
            let mut response = answer::within(answer::result(*finished)?, room);
            answer::point_to(response.headers_mut(), status.job_id);
            answer::mark_replayed(response.headers_mut(), replayed);
            Ok(response)
        }
        Ok((Lookup::Open(now), _)) => Ok(answer::accepted(&now, replayed)),
        Ok(_) => Ok(answer::accepted(status, replayed)),
        Err(Refusal(problem)) => {
            let (job_id, why) = (status.job_id, &problem.detail);
            tracing::warn!(%job_id, why, "waiting for a result failed; answered with the receipt");
            Ok(answer::accepted(status, replayed))
        }
    }
}
