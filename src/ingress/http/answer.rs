//! Writing an answer. A refusal travels as a [`Problem`] beside an empty response until the gate, which knows the
//! request's id, writes it out: so there is one place that does, also for what the router refuses by itself.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use http::{HeaderMap, Method, StatusCode};
use http_body::Body as _;
use relay_bridge::contract::job::DEFAULT_CONTENT_TYPE;
use relay_bridge::contract::{JobId, JobStatus};
use relay_bridge::result_log::Finished;
use serde::Serialize;

use super::held::Reserved;
use super::room::Room;
use crate::api::problem::PROBLEM_CONTENT_TYPE;
use crate::api::{Links, Problem, Slug, fit, header, receipt};
use crate::ingress::outcome;
pub(super) use crate::ingress::refusal::Refusal;

/// The size that most answers fit in, in bytes: longer ones grow.
const JSON_BYTES: usize = 768;

/// Room for the headers of a receipt: the map grows in steps that cost more, and the next larger one is allocated slowly.
const RECEIPT_HEADERS: usize = 6;

/// The return value of a handler.
pub(super) type Answer = Result<Response, Refusal>;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the problem out that `response` carries; one that the router made gets the problem of its status. `asked` is
/// the request's method, and `all` whether it was about the server as a whole.
pub(super) fn finish(mut response: Response, asked: &Method, all: bool, request_id: String) -> Response {
    let refusal = response.extensions_mut().remove::<Refusal>();
    if refusal.is_none() {
        options(&mut response, asked, all);
    }
    let status = response.status();
    let problem = match refusal {
        Some(Refusal(problem)) => Some(*problem),
        None if status == StatusCode::METHOD_NOT_ALLOWED => {
            Some(Problem::new(Slug::MethodNotAllowed, "this path has other methods: the header Allow names them"))
        }
        None if status == StatusCode::NOT_FOUND => Some(Problem::new(
            Slug::NotFound,
            "relay has no such path: check its spelling and the version in it; /docs says which there are",
        )),
        None if status.is_client_error() => {
            Some(Problem::new(Slug::MalformedRequest, "the request's path or query can't be read: correct it"))
        }
        None if status.is_server_error() => {
            Some(Problem::new(Slug::Internal, "relay failed; the request id finds why"))
        }
        None => None,
    };
    if let Some(problem) = problem {
        write_problem(&mut response, problem, &request_id);
    }
    if let Ok(value) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(HeaderName::from_static(header::REQUEST_ID), value);
    }
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if *asked == Method::HEAD {
        without_body(&mut response);
    }
    response
}

/// Every path has `OPTIONS` beside the methods that the router knows of, and the answer to it is which they are.
fn options(response: &mut Response, asked: &Method, all: bool) {
    let asked = *asked == Method::OPTIONS;
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let known = response.headers().get(ALLOW).and_then(|methods| methods.to_str().ok()).unwrap_or_default();
        if let Ok(methods) = HeaderValue::try_from(format!("{known},OPTIONS")) {
            response.headers_mut().insert(ALLOW, methods);
        }
        if asked {
            *response.status_mut() = StatusCode::NO_CONTENT;
        }
    } else if asked && all {
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET,HEAD,POST,DELETE,OPTIONS"));
    }
}

/// The head of an answer says how long its body would be. Hyper leaves the body of an answer to HEAD out over HTTP/1.1, and
/// sends it over HTTP/2.
fn without_body(response: &mut Response) {
    let length = response.body().size_hint().exact();
    if let Some(length) = length.filter(|_| !response.headers().contains_key(CONTENT_LENGTH)) {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    *response.body_mut() = Body::empty();
}

fn write_problem(response: &mut Response, mut problem: Problem, request_id: &str) {
    problem.instance = format!("urn:relay:request:{request_id}");
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
    if let Some(seconds) = problem.retry_after_seconds() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    match problem.slug {
        Slug::Unauthenticated => {
            headers.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // The rest of the body is not read, and a drained connection is not used again.
        Slug::Draining | Slug::RequestTimeout => {
            headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.body_mut() = Body::from(body);
    // For whoever counts.
    response.extensions_mut().insert(problem.slug);
}

/// `body` as JSON.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let mut bytes = Vec::with_capacity(JSON_BYTES);
    serde_json::to_writer(&mut bytes, body)
        .map_err(|error| Refusal::new(Slug::Internal, format!("the answer can't be written: {error}")))?;
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// 202 with a receipt, where the job is, and whether an earlier request did the work.
pub(super) fn accepted(status: &JobStatus, replayed: bool) -> Response {
    let mut response = Response::new(Body::from(receipt::to_json(status, replayed)));
    *response.status_mut() = StatusCode::ACCEPTED;
    *response.headers_mut() = HeaderMap::with_capacity(RECEIPT_HEADERS);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    point_to(response.headers_mut(), status.job_id);
    mark_replayed(response.headers_mut(), replayed);
    response
}

/// `Location` of a job.
pub(super) fn point_to(headers: &mut HeaderMap, job: JobId) {
    if let Ok(value) = HeaderValue::from_str(&Links::path(job)) {
        headers.insert(LOCATION, value);
    }
}

/// `Idempotency-Replayed: true`, if so.
pub(super) fn mark_replayed(headers: &mut HeaderMap, replayed: bool) {
    if replayed {
        headers.insert(HeaderName::from_static(header::IDEMPOTENCY_REPLAYED), HeaderValue::from_static("true"));
    }
}

/// `response`, whose body holds `room` until its last byte has left.
pub(super) fn within(mut response: Response, room: Room) -> Response {
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let room = match bytes {
        Some(bytes) => room.fitted(bytes),
        None => room,
    };
    response.extensions_mut().insert(Reserved(Arc::new(room)));
    response
}

/// A finished run as its raw result: 200, whatever the outcome.
///
/// # Errors
/// `result-expired` if the payload was erased.
pub(super) fn result(finished: Finished) -> Answer {
    let facts: Vec<_> = outcome::facts(&finished).collect();
    let result = outcome::readable(finished)?;
    let content_type = HeaderValue::from_str(fit::content_type(&result));
    let mut response = Response::new(Body::from(result.payload));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static(DEFAULT_CONTENT_TYPE)));
    // The bytes are a handler's: a browser must not guess what they are, nor run what is in them.
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(http::header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    for (name, value) in facts {
        let name = match name {
            Cow::Borrowed(name) => Ok(HeaderName::from_static(name)),
            Cow::Owned(name) => HeaderName::try_from(name),
        };
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}
