//! The calls that a caller may make and the queues that it may use, whichever protocol it speaks, and the refusal of one who is
//! not let in.

use std::time::Duration;

use relay_bridge::contract::QueueName;

use super::refusal::Refusal;
use crate::api::{Problem, Slug};
use crate::auth::rights::Right;
use crate::auth::{Caller, Refused};

/// When a request is sent again whose issuer can't be asked: relay asks it once a minute.
const ISSUER_RETRY: Duration = Duration::from_secs(60);

/// The refusal of a caller that was not let in.
pub(super) fn not_let_in(refused: Refused) -> Refusal {
    match refused {
        Refused::Unauthenticated(detail) => Refusal::new(Slug::Unauthenticated, detail),
        Refused::Forbidden(detail) => Refusal::new(Slug::Forbidden, detail),
        Refused::Malformed(detail) => Refusal::malformed(detail),
        Refused::TooMany { detail, after } => Problem::new(Slug::RateLimited, detail).with_retry_after(after).into(),
        Refused::Unavailable(detail) => {
            Problem::new(Slug::IssuerUnavailable, detail).with_retry_after(ISSUER_RETRY).into()
        }
    }
}

/// The refusal of what was begun with a credential that has ended since.
pub(super) fn credential_ended() -> Refusal {
    let detail = "the key that this began with was revoked, has expired or grants less than before: send it again with a \
                  key that stands";
    Refusal::new(Slug::Unauthenticated, detail)
}

/// Whether the caller may make a call that needs `right`.
pub(super) fn require(caller: &Caller, right: Right) -> Result<(), Refusal> {
    if caller.may(right) {
        return Ok(());
    }
    let detail = format!(
        "this key does not have the right `{right}`, which this call needs; nothing was done: use a key that has it, or \
         ask the operator for one"
    );
    Err(Refusal::new(Slug::Forbidden, detail))
}

/// The queue of a path or a parameter, if the caller may use it.
pub(super) fn queue(caller: &Caller, text: &str) -> Result<QueueName, Refusal> {
    let queue: QueueName = text.parse()?;
    if caller.may_use(&queue) {
        return Ok(queue);
    }
    let detail =
        format!("this key may not use queue {queue}: use another queue, or ask the operator to add it to the key");
    Err(Refusal::new(Slug::Forbidden, detail))
}

/// The queues that a list is of: the one that its parameter names, if the caller may use it; else all that the caller may
/// use, `None` for every queue.
pub(super) fn queues(caller: &Caller, named: Option<&str>) -> Result<Option<Vec<QueueName>>, Refusal> {
    match named {
        Some(named) => Ok(Some(vec![queue(caller, named)?])),
        None => Ok(caller.queues.clone()),
    }
}
