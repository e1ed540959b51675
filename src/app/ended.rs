//! How an app ended, or why it could not go on.

use std::fmt;
use std::io;

use relay_bridge::error::BrokerError;

/// How an [`App`](super::App) ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing was left in flight.
    Drained,
    /// It was told not to wait.
    Forced,
}

/// Why an [`App`](super::App) could not start or go on.
#[derive(Debug)]
#[non_exhaustive]
pub enum AppError {
    /// The broker can't be opened or provisioned.
    Store(BrokerError),
    /// The broker lacks what an operator has to create first: what.
    Unprovisioned(String),
    /// A queue's policy would shorten what clients rely on, and `force` is not set: the changes.
    Destructive(String),
    /// A size was asked for that the broker does not take.
    TooLarge {
        /// Which, and both numbers.
        what: String,
        /// The ways out.
        fix: String,
    },
    /// The NATS ingress can't be opened on these servers.
    Nats(BrokerError),
    /// A listener failed while serving.
    Listener(&'static str, io::Error),
    /// A task of the process panicked: a bug.
    Panicked(String),
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => write!(f, "{error}"),
            Self::Unprovisioned(what) => write!(f, "the broker is not ready: {what}"),
            Self::Destructive(changes) => write!(f, "the queue's policy would shorten what clients rely on: {changes}"),
            Self::TooLarge { what, .. } => write!(f, "{what}"),
            Self::Nats(error) => write!(f, "the NATS ingress: {error}"),
            Self::Listener(which, error) => write!(f, "the {which} listener failed: {error}"),
            Self::Panicked(what) => write!(f, "a task of relay panicked: {what}"),
        }
    }
}

impl std::error::Error for AppError {}

impl From<BrokerError> for AppError {
    fn from(error: BrokerError) -> Self {
        Self::Store(error)
    }
}
