//! The budget that all requests together may hold, whichever protocol they came by. Nobody waits for a place: a request
//! that does not fit is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of places, or of bytes.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    taken: AtomicUsize,
}

impl Budget {
    /// A budget of `max`.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: AtomicUsize::new(0) })
    }

    /// How much is in use.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes `amount` until the share is dropped; `None` if so much is not left.
    pub(super) fn take(self: &Arc<Self>, amount: u64) -> Option<Share> {
        let mut share = Share { budget: Arc::clone(self), amount: 0 };
        share.grow(amount).then_some(share)
    }
}

/// A part of a budget that is in use.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    amount: usize,
}

impl Share {
    /// Takes `more`, or nothing if so much is not left.
    pub(super) fn grow(&mut self, more: u64) -> bool {
        let Ok(more) = usize::try_from(more) else { return false };
        let max = self.budget.max;
        // The counter guards no other memory: each change need only be whole.
        let taken = self.budget.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            taken.checked_add(more).filter(|taken| *taken <= max)
        });
        if taken.is_ok() {
            self.amount += more;
        }
        taken.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_what_it_has_and_gets_back_what_it_gave() {
        let budget = Budget::new(10);
        let mut share = budget.take(6).unwrap();
        assert!(budget.take(5).is_none() && budget.take(u64::MAX).is_none());
        assert!(share.grow(4) && !share.grow(1));
        assert!(budget.take(0).is_some() && budget.take(1).is_none());
        drop(share);
        assert!(budget.take(10).is_some());
    }
}
