//! Messages of the client role to frames. A message is appended to the buffer that is sent, so a payload is copied once.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::super::FromServer;
use super::super::encode::{ceiling, floor, head, message};
use super::super::fields::MapWriter;
use super::answer::{Body, Welcome};
use super::{Entry, Follow, FromClient, Hello, Request, Submit, ToClient, WireProblem, WireReceipt, WireResult};
use crate::contract::JobId;
use crate::result_log::Reset;

impl FromClient {
    /// Appends the message as one frame.
    pub fn encode(&self, to: &mut BytesMut) {
        message(to, |map| match self {
            Self::Hello(hello) => write_hello(map, hello),
            Self::Request { id, request } => write_request(map, *id, request),
            Self::SubmitMany(entries) => {
                map.text("type", "submit_many");
                map.maps("entries", entries, write_entry);
            }
            Self::Credit { id, results, bytes } => {
                head(map, "credit", *id);
                map.unsigned("results", u64::from(*results));
                map.unsigned("bytes", *bytes);
            }
            Self::Stop { id } => head(map, "stop", *id),
            Self::Ping(number) => head(map, "ping", *number),
            Self::Pong(number) => head(map, "pong", *number),
        });
    }
}

impl ToClient {
    /// Appends the message as one frame.
    pub fn encode(&self, to: &mut BytesMut) {
        let shared = match self {
            Self::Error(error) => FromServer::Error { id: None, error: (**error).clone() },
            Self::GoAway { reason, within } => FromServer::GoAway { reason: reason.clone(), within: *within },
            Self::Ping(number) => FromServer::Ping(*number),
            Self::Pong(number) => FromServer::Pong(*number),
            own => return message(to, |map| write(map, own)),
        };
        shared.encode(to);
    }
}

fn write(map: &mut MapWriter<'_>, message: &ToClient) {
    match message {
        ToClient::Welcome(welcome) => write_welcome(map, welcome),
        ToClient::Receipt { id, receipt } => write_receipt(map, *id, receipt),
        ToClient::Result { id, replayed, result } => {
            head(map, "result", *id);
            if *replayed {
                map.boolean("replayed", true);
            }
            map.text("cursor", &result.cursor);
            map.long_map("result", |map| write_result(map, result));
        }
        ToClient::Job { id, document } => {
            head(map, "job", *id);
            map.text("document", document);
        }
        ToClient::Whoami { id, document } => {
            head(map, "whoami", *id);
            map.text("document", document);
        }
        ToClient::Reset { id, reason } => {
            head(map, "reset", *id);
            map.text("reason", reset_word(*reason));
        }
        ToClient::Position { id, cursor } => {
            head(map, "position", *id);
            map.text("cursor", cursor);
        }
        ToClient::Followed { id, cursor, reason } => {
            head(map, "followed", *id);
            maybe_text(map, "cursor", cursor.as_deref());
            map.text("reason", reason);
        }
        ToClient::Problem { id, problem } => write_problem(map, *id, problem),
        // They are those of the worker role.
        ToClient::Error(_) | ToClient::GoAway { .. } | ToClient::Ping(_) | ToClient::Pong(_) => {}
    }
}

/// The word for why a follow request was reset.
fn reset_word(reset: Reset) -> &'static str {
    match reset {
        Reset::LogReplaced => "log-replaced",
        Reset::OlderThanRetention => "older-than-retention",
    }
}

fn maybe_text(map: &mut MapWriter<'_>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        map.text(name, value);
    }
}

fn meta(map: &mut MapWriter<'_>, meta: &BTreeMap<String, String>) {
    if !meta.is_empty() {
        map.named_texts("meta", meta.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    }
}

fn write_hello(map: &mut MapWriter<'_>, hello: &Hello) {
    map.text("type", "hello");
    map.unsigned("version_min", u64::from(hello.version_min));
    map.unsigned("version_max", u64::from(hello.version_max));
    map.text("role", "client");
    maybe_text(map, "client", hello.client.as_ref().map(|client| client.as_str()));
    maybe_text(map, "key", hello.key.as_deref());
    map.text("build", &hello.build);
    map.unsigned("frame_max", u64::from(hello.frame_max));
}

fn write_welcome(map: &mut MapWriter<'_>, welcome: &Welcome) {
    map.text("type", "welcome");
    map.unsigned("version", u64::from(welcome.version));
    map.unsigned("frame_max", u64::from(welcome.frame_max));
    map.unsigned("requests_max", u64::from(welcome.requests_max));
    map.unsigned("bytes_max", welcome.bytes_max);
    map.unsigned("wait_max_ms", floor(welcome.wait_max));
    map.unsigned("ping_ms", floor(welcome.ping));
    map.text("client", welcome.client.as_str());
    map.signed("server_time", welcome.server_time.as_millis());
    map.text("build", &welcome.build);
}

fn write_request(map: &mut MapWriter<'_>, id: u64, request: &Request) {
    let of_job = |map: &mut MapWriter<'_>, kind, job: JobId| {
        head(map, kind, id);
        map.binary("job", job.as_bytes());
    };
    match request {
        Request::Submit(submit) => {
            head(map, "submit", id);
            write_submit(map, submit);
        }
        Request::Wait { job, wait } => {
            of_job(map, "wait", *job);
            map.unsigned("wait_ms", ceiling(*wait));
        }
        Request::Status(job) => of_job(map, "status", *job),
        Request::Cancel(job) => of_job(map, "cancel", *job),
        Request::Rerun { job, from } => {
            of_job(map, "rerun", *job);
            map.unsigned("from", u64::from(*from));
        }
        Request::Follow(follow) => write_follow(map, id, follow),
        Request::Whoami => head(map, "whoami", id),
    }
}

fn write_follow(map: &mut MapWriter<'_>, id: u64, follow: &Follow) {
    head(map, "follow", id);
    maybe_text(map, "after", follow.after.as_deref());
    maybe_text(map, "queue", follow.queue.as_ref().map(|queue| queue.as_str()));
    maybe_text(map, "key_prefix", follow.key_prefix.as_deref());
    map.unsigned("results", u64::from(follow.results));
    map.unsigned("bytes", follow.bytes);
}

fn write_entry(map: &mut MapWriter<'_>, entry: &Entry) {
    map.unsigned("id", entry.id);
    // An entry with a problem is one that was read.
    if let Ok(submit) = &entry.submit {
        write_submit(map, submit);
    }
}

fn write_submit(map: &mut MapWriter<'_>, submit: &Submit) {
    map.text("queue", &submit.queue);
    maybe_text(map, "key", submit.key.as_deref());
    maybe_text(map, "content_type", submit.content_type.as_deref());
    maybe_text(map, "content_encoding", submit.content_encoding.as_deref());
    if let Some(delay) = submit.delay {
        map.unsigned("delay_ms", ceiling(delay));
    }
    if let Some(expires_in) = submit.expires_in {
        map.unsigned("expires_in_ms", ceiling(expires_in));
    }
    meta(map, &submit.meta);
    maybe_text(map, "traceparent", submit.traceparent.as_deref());
    maybe_text(map, "tracestate", submit.tracestate.as_deref());
    if let Some(wait) = submit.wait {
        map.unsigned("wait_ms", ceiling(wait));
    }
    map.binary("payload", &submit.payload);
}

fn write_receipt(map: &mut MapWriter<'_>, id: u64, receipt: &WireReceipt) {
    head(map, "receipt", id);
    map.binary("job", receipt.job.as_bytes());
    map.binary("run", receipt.run.as_bytes());
    map.unsigned("generation", u64::from(receipt.generation));
    map.text("client", receipt.client.as_str());
    map.text("queue", receipt.queue.as_str());
    maybe_text(map, "key", receipt.key.as_ref().map(|key| key.as_str()));
    meta(map, &receipt.meta);
    map.text("state", receipt.state.as_str());
    map.boolean("replayed", receipt.replayed);
    map.signed("accepted_at", receipt.accepted_at.as_millis());
    map.signed("expires_at", receipt.expires_at.as_millis());
}

fn write_result(map: &mut MapWriter<'_>, result: &WireResult) {
    map.binary("job", result.job.as_bytes());
    map.binary("run", result.run.as_bytes());
    map.unsigned("generation", u64::from(result.generation));
    map.text("queue", result.queue.as_str());
    maybe_text(map, "key", result.key.as_ref().map(|key| key.as_str()));
    meta(map, &result.meta);
    map.text("outcome", result.outcome.as_str());
    map.unsigned("attempt", u64::from(result.attempt));
    map.text("content_type", &result.content_type);
    map.signed("accepted_at", result.accepted_at.as_millis());
    if let Some(started_at) = result.started_at {
        map.signed("started_at", started_at.as_millis());
    }
    map.signed("finished_at", result.finished_at.as_millis());
    if let Some(failure) = &result.failure {
        map.text("reason", &failure.reason);
        map.text("detail", &failure.detail);
    }
    maybe_text(map, "traceparent", result.traceparent.as_deref());
    match &result.payload {
        Body::Here(payload) => map.binary("payload", payload),
        Body::Erased => map.boolean("erased", true),
        Body::TooLarge(size) => map.unsigned("too_large", *size),
    }
}

fn write_problem(map: &mut MapWriter<'_>, id: u64, problem: &WireProblem) {
    head(map, "problem", id);
    map.text("slug", &problem.slug);
    map.text("retry", problem.retry.as_str());
    map.text("detail", &problem.detail);
    map.text("instance", &problem.instance);
    if let Some(after) = problem.retry_after {
        map.unsigned("retry_after_ms", ceiling(after));
    }
    if let Some(limit) = problem.limit {
        map.unsigned("limit", limit);
    }
    if let Some(actual) = problem.actual {
        map.unsigned("actual", actual);
    }
    if let Some(job) = problem.job {
        map.binary("job", job.as_bytes());
    }
    if let Some(first_at) = problem.first_at {
        map.signed("first_at", first_at.as_millis());
    }
    if let Some(outcome) = problem.outcome {
        map.text("outcome", outcome.as_str());
    }
    if let Some(finished_at) = problem.finished_at {
        map.signed("finished_at", finished_at.as_millis());
    }
}
