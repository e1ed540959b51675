//! Whether storage takes new jobs: at 90 % of what is allowed they are refused, and the rest is for outcomes, cancels and
//! redrives of what was accepted.
//!
//! What is stored is asked for in the background of the calls that want to know, at most once in [`AGE_MAX`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::names::{DEAD_STREAM, RESULTS_STREAM};
use super::{Nats, stream_api, streams};
use crate::error::{BrokerError, BrokerErrorKind};

/// How old what is known may be: at the rate that one server takes, some hundred MiB are stored meanwhile.
const AGE_MAX: Duration = Duration::from_secs(2);
/// When a refused client may try again: jobs have to end and to be removed first.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// The part of what is allowed that new jobs may fill, in percent.
const SHARE: u64 = 90;

/// What is known of storage.
#[derive(Debug, Default)]
pub(super) struct Admission {
    known: Mutex<Option<(Result<(), Full>, Instant)>>,
    /// The bytes in each stream of jobs.
    sizes: Mutex<HashMap<String, u64>>,
    /// One question at a time.
    asking: tokio::sync::Mutex<()>,
}

/// Why new jobs are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Full {
    what: &'static str,
    used: u64,
    allowed: u64,
}

impl Admission {
    fn known(&self, age_max: Duration) -> Option<Result<(), Full>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(_, at)| at.elapsed() < age_max).map(|(known, _)| known.clone())
    }

    fn learn(&self, known: Result<(), Full>, at: Instant) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((known, at));
    }

    /// The sum of what streams hold: of `answered`, and of those that are `silent` because they have no leader. These take
    /// nothing, so they hold what they held.
    fn sum(&self, answered: impl IntoIterator<Item = (String, u64)>, silent: Vec<String>) -> u64 {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next: HashMap<_, _> = answered.into_iter().collect();
        for name in silent {
            match sizes.get(&name) {
                Some(bytes) => drop(next.insert(name, *bytes)),
                None => tracing::warn!(stream = %name, "a stream has no leader: what it holds is not counted"),
            }
        }
        *sizes = next;
        sizes.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

impl Nats {
    /// Whether a job that relay does not know yet is taken.
    ///
    /// # Errors
    /// `Overloaded` at 90 % of the bytes that jobs, results or the account may have. `Unavailable` if nobody can tell.
    pub(super) async fn admit(&self) -> Result<(), BrokerError> {
        let admission = self.admission();
        let known = match admission.known(AGE_MAX) {
            Some(known) => known,
            None => {
                let _alone = admission.asking.lock().await;
                match admission.known(AGE_MAX) {
                    Some(known) => known,
                    None => {
                        let (at, known) = (Instant::now(), self.storage().await?);
                        admission.learn(known.clone(), at);
                        known
                    }
                }
            }
        };
        known.map_err(|Full { what, used, allowed }| {
            let full = BrokerErrorKind::Overloaded { retry_after: RETRY_AFTER };
            let why = format!(
                "{what} take {used} of {allowed} bytes, new jobs are taken below {SHARE} %: raise the limit, shorten \
                 `retention`, or wait until results are past it"
            );
            BrokerError::new(full, "enqueue", why)
        })
    }

    async fn storage(&self) -> Result<Result<(), Full>, BrokerError> {
        const OPERATION: &str = "ask for storage";
        let settings = self.policies().settings();
        let mut uses = Vec::new();
        if let Some(allowed) = settings.jobs_bytes_max {
            let (answered, silent) = stream_api::list_answering(self.api(), streams::ALL_JOBS, OPERATION).await?;
            let sizes = answered.into_iter().map(|stream| (stream.info.config.name, stream.info.state.bytes));
            uses.push(("jobs", self.admission().sum(sizes, silent), allowed));
        }
        if let Some(allowed) = settings.results_bytes_max {
            let mut used = 0_u64;
            for name in [RESULTS_STREAM, DEAD_STREAM] {
                used = used.saturating_add(stream_api::get(self.api(), name, OPERATION).await?.info.state.bytes);
            }
            uses.push(("results and dead letters", used, allowed));
        }
        let account: async_nats::jetstream::account::Account =
            self.api().call("INFO".to_owned(), &serde_json::Value::Null, OPERATION).await?;
        let (used, allowed) = match settings.memory {
            true => (account.memory, account.limits.max_memory),
            false => (account.storage, account.limits.max_storage),
        };
        if let Some(allowed) = allowed.and_then(|allowed| u64::try_from(allowed).ok()) {
            uses.push(("the account's streams", used, allowed));
        }
        Ok(judge(&uses))
    }
}

/// Finds the first use that is above its share.
fn judge(uses: &[(&'static str, u64, u64)]) -> Result<(), Full> {
    let full = uses.iter().find(|(_, used, allowed)| *used >= share(*allowed));
    full.map_or(Ok(()), |(what, used, allowed)| Err(Full { what, used: *used, allowed: *allowed }))
}

fn share(allowed: u64) -> u64 {
    allowed / 100 * SHARE + allowed % 100 * SHARE / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_lost_its_leader_holds_what_it_held() {
        let (admission, held) = (Admission::default(), |name: &str, bytes| (name.to_owned(), bytes));
        assert_eq!(admission.sum([held("a", 5), held("b", 7)], vec![]), 12);
        assert_eq!(admission.sum([held("b", 8)], vec!["a".to_owned()]), 13);
        assert_eq!(admission.sum([held("b", 8)], vec!["a".to_owned(), "never-seen".to_owned()]), 13);
        assert_eq!(admission.sum([held("b", 8)], vec![]), 8, "it was deleted");
    }

    #[test]
    fn new_jobs_are_taken_below_nine_tenths_of_each_limit() {
        assert_eq!(
            judge(&[("jobs", 899, 1_000), ("results", 0, 1)]),
            Err(Full { what: "results", used: 0, allowed: 1 })
        );
        assert_eq!(judge(&[("jobs", 899, 1_000), ("results", 89, 100)]), Ok(()));
        assert!(judge(&[("jobs", 900, 1_000)]).is_err());
        assert_eq!(share(u64::MAX), u64::MAX / 100 * 90 + 13);
        assert_eq!(judge(&[]), Ok(()));
    }
}
