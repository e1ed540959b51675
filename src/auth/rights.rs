//! The rights of a client's key: which calls it may make.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A right. `docs/contract.md` says which call needs which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// To submit jobs, and to run finished ones again.
    Submit,
    /// To read jobs, events and results.
    Read,
    /// To cancel and to erase jobs.
    Manage,
}

impl Right {
    /// Every right, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Submit, Self::Read, Self::Manage];

    /// `submit`, `read` or `manage`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Read => "read",
            Self::Manage => "manage",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A set of at least one right; by default of all. In a file it is a list, `["submit", "read"]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Right>", into = "Vec<Right>")]
pub struct Rights([bool; Right::ALL.len()]);

/// The list has no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`rights` names none: write some of \"submit\", \"read\", \"manage\", or leave the line out for all")]
pub struct NoRight;

impl Rights {
    /// All of them.
    pub const ALL: Self = Self([true; Right::ALL.len()]);

    /// The rights in `rights`.
    ///
    /// # Errors
    /// [`NoRight`] if it is empty.
    pub fn of(rights: &[Right]) -> Result<Self, NoRight> {
        let set = Self(Right::ALL.map(|right| rights.contains(&right)));
        if rights.is_empty() { Err(NoRight) } else { Ok(set) }
    }

    /// Whether `right` is among them.
    #[must_use]
    pub fn has(self, right: Right) -> bool {
        self.iter().any(|has| has == right)
    }

    /// The rights of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(Right::ALL.map(|right| self.has(right) || other.has(right)))
    }

    /// The rights that are in both; possibly none.
    #[must_use]
    pub(super) fn both(self, other: Self) -> Self {
        Self(Right::ALL.map(|right| self.has(right) && other.has(right)))
    }

    /// Whether none is missing.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }

    /// Each right among them.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().zip(self.0).filter_map(|(right, has)| has.then_some(right))
    }
}

impl Default for Rights {
    fn default() -> Self {
        Self::ALL
    }
}

impl TryFrom<Vec<Right>> for Rights {
    type Error = NoRight;

    fn try_from(rights: Vec<Right>) -> Result<Self, NoRight> {
        Self::of(&rights)
    }
}

impl From<Rights> for Vec<Right> {
    fn from(rights: Rights) -> Self {
        rights.iter().collect()
    }
}
