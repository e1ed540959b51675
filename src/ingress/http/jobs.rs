//! A client's jobs: look up, list, cancel, rerun, erase.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use relay_bridge::contract::{IdempotencyKey, JobId};
use relay_bridge::job_queue::{Enqueued, JobFilter};
use relay_bridge::result_log::PAGE_BYTES_MAX;
use serde::Serialize;
use serde_json::value::RawValue;

use super::answer::{self, Answer, Refusal};
use super::connection::Peer;
use super::page::Entries;
use super::request::{self, Parameters};
use super::{Ingress, Served};
use crate::api::problem::PROBLEM_CONTENT_TYPE;
use crate::api::receipt::state_text;
use crate::api::{JobView, JobsPage, Problem, Receipt, schema};
use crate::auth::Caller;
use crate::auth::rights::Right;
use crate::ingress::{jobs, outcome};

/// Jobs on a page if the request does not say.
const PAGE_DEFAULT: u32 = 100;
/// Jobs on a page at most.
const PAGE_MAX: u32 = 500;
/// The bytes of a page while it is read and written: as it is sent, and as much before it.
const LIST_BYTES: u64 = 2 * PAGE_BYTES_MAX as u64;

/// Look a job up
///
/// Where it stands; a finished one as its result says.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "get_job",
    params(("id" = schema::JobId, Path, description = "The job.")),
    responses((status = 200, description = "The job.", body = JobView)),
)]
pub(super) async fn status(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    Parameters::read(&uri, &[])?;
    let id = request::job(&served, (&peer, &caller), &id, Right::Read).await?;
    let Ingress { broker, policies, .. } = &*served.ingress;
    // A look-up may read the result.
    let _room = peer.room_to_read(&served.ingress).await?;
    answer::json(StatusCode::OK, &jobs::find(broker, policies, &caller.client, id).await?)
}

/// Look a job up by its key
///
/// The same as by its id, which is derived from client, queue and key.
#[utoipa::path(
    get, path = "/v1/queues/{queue}/jobs", tag = "jobs", operation_id = "get_job_by_key",
    params(
        ("queue" = schema::QueueName, Path, description = "The queue that it was submitted to."),
        ("key" = schema::Key, Query, description = "Its idempotency key."),
    ),
    responses(
        (status = 200, description = "The job.", body = JobView),
        (status = 403, description = "This key may not use the queue.", body = Problem, content_type = PROBLEM_CONTENT_TYPE),
    ),
)]
pub(super) async fn by_key(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(queue): Path<String>,
    uri: Uri,
) -> Answer {
    let parameters = Parameters::read(&uri, &["key"])?;
    request::require(&caller, Right::Read)?;
    let queue = request::queue(&caller, &queue)?;
    let key = parameters.get("key").ok_or_else(|| {
        Refusal::malformed("parameter `key` is missing: name the idempotency key, or list jobs with /v1/jobs?queue=")
    })?;
    let id = JobId::derive(&caller.client, &queue, &IdempotencyKey::from_header(key)?);
    let Ingress { broker, policies, .. } = &*served.ingress;
    // A look-up may read the result.
    let _room = peer.room_to_read(&served.ingress).await?;
    answer::json(StatusCode::OK, &jobs::find(broker, policies, &caller.client, id).await?)
}

/// List jobs
///
/// The caller's, newest first, a page at a time. A page may be short, or empty, and have a next one: a broker looks at a
/// bounded number of jobs for each.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", operation_id = "list_jobs",
    params(
        ("queue" = Option<schema::QueueName>, Query, description = "Only of this queue."),
        ("state" = Option<schema::State>, Query, description = "Only in this state."),
        ("key_prefix" = Option<schema::Key>, Query, description = "Only jobs whose key begins so."),
        ("after" = Option<schema::JobId>, Query, description = "`next` of the page before."),
        ("limit" = Option<u32>, Query, description = "At most so many jobs; 100 if it is not there.", minimum = 1, maximum = 500),
    ),
    responses((status = 200, description = "A page.", body = JobsPage)),
)]
pub(super) async fn list(State(served): State<Arc<Served>>, peer: Peer, caller: Caller, uri: Uri) -> Answer {
    let parameters = Parameters::read(&uri, &["queue", "state", "key_prefix", "after", "limit"])?;
    request::require(&caller, Right::Read)?;
    let state = parameters.get("state").map(|text| {
        state_text::parse(text).ok_or_else(|| {
            let words = "queued, leased, succeeded, failed, exhausted, expired or cancelled";
            Refusal::malformed(format!("parameter `state` must be {words}"))
        })
    });
    let limit = parameters.limit(PAGE_DEFAULT, PAGE_MAX)?;
    let filter = JobFilter {
        queues: request::queues(&caller, parameters.get("queue"))?,
        state: state.transpose()?,
        key_prefix: outcome::key_prefix("parameter `key_prefix`", parameters.get("key_prefix"))?,
        after: parameters.get("after").map(str::parse).transpose()?,
        limit,
    };
    let room = peer.room(&served.ingress, LIST_BYTES).await?;
    let listed = served.ingress.broker.jobs.list(&caller.client, &filter).await?;
    if let Some(after) = filter.after
        && !listed.after_known
        && !served
            .ingress
            .broker
            .jobs
            .status(&caller.client, after)
            .await?
            .is_some_and(|status| filter.wants_queue(&status.queue))
    {
        // Also for a job of another client or queue: what follows it would tell that it is there.
        let detail = "parameter `after` is no job of this list, or past its retention: begin at the first page again";
        return Err(Refusal::malformed(detail));
    }
    let (mut views, mut next) = (Entries::default(), listed.next);
    let mut before = None;
    for status in &listed.jobs {
        if !views.add(&jobs::view(&served.ingress.policies, status).await)? {
            // The page is full: the next one begins with this job.
            next = before;
            break;
        }
        before = Some(status.job_id);
    }
    Ok(answer::within(answer::json(StatusCode::OK, &WrittenPage { jobs: views.into_written(), next })?, room))
}

/// A [`JobsPage`] whose jobs are JSON already.
#[derive(Serialize)]
struct WrittenPage {
    jobs: Vec<Box<RawValue>>,
    next: Option<JobId>,
}

/// Cancel a job
///
/// Ends its run as `cancelled`, unless it ended before: the answer says how. A queued job never starts; a handler that
/// runs is told within a third of its lease. Repeating it is harmless.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs", operation_id = "cancel_job",
    params(("id" = schema::JobId, Path, description = "The job.")),
    responses((status = 200, description = "The job, finished.", body = JobView)),
)]
pub(super) async fn cancel(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    Parameters::read(&uri, &[])?;
    let id = request::job(&served, (&peer, &caller), &id, Right::Manage).await?;
    let _room = peer.room_to_read(&served.ingress).await?;
    let Ingress { broker, policies, .. } = &*served.ingress;
    answer::json(StatusCode::OK, &jobs::cancel(broker, policies, &caller.client, id).await?)
}

/// Run a finished job again
///
/// The next generation of the same job with the same payload. It names the generation that it starts from, so that
/// repeating it is harmless: the receipt of the run that was started is replayed. Otherwise it is a submission: the client's
/// rate and `max_queued` and the queue's `allowed_clients` apply, and in a paused queue it waits.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/rerun", tag = "jobs", operation_id = "rerun_job",
    params(
        ("id" = schema::JobId, Path, description = "The job."),
        ("from" = u32, Query, description = "`generation` of the run that ended.", minimum = 1),
    ),
    responses(
        (status = 202, description = "The receipt of the next run.", body = Receipt, headers(
            ("location" = String, description = "The job."),
            ("idempotency-replayed" = Option<bool>, description = "`true` if an earlier request did it."),
        )),
        (status = 409, description = "The job is not at that generation, is not finished, or kept no payload.",
            body = Problem, content_type = PROBLEM_CONTENT_TYPE),
    ),
)]
pub(super) async fn rerun(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    let parameters = Parameters::read(&uri, &["from"])?;
    let id = request::job(&served, (&peer, &caller), &id, Right::Submit).await?;
    let from = parameters.get("from").and_then(|text| text.parse().ok()).filter(|from| *from >= 1);
    let from: u32 = from.ok_or_else(|| {
        Refusal::malformed("parameter `from` must be the generation that is run again: `generation` of the job")
    })?;
    let _room = peer.room_to_read(&served.ingress).await?;
    let Ingress { broker, policies, rates, .. } = &*served.ingress;
    let enqueued = jobs::rerun((broker, policies, rates), &caller.client, id, from).await?;
    let replayed = matches!(enqueued, Enqueued::Known(_));
    Ok(answer::accepted(enqueued.status(), replayed))
}

/// Erase a job's data
///
/// Payload, result and meta of a finished job are removed for good; outcome, times and key stay. Repeating it is harmless.
#[utoipa::path(
    delete, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "erase_job",
    params(("id" = schema::JobId, Path, description = "The job.")),
    responses(
        (status = 204, description = "They are gone."),
        (status = 409, description = "The job is not finished: cancel it first.",
            body = Problem, content_type = PROBLEM_CONTENT_TYPE),
    ),
)]
pub(super) async fn erase(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    Parameters::read(&uri, &[])?;
    let id = request::job(&served, (&peer, &caller), &id, Right::Manage).await?;
    let _room = peer.room_to_read(&served.ingress).await?;
    served.ingress.broker.jobs.erase(&caller.client, id).await.map_err(|error| jobs::repeatable(error, id))?;
    Ok::<Response, Refusal>(StatusCode::NO_CONTENT.into_response())
}
