//! How often callers were let in or refused, by what they showed: a bounded set, counted with one relaxed addition.

use std::sync::atomic::{AtomicU64, Ordering};

/// The words for what a caller can show, as metrics and the audit have them.
pub const METHODS: [&str; 5] = ["key", "jwt", "mtls", "several", "none"];

/// A counter for each method and outcome.
#[derive(Debug, Default)]
pub struct Authentications([[AtomicU64; 2]; METHODS.len()]);

impl Authentications {
    /// Somebody showed something of this kind, one of [`METHODS`], and was let in or not.
    pub(super) fn add(&self, method: &str, let_in: bool) {
        // Words that are not there yet count as several.
        let at = METHODS.iter().position(|known| *known == method).unwrap_or(3);
        self.0[at][usize::from(let_in)].fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was so.
    #[must_use]
    pub fn count(&self, method: &str, let_in: bool) -> u64 {
        let at = METHODS.iter().position(|known| *known == method);
        at.map_or(0, |at| self.0[at][usize::from(let_in)].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_is_counted_apart_by_whether_it_let_somebody_in() {
        let counts = Authentications::default();
        counts.add("key", true);
        counts.add("key", false);
        counts.add("key", false);
        counts.add("something newer", true);
        let all = METHODS.map(|method| (counts.count(method, true), counts.count(method, false)));
        assert_eq!(all, [(1, 2), (0, 0), (0, 0), (1, 0), (0, 0)]);
    }
}
