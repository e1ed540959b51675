//! `POST /v1/queues/{queue}/batch`: many jobs in one request, as a JSON array or one JSON object a line.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use http::StatusCode;

use super::answer::{self, Answer};
use super::audited::Entries;
use super::connection::Peer;
use super::request::{self, Parameters};
use super::{Ingress, Served, body};
use crate::api::batch::BATCH_BYTES_MAX;
use crate::api::problem::PROBLEM_CONTENT_TYPE;
use crate::api::{BatchAnswer, BatchEntry, BatchItem, Problem, schema};
use crate::auth::Caller;
use crate::auth::rights::Right;
use crate::ingress::batch::Batch;
use crate::ingress::headers::JobHeaders;
use crate::ingress::jobs;

/// The bytes of most answers to the largest batches.
const ANSWER_BYTES: u64 = 1024 * 1024;

/// Submit many jobs
///
/// A JSON array, or one JSON object a line. 200 as soon as the batch could be taken apart: what became of an entry is in its
/// place of the answer. Entries are jobs of their own, and in no order among each other.
#[utoipa::path(
    post, path = "/v1/queues/{queue}/batch", tag = "submit", operation_id = "submit_batch",
    params(
        ("queue" = schema::QueueName, Path, description = "The queue of all of them."),
        ("idempotency-key" = Option<schema::Key>, Header, description = "`k` gives entry `i`, from 0, the key `k/i` if it has none."),
        ("traceparent" = Option<String>, Header, description = "W3C trace context; reaches the handlers."),
    ),
    request_body(content((Vec<BatchEntry> = "application/json"), (schema::Bytes = "application/x-ndjson")),
        description = "1,000 entries and 8 MiB at most."),
    responses(
        (status = 200, description = "A receipt or a problem for each entry, in their order.", body = BatchAnswer),
        (status = 403, description = "This client may not use the queue.", body = Problem, content_type = PROBLEM_CONTENT_TYPE),
    ),
)]
pub(super) async fn submit(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(queue): Path<String>,
    request: Request,
) -> Answer {
    let (head, body) = request.into_parts();
    Parameters::read(&head.uri, &[])?;
    request::require(&caller, Right::Submit)?;
    let queue = request::queue(&caller, &queue)?;
    let (key, headers) = JobHeaders::read_batch(&head.headers)?;
    let Ingress { broker, policies, rates, clock, limits, .. } = &*served.ingress;
    let policy = jobs::policy(policies, &queue).await?;
    jobs::check_client(&policy, &caller.client, &queue)?;
    // Entries are counted one by one; if not even the first one would be let in, there is no need to read them.
    rates.look(&caller.client, &queue, policy.client(&caller.client))?;
    let body = body::read(&served.ingress, &peer, body, BATCH_BYTES_MAX.min(limits.body_bytes as u64)).await?;
    let (body, _budget) = body.into_parts();
    // Before anything is done: what is done must be told.
    let room = peer.room(&served.ingress, ANSWER_BYTES).await?;
    if caller.credential.has_ended() {
        return Err(request::credential_ended());
    }
    let batch = Batch {
        broker,
        clock,
        policy: &policy,
        rates,
        payload_max: policy.payload_max.min(limits.body_bytes as u64),
        client: &caller.client,
        queue: &queue,
        key,
        headers,
    };
    let answer = batch.enqueue(&body).await?;
    let mut refused = 0;
    for entry in &answer.entries {
        if let BatchItem::Problem(problem) = entry {
            refused += 1;
            served.ingress.refusals.add(problem.slug);
        }
    }
    let mut response = answer::within(answer::json(StatusCode::OK, &answer)?, room);
    let accepted = (answer.entries.len() as u64).saturating_sub(refused);
    response.extensions_mut().insert(Entries { accepted, refused });
    Ok(response)
}
