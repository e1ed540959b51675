//! Broker calls that are repeated.
//!
//! Every call of `Leasing` may be repeated, so a reply that was lost is asked for again instead of running the job
//! again. While a lease stands this goes on, however long the broker is away or refuses, so that finished work need not
//! be done again. Without a lease the number of tries is bounded.

use std::time::Duration;

use relay_bridge::backoff::away;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use tokio::time::{sleep, timeout};

/// The longest one broker call may take before it counts as unanswered.
pub(crate) const CALL_MAX: Duration = Duration::from_secs(10);
/// How often a call is tried that no lease bounds. With the waits below that is some 10 s of an absent broker.
const TRIES_MAX: u32 = 28;
/// The longest wait that a broker can ask for.
const ASKED_MAX: Duration = Duration::from_secs(5);

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
            BrokerErrorKind::Overloaded { retry_after } => retry_after.min(ASKED_MAX),
            _ => Duration::ZERO,
        };
        sleep(away(tries).max(asked)).await;
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

    #[tokio::test(start_paused = true)]
    async fn a_lost_reply_is_asked_for_again() {
        let calls = Cell::new(0);
        let answer = persist(
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
            let calls = Cell::new(0);
            let answer = persist(
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
        let calls = Cell::new(0);
        let answer = persist(
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
