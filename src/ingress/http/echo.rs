//! `POST /v1/echo`: a body goes there and back, and nothing is done. `relay doctor` measures the way to relay with it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};

use super::answer::{self, Answer};
use super::connection::Peer;
use super::request::Parameters;
use super::{Served, body};
use crate::api::{ECHO_BYTES_MAX, schema};
use crate::auth::Caller;

/// Send a body there and back
///
/// The answer is the body. No job is made and nothing is kept: for measuring the way to relay, with and without large packets.
#[utoipa::path(
    post, path = "/v1/echo", tag = "caller", operation_id = "echo",
    request_body(content = schema::Bytes, content_type = "application/octet-stream", description = "16 KiB at most."),
    responses((status = 200, description = "The same bytes.", body = schema::Bytes, content_type = "application/octet-stream")),
)]
pub(super) async fn echo(State(served): State<Arc<Served>>, peer: Peer, _: Caller, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    Parameters::read(&head.uri, &[])?;
    let (bytes, _share) = body::read(&served.ingress, &peer, body, ECHO_BYTES_MAX).await?.into_parts();
    let room = peer.room(&served.ingress, ECHO_BYTES_MAX).await?;
    let mut response = Body::from(bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    Ok(answer::within(response, room))
}
