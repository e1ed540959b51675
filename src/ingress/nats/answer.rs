//! Writing an answer: a body and headers, on the subject that the request named. Nothing of the request's own headers
//! is sent on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::client::PublishErrorKind;
use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE};
use async_nats::{Client, HeaderMap, HeaderValue, Subject};
use bytes::Bytes;
use relay_bridge::contract::{JobId, JobStatus};
use serde::Serialize;
use tracing::debug;

use crate::api::problem::PROBLEM_CONTENT_TYPE;
use crate::api::{Problem, Slug, header, receipt};
use crate::ingress::budget::Share;
use crate::ingress::refusal::Refusal;

pub(super) const CONTENT_TYPE: &str = "Content-Type";

/// One message of an answer.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The share of the byte budget that a large body takes until it has left.
    pub(super) room: Option<Share>,
    /// The job whose result it is, if it is one.
    pub(super) job: Option<JobId>,
}

impl Reply {
    /// `value` as JSON.
    pub(super) fn json(value: &impl Serialize) -> Result<Self, Refusal> {
        let body = serde_json::to_vec(value)
            .map_err(|error| Refusal::new(Slug::Internal, format!("the answer can't be written: {error}")))?;
        Ok(Self { body: body.into(), ..Self::default() }.with(CONTENT_TYPE, "application/json"))
    }

    /// A receipt.
    pub(super) fn accepted(status: &JobStatus, replayed: bool) -> Self {
        let reply = Self { body: receipt::to_json(status, replayed).into(), ..Self::default() };
        let reply = reply.with(CONTENT_TYPE, "application/json").with(header::JOB_ID, &status.job_id.to_string());
        if replayed { reply.with(header::IDEMPOTENCY_REPLAYED, "true") } else { reply }
    }

    /// A refusal as the micro services of NATS have them, with the same document that HTTP answers as its body.
    pub(super) fn problem(problem: &Problem) -> Self {
        let body = serde_json::to_vec(problem).unwrap_or_default();
        let reply = Self { body: body.into(), ..Self::default() };
        let reply = reply.with(CONTENT_TYPE, PROBLEM_CONTENT_TYPE).marked(problem);
        match problem.retry_after_seconds() {
            Some(seconds) => reply.with("Retry-After", &seconds.to_string()),
            None => reply,
        }
    }

    /// The same with the headers by which services tell errors.
    pub(super) fn marked(self, problem: &Problem) -> Self {
        self.with(NATS_SERVICE_ERROR_CODE, &problem.status.to_string()).with(NATS_SERVICE_ERROR, problem.slug.as_str())
    }

    /// The same with one more header; one that NATS can't carry is left out. Names of relay's own are written as people
    /// write them, `Relay-Cursor`, because NATS compares them letter by letter.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        if let Ok(value) = value.parse::<HeaderValue>() {
            self.headers.insert(spelled(name).as_str(), value);
        }
        self
    }
}

/// `relay-job-id` as `Relay-Job-Id`. Those of W3C are in lower case everywhere.
fn spelled(name: &str) -> String {
    if [header::TRACEPARENT, header::TRACESTATE].contains(&name) {
        return name.to_owned();
    }
    let mut up = true;
    let letter = |c: char| {
        let spelled = if up { c.to_ascii_uppercase() } else { c };
        up = c == '-';
        spelled
    };
    name.chars().map(letter).collect()
}

/// Where the answers to one request go.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    pub(super) client: Arc<Client>,
    /// `None` for a request that wants no answer.
    pub(super) to: Option<Subject>,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsent {
    /// The server takes smaller messages only.
    TooLarge,
    /// The connection is closed for good.
    Closed,
}

impl Outbox {
    /// Hands `reply` to the connection. It waits while the connection is behind.
    pub(super) async fn send(&self, reply: Reply) -> Result<(), Unsent> {
        let Some(to) = self.to.clone() else { return Ok(()) };
        match self.client.publish_with_headers(to, reply.headers, reply.body).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => Err(Unsent::TooLarge),
            Err(error) => {
                debug!(%error, "an answer can't be sent");
                Err(Unsent::Closed)
            }
        }
    }

    /// Waits until what was handed to the connection has been written to it.
    pub(super) async fn flush(&self) -> Result<(), Unsent> {
        if self.to.is_none() {
            return Ok(());
        }
        self.client.flush().await.map_err(|_| Unsent::Closed)
    }

    /// How often the connection was made: if it was made anew, what had not left by then is lost.
    pub(super) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// The largest message that the server takes, headers included, in bytes.
    pub(super) fn message_max(&self) -> u64 {
        self.client.max_payload() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_headers_of_a_service_error_and_the_document_of_http() {
        let reply = Reply::problem(&Problem::new(Slug::Overloaded, "too much"));
        let header = |name: &str| reply.headers.get(name).map(ToString::to_string).unwrap_or_default();
        assert_eq!(
            (header("Nats-Service-Error-Code"), header("Nats-Service-Error")),
            ("503".into(), "overloaded".into())
        );
        assert_eq!((header("Content-Type"), header("Retry-After")), (PROBLEM_CONTENT_TYPE.into(), "1".into()));
        assert_eq!(serde_json::from_slice::<Problem>(&reply.body).unwrap().slug, Slug::Overloaded);
    }

    #[test]
    fn a_value_that_would_end_the_header_early_is_left_out() {
        let reply = Reply::default().with("relay-job-id", "a").with("Content-Type", "text/plain\r\nNats-Rollup: all");
        assert_eq!(reply.headers.len(), 1);
        assert!(reply.headers.get("Relay-Job-Id").is_some());
    }
}
