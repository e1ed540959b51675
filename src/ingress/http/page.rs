//! A page of a list, bounded by its bytes as they are sent: base64 and the escapes of JSON make some entries several times as
//! large as what they tell.

use relay_bridge::result_log::PAGE_BYTES_MAX;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::answer::Refusal;
use crate::api::Slug;

/// Entries as JSON, in order.
#[derive(Debug, Default)]
pub(super) struct Entries {
    written: Vec<Box<RawValue>>,
    bytes: usize,
}

impl Entries {
    /// Adds `entry`, unless it is not the first one and the page would have more than [`PAGE_BYTES_MAX`] with it. Whether it
    /// was added.
    pub(super) fn add(&mut self, entry: &impl Serialize) -> Result<bool, Refusal> {
        let entry = to_raw_value(entry)
            .map_err(|error| Refusal::new(Slug::Internal, format!("the answer can't be written: {error}")))?;
        // With the comma before it.
        let bytes = entry.get().len() + 1;
        if !self.written.is_empty() && self.bytes + bytes > PAGE_BYTES_MAX {
            return Ok(false);
        }
        self.bytes += bytes;
        self.written.push(entry);
        Ok(true)
    }

    /// The entries that the page holds.
    pub(super) fn into_written(self) -> Vec<Box<RawValue>> {
        self.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `entries` a page takes, one after the other.
    fn taken(entries: &[&str]) -> usize {
        let mut page = Entries::default();
        entries.iter().take_while(|entry| page.add(entry).unwrap()).count()
    }

    #[test]
    fn a_page_ends_before_the_entry_that_would_make_it_too_large_as_it_is_sent() {
        let half = "x".repeat(PAGE_BYTES_MAX / 2 - 3);
        assert_eq!(taken(&[&half, &half, "x"]), 2, "two quotes and a comma each: it is full");
        assert_eq!(taken(&[&half, "x", &half]), 2);
        // Each of these is six bytes as JSON.
        assert_eq!(taken(&["\u{1}".repeat(PAGE_BYTES_MAX / 12).as_str(); 3]), 1);
    }

    #[test]
    fn a_larger_entry_comes_alone() {
        let large = "x".repeat(2 * PAGE_BYTES_MAX);
        assert_eq!((taken(&[&large, "x"]), taken(&["x", &large])), (1, 1));
    }
}
