//! A refusal, on its way to where a protocol writes its answers.

use relay_bridge::contract::ids::InvalidId;
use relay_bridge::error::BrokerError;
use tracing::{error, warn};

use super::budget::Full;
use crate::api::{Problem, Slug};

/// A problem on its way to where answers are written.
#[derive(Clone, Debug)]
pub(super) struct Refusal(pub(super) Box<Problem>);

impl Refusal {
    pub(super) fn new(slug: Slug, detail: impl Into<String>) -> Self {
        Problem::new(slug, detail).into()
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Slug::MalformedRequest, detail)
    }

    pub(super) fn no_job() -> Self {
        Self::new(Slug::NotFound, "this client has no such job, or it is past its retention: check the id and the key")
    }

    /// Of a request for which there is no room.
    pub(super) fn full(full: Full, what: &str) -> Self {
        match full {
            Full::Budget => {
                let detail =
                    format!("relay has as many {what} as it takes; nothing was done: send it again after Retry-After");
                Self::new(Slug::Overloaded, detail)
            }
            Full::Share(limit) => {
                let detail = format!(
                    "this client has as many {what} as one client may have here, {limit}; nothing was done: let some of \
                     them end, then send it again, or ask the operator for a larger share (`client-share`)"
                );
                let mut problem = Problem::new(Slug::RateLimited, detail);
                problem.limit = Some(limit as u64);
                problem.into()
            }
        }
    }
}

/// The things of which there are only so many, as refusals name them.
pub(super) mod scarce {
    pub(in crate::ingress) const REQUESTS: &str = "requests in hand";
    pub(in crate::ingress) const BODIES: &str = "bytes of requests in flight";
    pub(in crate::ingress) const ANSWERS: &str = "bytes of answers that nobody has read yet";
    pub(in crate::ingress) const UNREAD: &str = "bytes of answers that nobody has read yet on one connection";
    pub(in crate::ingress) const STREAMS: &str = "streams of events";
    pub(in crate::ingress) const CONNECTIONS: &str = "connections";
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<InvalidId> for Refusal {
    fn from(error: InvalidId) -> Self {
        Problem::from(error).into()
    }
}

impl From<BrokerError> for Refusal {
    fn from(broker_error: BrokerError) -> Self {
        let problem = Problem::from(&broker_error);
        let source = std::error::Error::source(&broker_error).map(ToString::to_string);
        match problem.status {
            500 => error!(error = %broker_error, source, "the broker failed"),
            502..=504 => warn!(error = %broker_error, source, "the broker refused"),
            _ => {}
        }
        problem.into()
    }
}
