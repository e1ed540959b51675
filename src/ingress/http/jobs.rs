//! A client's jobs: look up, list, cancel, rerun, erase.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use relay_bridge::contract::{ClientId, IdempotencyKey, JobId, JobStatus, QueueName};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::{Enqueued, JobFilter};
use relay_bridge::result_log::Lookup;

use super::Served;
use super::answer::{self, Answer, Refusal};
use super::request::{self, Parameters};
use crate::api::receipt::state_text;
use crate::api::{JobView, JobsPage};
use crate::auth::Caller;

/// Jobs on a page if the request does not say.
const PAGE_DEFAULT: u32 = 100;
/// Jobs on a page at most.
const PAGE_MAX: u32 = 500;

/// `GET /v1/jobs/{id}`
pub(super) async fn status(
    State(served): State<Arc<Served>>,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    Parameters::read(&uri, &[])?;
    let id = request::job_id(&id)?;
    answer::json(StatusCode::OK, &find(&served, &caller.client, id).await?)
}

/// `GET /v1/queues/{queue}/jobs?key=`
pub(super) async fn by_key(
    State(served): State<Arc<Served>>,
    caller: Caller,
    Path(queue): Path<String>,
    uri: Uri,
) -> Answer {
    let parameters = Parameters::read(&uri, &["key"])?;
    let queue = request::queue(&caller, &queue)?;
    let key = parameters.get("key").ok_or_else(|| {
        Refusal::malformed("parameter `key` is missing: name the idempotency key, or list jobs with /v1/jobs?queue=")
    })?;
    let id = JobId::derive(&caller.client, &queue, &IdempotencyKey::from_header(key)?);
    answer::json(StatusCode::OK, &find(&served, &caller.client, id).await?)
}

/// `GET /v1/jobs?queue=&state=&after=&limit=`
pub(super) async fn list(State(served): State<Arc<Served>>, caller: Caller, uri: Uri) -> Answer {
    let parameters = Parameters::read(&uri, &["queue", "state", "after", "limit"])?;
    let state = parameters.get("state").map(|text| {
        state_text::parse(text).ok_or_else(|| {
            let words = "queued, leased, succeeded, failed, exhausted, expired or cancelled";
            Refusal::malformed(format!("parameter `state` must be {words}"))
        })
    });
    let limit = parameters.limit(PAGE_DEFAULT, PAGE_MAX)?;
    let filter = JobFilter {
        queue: parameters.get("queue").map(str::parse).transpose()?,
        state: state.transpose()?,
        after: parameters.get("after").map(str::parse).transpose()?,
        limit,
    };
    if let Some(after) = filter.after
        && served.ingress.broker.jobs.status(&caller.client, after).await?.is_none()
    {
        // Also for another client's job: what follows it would tell that it is there.
        let detail = "parameter `after` is no job of this client, or past its retention: begin at the first page again";
        return Err(Refusal::malformed(detail));
    }
    let listed = served.ingress.broker.jobs.list(&caller.client, &filter).await?;
    let mut jobs = Vec::with_capacity(listed.jobs.len());
    for status in &listed.jobs {
        jobs.push(JobView::of_status(status, max_attempts(&served, &status.queue).await));
    }
    answer::json(StatusCode::OK, &JobsPage { jobs, next: listed.next })
}

/// `POST /v1/jobs/{id}/cancel`
pub(super) async fn cancel(
    State(served): State<Arc<Served>>,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    Parameters::read(&uri, &[])?;
    let id = request::job_id(&id)?;
    let view = match served.ingress.broker.jobs.cancel(&caller.client, id).await {
        Ok(status) => view(&served, &status).await,
        // Of a job without a key only the result is left: it is finished, and that is the answer.
        Err(error) if error.kind() == BrokerErrorKind::NotFound => find(&served, &caller.client, id).await?,
        Err(error) => return Err(error.into()),
    };
    answer::json(StatusCode::OK, &view)
}

/// `POST /v1/jobs/{id}/rerun?from=<generation>`
pub(super) async fn rerun(
    State(served): State<Arc<Served>>,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    let parameters = Parameters::read(&uri, &["from"])?;
    let id = request::job_id(&id)?;
    let from = parameters.get("from").and_then(|text| text.parse().ok()).filter(|from| *from >= 1);
    let from: u32 = from.ok_or_else(|| {
        Refusal::malformed("parameter `from` must be the generation that is run again: `generation` of the job")
    })?;
    let enqueued = served.ingress.broker.jobs.rerun(&caller.client, id, from).await.map_err(no_job_if_not_found)?;
    let replayed = matches!(enqueued, Enqueued::Known(_));
    Ok(answer::accepted(enqueued.status(), replayed))
}

/// `DELETE /v1/jobs/{id}`
pub(super) async fn erase(
    State(served): State<Arc<Served>>,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    Parameters::read(&uri, &[])?;
    let id = request::job_id(&id)?;
    served.ingress.broker.jobs.erase(&caller.client, id).await.map_err(no_job_if_not_found)?;
    Ok::<Response, Refusal>(StatusCode::NO_CONTENT.into_response())
}

fn no_job_if_not_found(error: relay_bridge::error::BrokerError) -> Refusal {
    if error.kind() == BrokerErrorKind::NotFound { Refusal::no_job() } else { error.into() }
}

/// The job: results are asked first, because what is finished is decided there and nowhere else.
async fn find(served: &Served, client: &ClientId, id: JobId) -> Result<JobView, Refusal> {
    let broker = &served.ingress.broker;
    match broker.results.lookup(client, id).await? {
        Lookup::Open(status) => Ok(view(served, &status).await),
        Lookup::Absent => Err(Refusal::no_job()),
        Lookup::Finished(finished) => {
            let status = broker.jobs.status(client, id).await?;
            let attempts = max_attempts(served, &finished.result.queue).await;
            Ok(JobView::of_result(&finished.result, status.as_ref(), attempts))
        }
    }
}

pub(super) async fn view(served: &Served, status: &JobStatus) -> JobView {
    JobView::of_status(status, max_attempts(served, &status.queue).await)
}

/// What the queue allows now. It adorns an answer, so its absence is no reason to refuse one.
async fn max_attempts(served: &Served, queue: &QueueName) -> Option<u32> {
    served.ingress.policies.get(queue).await.ok().flatten().map(|policy| policy.max_attempts)
}
