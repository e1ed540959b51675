//! A worker's decisions about a delivery, as values. One place in the worker runtime applies them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a delivery ends at the broker, after the result (and the dead letter) are recorded where there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settlement {
    /// The run has its result: out of line.
    Complete,
    /// Back in line after a delay; the attempt stays spent. Never before the delay has passed; at least 1 ms.
    RetryAfter(Duration),
    /// The run has its dead letter and its result: out of line.
    DeadLetter,
    /// Back in line, at once or after a delay, and the attempt is not spent: a drain, a job not yet due, an envelope of
    /// a newer version.
    HandBack(Duration),
}
