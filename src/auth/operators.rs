//! The rights of the tokens that operators, scrapers and scalers have at the admin port.

use std::fmt;
use std::str::FromStr;

/// A right at the admin port. None of them contains another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminRight {
    /// To read metrics.
    Metrics,
    /// To look at queues, jobs and dead letters.
    Read,
    /// To pause and resume queues, to redrive and remove dead letters, and to have files read again.
    Operate,
}

impl AdminRight {
    /// Every right.
    pub const ALL: [Self; 3] = [Self::Metrics, Self::Read, Self::Operate];

    /// The word in `relay.toml`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

impl fmt::Display for AdminRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rights are metrics, read and operate")]
pub struct InvalidRight;

impl FromStr for AdminRight {
    type Err = InvalidRight;

    fn from_str(text: &str) -> Result<Self, InvalidRight> {
        Self::ALL.into_iter().find(|right| right.as_str() == text).ok_or(InvalidRight)
    }
}
