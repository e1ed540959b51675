//! Messages of the TCP protocol as the values that HTTP has.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use relay_bridge::contract::wire::WireError;
use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::contract::wire::client::{Submit, ToClient, WireProblem, WireReceipt, WireResult};
use relay_bridge::contract::wire::error::Retry as WireRetry;
use serde::de::DeserializeOwned;

use super::super::error::ClientError;
use super::super::job::{NewJob, RunResult};
use super::connection::Answer;
use crate::api::result::INLINE_BYTES_MAX;
use crate::api::{DurationText, Links, Problem, Receipt, ResultView, Retry, Slug};

pub(super) fn submit(job: &NewJob, wait: Option<std::time::Duration>) -> Submit {
    Submit {
        queue: job.queue.to_string(),
        key: job.key.as_ref().map(ToString::to_string),
        content_type: Some(job.content_type.clone()),
        content_encoding: None,
        delay: job.delay,
        expires_in: job.expires_in,
        meta: job.meta.clone(),
        traceparent: job.traceparent.clone(),
        tracestate: job.tracestate.clone(),
        payload: job.payload.clone(),
        wait,
    }
}

pub(super) fn receipt(wire: WireReceipt) -> Receipt {
    Receipt {
        job_id: wire.job,
        run_id: wire.run,
        generation: wire.generation,
        client: wire.client,
        queue: wire.queue,
        key: wire.key,
        meta: wire.meta,
        state: wire.state,
        replayed: wire.replayed,
        accepted_at: wire.accepted_at,
        expires_at: Some(wire.expires_at),
        links: Links::of(wire.job),
    }
}

/// The result of a run that was waited for.
///
/// # Errors
/// [`ClientError::Garbled`]: its payload is not there, for which a wait has a problem.
pub(super) fn run_result(wire: WireResult, replayed: bool) -> Result<RunResult, ClientError> {
    let Body::Here(payload) = wire.payload else {
        return Err(ClientError::Garbled("a result came without its payload".to_owned()));
    };
    Ok(RunResult {
        job_id: wire.job,
        run_id: wire.run,
        key: wire.key,
        meta: wire.meta,
        outcome: wire.outcome,
        attempt: wire.attempt,
        replayed,
        content_type: wire.content_type,
        payload,
        cursor: Some(wire.cursor),
    })
}

/// A result among others, without its payload, and that.
pub(super) fn view(wire: WireResult) -> (ResultView, Body) {
    let view = ResultView {
        job_id: wire.job,
        run_id: wire.run,
        generation: wire.generation,
        queue: wire.queue,
        key: wire.key,
        meta: wire.meta,
        outcome: wire.outcome,
        attempt: wire.attempt,
        content_type: wire.content_type,
        size: match &wire.payload {
            Body::Here(payload) => payload.len() as u64,
            Body::Erased => 0,
            Body::TooLarge(size) => *size,
        },
        accepted_at: wire.accepted_at,
        started_at: wire.started_at,
        finished_at: wire.finished_at,
        failure: wire.failure,
        payload_base64: None,
        link: None,
        cursor: wire.cursor,
    };
    (view, wire.payload)
}

/// The same as a page over HTTP has it.
pub(super) fn view_with_payload(wire: WireResult) -> ResultView {
    let (view, payload) = view(wire);
    let link = Some(Links::of(view.job_id).result);
    match payload {
        Body::Here(payload) if payload.len() <= INLINE_BYTES_MAX => {
            ResultView { payload_base64: Some(STANDARD.encode(payload)), ..view }
        }
        Body::Erased => view,
        Body::Here(_) | Body::TooLarge(_) => ResultView { link, ..view },
    }
}

/// A document that HTTP answers as well.
pub(super) fn document<T: DeserializeOwned>(text: &str) -> Result<T, ClientError> {
    serde_json::from_str(text).map_err(|error| ClientError::Garbled(format!("the document can't be read: {error}")))
}

/// Another answer than the request has.
pub(super) fn other<T>(asked: &str, answer: Answer) -> Result<T, ClientError> {
    match answer? {
        ToClient::Problem { problem, .. } => Err(problem_of(*problem)),
        _ => Err(ClientError::Garbled(format!("`{asked}` was answered by something else"))),
    }
}

pub(super) fn problem_of(wire: WireProblem) -> ClientError {
    let problem = Problem {
        retry: retry(wire.retry),
        instance: wire.instance,
        retry_after: wire.retry_after.map(DurationText),
        limit: wire.limit,
        actual: wire.actual,
        job_id: wire.job,
        first_at: wire.first_at,
        outcome: wire.outcome,
        finished_at: wire.finished_at,
        ..problem(&wire.slug, wire.detail)
    };
    ClientError::Refused { problem: Box::new(problem), retry_after: wire.retry_after }
}

/// The refusal of a connection.
pub(super) fn refused(error: WireError) -> ClientError {
    let problem = Problem {
        retry: retry(error.retry),
        retry_after: error.retry_after.map(DurationText),
        limit: error.limit,
        actual: error.actual,
        ..problem(&error.slug, error.detail)
    };
    ClientError::Refused { problem: Box::new(problem), retry_after: error.retry_after }
}

/// The refusal that the server would give: nothing is sent.
pub(super) fn too_large(actual: u64, limit: u64) -> ClientError {
    let detail = format!("the job has {actual} bytes with its fields, and the server takes {limit}: make it smaller");
    let problem = Problem { limit: Some(limit), actual: Some(actual), ..Problem::new(Slug::PayloadTooLarge, detail) };
    ClientError::Refused { problem: Box::new(problem), retry_after: None }
}

/// A slug of a newer server is judged by its `retry`, and named in the detail.
fn problem(slug: &str, detail: String) -> Problem {
    match slug.parse() {
        Ok(slug) => Problem::new(slug, detail),
        Err(_) => Problem::new(Slug::Internal, format!("{slug}: {detail}")),
    }
}

fn retry(wire: WireRetry) -> Retry {
    match wire {
        WireRetry::Safe => Retry::Safe,
        WireRetry::WithIdempotencyKey => Retry::WithIdempotencyKey,
        WireRetry::No => Retry::No,
    }
}
