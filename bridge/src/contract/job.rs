//! A submission, the job it becomes when relay accepts it, and what a client sees of it.
//!
//! Deadline and retention are fixed here, at acceptance; every other part of a queue's policy applies live.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::extra::Extra;
use super::{ClientId, Fingerprint, IdempotencyKey, JobId, Outcome, QueueName, RunId, Timestamp};
use crate::policy::QueuePolicy;
use crate::rules::record::fits_header;

/// The longest delay a client may ask for: 7 days.
pub const DELAY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The prefix of the names of a client's own headers, in lower case.
pub const META_PREFIX: &str = "relay-meta-";
/// The header of a job that came from another queue, or from another relay: over how many bridges, in decimal digits.
pub const HOPS: &str = "relay-hops";
/// Over how many bridges a job may come. More is a circle.
pub const HOPS_MAX: u32 = 8;
/// A client's own headers together: names without the prefix, and values, in bytes.
pub const META_BYTES_MAX: usize = 2 * 1024;
/// The content type of a payload that came without one.
pub const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

/// A client's request for a job, after every name in it was parsed and its size was admitted.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The client that submits.
    pub client: ClientId,
    /// To which queue.
    pub queue: QueueName,
    /// The idempotency key; without one every submission is a job of its own.
    pub key: Option<IdempotencyKey>,
    /// The content type as given; it reaches the handler unchanged.
    pub content_type: String,
    /// The content encoding as given; relay does not decode it.
    pub content_encoding: Option<String>,
    /// Allow-listed headers in lower case: `traceparent`, `tracestate`, `relay-meta-*`; of a bridge also [`HOPS`].
    pub headers: BTreeMap<String, String>,
    /// Opaque bytes.
    pub payload: Bytes,
    /// Not before this long after acceptance; at most [`DELAY_MAX`].
    pub delay: Duration,
    /// Expires this long after `delay`; the queue's `job_ttl` caps it.
    pub expires_in: Option<Duration>,
}

impl Submission {
    /// A submission with nothing but its payload: no key, no headers, due at once, and gone when its queue says.
    #[must_use]
    pub fn plain(client: ClientId, queue: QueueName, content_type: &str, payload: impl Into<Bytes>) -> Self {
        Self {
            client,
            queue,
            key: None,
            content_type: content_type.to_owned(),
            content_encoding: None,
            headers: BTreeMap::new(),
            payload: payload.into(),
            delay: Duration::ZERO,
            expires_in: None,
        }
    }

    /// The job this becomes at `now` under `policy`: ids are minted or derived, deadline and retention are fixed.
    #[must_use]
    pub fn accept(self, policy: &QueuePolicy, now: Timestamp) -> Job {
        let id = match &self.key {
            Some(key) => JobId::derive(&self.client, &self.queue, key),
            None => JobId::mint(),
        };
        let due_at = now + self.delay.min(DELAY_MAX);
        let ttl = policy.job_ttl.min(self.expires_in.unwrap_or(policy.job_ttl));
        let keep = policy.job_ttl.saturating_add(policy.retention);
        Job {
            id,
            run_id: RunId::mint(now, None),
            generation: 1,
            keep_record: self.key.is_some() || policy.keep_keyless,
            fingerprint: Fingerprint::of(&self.content_type, self.content_encoding.as_deref(), &self.payload),
            client: self.client,
            queue: self.queue,
            key: self.key,
            content_type: self.content_type,
            content_encoding: self.content_encoding,
            headers: self.headers,
            payload: self.payload,
            accepted_at: now,
            due_at,
            expires_at: due_at + ttl,
            ttl_ms: millis(ttl),
            keep_ms: millis(keep),
            extra: Extra::default(),
        }
    }
}

/// One unit of work in its current run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// UUIDv7 without a key, else derived from (client, queue, key).
    pub id: JobId,
    /// The current run.
    pub run_id: RunId,
    /// The current run's number, from 1.
    pub generation: u32,
    /// The client that owns it.
    pub client: ClientId,
    /// Where it waits.
    pub queue: QueueName,
    /// The idempotency key, if the client gave one.
    pub key: Option<IdempotencyKey>,
    /// The fingerprint that a second submission under the key must match.
    pub fingerprint: Fingerprint,
    /// The content type as given.
    pub content_type: String,
    /// The content encoding as given.
    pub content_encoding: Option<String>,
    /// Allow-listed headers in lower case.
    pub headers: BTreeMap<String, String>,
    /// Opaque bytes.
    pub payload: Bytes,
    /// When relay accepted the first run.
    pub accepted_at: Timestamp,
    /// When the current run starts: acceptance plus delay, or the rerun. No attempt starts before it.
    pub due_at: Timestamp,
    /// The current run's deadline.
    pub expires_at: Timestamp,
    /// The span from `due_at` to `expires_at` in milliseconds, kept for a rerun.
    pub ttl_ms: u64,
    /// The queue's `job_ttl + retention` at acceptance, in milliseconds: the record is kept until `due_at` plus this.
    pub keep_ms: u64,
    /// Whether payload and record stay after the result, so that the job can be rerun.
    pub keep_record: bool,
    /// Fields of a newer writer, kept as they came.
    pub extra: Extra,
}

impl Job {
    /// Until when the record of the current run is kept.
    #[must_use]
    pub fn keep_until(&self) -> Timestamp {
        self.due_at + Duration::from_millis(self.keep_ms)
    }

    /// When the current run may start, by a clock that shows `now`: not after `now`, unless its client asked for a delay. A
    /// clock that stepped back holds up no other job.
    #[must_use]
    pub fn due(&self, now: Timestamp) -> Timestamp {
        let is_delayed = self.generation == 1 && self.due_at > self.accepted_at;
        if is_delayed { self.due_at } else { self.due_at.min(now) }
    }

    /// The mark that tells a submission of the same job from one of another body.
    #[must_use]
    pub fn body(&self) -> JobBody {
        JobBody {
            fingerprint: self.fingerprint,
            content_type: self.content_type.clone(),
            content_encoding: self.content_encoding.clone(),
            payload: self.payload.clone(),
        }
    }

    /// The client's own headers, by their names without [`META_PREFIX`].
    #[must_use]
    pub fn meta(&self) -> BTreeMap<String, String> {
        meta(&self.headers)
    }

    /// Over how many bridges it came, which its [`HOPS`] say.
    #[must_use]
    pub fn hops(&self) -> u32 {
        hops(&self.headers)
    }

    /// The next run of this job, starting at `now` with its whole span before it.
    #[must_use]
    pub fn next_run(&self, now: Timestamp) -> Self {
        Self {
            run_id: RunId::mint(now, Some(self.run_id)),
            generation: self.generation.saturating_add(1),
            due_at: now,
            expires_at: now + Duration::from_millis(self.ttl_ms),
            ..self.clone()
        }
    }
}

/// The parts that a key stands for: payload, content type and content encoding.
#[derive(Clone, Debug)]
pub struct JobBody {
    fingerprint: Fingerprint,
    content_type: String,
    content_encoding: Option<String>,
    payload: Bytes,
}

impl JobBody {
    /// Whether a stored fingerprint is of this body, also one that an earlier release made.
    #[must_use]
    pub fn is_of(&self, stored: Fingerprint) -> bool {
        stored == self.fingerprint || stored.is_of(&self.content_type, self.content_encoding.as_deref(), &self.payload)
    }
}

/// The client's own among allow-listed headers, by their names without [`META_PREFIX`].
#[must_use]
pub fn meta(headers: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let named = headers.iter().filter_map(|(name, value)| Some((name.strip_prefix(META_PREFIX)?, value)));
    named.map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// Over how many bridges something came that has these headers, whose names are in lower case; 0 without [`HOPS`], or if
/// that is no number.
#[must_use]
pub fn hops(headers: &BTreeMap<String, String>) -> u32 {
    headers.get(HOPS).and_then(|hops| hops.trim().parse().ok()).unwrap_or(0)
}

/// A client's own headers as lines of a message, `Relay-Meta-Order: 17`, in the order of their names: of those that
/// [fit](meta_that_fits).
pub fn meta_lines(meta: &BTreeMap<String, String>) -> impl Iterator<Item = (String, &str)> {
    meta_that_fits(meta).map(|(name, value)| (spelled(META_PREFIX, name), value))
}

/// Of a client's own headers those that a header can carry and relay would have taken, in the order of their names, and nothing
/// beyond [`META_BYTES_MAX`]: a worker's word may hold anything.
pub fn meta_that_fits(meta: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    let mut left = META_BYTES_MAX;
    meta.iter().filter_map(move |(name, value)| {
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        let (fits, size) = (left, name.len() + value.len());
        left = left.saturating_sub(size);
        (is_name && fits_header(value) && size <= fits).then_some((name.as_str(), value.as_str()))
    })
}

/// A header's name as people write it, each word with a capital: NATS compares names letter by letter.
fn spelled(prefix: &str, name: &str) -> String {
    let mut up = true;
    let letter = |c: char| {
        let spelled = if up { c.to_ascii_uppercase() } else { c };
        up = c == '-';
        spelled
    };
    prefix.chars().chain(name.chars()).map(letter).collect()
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// It waits: in line, for its delay, or for the end of a backoff.
    Queued,
    /// A worker holds it under a lease.
    Leased,
    /// Its run ended.
    Finished(Outcome),
}

impl JobState {
    /// `queued`, `leased`, or the outcome's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Finished(outcome) => outcome.as_str(),
        }
    }

    /// The outcome, if the run ended.
    #[must_use]
    pub fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Finished(outcome) => Some(outcome),
            Self::Queued | Self::Leased => None,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The status of a job, as its submitter may see it. It holds no payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStatus {
    /// The job.
    pub job_id: JobId,
    /// The current run.
    pub run_id: RunId,
    /// The current run's number, from 1.
    pub generation: u32,
    /// The client that owns it.
    pub client: ClientId,
    /// Where it is.
    pub queue: QueueName,
    /// The idempotency key, if there is one.
    pub key: Option<IdempotencyKey>,
    /// The fingerprint that a second submission under the key must match.
    pub fingerprint: Fingerprint,
    /// Where it is in its life.
    pub state: JobState,
    /// Attempts started in this run.
    pub attempt: u32,
    /// The payload's content type.
    pub content_type: String,
    /// The payload's size in bytes.
    pub size: u64,
    /// The allow-listed headers it came with.
    pub headers: BTreeMap<String, String>,
    /// When relay accepted the first run.
    pub accepted_at: Timestamp,
    /// The current run's deadline.
    pub expires_at: Timestamp,
    /// When the current or last attempt started.
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    pub finished_at: Option<Timestamp>,
    /// When a waiting job may next be leased, if that is in the future.
    pub next_attempt_at: Option<Timestamp>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_waits_for_the_delay_that_was_asked_for_and_for_no_clock_that_stepped_back() {
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1_000);
        let accepted = |delay| {
            let submission = Submission {
                client: "alice".parse().unwrap(),
                queue: "work".parse().unwrap(),
                key: None,
                content_type: DEFAULT_CONTENT_TYPE.to_owned(),
                content_encoding: None,
                headers: BTreeMap::new(),
                payload: Bytes::new(),
                delay: Duration::from_secs(delay),
                expires_in: None,
            };
            submission.accept(&QueuePolicy::default(), at(10_000))
        };
        assert_eq!(accepted(0).due(at(4_000)), at(4_000));
        assert_eq!(accepted(0).due(at(11_000)), at(10_000));
        assert_eq!(accepted(60).due(at(4_000)), at(10_060));
        assert_eq!(accepted(60).next_run(at(20_000)).due(at(4_000)), at(4_000), "a later run asks for none");
    }

    #[test]
    fn meta_is_written_as_headers_that_any_protocol_can_carry_and_no_more_than_was_taken() {
        let meta = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let lines = |meta: &BTreeMap<String, String>| -> Vec<(String, String)> {
            meta_lines(meta).map(|(name, value)| (name, value.to_owned())).collect()
        };
        let good = meta(&[("order-id", "17"), ("x_y.z", "a b;\tc=\"d\""), ("empty", "")]);
        let spelled = [("Relay-Meta-Empty", ""), ("Relay-Meta-Order-Id", "17"), ("Relay-Meta-X_y.z", "a b;\tc=\"d\"")];
        assert_eq!(lines(&good), spelled.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let bad = meta(&[
            ("", "1"),
            ("a: b\r\nNats-Rollup", "all"),
            ("b", "1\r\nNats-Rollup: all"),
            ("c", "\u{e9}"),
            ("d", " x"),
        ]);
        assert_eq!(lines(&bad), []);
        let large = meta(&[("a", "1"), ("b", &"x".repeat(META_BYTES_MAX)), ("c", "1")]);
        assert_eq!(lines(&large), [("Relay-Meta-A".to_owned(), "1".to_owned())]);
    }
}
