//! Jobs whose results somebody waits for, by their number. A follower announces them as they come. There are never more than calls
//! in flight: a call that ends takes its own away.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{Answered, Failure, finished};
use crate::cli::bench::workload::Workload;

/// The jobs.
#[derive(Debug, Default)]
pub(super) struct Pushed(Mutex<HashMap<u64, oneshot::Sender<String>>>);

impl Pushed {
    /// Expects the result of job `number`; before it is submitted, so that it can't come too early.
    pub(super) fn expect(&self, number: u64) -> Expected<'_> {
        let (tell, outcome) = oneshot::channel();
        self.jobs().insert(number, tell);
        Expected { pushed: self, number, outcome }
    }

    /// Takes a result that was pushed. Those of other runs, and of calls that have ended, are nobody's.
    pub(super) fn announce(&self, workload: &Workload, key: Option<&str>, outcome: &str) {
        let number = key.and_then(|key| workload.number(key));
        if let Some(tell) = number.and_then(|number| self.jobs().remove(&number)) {
            tell.send(outcome.to_owned()).ok();
        }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A result that is to be pushed.
pub(super) struct Expected<'a> {
    pushed: &'a Pushed,
    number: u64,
    outcome: oneshot::Receiver<String>,
}

impl Expected<'_> {
    /// Waits for it.
    ///
    /// # Errors
    /// The run did not succeed.
    pub(super) async fn came(mut self) -> Result<Answered, Failure> {
        match (&mut self.outcome).await {
            Ok(outcome) => finished(&outcome),
            Err(_) => Err(Failure::interrupted("nobody follows results any more")),
        }
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.pushed.jobs().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::workload::{Operation, Sizes};

    #[tokio::test]
    async fn a_result_is_announced_to_the_call_that_expects_it_and_nothing_is_left_behind() {
        let workload = Workload::new(Operation::Follow, "bench".parse().unwrap(), Sizes { least: 1, most: 1 }, 1);
        let pushed = Pushed::default();
        let (first, second, gone) = (pushed.expect(1), pushed.expect(2), pushed.expect(3));
        drop(gone);
        pushed.announce(&workload, Some(&workload.key(1)), "succeeded");
        pushed.announce(&workload, Some(&workload.key(2)), "failed");
        pushed.announce(&workload, Some(&workload.key(3)), "succeeded");
        pushed.announce(&workload, Some("bench-of-others/1"), "failed");
        pushed.announce(&workload, None, "failed");
        assert_eq!(first.came().await.unwrap().jobs, 1);
        assert_eq!(second.came().await.unwrap_err().slug, "outcome-failed");
        assert!(pushed.jobs().is_empty());
    }
}
