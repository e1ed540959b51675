//! Jobs that an adapter hands back because a newer relay wrote them: seen by nobody who leases, so they are counted here.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often an adapter handed a job back, for 30 s and without spending an attempt, because a newer relay wrote it. It
/// begins at zero with the adapter and only grows.
#[derive(Debug, Default)]
pub struct NewerJobs(AtomicU64);

impl NewerJobs {
    /// Once more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often by now.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
