//! `POST /v1/queues/{queue}/batch`: many jobs in one request, as a JSON array or one JSON object a line.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use http::StatusCode;

use super::answer::{self, Answer};
use super::request::{self, Parameters};
use super::{Ingress, Served, body};
use crate::api::BatchItem;
use crate::api::batch::BATCH_BYTES_MAX;
use crate::auth::Caller;
use crate::ingress::batch::Batch;
use crate::ingress::headers::JobHeaders;
use crate::ingress::jobs;

/// Takes a batch. 200 as soon as it could be taken apart: what became of an entry is in its place of the answer.
pub(super) async fn submit(
    State(served): State<Arc<Served>>,
    caller: Caller,
    Path(queue): Path<String>,
    request: Request,
) -> Answer {
    let (head, body) = request.into_parts();
    Parameters::read(&head.uri, &[])?;
    let queue = request::queue(&caller, &queue)?;
    let (key, headers) = JobHeaders::read_batch(&head.headers)?;
    let Ingress { broker, policies, clock, limits, .. } = &*served.ingress;
    let policy = jobs::policy(policies, &queue).await?;
    let body = body::read(&served.ingress, body, BATCH_BYTES_MAX.min(limits.body_bytes as u64)).await?;
    let (body, _budget) = body.into_parts();
    let batch = Batch {
        broker,
        clock,
        policy: &policy,
        payload_max: policy.payload_max.min(served.ingress.payload_max()),
        client: &caller.client,
        queue: &queue,
        key,
        headers,
    };
    let answer = batch.enqueue(&body).await?;
    for entry in &answer.entries {
        if let BatchItem::Problem(problem) = entry {
            served.ingress.refusals.add(problem.slug);
        }
    }
    answer::json(StatusCode::OK, &answer)
}
