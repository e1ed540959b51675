//! A refusal, on its way to where a protocol writes its answers.

use relay_bridge::contract::ids::InvalidId;
use relay_bridge::error::BrokerError;
use tracing::{error, warn};

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

    /// Of a body for which the budget has no room: to wait for others would only keep more in flight.
    pub(super) fn too_many_bytes() -> Self {
        let detail = "relay has as many bytes in flight as it takes; nothing was done: send it again after Retry-After";
        Self::new(Slug::Overloaded, detail)
    }
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
