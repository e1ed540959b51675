//! Single flight: callers that want the same at the same time share one request and its answer. If the request fails
//! and may succeed later, the callers that waited for it get that failure too, instead of each asking anew.

use tokio::sync::Mutex;
use tokio::time::Instant;

use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// One single flight. The caller that asks holds its lock; the others wait for the lock.
#[derive(Debug, Default)]
pub(crate) struct SingleFlight(Mutex<Option<Failed>>);

/// The last failure, if asking may succeed later.
#[derive(Debug)]
struct Failed {
    at: Instant,
    kind: BrokerErrorKind,
    operation: &'static str,
    detail: String,
}

impl SingleFlight {
    /// The value that `known` gives once it is this caller's turn, or else the answer of `ask`.
    ///
    /// # Errors
    /// As `ask`. Also the failure of another caller that asked while this one waited for its turn, if asking may
    /// succeed later.
    pub(crate) async fn run<T>(
        &self,
        known: impl FnOnce() -> Option<T>,
        ask: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        let called = Instant::now();
        let mut last = self.0.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        if let Some(failed) = last.as_ref().filter(|failed| failed.at >= called) {
            return Err(BrokerError::new(failed.kind, failed.operation, failed.detail.clone()));
        }
        let answer = ask.await;
        if let Err(error) = answer.as_ref()
            && error.is_transient()
        {
            let (kind, operation, detail) = (error.kind(), error.operation(), error.detail().to_owned());
            *last = Some(Failed { at: Instant::now(), kind, operation, detail });
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use futures_util::future::join_all;

    use super::*;

    fn error(kind: BrokerErrorKind) -> BrokerError {
        BrokerError::new(kind, "test", "no")
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_waited_share_a_failure_that_may_pass_and_who_comes_later_asks_again() {
        let (flight, asked) = (SingleFlight::default(), Cell::new(0));
        let (flight, asked) = (&flight, &asked);
        let ask = |kind| {
            flight.run(|| None::<()>, async move {
                asked.set(asked.get() + 1);
                tokio::time::sleep(Duration::from_secs(5)).await;
                Err(error(kind))
            })
        };
        for (kind, times) in [(BrokerErrorKind::Unavailable, 1), (BrokerErrorKind::Corrupt, 10)] {
            asked.set(0);
            for answer in join_all((0..10).map(|_| ask(kind))).await {
                assert_eq!(answer.unwrap_err().kind(), kind);
            }
            assert_eq!(asked.get(), times, "{kind:?}");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(ask(BrokerErrorKind::Unavailable).await.unwrap_err().kind(), BrokerErrorKind::Unavailable);
        assert_eq!(asked.get(), 11);
    }

    #[tokio::test]
    async fn what_another_learned_meanwhile_is_not_asked_for() {
        let (flight, known) = (SingleFlight::default(), Cell::new(None));
        let known = &known;
        let answers = join_all((0..10).map(|number| {
            flight.run(|| known.get(), async move {
                tokio::task::yield_now().await;
                known.set(Some(number));
                Ok(number)
            })
        }));
        assert!(answers.await.into_iter().all(|answer| answer.unwrap() == 0));
    }
}
