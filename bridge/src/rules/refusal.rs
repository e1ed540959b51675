//! The words of refusals, which are the same on every broker.

use crate::contract::{ClientId, JobId, QueueName, RunId};
use crate::error::{BrokerError, BrokerErrorKind};

/// No such job, or another client's.
#[must_use]
pub fn no_job(operation: &'static str, job: JobId) -> BrokerError {
    BrokerError::new(BrokerErrorKind::NotFound, operation, format!("there is no job {job}"))
}

/// No such queue.
#[must_use]
pub fn no_queue(operation: &'static str, queue: &QueueName) -> BrokerError {
    BrokerError::new(BrokerErrorKind::NotFound, operation, format!("there is no queue `{queue}`"))
}

/// No dead letter of that run.
#[must_use]
pub fn no_letter(operation: &'static str, job: JobId, run: RunId) -> BrokerError {
    let why = format!("there is no dead letter of job {job} in run {run}");
    BrokerError::new(BrokerErrorKind::NotFound, operation, why)
}

/// Whether a caller that may touch the queues `within`, or all of them, may touch a job of `queue`.
///
/// # Errors
/// `Unauthorized`.
pub fn may_touch(operation: &'static str, queue: &QueueName, within: Option<&[QueueName]>) -> Result<(), BrokerError> {
    if within.is_none_or(|within| within.contains(queue)) {
        return Ok(());
    }
    let why = "the job is of a queue that the worker's key does not grant";
    Err(BrokerError::new(BrokerErrorKind::Unauthorized, operation, why))
}

/// More bytes than are taken.
#[must_use]
pub fn too_large(operation: &'static str, actual: u64, limit: u64) -> BrokerError {
    let why = format!("{actual} bytes are more than the {limit} that are taken");
    BrokerError::new(BrokerErrorKind::TooLarge { actual, limit }, operation, why)
}

/// Why a client's job is not put in line: `waiting` of its jobs are there and `limit` are allowed. `None` if there is room.
#[must_use]
pub fn quota(
    operation: &'static str,
    client: &ClientId,
    queue: &QueueName,
    waiting: u64,
    limit: u64,
) -> Option<BrokerError> {
    (waiting >= limit).then(|| {
        let why = format!("client `{client}` has {waiting} jobs waiting in `{queue}`, {limit} are allowed");
        BrokerError::new(BrokerErrorKind::QuotaExceeded { actual: waiting, limit }, operation, why)
    })
}

/// Why a client's job is not put in line: with it `stored` bytes of the client would be kept and `limit` are allowed. `None` if
/// there is room, or no limit.
#[must_use]
pub fn stored(
    operation: &'static str,
    client: &ClientId,
    queue: &QueueName,
    stored: u64,
    limit: Option<u64>,
) -> Option<BrokerError> {
    limit.filter(|limit| stored > *limit).map(|limit| {
        let why = format!(
            "client `{client}` would have {stored} bytes of payloads and results kept in `{queue}`, {limit} are allowed"
        );
        BrokerError::new(BrokerErrorKind::QuotaExceeded { actual: stored, limit }, operation, why)
    })
}

/// A policy that bounds the bytes a client keeps, at a broker that does not count them.
#[must_use]
pub fn stored_not_counted(operation: &'static str) -> BrokerError {
    let why = "max_stored is set, and this broker does not count the bytes that each client keeps: leave it out, or keep the \
               queue in the embedded store";
    BrokerError::new(BrokerErrorKind::Invalid, operation, why)
}

/// The thing is there and in another state than the call needs.
#[must_use]
pub fn conflict(operation: &'static str, why: impl Into<String>) -> BrokerError {
    BrokerError::new(BrokerErrorKind::StateConflict, operation, why)
}

/// Others keep changing the job: nothing is certain, and the call may be repeated.
#[must_use]
pub fn contended(operation: &'static str, job: JobId) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Ambiguous, operation, format!("others keep changing job {job}: try again"))
}

pub(super) fn unknown_run(operation: &'static str, what: &str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Invalid, operation, format!("the {what} names a run that no relay gave out"))
}
