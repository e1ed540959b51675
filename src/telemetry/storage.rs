//! The refusals of the broker's storage: only a write finds one, so each is noted where writes pass.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use relay_bridge::error::BrokerError;
use relay_bridge::support::lock;

/// How long something counts as refused that is found only by trying, without being tried again.
pub const LATELY: Duration = Duration::from_secs(60);

/// The writes refused for want of storage, and not taken again since.
#[derive(Debug, Default)]
pub struct Storage {
    /// Submissions and reruns.
    pub(super) jobs: Writes,
    /// Results.
    pub(super) results: Writes,
}

impl Storage {
    /// The last refusal, in words, if it was at most [`LATELY`] before `now` and nothing of its kind was stored since.
    #[must_use]
    pub fn refusing(&self, now: Duration) -> Option<String> {
        self.jobs.refusing(now).or_else(|| self.results.refusing(now))
    }
}

/// Writes of one kind.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// Whether `last` is set: a successful write does not take the lock.
    refused: AtomicBool,
    last: Mutex<Option<(Duration, String)>>,
}

impl Writes {
    /// One was stored.
    pub(super) fn stored(&self) {
        if self.refused.swap(false, Ordering::Relaxed) {
            *lock(&self.last) = None;
        }
    }

    /// One failed at `now`, for whichever reason.
    pub(super) fn failed(&self, error: &BrokerError, now: Duration) {
        if error.is_of_storage() {
            *lock(&self.last) = Some((now, error.to_string()));
            self.refused.store(true, Ordering::Relaxed);
        }
    }

    fn refusing(&self, now: Duration) -> Option<String> {
        let last = lock(&self.last);
        last.as_ref().filter(|(at, _)| now.saturating_sub(*at) <= LATELY).map(|(_, why)| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use relay_bridge::error::BrokerErrorKind;

    use super::*;

    #[test]
    fn storage_refuses_until_something_is_stored_again_or_nobody_asked_for_a_minute() {
        let storage = Storage::default();
        let at = Duration::from_secs;
        let error = || BrokerError::new(BrokerErrorKind::Unavailable, "commit", "no space left");
        storage.jobs.failed(&error(), at(0));
        assert_eq!(storage.refusing(at(0)), None, "a broker that is away has no full storage");
        storage.jobs.failed(&error().of_storage(), at(0));
        storage.results.failed(&error().of_storage(), at(10));
        storage.results.stored();
        assert_eq!(storage.refusing(at(60)).as_deref(), Some("commit: no space left"), "a result is no job");
        assert_eq!(storage.refusing(at(61)), None);
        storage.jobs.failed(&error().of_storage(), at(61));
        storage.jobs.stored();
        assert_eq!(storage.refusing(at(61)), None);
    }
}
