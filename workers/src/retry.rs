//! Broker calls that are repeated, and the jitter that keeps many workers apart.
//!
//! Every call of `Leasing` may be repeated, so a reply that was lost is asked for again instead of running the job
//! again. While a lease stands this goes on, however long the broker is away or refuses, so that finished work need not
//! be done again. Without a lease the number of tries is bounded.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relay_bridge::error::{BrokerError, BrokerErrorKind};
use tokio::time::{sleep, timeout};

/// The longest one broker call may take before it counts as unanswered.
pub(crate) const CALL_MAX: Duration = Duration::from_secs(10);
/// How often a call is tried that no lease bounds. With the waits below that is some 10 s of an absent broker.
const TRIES_MAX: u32 = 28;
const WAIT_BASE: Duration = Duration::from_millis(50);
const WAIT_CAP: Duration = Duration::from_secs(5);
/// How often the wait doubles at first, and for how many failures it stays so long then: longer than a server needs to start
/// again.
const SHORT_UP_TO: u32 = 4;
const SHORT_FOR: u32 = 20;

/// Random numbers that need not be secret: SplitMix64 from a seed that the standard library draws per process.
#[derive(Debug)]
pub(crate) struct Jitter(AtomicU64);

impl Jitter {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(RandomState::new().hash_one("relay worker")))
    }

    /// A number from 0 (included) to 1 (excluded).
    pub(crate) fn draw(&self) -> f64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The 53 bits that a double holds exactly.
        f64::from(u32::try_from(z >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
    }

    /// How long to wait after failure `failures` (from 1): between half and all of `base * 2^(failures-1)`, at most
    /// `cap`. Half is certain, so that it never turns into a busy loop.
    pub(crate) fn backoff(&self, failures: u32, base: Duration, cap: Duration) -> Duration {
        let ceiling = base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(cap);
        ceiling.mul_f64(0.5 + self.draw() / 2.0)
    }

    /// How long to wait after failure `failures` (from 1) in a row of calls of the broker: up to 0.4 s for some seconds, so that a
    /// broker that starts again is noticed soon, and then up to 5 s.
    pub(crate) fn away(&self, failures: u32) -> Duration {
        self.backoff(failures.min(SHORT_UP_TO).max(failures.saturating_sub(SHORT_FOR)), WAIT_BASE, WAIT_CAP)
    }
}

/// A call that was given up.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The last error.
    pub(crate) error: BrokerError,
    /// Whether a try before the last may have taken effect: its answer was lost.
    pub(crate) unsure: bool,
}

/// How long a call that fails is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For as long as this is the answer: a lease stands, and bounds it.
    Lasting,
    /// Up to [`TRIES_MAX`] times in all.
    Short,
    /// No more: the call makes no sense any longer.
    Over,
}

/// Makes `call` until it succeeds, fails for good, or was tried as long as `patience` lasts, which is asked between tries;
/// each try is bounded by [`CALL_MAX`].
///
/// # Errors
/// The last error, and whether a try before it may have taken effect.
pub(crate) async fn persist<T, F>(
    jitter: &Jitter,
    operation: &'static str,
    patience: impl Fn() -> Patience,
    mut call: impl FnMut() -> F,
) -> Result<T, Refused>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let (mut tries, mut unsure) = (0_u32, false);
    loop {
        tries = tries.saturating_add(1);
        let error = match answered(operation, CALL_MAX, call()).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let goes_on = match patience() {
            Patience::Lasting => true,
            Patience::Short => tries < TRIES_MAX,
            Patience::Over => false,
        };
        if !error.is_transient() || !goes_on {
            return Err(Refused { error, unsure });
        }
        unsure |= !error.had_no_effect();
        tracing::debug!(operation, tries, %error, "broker call failed, trying again");
        let asked = match error.kind() {
            BrokerErrorKind::Overloaded { retry_after } => retry_after.min(WAIT_CAP),
            _ => Duration::ZERO,
        };
        sleep(jitter.away(tries).max(asked)).await;
    }
}

/// The answer of a call, or `Ambiguous` if there is none after `limit`.
pub(crate) async fn answered<T>(
    operation: &'static str,
    limit: Duration,
    call: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, operation, format!("no answer within {limit:?}")))
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn error(kind: BrokerErrorKind) -> BrokerError {
        BrokerError::new(kind, "test", "scripted")
    }

    #[test]
    fn jitter_stays_below_one_and_moves() {
        let jitter = Jitter::new();
        let drawn: Vec<f64> = (0..1_000).map(|_| jitter.draw()).collect();
        assert!(drawn.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = drawn.iter().sum::<f64>() / 1_000.0;
        assert!((0.4..0.6).contains(&mean), "mean {mean}");
    }

    #[test]
    fn a_backoff_grows_to_its_cap_and_is_never_less_than_half() {
        let jitter = Jitter::new();
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(10));
        for failures in 1..100 {
            let wait = jitter.backoff(failures, base, cap);
            let ceiling = base.saturating_mul(1 << (failures - 1).min(20)).min(cap);
            assert!(wait >= ceiling / 2 && wait <= ceiling, "{failures}: {wait:?}");
        }
    }

    #[test]
    fn a_broker_that_starts_again_is_noticed_soon_and_one_that_stays_away_is_asked_rarely() {
        let jitter = Jitter::new();
        for (failures, most) in [(1, 50), (4, 400), (24, 400), (25, 800), (26, 1_600), (40, 5_000), (u32::MAX, 5_000)] {
            let wait = jitter.away(failures).as_millis();
            assert!(wait >= most / 2 && wait <= most, "{failures}: {wait} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_reply_is_asked_for_again() {
        let (jitter, calls) = (Jitter::new(), Cell::new(0));
        let answer = persist(
            &jitter,
            "test",
            || Patience::Short,
            || async {
                calls.set(calls.get() + 1);
                if calls.get() < 4 { Err(error(BrokerErrorKind::Ambiguous)) } else { Ok(calls.get()) }
            },
        );
        assert_eq!(answer.await.unwrap(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded_and_stop_when_nobody_wants_the_answer() {
        for (patience, expected) in [(Patience::Short, TRIES_MAX), (Patience::Over, 1)] {
            let (jitter, calls) = (Jitter::new(), Cell::new(0));
            let answer = persist(
                &jitter,
                "test",
                || patience,
                async || {
                    calls.set(calls.get() + 1);
                    Err::<(), _>(error(BrokerErrorKind::Unavailable))
                },
            );
            assert_eq!(answer.await.unwrap_err().error.kind(), BrokerErrorKind::Unavailable);
            assert_eq!(calls.get(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_stands_is_not_tried_again() {
        let (jitter, calls) = (Jitter::new(), Cell::new(0));
        let answer = persist(
            &jitter,
            "test",
            || Patience::Short,
            || async {
                calls.set(calls.get() + 1);
                Err::<(), _>(error(BrokerErrorKind::LeaseLost))
            },
        );
        assert_eq!(answer.await.unwrap_err().error.kind(), BrokerErrorKind::LeaseLost);
        assert_eq!(calls.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_never_answered_counts_as_ambiguous() {
        let never = std::future::pending::<Result<(), BrokerError>>();
        let answer = answered("test", CALL_MAX, never).await;
        assert_eq!(answer.unwrap_err().kind(), BrokerErrorKind::Ambiguous);
    }
}
