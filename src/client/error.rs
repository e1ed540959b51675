//! Errors of a call to relay. The one question they answer: may the call be repeated?

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::api::{DurationText, Problem, Retry};

/// A call that did not get its answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The request can't be sent: a bad server address, a header value that HTTP does not allow. No effect.
    Invalid(String),
    /// No connection was made. No effect.
    Unreachable {
        /// The server's address.
        server: String,
        /// The system's message.
        detail: String,
    },
    /// The connection broke, or time ran out, before the whole answer came. The call may have taken effect.
    Interrupted(String),
    /// Relay refused, and said why and whether a retry is safe.
    Refused {
        /// The problem as relay described it.
        problem: Box<Problem>,
        /// When to try again, if relay said so.
        retry_after: Option<Duration>,
    },
    /// The time for the call, with all its tries, is over, and no try said why. It may have taken effect.
    TimedOut {
        /// The time that it had.
        after: Duration,
    },
    /// The server broke relay's TCP protocol, or answered something else than was asked. The call may have taken effect.
    Garbled(String),
    /// The protocol of the server's address has no such call. Nothing was sent.
    Unsupported {
        /// The call.
        call: &'static str,
    },
    /// Something answered that does not speak relay's API: a proxy, or another server.
    NotRelay {
        /// The HTTP status.
        status: u16,
        /// The fault in the answer.
        detail: String,
        /// When to try again, if the answer said so.
        retry_after: Option<Duration>,
    },
}

impl ClientError {
    /// Whether repeating the call is harmless. `keyed`: whether the call carries an idempotency key, or is one that may
    /// always be repeated (every call but a submission).
    #[must_use]
    pub fn may_repeat(&self, keyed: bool) -> bool {
        match self {
            Self::Invalid(_) | Self::Garbled(_) | Self::Unsupported { .. } => false,
            Self::Unreachable { .. } => true,
            Self::Interrupted(_) | Self::TimedOut { .. } => keyed,
            Self::Refused { problem, .. } => match problem.retry {
                Retry::Safe => true,
                Retry::WithIdempotencyKey => keyed,
                _ => false,
            },
            // A load balancer without a healthy target, say, or with a limit of its own.
            Self::NotRelay { status, .. } => keyed && matches!(status, 429 | 502..=504),
        }
    }

    /// Whether the server is not there, rather than there and refusing.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::Garbled(_) | Self::Unsupported { .. } => false,
            Self::Unreachable { .. } | Self::Interrupted(_) | Self::TimedOut { .. } => true,
            Self::Refused { problem, .. } => matches!(problem.status, 502..=504),
            Self::NotRelay { status, .. } => matches!(status, 502..=504),
        }
    }

    /// When relay, or whatever is before it, asked to be tried again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } | Self::NotRelay { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(detail) => f.write_str(detail),
            Self::Unreachable { server, detail } => write!(f, "no connection to {server}: {detail}"),
            Self::Interrupted(detail) => write!(f, "the answer did not come: {detail}"),
            Self::TimedOut { after } => write!(f, "there was no answer within {}", DurationText(*after)),
            Self::Garbled(detail) => write!(f, "this is not relay's protocol: {detail}"),
            Self::Unsupported { call } => write!(f, "relay's TCP protocol has no call for this: {call}"),
            Self::Refused { problem, .. } => {
                write!(f, "{} ({})", problem.detail, problem.slug)
            }
            Self::NotRelay { status, detail, .. } => write!(f, "this is not relay's API: status {status}, {detail}"),
        }
    }
}

impl Error for ClientError {}

/// The innermost error of a chain: the server is named beside it, and the layers between say nothing more to people.
pub(super) fn cause(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), cause)
}

/// The whole chain of an error in one line: reqwest alone says "error sending request".
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        below = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Slug;

    fn refused(slug: Slug) -> ClientError {
        let problem = Problem::new(slug, "");
        ClientError::Refused { retry_after: problem.retry_after.map(|after| after.0), problem: Box::new(problem) }
    }

    #[test]
    fn what_certainly_had_no_effect_may_be_repeated_without_a_key() {
        let unreachable = ClientError::Unreachable { server: String::new(), detail: String::new() };
        for error in [unreachable, refused(Slug::Draining), refused(Slug::Overloaded), refused(Slug::RateLimited)] {
            assert!(error.may_repeat(false) && error.may_repeat(true), "{error:?}");
        }
    }

    #[test]
    fn what_may_have_had_an_effect_may_be_repeated_only_with_a_key() {
        let gateway = ClientError::NotRelay { status: 502, detail: String::new(), retry_after: None };
        let interrupted = ClientError::Interrupted(String::new());
        for error in [gateway, interrupted, refused(Slug::Unconfirmed), refused(Slug::Internal)] {
            assert!(!error.may_repeat(false) && error.may_repeat(true), "{error:?}");
        }
    }

    #[test]
    fn what_will_be_refused_again_is_never_repeated() {
        let elsewhere = ClientError::NotRelay { status: 404, detail: String::new(), retry_after: None };
        for error in [elsewhere, refused(Slug::IdempotencyConflict), refused(Slug::NotFound), refused(Slug::Forbidden)]
        {
            assert!(!error.may_repeat(true) && !error.is_unavailable(), "{error:?}");
        }
    }
}
