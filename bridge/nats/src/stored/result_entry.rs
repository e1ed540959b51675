//! A result entry as a message. Its body is the handler's output as it was given, so that a subscriber can read it with
//! any NATS client; headers say the rest.
//!
//! One header has the result's envelope without the payload, and relay reads this one: versions and unknown fields keep
//! their meaning. The other headers say the same in words for people. They are few: each takes the server and the
//! client a third of a microsecond. An erased result is a message of its own without a body, which still has the place
//! of the result that was erased.

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::stored::names;
use crate::stored::record::{EXPECTED_SUBJECT, Outgoing, Stored, envelope_error, number};
use relay_bridge::contract::envelope::{WireVersion, decode_result, encode_result_with};
use relay_bridge::contract::job::meta_lines;
use relay_bridge::contract::trace::TRACEPARENT;
use relay_bridge::contract::{ClientId, Cursor, JobResult, LogId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::Finished;
use relay_bridge::rules::{self, Ended};

/// The result's envelope with an empty payload, in base64.
const ENVELOPE: HeaderName = HeaderName::from_static("Relay-Envelope");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
const RUN_ID: HeaderName = HeaderName::from_static("Relay-Run-Id");
const OUTCOME: HeaderName = HeaderName::from_static("Relay-Outcome");
const ATTEMPT: HeaderName = HeaderName::from_static("Relay-Attempt");
const REASON: HeaderName = HeaderName::from_static("Relay-Reason");
/// The client's own key, as it submitted it.
const KEY: HeaderName = HeaderName::from_static("Idempotency-Key");
/// Until when the result is kept, in milliseconds since the epoch.
const KEEP_UNTIL: HeaderName = HeaderName::from_static("Relay-Keep-Until");
/// The sequence that an erased result had.
const ERASED_SEQUENCE: HeaderName = HeaderName::from_static("Relay-Erased-Sequence");
/// When an erased result was recorded, in milliseconds since the epoch.
const ERASED_AT: HeaderName = HeaderName::from_static("Relay-Erased-At");

/// How much longer than needed the server keeps a message: readers decide by their own clock, which may be late.
const KEEP_ALLOWANCE_MS: i64 = 5_000;
/// The longest time to live that is asked of the server, in seconds: a century, which its clock can count.
const TTL_SECS_MAX: i64 = 100 * 366 * 24 * 3_600;

/// A result entry, as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) result: JobResult,
    /// The sequence of the message that was read.
    pub(crate) seq: u64,
    /// When that message was stored.
    pub(crate) stored_at: Timestamp,
    /// Where the result is in the log: an erased one stays where it was.
    pub(crate) place: Place,
    pub(crate) keep_until: Timestamp,
    pub(crate) erased: bool,
}

/// A place in the log: a sequence and the time of the message there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    pub(crate) at: Timestamp,
}

impl Place {
    /// Before the first message.
    pub(crate) const START: Self = Self { seq: 0, at: Timestamp::EPOCH };

    pub(crate) fn cursor(self, client: &ClientId, log: LogId) -> Cursor {
        Cursor { client: client.clone(), log, sequence: self.seq, at: self.at }
    }
}

impl Entry {
    /// # Errors
    /// `NewerVersion`; `Corrupt` if no relay wrote it, or not as the result of the job that its subject names.
    pub(crate) fn read(stored: Stored) -> Result<Self, BrokerError> {
        const OPERATION: &str = "read result";
        let corrupt = |what: &str| {
            let why = format!("message {} on `{}`: {what}", stored.seq, stored.subject);
            BrokerError::new(BrokerErrorKind::Corrupt, OPERATION, why)
        };
        let envelope = stored.headers.get(ENVELOPE).ok_or_else(|| corrupt("it has no `Relay-Envelope`"))?;
        let envelope = STANDARD_NO_PAD.decode(envelope.as_str()).map_err(|_| corrupt("its envelope is no base64"))?;
        let mut result = decode_result(&envelope.into())
            .map_err(|unreadable| envelope_error(&unreadable, OPERATION, &format!("result on `{}`", stored.subject)))?;
        if !stored.subject.ends_with(&format!(".{}.{}", result.client, result.job_id)) {
            return Err(corrupt("its envelope is of another job"));
        }
        let millis = |name| number::<i64>(&stored.headers, name).map(Timestamp::from_millis);
        let keep_until = millis(KEEP_UNTIL).ok_or_else(|| corrupt("it has no `Relay-Keep-Until`"))?;
        let here = Place { seq: stored.seq, at: stored.at };
        let erased = number(&stored.headers, ERASED_SEQUENCE)
            .map(|seq| Place { seq, at: millis(ERASED_AT).unwrap_or(stored.at) });
        result.payload = stored.payload;
        Ok(Self {
            result,
            seq: here.seq,
            stored_at: here.at,
            place: erased.unwrap_or(here),
            keep_until,
            erased: erased.is_some(),
        })
    }

    pub(crate) fn is_past_keeping(&self, now: Timestamp) -> bool {
        self.keep_until <= now
    }

    /// As the rules see it.
    pub(crate) fn ended(&self) -> Ended {
        let ended = Ended::of(&self.result);
        // Of an erased one nothing says what a worker sent.
        if self.erased { Ended { claim: None, ..ended } } else { ended }
    }

    /// As a reader sees it.
    pub(crate) fn finished(self, log: LogId) -> Finished {
        let cursor = self.place.cursor(&self.result.client, log);
        Finished { result: self.result, cursor, erased: self.erased }
    }

    /// The entry that stays when the payload is erased: outcome, key and times, in the same place.
    pub(crate) fn erase(self, version: WireVersion, now: Timestamp) -> Outgoing {
        let result = rules::erased_result(self.result);
        let subject = names::erased(&result.client, result.job_id);
        let mut message = outgoing(subject, &result, self.keep_until, now, version);
        message.headers.insert(ERASED_SEQUENCE, self.place.seq.to_string());
        message.headers.insert(ERASED_AT, self.place.at.as_millis().to_string());
        expect(message, &result, self.seq)
    }
}

/// The message that records `result` if the last one of the job, erased or not, has sequence `expected` (0: none).
pub(crate) fn record(
    result: &JobResult,
    keep_until: Timestamp,
    now: Timestamp,
    version: WireVersion,
    expected: u64,
) -> Outgoing {
    let subject = names::result(&result.client, result.job_id);
    expect(outgoing(subject, result, keep_until, now, version), result, expected)
}

fn expect(mut message: Outgoing, result: &JobResult, expected: u64) -> Outgoing {
    message.headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
    message.headers.insert(EXPECTED_SUBJECT, names::result_anywhere(&result.client, result.job_id));
    message
}

fn outgoing(
    subject: String,
    result: &JobResult,
    keep_until: Timestamp,
    now: Timestamp,
    version: WireVersion,
) -> Outgoing {
    let envelope = encode_result_with(result, &[], version);
    let mut headers = HeaderMap::new();
    // Content types, reasons and the like are a client's or a handler's text; a header line holds no control characters.
    let is_line = |text: &str| !text.is_empty() && !text.chars().any(char::is_control) && text.trim() == text;
    if is_line(&result.content_type) {
        headers.insert(CONTENT_TYPE, result.content_type.as_str());
    }
    headers.insert(RUN_ID, result.run_id.to_string());
    headers.insert(OUTCOME, result.outcome.as_str());
    headers.insert(ATTEMPT, result.attempt.to_string());
    if let Some(failure) = result.failure.as_ref().filter(|failure| is_line(&failure.reason)) {
        headers.insert(REASON, failure.reason.as_str());
    }
    if let Some(parent) = result.traceparent.as_ref().filter(|parent| is_line(parent)) {
        headers.insert(TRACEPARENT, parent.as_str());
    }
    if let Some(key) = result.key.as_ref().map(|key| key.to_header()).filter(|key| is_line(key)) {
        headers.insert(KEY, key);
    }
    for (name, value) in meta_lines(&result.meta).filter(|(_, value)| is_line(value)) {
        headers.insert(name, value);
    }
    headers.insert(ENVELOPE, STANDARD_NO_PAD.encode(envelope));
    headers.insert(KEEP_UNTIL, keep_until.as_millis().to_string());
    headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl_secs(keep_until, now)));
    Outgoing { subject, headers, payload: result.payload.clone(), hint: None }
}

/// The seconds for which the server has to keep a message that is kept until `until`.
pub(crate) fn ttl_secs(until: Timestamp, now: Timestamp) -> i64 {
    let left = until.as_millis().saturating_sub(now.as_millis()).max(0).saturating_add(KEEP_ALLOWANCE_MS);
    (left / 1_000 + 1).min(TTL_SECS_MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use relay_bridge::contract::result::End;
    use relay_bridge::contract::{Failure, Outcome, Submission};
    use relay_bridge::policy::QueuePolicy;

    const NOW: Timestamp = Timestamp::EPOCH;
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn result() -> JobResult {
        let submission = Submission {
            client: "acme".parse().unwrap(),
            queue: "work".parse().unwrap(),
            key: None,
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: [(TRACEPARENT.to_owned(), PARENT.to_owned())].into(),
            payload: "in".into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        let job = submission.accept(&QueuePolicy::default(), NOW);
        let end = End { attempt: 2, started_at: Some(NOW), finished_at: NOW };
        JobResult::succeeded(&job, end, " text/x; \u{e9}\r\nNats-Rollup: all", "out\r\n\0".into())
    }

    fn store(message: Outgoing, seq: u64) -> Stored {
        let Outgoing { subject, headers, payload, .. } = message;
        Stored { subject, seq, headers, payload, at: Timestamp::from_millis(7) }
    }

    #[test]
    fn a_result_is_read_as_it_was_recorded_whatever_is_in_its_content_type() {
        let (recorded, until) = (result(), Timestamp::from_millis(90_000));
        let message = record(&recorded, until, NOW, WireVersion::V2, 0);
        assert_eq!(message.payload, "out\r\n\0", "the body is the handler's output and nothing else");
        assert!(message.headers.get("Nats-Rollup").is_none() && message.headers.get("Content-Type").is_none());
        let parent = message.headers.get("traceparent").map(|parent| parent.as_str());
        assert_eq!(parent, Some(PARENT), "whoever hears the announcement can go on with the trace");
        let entry = Entry::read(store(message, 42)).unwrap();
        assert_eq!((entry.result, entry.keep_until, entry.erased), (recorded, until, false));
        assert_eq!(entry.place, Place { seq: 42, at: Timestamp::from_millis(7) });
    }

    #[test]
    fn an_erased_result_has_its_place_and_its_outcome_and_nothing_that_a_handler_wrote() {
        let mut failed = result();
        failed.outcome = Outcome::Failed;
        failed.failure = Some(Failure::new("exit-code", "SECRET"));
        let entry = Entry::read(store(record(&failed, NOW, NOW, WireVersion::V2, 0), 42)).unwrap();
        let stub = entry.clone().erase(WireVersion::V2, NOW);
        assert_ne!(stub.subject, names::result(&failed.client, failed.job_id), "it is not announced");
        let erased = Entry::read(store(stub, 99)).unwrap();
        assert_eq!((erased.seq, erased.place, erased.erased), (99, entry.place, true));
        assert!(erased.result.payload.is_empty() && erased.result.outcome == Outcome::Failed);
        assert_eq!(erased.result.failure, Some(Failure::new("exit-code", "")));
    }

    #[test]
    fn the_server_keeps_a_message_longer_than_readers_do() {
        let after = |millis| ttl_secs(NOW + Duration::from_millis(millis), NOW);
        assert_eq!((after(0), after(999), after(1_000), after(86_400_000)), (6, 6, 7, 86_406));
        assert_eq!(ttl_secs(NOW, Timestamp::MAX), 6, "the server takes no less than a second");
        assert!(ttl_secs(Timestamp::MAX, NOW) < i64::MAX / 1_000_000_000, "Go counts nanoseconds");
    }
}
