//! Calls repeated where repeating is harmless: exponential backoff with full jitter, and never before relay's own
//! `Retry-After`.
//!
//! Full jitter: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::{Duration, Instant};

use super::error::ClientError;
use relay_bridge::backoff::random;

/// How long to keep trying, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest wait before the second try.
    pub base: Duration,
    /// The longest wait between two tries.
    pub cap: Duration,
    /// No further try starts this long after the first one; zero tries once.
    pub give_up_after: Duration,
    /// Whether a server that takes no connection is waited for. A reader wants to know that at once.
    pub waits_for_connection: bool,
}

impl Default for Patience {
    /// From 100 ms to 5 s, for a minute.
    fn default() -> Self {
        let [base, cap] = [Duration::from_millis(100), Duration::from_secs(5)];
        Self { base, cap, give_up_after: Duration::from_secs(60), waits_for_connection: true }
    }
}

impl Patience {
    /// Tries once.
    pub const NONE: Self = {
        let [base, cap, give_up_after] = [Duration::ZERO; 3];
        Self { base, cap, give_up_after, waits_for_connection: false }
    };

    /// The default, but for a server that takes no connection.
    #[must_use]
    pub fn reading() -> Self {
        Self { waits_for_connection: false, ..Self::default() }
    }

    /// Calls `call` until it succeeds, fails for good, or patience runs out. Tells `retried` about each error that is
    /// followed by another try. `keyed` as in [`ClientError::may_repeat`].
    ///
    /// # Errors
    /// The last call's error.
    pub async fn repeat<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        keyed: bool,
        mut call: impl FnMut() -> F,
        mut retried: impl FnMut(&ClientError),
    ) -> Result<T, ClientError> {
        let started = Instant::now();
        let mut ceiling = self.base;
        loop {
            let error = match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let wait = ceiling.mul_f64(random()).max(error.retry_after().unwrap_or_default());
            let gone = matches!(error, ClientError::Unreachable { .. }) && !self.waits_for_connection;
            let patient = started.elapsed().saturating_add(wait) < self.give_up_after && !gone;
            if !patient || !error.may_repeat(keyed) {
                return Err(error);
            }
            retried(&error);
            tokio::time::sleep(wait).await;
            ceiling = ceiling.saturating_mul(2).min(self.cap);
        }
    }

    /// As [`repeat`](Self::repeat) for calls that may be repeated, and ends after `within` whatever the server does: then with the last
    /// try's error, or [`ClientError::TimedOut`].
    pub(super) async fn repeat_within<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        within: Duration,
        call: impl FnMut() -> F,
        retried: impl Fn(&ClientError),
    ) -> Result<T, ClientError> {
        let mut last = None;
        let repeated = self.repeat(true, call, |error| {
            retried(error);
            last = Some(error.clone());
        });
        let Some(until) = tokio::time::Instant::now().checked_add(within) else { return repeated.await };
        let ended = tokio::time::timeout_at(until, repeated).await;
        ended.unwrap_or_else(|_| Err(last.unwrap_or(ClientError::TimedOut { after: within })))
    }

    /// How long a call has that says no time of its own.
    pub(super) fn limit(&self) -> Duration {
        if self.give_up_after.is_zero() { ANSWER_MAX } else { self.give_up_after }
    }
}

/// How often in a row a wait was answered at once and without what it was for. Such a server, one that drains say, is not asked again
/// without a pause, which grows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Early(u32);

impl Early {
    /// After one more answer.
    pub(super) fn answered(self, is_early: bool) -> Self {
        Self(if is_early { self.0.saturating_add(1) } else { 0 })
    }

    /// The pause before the wait is asked for again.
    pub(super) fn pause(self) -> Duration {
        let Some(again) = self.0.checked_sub(1) else { return Duration::ZERO };
        EARLY_LEAST.saturating_mul(1 << again.min(16)).min(EARLY_MOST).mul_f64(0.5 + random() / 2.0)
    }
}

/// The shortest pause, within a half, and the longest one.
const EARLY_LEAST: Duration = Duration::from_millis(20);
const EARLY_MOST: Duration = Duration::from_secs(1);

/// How long an answer may take, beyond the wait that was asked for.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn interrupted() -> ClientError {
        ClientError::Interrupted("reset".to_owned())
    }

    async fn tries(keyed: bool, patience: Patience, error: impl Fn() -> ClientError) -> u32 {
        let count = Cell::new(0);
        let call = || {
            count.set(count.get() + 1);
            let answer = if count.get() < 4 { Err(error()) } else { Ok(()) };
            async move { answer }
        };
        patience.repeat(keyed, call, |_| {}).await.ok();
        count.get()
    }

    #[tokio::test]
    async fn a_submission_is_repeated_after_an_unknown_effect_only_with_a_key() {
        let patience =
            Patience { base: Duration::from_millis(1), cap: Duration::from_millis(1), ..Patience::default() };
        assert_eq!(tries(true, patience, interrupted).await, 4);
        assert_eq!(tries(false, patience, interrupted).await, 1);
        let unreachable = || ClientError::Unreachable { server: String::new(), detail: String::new() };
        assert_eq!(tries(false, patience, unreachable).await, 4);
        assert_eq!(tries(true, patience, || ClientError::Invalid(String::new())).await, 1);
        let reading = Patience { waits_for_connection: false, ..patience };
        assert_eq!((tries(true, reading, unreachable).await, tries(true, reading, interrupted).await), (1, 4));
    }

    #[tokio::test]
    async fn without_patience_there_is_one_try() {
        assert_eq!(tries(true, Patience::NONE, interrupted).await, 1);
    }
}
