//! Turns a server's refusal into relay's error, by the refusal's code and by what was asked.
//!
//! The codes: <https://github.com/nats-io/nats-server/blob/main/server/errors.json>

use std::time::Duration;

use async_nats::jetstream::{Error, ErrorCode};

use crate::stored::names;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::rules;

/// The condition can't be decided yet: a write under it is in flight.
pub(crate) const WRONG_LAST_SEQUENCE_IN_FLIGHT: ErrorCode = ErrorCode(10_164);
/// The condition can't be decided yet: the leader does not know of all writes before it.
pub(crate) const LAST_SEQUENCE_NOT_READY: ErrorCode = ErrorCode(10_163);
/// The message id can't be decided yet: it is in flight.
pub(crate) const DUPLICATE_IN_FLIGHT: ErrorCode = ErrorCode(10_158);
/// Too many messages wait to be stored.
const TOO_MANY_WAITING: ErrorCode = ErrorCode(10_167);

/// When storage may have room again: jobs have to end and to be removed first.
const STORAGE_AFTER: Duration = Duration::from_secs(10);

/// The error for a refused call of JetStream's API.
pub(crate) fn refused(error: &Error, operation: &'static str) -> BrokerError {
    use BrokerErrorKind::{Ambiguous, Invalid, NotFound, Overloaded, TooLarge, Unavailable};
    let full = Overloaded { retry_after: STORAGE_AFTER };
    let (kind, what_to_do) = match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => (NotFound, ""),
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED => (full, ""),
        ErrorCode::MAXIMUM_CONSUMERS_LIMIT => {
            (full, ": raise `max_consumers` of relay's account, or `default_max_consumers` of the server")
        }
        ErrorCode::MAXIMUM_STREAMS_LIMIT => (full, ": raise `max_streams` of relay's account"),
        TOO_MANY_WAITING => (Overloaded { retry_after: Duration::from_secs(1) }, ""),
        // The stream is not as relay made it: the message is none's mistake, and is taken once the stream is as it was.
        ErrorCode::STREAM_SEALED
        | ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
        | ErrorCode::STREAM_ROLLUP_FAILED
        | ErrorCode::MESSAGE_TTL_DISABLED
        | ErrorCode::MESSAGE_SCHEDULES_DISABLED => (
            Unavailable,
            ": somebody changed the stream; `relay provision` says how, and changes back what the server lets it",
        ),
        // The server does not say by how much.
        ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => (TooLarge { actual: 0, limit: 0 }, ""),
        ErrorCode::CLUSTER_NO_PEERS => (Unavailable, ""),
        // Mistakes, although their status is the server's.
        ErrorCode::STREAM_INVALID_CONFIG | ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => (Invalid, ""),
        // The server had told others already to do it: it may still come to be.
        ErrorCode::CONSUMER_CREATE | ErrorCode::RAFT_GENERAL | ErrorCode::STREAM_CREATE | ErrorCode::STREAM_UPDATE => {
            (Ambiguous, "")
        }
        _ if (500..600).contains(&error.code()) => (Unavailable, ""),
        _ => (Invalid, ""),
    };
    let refusal = BrokerError::new(kind, operation, format!("NATS refused it: {error}{what_to_do}"));
    match error.error_code() {
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED => refusal.of_storage(),
        _ => refusal,
    }
}

/// The error for a refused call whose subject names a stream: without its stream there is no such queue.
pub(crate) fn refused_about(subject: &str, error: &Error, operation: &'static str) -> BrokerError {
    if error.error_code() == ErrorCode::STREAM_NOT_FOUND
        && let Some(gone) = subject.split('.').find_map(|name| no_stream(name, operation))
    {
        return gone;
    }
    refused(error, operation)
}

/// The error for a stream that is not there; `None` if none of relay's is called so, or relay goes on without it. To a caller
/// `NotFound` means a job, a letter or a queue. Results and letters may be there again: nobody is told that there are none.
pub(crate) fn no_stream(name: &str, operation: &'static str) -> Option<BrokerError> {
    if let Some(queue) = names::queue_of_stream(name) {
        return Some(rules::refusal::no_queue(operation, &queue));
    }
    [names::RESULTS_STREAM, names::DEAD_STREAM].contains(&name).then(|| {
        let why = format!(
            "stream `{name}` is gone from NATS: restore it, or make it anew with `relay provision`; until then nothing is recorded"
        );
        BrokerError::new(BrokerErrorKind::Unavailable, operation, why)
    })
}

/// The error for a refused publish.
pub(crate) fn not_stored(error: &Error, operation: &'static str) -> BrokerError {
    match error.error_code() {
        // The leader could not store what its followers were told to: they may have.
        ErrorCode::STREAM_STORE_FAILED => {
            BrokerError::new(BrokerErrorKind::Ambiguous, operation, format!("NATS may have stored it: {error}"))
        }
        _ => refused(error, operation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the server says it.
    fn error(status: usize, code: u64) -> Error {
        let error = serde_json::json!({ "code": status, "err_code": code, "description": "as the server says it" });
        serde_json::from_value(error).unwrap()
    }

    #[test]
    fn what_passes_is_never_told_as_a_mistake_of_the_caller() {
        use BrokerErrorKind::{Ambiguous, Invalid, NotFound, Overloaded, TooLarge, Unavailable};
        let later = Overloaded { retry_after: Duration::from_secs(10) };
        let soon = Overloaded { retry_after: Duration::from_secs(1) };
        let too_large = TooLarge { actual: 0, limit: 0 };
        let table = [
            (400, 10_002, later, later),
            (400, 10_003, Invalid, Invalid),
            (503, 10_004, Unavailable, Unavailable),
            (400, 10_005, Unavailable, Unavailable),
            (503, 10_008, Unavailable, Unavailable),
            (500, 10_009, Unavailable, Unavailable),
            (500, 10_012, Ambiguous, Ambiguous),
            (404, 10_014, NotFound, NotFound),
            (503, 10_023, later, later),
            (400, 10_026, later, later),
            (400, 10_027, later, later),
            (500, 10_028, later, later),
            (500, 10_041, Ambiguous, Ambiguous),
            (500, 10_047, later, later),
            (500, 10_049, Ambiguous, Ambiguous),
            (500, 10_051, Unavailable, Unavailable),
            (500, 10_052, Invalid, Invalid),
            (400, 10_054, Unavailable, Unavailable),
            (400, 10_058, Invalid, Invalid),
            (404, 10_059, NotFound, NotFound),
            (500, 10_069, Ambiguous, Ambiguous),
            (500, 10_074, Invalid, Invalid),
            (503, 10_076, Unavailable, Unavailable),
            (503, 10_077, Unavailable, Ambiguous),
            (400, 10_097, too_large, too_large),
            (400, 10_109, Unavailable, Unavailable),
            (500, 10_111, Unavailable, Unavailable),
            (500, 10_118, Unavailable, Unavailable),
            (503, 10_163, Unavailable, Unavailable),
            (400, 10_166, Unavailable, Unavailable),
            (429, 10_167, soon, soon),
            (400, 10_188, Unavailable, Unavailable),
            (599, 19_999, Unavailable, Unavailable),
            (400, 19_999, Invalid, Invalid),
        ];
        for (status, code, of_call, of_publish) in table {
            let error = error(status, code);
            assert_eq!(refused(&error, "test").kind(), of_call, "{error}");
            assert_eq!(not_stored(&error, "test").kind(), of_publish, "{error}");
        }
    }

    #[test]
    fn without_its_stream_there_is_no_such_queue() {
        let gone = error(404, 10_059);
        for subject in ["STREAM.MSG.GET.relay-jobs-mail", "CONSUMER.INFO.relay-jobs-mail.acme", "relay-jobs-mail"] {
            let refused = refused_about(subject, &gone, "test");
            assert_eq!((refused.kind(), refused.detail()), (BrokerErrorKind::NotFound, "there is no queue `mail`"));
        }
        assert!(refused_about("STREAM.INFO.relay-states", &gone, "test").detail().contains("10059"));
    }

    #[test]
    fn a_stream_of_results_or_letters_that_is_gone_is_no_job_that_is_not_there() {
        let gone = error(404, 10_059);
        for subject in ["STREAM.MSG.GET.relay-results", "STREAM.INFO.relay-dead", "relay-dead"] {
            let refused = refused_about(subject, &gone, "test");
            assert_eq!(refused.kind(), BrokerErrorKind::Unavailable, "{refused}");
            assert!(refused.detail().contains("`relay provision`"), "{refused}");
        }
    }

    #[test]
    fn a_limit_of_the_account_is_named() {
        assert!(refused(&error(400, 10_026), "test").detail().contains("`max_consumers`"));
        assert!(refused(&error(400, 10_027), "test").detail().contains("`max_streams`"));
    }
}
