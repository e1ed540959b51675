//! The damage of an envelope: the field that can't be read, where it is one, and the fault in it.

use std::fmt;

use super::EnvelopeError;

/// The fault in an envelope that no relay wrote, or that was damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The field; none where the map itself is the fault.
    field: Option<Box<str>>,
    what: &'static str,
}

impl Damage {
    /// The fault, without its field.
    #[must_use]
    pub fn what(&self) -> &'static str {
        self.what
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "field `{field}` {}", self.what),
            None => f.write_str(self.what),
        }
    }
}

impl EnvelopeError {
    /// The envelope as a whole, or a field whose name is not known yet, is not as it should be.
    #[must_use]
    pub fn malformed(what: &'static str) -> Self {
        Self::Malformed(Damage { field: None, what })
    }

    /// The same error, in the field `name`, unless it names one. A name may be anybody's text.
    pub(super) fn in_field(self, name: &str) -> Self {
        match self {
            Self::Malformed(Damage { field: None, what }) => {
                let shown: String = name.chars().take(NAME_SHOWN).flat_map(char::escape_default).collect();
                Self::Malformed(Damage { field: Some(shown.into()), what })
            }
            other => other,
        }
    }
}

/// The characters of a field's name that are shown.
const NAME_SHOWN: usize = 40;
