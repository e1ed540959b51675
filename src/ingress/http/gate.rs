//! What every request passes first, and every answer last: a request id, the drain, the limits, and a net under panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::Request;
use http::request::Parts;
use hyper::body::Incoming;
use tower::Service;
use tracing::{Instrument, debug, error, info_span};

use super::answer::{self, Refusal};
use super::{Limits, Served};
use crate::api::{Problem, Slug};

/// Answers one request. Never fails and never panics.
pub(super) async fn handle(served: Served, router: Router, request: Request<Incoming>) -> Response {
    let request_id = served.ingress.mint_request_id();
    let span = info_span!("request", request_id, method = %request.method(), path = request.uri().path());
    async {
        let response = match AssertUnwindSafe(admit(&served, router, request)).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                error!(panic = text.unwrap_or("no text"), "a handler panicked");
                let detail = "relay failed, and this may or may not have been done: send it again with the same \
                              Idempotency-Key, and tell the operator of relay the request id";
                Refusal::new(Slug::Internal, detail).into_response()
            }
        };
        let response = answer::finish(response, &request_id);
        debug!(status = response.status().as_u16(), "request answered");
        response
    }
    .instrument(span)
    .await
}

async fn admit(served: &Served, mut router: Router, request: Request<Incoming>) -> Response {
    if served.shutdown.is_cancelled() {
        let detail = "this relay is shutting down; nothing was done: send it again on a new connection";
        return Refusal::new(Slug::Draining, detail).into_response();
    }
    let Ok(_place) = Arc::clone(&served.ingress.requests).try_acquire_owned() else {
        let detail =
            "relay has as many requests in hand as it takes; nothing was done: send it again after Retry-After";
        return Refusal::new(Slug::Overloaded, detail).into_response();
    };
    let (parts, body) = request.into_parts();
    if let Err(refusal) = check_head(&parts, &served.ingress.limits) {
        return refusal.into_response();
    }
    match router.call(Request::from_parts(parts, Body::new(body))).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn check_head(parts: &Parts, limits: &Limits) -> Result<(), Refusal> {
    let lines = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    let bytes = lines.sum::<usize>() + parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    for (limit, actual, unit) in
        [(limits.headers, parts.headers.len(), "headers"), (limits.header_bytes, bytes, "bytes of headers")]
    {
        if actual > limit {
            let detail = format!("the request has {actual} {unit}, {limit} are taken: send fewer");
            return Err(Problem::new(Slug::HeadersTooLarge, detail).with_limit(limit as u64, actual as u64).into());
        }
    }
    Ok(())
}
