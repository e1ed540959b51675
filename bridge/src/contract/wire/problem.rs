//! Problems with a message of the protocol.

use crate::contract::envelope::EnvelopeError;

/// A problem with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The type is not one that this version knows.
    #[error("`{0}` is not a message type that is known here")]
    UnknownType(String),
    /// A field is missing, of another kind, or out of range.
    #[error("field `{field}` {problem}")]
    Field {
        /// The field; `message` for the map itself.
        field: &'static str,
        /// The problem with it.
        problem: String,
    },
}

impl Problem {
    pub(super) fn of(field: &'static str, problem: &str) -> Self {
        Self::Field { field, problem: problem.to_owned() }
    }

    pub(super) fn new(field: &'static str, error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::Malformed(damage) => Self::of(field, damage.what()),
            newer @ EnvelopeError::Newer { .. } => Self::Field { field, problem: newer.to_string() },
        }
    }

    pub(super) fn within(self, outer: &'static str) -> Self {
        match self {
            Self::Field { field, problem } => Self::Field { field: outer, problem: format!("`{field}` {problem}") },
            unknown @ Self::UnknownType(_) => unknown,
        }
    }
}
