//! Fields of a newer writer, in envelopes.

use bytes::Bytes;

/// Fields that a newer writer added and this build does not know: name and value as MessagePack, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra(pub(super) Vec<(String, Bytes)>);

impl Extra {
    /// The names of the fields, in the order they came.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// How many bytes names and values have together.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}
