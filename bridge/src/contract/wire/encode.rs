//! Messages to frames. A message is appended to the buffer that is sent, so a payload is copied once.
//!
//! Durations are whole milliseconds. Those that the server promises are rounded down, those that the worker asks for
//! are rounded up.

use std::time::Duration;

use bytes::BytesMut;

use super::fields::MapWriter;
use super::message::{FromServer, FromWorker, Hello, Request, Response, Role, Welcome, WireDelivery};
use super::{WireError, frame};
use crate::leasing::{Held, Receipt, Recorded};
use crate::settlement::Settlement;

impl FromWorker {
    /// Appends the message as one frame.
    pub fn encode(&self, to: &mut BytesMut) {
        message(to, |map| match self {
            Self::Hello(hello) => write_hello(map, hello),
            Self::Request { id, request } => write_request(map, *id, request),
            Self::CancelLease { id } => head(map, "cancel_lease", *id),
            Self::Ping(number) => head(map, "ping", *number),
            Self::Pong(number) => head(map, "pong", *number),
        });
    }
}

impl FromServer {
    /// Appends the message as one frame.
    pub fn encode(&self, to: &mut BytesMut) {
        message(to, |map| match self {
            Self::Welcome(welcome) => write_welcome(map, welcome),
            Self::Response { id, response } => write_response(map, *id, response),
            Self::Error { id, error } => write_error(map, *id, error),
            Self::GoAway { reason, within } => {
                map.text("type", "go_away");
                map.text("reason", reason);
                map.unsigned("within_ms", floor(*within));
            }
            Self::Ping(number) => head(map, "ping", *number),
            Self::Pong(number) => head(map, "pong", *number),
        });
    }
}

impl WireDelivery {
    /// The bytes this takes in a frame, at most.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        // Names, ids, the two names of at most 63 bytes and the markers are less than 400.
        400 + self.job.len() + self.receipt.token.len()
    }
}

pub(super) fn message(to: &mut BytesMut, fields: impl FnOnce(&mut MapWriter<'_>)) {
    frame::put(to, |to| MapWriter::write(to, fields));
}

pub(super) fn head(map: &mut MapWriter<'_>, kind: &str, id: u64) {
    map.text("type", kind);
    map.unsigned("id", id);
}

fn write_hello(map: &mut MapWriter<'_>, hello: &Hello) {
    map.text("type", "hello");
    map.unsigned("version_min", u64::from(hello.version_min));
    map.unsigned("version_max", u64::from(hello.version_max));
    map.unsigned("envelope_max", u64::from(hello.envelope_max));
    map.text(
        "role",
        match hello.role {
            Role::Worker => "worker",
        },
    );
    map.text("worker", hello.worker.as_str());
    if let Some(key) = &hello.key {
        map.text("key", key);
    }
    map.text("build", &hello.build);
    map.unsigned("frame_max", u64::from(hello.frame_max));
}

fn write_welcome(map: &mut MapWriter<'_>, welcome: &Welcome) {
    map.text("type", "welcome");
    map.unsigned("version", u64::from(welcome.version));
    map.unsigned("envelope_max", u64::from(welcome.envelope_max));
    map.unsigned("frame_max", u64::from(welcome.frame_max));
    map.unsigned("requests_max", u64::from(welcome.requests_max));
    map.unsigned("ping_ms", floor(welcome.ping));
    map.signed("server_time", welcome.server_time.as_millis());
    map.text("build", &welcome.build);
}

fn write_request(map: &mut MapWriter<'_>, id: u64, request: &Request) {
    match request {
        Request::Lease(lease) => {
            head(map, "lease", id);
            map.text("worker", lease.worker.as_str());
            map.texts("queues", lease.queues.iter().map(|queue| queue.as_str()));
            map.unsigned("max", u64::from(lease.max.get()));
            map.unsigned("wait_ms", ceiling(lease.wait));
        }
        Request::Extend(receipt) => {
            head(map, "extend", id);
            map.map("receipt", |map| write_receipt(map, receipt));
        }
        Request::Progress(receipt, progress) => {
            head(map, "progress", id);
            map.map("receipt", |map| write_receipt(map, receipt));
            if let Some(percent) = progress.percent {
                map.float("percent", percent);
            }
            map.text("message", &progress.message);
        }
        Request::DeadLetter(letter) => {
            head(map, "dead_letter", id);
            map.binary("letter", letter);
        }
        Request::RetractDeadLetter(job, run) => {
            head(map, "retract_dead_letter", id);
            map.binary("job", job.as_bytes());
            map.binary("run", run.as_bytes());
        }
        Request::Record(result) => {
            head(map, "record", id);
            map.binary("result", result);
        }
        Request::Settle(receipt, settlement) => {
            head(map, "settle", id);
            map.map("receipt", |map| write_receipt(map, receipt));
            let (how, after) = match settlement {
                Settlement::Complete => ("complete", None),
                Settlement::RetryAfter(after) => ("retry_after", Some(after)),
                Settlement::DeadLetter => ("dead_letter", None),
                Settlement::HandBack(after) => ("hand_back", Some(after)),
            };
            map.text("how", how);
            if let Some(after) = after {
                map.unsigned("after_ms", ceiling(*after));
            }
        }
        Request::QueuePolicy(queue) => {
            head(map, "queue_policy", id);
            map.text("queue", queue.as_str());
        }
    }
}

fn write_response(map: &mut MapWriter<'_>, id: u64, response: &Response) {
    match response {
        Response::Deliveries { deliveries, more } => {
            head(map, "deliveries", id);
            map.boolean("more", *more);
            map.maps("deliveries", deliveries, |map, delivery| {
                map.map("receipt", |map| write_receipt(map, &delivery.receipt));
                map.unsigned("attempt", u64::from(delivery.attempt));
                map.signed("leased_at", delivery.leased_at.as_millis());
                map.unsigned("lease_ms", floor(delivery.lease));
                map.binary("job", &delivery.job);
            });
        }
        Response::Held(held) => {
            head(map, "held", id);
            match held {
                Held::Until(lease) => map.unsigned("lease_ms", floor(*lease)),
                Held::Ended(outcome) => map.text("ended", outcome.as_str()),
            }
        }
        Response::Recorded(recorded) => {
            head(map, "recorded", id);
            map.boolean("first", *recorded == Recorded::First);
            if let Recorded::Superseded(outcome) = recorded {
                map.text("outcome", outcome.as_str());
            }
        }
        Response::Policy(policy) => {
            head(map, "policy", id);
            // A policy is plain data with text keys, which MessagePack can always hold.
            map.raw("policy", &rmp_serde::to_vec_named(policy).unwrap_or_else(|_| vec![0x80]));
        }
        Response::Done => head(map, "done", id),
    }
}

pub(super) fn write_error(map: &mut MapWriter<'_>, id: Option<u64>, error: &WireError) {
    map.text("type", "error");
    if let Some(id) = id {
        map.unsigned("id", id);
    }
    map.text("kind", &error.kind);
    map.text("slug", &error.slug);
    map.text("retry", error.retry.as_str());
    map.text("detail", &error.detail);
    if let Some(actual) = error.actual {
        map.unsigned("actual", actual);
    }
    if let Some(limit) = error.limit {
        map.unsigned("limit", limit);
    }
    if let Some(after) = error.retry_after {
        map.unsigned("retry_after_ms", ceiling(after));
    }
    if error.of_storage {
        map.boolean("storage", true);
    }
}

fn write_receipt(map: &mut MapWriter<'_>, receipt: &Receipt) {
    map.binary("job", receipt.job_id.as_bytes());
    map.binary("run", receipt.run_id.as_bytes());
    map.text("client", receipt.client.as_str());
    map.text("queue", receipt.queue.as_str());
    map.binary("token", &receipt.token);
}

pub(super) fn floor(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn ceiling(duration: Duration) -> u64 {
    floor(duration.saturating_add(Duration::from_nanos(999_999)))
}
