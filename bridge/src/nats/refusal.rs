//! What a server's refusal means for relay: by its error code.
//!
//! The codes: <https://github.com/nats-io/nats-server/blob/main/server/errors.json>

use std::time::Duration;

use async_nats::jetstream::{Error, ErrorCode};

use crate::error::{BrokerError, BrokerErrorKind};

/// The condition can't be decided yet: a write under it is in flight.
pub(super) const WRONG_LAST_SEQUENCE_IN_FLIGHT: ErrorCode = ErrorCode(10_164);
/// The message id can't be decided yet: it is in flight.
pub(super) const DUPLICATE_IN_FLIGHT: ErrorCode = ErrorCode(10_158);
/// Too many messages wait to be stored.
const TOO_MANY_WAITING: ErrorCode = ErrorCode(10_167);

/// When storage may have room again: jobs have to end and to be removed first.
const STORAGE_AFTER: Duration = Duration::from_secs(10);

/// What the refusal of a call of JetStream's API means.
pub(super) fn refused(error: &Error, operation: &'static str) -> BrokerError {
    let kind = match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => BrokerErrorKind::NotFound,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED => BrokerErrorKind::Overloaded { retry_after: STORAGE_AFTER },
        TOO_MANY_WAITING => BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) },
        // The server does not say by how much.
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => BrokerErrorKind::TooLarge { actual: 0, limit: 0 },
        _ if error.code() == 503 => BrokerErrorKind::Unavailable,
        _ => BrokerErrorKind::Invalid,
    };
    BrokerError::new(kind, operation, format!("NATS refused it: {error}"))
}
