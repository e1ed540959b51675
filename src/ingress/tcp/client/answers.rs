//! Jobs, results and problems as messages to a client.

use relay_bridge::contract::JobStatus;
use relay_bridge::contract::job::meta;
use relay_bridge::contract::wire::WireError;
use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::contract::wire::client::{ToClient, WireProblem, WireReceipt, WireResult};
use relay_bridge::contract::wire::error::Retry;
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_bridge::result_log::Finished;
use serde::Serialize;

use crate::api::{self, Problem, Slug, fit};
use crate::ingress::refusal::Refusal;

/// The bytes of a result's message beside its payload, at most: names, times, meta, and a failure's text.
const RESULT_BYTES: usize = 24 * 1024;

/// The receipt of a job as it stands.
pub(super) fn receipt(id: u64, status: &JobStatus, replayed: bool) -> ToClient {
    let receipt = WireReceipt {
        job: status.job_id,
        run: status.run_id,
        generation: status.generation,
        client: status.client.clone(),
        queue: status.queue.clone(),
        key: status.key.clone(),
        meta: meta(&status.headers),
        state: status.state,
        replayed,
        accepted_at: status.accepted_at,
        expires_at: status.expires_at,
    };
    ToClient::Receipt { id, receipt: Box::new(receipt) }
}

/// A result, without its payload if that does not fit into a frame.
pub(super) fn result(finished: Finished, frame_max: u32) -> WireResult {
    let (content_type, own_meta) = (fit::content_type(&finished.result).to_owned(), fit::meta(&finished.result));
    let (failure, traceparent) = (fit::failure(&finished.result), fit::traceparent(&finished.result));
    let traceparent = traceparent.map(str::to_owned);
    let Finished { result, cursor, erased } = finished;
    let room = usize::try_from(frame_max).unwrap_or(usize::MAX).saturating_sub(RESULT_BYTES);
    let payload = match erased {
        true => Body::Erased,
        false if result.payload.len() > room => Body::TooLarge(result.payload.len() as u64),
        false => Body::Here(result.payload),
    };
    WireResult {
        cursor: cursor.to_string(),
        job: result.job_id,
        run: result.run_id,
        generation: result.generation,
        queue: result.queue,
        key: result.key,
        meta: own_meta,
        outcome: result.outcome,
        attempt: result.attempt,
        content_type,
        payload,
        failure,
        accepted_at: result.accepted_at,
        started_at: result.started_at,
        finished_at: result.finished_at,
        traceparent,
    }
}

/// A document as the HTTP API has it.
pub(super) fn document(of: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(of).map_err(|_| Refusal::new(Slug::Internal, "relay failed; the request id finds why"))
}

/// The refusal of the request `id`.
pub(super) fn problem(id: u64, problem: Problem) -> ToClient {
    let problem = WireProblem {
        slug: problem.slug.as_str().to_owned(),
        retry: match problem.retry {
            api::Retry::Safe => Retry::Safe,
            api::Retry::WithIdempotencyKey => Retry::WithIdempotencyKey,
            api::Retry::No => Retry::No,
        },
        detail: problem.detail,
        instance: problem.instance,
        retry_after: problem.retry_after.map(|after| after.0),
        limit: problem.limit,
        actual: problem.actual,
        job: problem.job_id,
        first_at: problem.first_at,
        outcome: problem.outcome,
        finished_at: problem.finished_at,
    };
    ToClient::Problem { id, problem: Box::new(problem) }
}

/// The refusal of a connection.
pub(in crate::ingress::tcp) fn error(problem: &Problem) -> WireError {
    let kind = match problem.status {
        401 | 403 => Kind::Unauthorized,
        408 => Kind::Unavailable,
        429 | 503 => {
            Kind::Overloaded { retry_after: problem.retry_after.map_or_else(Default::default, |after| after.0) }
        }
        _ => Kind::Invalid,
    };
    let error = WireError::new(kind, problem.detail.clone()).with_slug(problem.slug.as_str());
    WireError { limit: problem.limit, actual: problem.actual, ..error }
}
