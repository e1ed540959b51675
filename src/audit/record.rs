//! One line of the audit: who did what to what, through which door, and with which outcome. Nothing in it is longer than a
//! name or an id, and nothing in it is a payload, a secret or a header's value.

use std::net::IpAddr;

use http::Method;
use percent_encoding::percent_decode_str;
use relay_bridge::contract::{IdempotencyKey, JobId, QueueName, Timestamp};
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::api::Slug;

/// Where a call came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// Clients over HTTP.
    Http,
    /// Clients over NATS.
    Nats,
    /// Clients over TCP.
    Tcp,
    /// Workers over TCP.
    Worker,
    /// Operators.
    Admin,
}

impl Door {
    /// The word in a line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Nats => "nats",
            Self::Tcp => "tcp",
            Self::Worker => "worker",
            Self::Admin => "admin",
        }
    }
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// One job comes in, or a batch of them.
    Submit,
    /// A job ends before its time.
    Cancel,
    /// A finished job runs again.
    Rerun,
    /// A job's payload and result are erased.
    Erase,
    /// Something is looked at.
    Read,
    /// A list is looked at.
    List,
    /// A stream of results or events begins.
    Follow,
    /// A queue gives out no more jobs.
    Pause,
    /// A queue gives out jobs again.
    Resume,
    /// A dead letter runs again.
    Redrive,
    /// A dead letter is removed.
    Purge,
    /// Files are read again.
    Reload,
    /// A worker is let in.
    Connect,
    /// A worker's session ends.
    Disconnect,
    /// A worker is given a job.
    Lease,
    /// Somebody shows who they are, and is not let in.
    Authenticate,
    /// A certificate that is shown in the handshake of TLS is not good, or there is none where one has to be.
    Handshake,
}

impl Action {
    /// The word in a line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Cancel => "cancel",
            Self::Rerun => "rerun",
            Self::Erase => "erase",
            Self::Read => "read",
            Self::List => "list",
            Self::Follow => "follow",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Redrive => "redrive",
            Self::Purge => "purge",
            Self::Reload => "reload",
            Self::Connect => "connect",
            Self::Disconnect => "disconnect",
            Self::Lease => "lease",
            Self::Authenticate => "authenticate",
            Self::Handshake => "handshake",
        }
    }

    /// Whether it is written at the level `changes`: what changes something and leaves no record of its own. A submission is a
    /// record in the store, with its client and its time.
    pub(super) fn is_change(self) -> bool {
        !matches!(self, Self::Submit | Self::Read | Self::List | Self::Follow | Self::Lease)
    }

    /// The action of a client's call over HTTP. `follows` says whether a list is asked for as a stream.
    #[must_use]
    pub fn of_client(method: &Method, path: &str, follows: bool) -> Self {
        let last = path.rsplit('/').next().unwrap_or_default();
        match (method, last) {
            (&Method::DELETE, _) => Self::Erase,
            (&Method::POST, "cancel") => Self::Cancel,
            (&Method::POST, "rerun") => Self::Rerun,
            (&Method::POST, _) => Self::Submit,
            (_, "events") => Self::Follow,
            _ if follows => Self::Follow,
            _ if matches!(path, "/v1/jobs" | "/v1/results") => Self::List,
            _ => Self::Read,
        }
    }

    /// The action of an operator's call.
    #[must_use]
    pub fn of_operator(method: &Method, path: &str) -> Self {
        let last = path.rsplit('/').next().unwrap_or_default();
        match (method, last) {
            (&Method::DELETE, _) => Self::Purge,
            (&Method::POST, "pause") => Self::Pause,
            (&Method::POST, "resume") => Self::Resume,
            (&Method::POST, "redrive") => Self::Redrive,
            (&Method::POST, "reload") => Self::Reload,
            _ => Self::Read,
        }
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done, or answered.
    Allowed,
    /// It was not done, for a reason of the caller's.
    Refused,
    /// It was not done, or not confirmed, for a reason of relay's.
    Failed,
    /// The caller left before it was answered, and it may have been done.
    Unknown,
}

impl Outcome {
    /// The word in a line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// The outcome of a call that was answered with this status of HTTP.
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        match status {
            ..400 => Self::Allowed,
            400..500 => Self::Refused,
            500.. => Self::Failed,
        }
    }
}

/// One line. A field without a value is left out of it.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// When the call came.
    pub time: Timestamp,
    /// Where it came in.
    pub door: Door,
    /// The action that was asked for.
    pub action: Action,
    /// How it ended.
    pub outcome: Outcome,
    /// The client, worker or operator, as far as relay knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// How relay knows: a word of its own, such as `api-key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// The public part of what was shown, such as a key's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The VPC endpoint that the connection came through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The address of the peer, as a trusted balancer says it, else that of the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The id of the request, as its answer names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// The job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The first 16 hexadecimal digits of the SHA-256 of the idempotency key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_hash: Option<String>,
    /// The word of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slug: Option<Slug>,
    /// Why somebody was not let in, in relay's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How many this line is about: the entries of a batch that were accepted, or all who were not let in for such a reason
    /// since the line before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The entries of a batch that were refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
}

impl Record {
    /// A call at `door` that begins at `time`; nothing else is known yet, and whether it is done will not be unless somebody
    /// says it.
    #[must_use]
    pub fn new(time: Timestamp, door: Door, action: Action) -> Self {
        Self {
            time,
            door,
            action,
            outcome: Outcome::Unknown,
            who: None,
            method: None,
            credential: None,
            endpoint: None,
            source: None,
            request_id: None,
            queue: None,
            job: None,
            key_hash: None,
            slug: None,
            detail: None,
            count: None,
            refused: None,
        }
    }

    /// The same with the queue and the job that a path names, as far as they are names: a path may hold anything. They are read as the
    /// router reads them, so that nobody hides a job by another spelling of its id.
    #[must_use]
    pub fn about(mut self, path: &str) -> Self {
        let parts: Vec<_> = path.split('/').skip(1).take(3).collect();
        let [version, of, name] = parts[..] else { return self };
        let name = percent_decode_str(name).decode_utf8_lossy();
        match (version, of) {
            ("v1", "queues") => self.queue = name.parse().ok(),
            ("v1", "jobs" | "dead") => self.job = name.parse().ok(),
            _ => {}
        }
        self
    }
}

/// The short hash of an idempotency key: enough to find a line by a key that one knows, and nothing to find a key by.
#[must_use]
pub fn key_hash(key: &[u8]) -> String {
    Sha256::digest(key)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same of a header's value, which may have its key in quotes.
#[must_use]
pub fn header_key_hash(value: &[u8]) -> String {
    let key = std::str::from_utf8(value).ok().and_then(|value| IdempotencyKey::from_header(value).ok());
    key_hash(key.as_ref().map_or(value, |key| key.as_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_action_of_its_method_and_path() {
        let id = "/v1/jobs/0195f1a2-0000-8000-8000-000000000000";
        for (method, path, action) in [
            (Method::POST, "/v1/queues/a/jobs".to_owned(), Action::Submit),
            (Method::POST, "/v1/queues/a/batch".to_owned(), Action::Submit),
            (Method::GET, "/v1/queues/a/jobs".to_owned(), Action::Read),
            (Method::GET, "/v1/jobs".to_owned(), Action::List),
            (Method::GET, "/v1/results".to_owned(), Action::List),
            (Method::GET, format!("{id}/events"), Action::Follow),
            (Method::GET, id.to_owned(), Action::Read),
            (Method::DELETE, id.to_owned(), Action::Erase),
            (Method::POST, format!("{id}/cancel"), Action::Cancel),
            (Method::POST, format!("{id}/rerun"), Action::Rerun),
        ] {
            assert_eq!(Action::of_client(&method, &path, false), action, "{method} {path}");
        }
        assert_eq!(Action::of_client(&Method::GET, "/v1/results", true), Action::Follow);
        assert_eq!(Action::of_operator(&Method::DELETE, "/v1/dead/a/b"), Action::Purge);
    }

    #[test]
    fn a_line_has_no_text_of_a_path_that_is_no_name() {
        let record = |path| Record::new(Timestamp::from_millis(0), Door::Http, Action::Read).about(path);
        assert_eq!(record("/v1/queues/a/jobs").queue, "a".parse().ok());
        assert_eq!(record("/v1/queues/%61/jobs").queue, "a".parse().ok());
        let id = "0195f1a2-0000-8000-8000-000000000000";
        assert_eq!(record("/v1/jobs/%30195f1a2-0000-8000-8000-000000000000").job, id.parse().ok());
        for path in ["/v1/queues/%0A{\"who\":1}/jobs", "/v1/jobs/../../x", "/v1/jobs", "", "*"] {
            let line = serde_json::to_string(&record(path)).unwrap();
            let bare = r#"{"time":"1970-01-01T00:00:00.000Z","door":"http","action":"read","outcome":"unknown"}"#;
            assert_eq!(line, bare, "{path}");
        }
    }

    #[test]
    fn the_hash_of_a_key_is_the_beginning_of_its_sha_256() {
        assert_eq!(key_hash(b"abc"), "ba7816bf8f01cfea");
        for value in [&b"abc"[..], b"\"abc\"", b" abc "] {
            assert_eq!(header_key_hash(value), "ba7816bf8f01cfea");
        }
    }
}
