//! Whether storage takes new jobs: at 90 % of what is allowed they are refused, and the rest is for outcomes, cancels and
//! redrives of what was accepted.
//!
//! What is stored is asked for in the background of the calls that want to know, at most once in [`AGE_MAX`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::account::Account;

use super::alone::Alone;
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
    asking: Alone,
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
                let asked = async {
                    let (at, known) = (Instant::now(), self.storage().await?);
                    admission.learn(known.clone(), at);
                    Ok(known)
                };
                admission.asking.ask(|| admission.known(AGE_MAX), Box::pin(asked)).await?
            }
        };
        known.map_err(|Full { what, used, allowed }| {
            let full = BrokerErrorKind::Overloaded { retry_after: RETRY_AFTER };
            let why = format!(
                "{what} take {used} of {allowed} bytes, new jobs are taken below {SHARE} %: raise the limit, shorten \
                 `retention`, or wait until results are past it"
            );
            BrokerError::new(full, "enqueue", why).of_storage()
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
        let account: Account = self.api().call("INFO".to_owned(), &serde_json::Value::Null, OPERATION).await?;
        let kept = self.kept();
        uses.extend(of_account(&account, kept.memory, kept.replicas_most));
        Ok(judge(&uses))
    }
}

/// What the account uses of what it may use, if that is bounded; 0 is a bound. Where limits are by the number of replicas,
/// what counts is that of relay's streams: its use is of all replicas together, its limit is of each.
fn of_account(account: &Account, memory: bool, replicas: usize) -> Option<(&'static str, u64, u64)> {
    let (used, limits, times) = match account.tiers.get(&format!("R{replicas}")) {
        Some(tier) => (if memory { tier.memory } else { tier.storage }, tier.limits, replicas as u64),
        // Those of the account itself are zeros then, and mean nothing. Without a tier the server refuses by itself.
        None if !account.tiers.is_empty() => return None,
        None => (if memory { account.memory } else { account.storage }, account.limits, 1),
    };
    let allowed = u64::try_from(if memory { limits.max_memory } else { limits.max_storage }?).ok()?;
    Some(("the account's streams", used, allowed.saturating_mul(times)))
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
    use serde_json::json;

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
    fn an_account_with_limits_by_replicas_is_judged_by_the_one_of_relays_streams() {
        let limits = |memory: i64, storage: i64| {
            json!({
                "max_memory": memory, "max_storage": storage, "max_streams": -1, "max_consumers": -1, "max_ack_pending": -1,
                "memory_max_stream_bytes": -1, "storage_max_stream_bytes": -1, "max_bytes_required": false,
            })
        };
        let used = |memory: u64, storage: u64, limits: serde_json::Value| {
            json!({
                "memory": memory, "storage": storage, "reserved_memory": 0, "reserved_storage": 0, "streams": 4,
                "consumers": 1, "limits": limits, "api": { "level": 4, "total": 9, "errors": 0 },
            })
        };
        let read = |account: serde_json::Value| serde_json::from_value::<Account>(account).unwrap();
        let mut tiered = used(0, 7_000, limits(0, 0));
        tiered["tiers"] = json!({ "R1": used(5, 1_000, limits(-1, 1_000)), "R3": used(7, 6_000, limits(100, 4_000)) });
        let tiered = read(tiered);
        let streams = "the account's streams";
        assert_eq!(of_account(&tiered, false, 3), Some((streams, 6_000, 12_000)));
        assert_eq!(of_account(&tiered, true, 3), Some((streams, 7, 300)));
        assert_eq!(of_account(&tiered, false, 1), Some((streams, 1_000, 1_000)));
        assert_eq!(of_account(&tiered, true, 1), None, "it is not bounded");
        assert_eq!(of_account(&tiered, false, 5), None);
        let flat = read(used(1, 2, limits(0, 9)));
        assert_eq!(of_account(&flat, false, 3), Some((streams, 2, 9)));
        assert_eq!(of_account(&flat, true, 3), Some((streams, 1, 0)), "the server takes nothing there");
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
