//! How often which problem was the answer, by slug: a bounded set, counted with one relaxed addition.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::api::Slug;

/// A counter for each slug.
#[derive(Debug)]
pub struct Refusals(Box<[AtomicU64]>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Slug::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Refusals {
    /// A request was refused.
    pub(super) fn add(&self, slug: Slug) {
        // Slugs are numbered in the order of `Slug::ALL`.
        if let Some(counter) = self.0.get(slug as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many requests were refused with `slug`.
    #[must_use]
    pub fn count(&self, slug: Slug) -> u64 {
        self.0.get(slug as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slug_has_a_counter_of_its_own() {
        let refusals = Refusals::default();
        for (at, slug) in Slug::ALL.iter().enumerate() {
            assert_eq!(*slug as usize, at);
            refusals.add(*slug);
        }
        assert!(Slug::ALL.iter().all(|slug| refusals.count(*slug) == 1));
    }
}
