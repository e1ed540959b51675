//! A client's jobs: look up, list, cancel, rerun, erase.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use relay_bridge::contract::{IdempotencyKey, JobId};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::{Enqueued, JobFilter};

use super::answer::{self, Answer, Refusal};
use super::request::{self, Parameters};
use super::{Ingress, Served};
use crate::api::JobsPage;
use crate::api::receipt::state_text;
use crate::auth::Caller;
use crate::ingress::jobs;

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
    let Ingress { broker, policies, .. } = &*served.ingress;
    answer::json(StatusCode::OK, &jobs::find(broker, policies, &caller.client, id).await?)
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
    let Ingress { broker, policies, .. } = &*served.ingress;
    answer::json(StatusCode::OK, &jobs::find(broker, policies, &caller.client, id).await?)
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
    let mut views = Vec::with_capacity(listed.jobs.len());
    for status in &listed.jobs {
        views.push(jobs::view(&served.ingress.policies, status).await);
    }
    answer::json(StatusCode::OK, &JobsPage { jobs: views, next: listed.next })
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
    let Ingress { broker, policies, .. } = &*served.ingress;
    answer::json(StatusCode::OK, &jobs::cancel(broker, policies, &caller.client, id).await?)
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
