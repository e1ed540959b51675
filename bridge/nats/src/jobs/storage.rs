//! How many bytes are used of those that are allowed: for jobs, for results, and for the account.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_nats::jetstream::account::Account;

use crate::records::policies::Policies;
use crate::stored::kept::Kept;
use crate::stored::names::{DEAD_STREAM, RESULTS_STREAM};
use crate::stored::streams;
use crate::wire::api::Api;
use crate::wire::stream_calls::{self, Stream};
use relay_bridge::error::BrokerError;
use relay_bridge::support::lock;

const OPERATION: &str = "ask for storage";

/// A part of storage that has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) what: &'static str,
    pub(crate) of: Of,
    pub(crate) used: u64,
    pub(crate) allowed: u64,
    /// How often each byte counts.
    pub(crate) times: u64,
}

/// The bytes of this process that count for a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Jobs,
    Results,
    All,
}

/// Streams as they were seen last, by name.
#[derive(Debug, Default)]
pub(crate) struct Sizes(Mutex<HashMap<String, Size>>);

/// The bytes that a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    /// In each replica.
    bytes: u64,
    /// In all of them together.
    of_replicas: u64,
}

impl Size {
    fn of(stream: &Stream) -> Self {
        let (bytes, replicas) = (stream.info.state.bytes, stream.info.config.num_replicas.max(1) as u64);
        Self { bytes, of_replicas: bytes.saturating_mul(replicas) }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(more.bytes),
            of_replicas: self.of_replicas.saturating_add(more.of_replicas),
        }
    }
}

impl Sizes {
    /// The sum of what streams hold: of `answered`, and of those that are `silent` because they have no leader. These take
    /// nothing, so they hold what they held.
    fn sum(&self, answered: impl IntoIterator<Item = (String, Size)>, silent: Vec<String>) -> Size {
        let mut sizes = lock(&self.0);
        let mut next: HashMap<_, _> = answered.into_iter().collect();
        for name in silent {
            match sizes.get(&name) {
                Some(size) => drop(next.insert(name, *size)),
                None => tracing::warn!(stream = %name, "a stream has no leader: its messages are not counted"),
            }
        }
        *sizes = next;
        sizes.values().fold(Size::default(), |sum, size| sum.plus(*size))
    }
}

/// Asks how much storage is used, and how much is allowed.
pub(crate) struct Storage {
    pub(crate) api: Api,
    pub(crate) policies: Arc<Policies>,
    pub(crate) kept: Arc<Kept>,
    pub(crate) sizes: Sizes,
}

impl Storage {
    /// The storage that is used and has a limit. Between several servers the account's use is some 1.5 s old: `exact` has
    /// relay's streams counted at their leaders as well.
    ///
    /// # Errors
    /// `Unavailable` if nobody can tell.
    pub(crate) async fn used(&self, exact: bool) -> Result<Vec<Use>, BrokerError> {
        let (settings, kept) = (self.policies.settings(), self.kept.get());
        let account: Account = self.api.call("INFO".to_owned(), &serde_json::Value::Null, OPERATION).await?;
        let mut account = of_account(&account, kept.memory, kept.replicas_most);
        let exact = exact && account.is_some() && self.api.is_clustered();
        let (mut uses, mut held) = (Vec::new(), 0);
        if exact || settings.jobs_bytes_max.is_some() {
            let (answered, silent) = stream_calls::list_answering(&self.api, streams::ALL_JOBS, OPERATION).await?;
            let sizes = answered.iter().map(|stream| (stream.info.config.name.clone(), Size::of(stream)));
            let size = self.sizes.sum(sizes, silent);
            held += size.of_replicas;
            let of_jobs = |allowed| Use { what: "jobs", of: Of::Jobs, used: size.bytes, allowed, times: 1 };
            uses.extend(settings.jobs_bytes_max.map(of_jobs));
        }
        if exact || settings.results_bytes_max.is_some() {
            let mut size = Size::default();
            for name in [RESULTS_STREAM, DEAD_STREAM] {
                size = size.plus(Size::of(&stream_calls::get(&self.api, name, OPERATION).await?));
            }
            held += size.of_replicas;
            let what = "results and dead letters";
            let of_results = |allowed| Use { what, of: Of::Results, used: size.bytes, allowed, times: 1 };
            uses.extend(settings.results_bytes_max.map(of_results));
        }
        if exact && let Some(account) = &mut account {
            account.used = account.used.max(held);
        }
        uses.extend(account);
        Ok(uses)
    }
}

/// The account's use of its storage, if that is bounded; 0 is a bound. Where limits are by the number of replicas, the
/// tier of relay's streams counts: its use is of all replicas together, its limit is of each.
fn of_account(account: &Account, memory: bool, replicas: usize) -> Option<Use> {
    let (used, limits, limits_of) = match account.tiers.get(&format!("R{replicas}")) {
        Some(tier) => (if memory { tier.memory } else { tier.storage }, tier.limits, replicas as u64),
        // Those of the account itself are zeros then, and mean nothing. Without a tier the server refuses by itself.
        None if !account.tiers.is_empty() => return None,
        None => (if memory { account.memory } else { account.storage }, account.limits, 1),
    };
    let allowed = u64::try_from(if memory { limits.max_memory } else { limits.max_storage }?).ok()?;
    let allowed = allowed.saturating_mul(limits_of);
    Some(Use { what: "the account's streams", of: Of::All, used, allowed, times: replicas as u64 })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stream_that_lost_its_leader_holds_what_it_held() {
        let sizes = Sizes::default();
        let held = |name: &str, bytes| (name.to_owned(), Size { bytes, of_replicas: 3 * bytes });
        assert_eq!(sizes.sum([held("a", 5), held("b", 7)], vec![]).bytes, 12);
        assert_eq!(sizes.sum([held("b", 8)], vec!["a".to_owned()]).bytes, 13);
        assert_eq!(sizes.sum([held("b", 8)], vec!["a".to_owned(), "never-seen".to_owned()]).bytes, 13);
        assert_eq!(sizes.sum([held("b", 8)], vec![]), Size { bytes: 8, of_replicas: 24 }, "it was deleted");
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
        let of = |used, allowed, times| {
            let what = "the account's streams";
            Some(Use { what, of: Of::All, used, allowed, times })
        };
        assert_eq!(of_account(&tiered, false, 3), of(6_000, 12_000, 3));
        assert_eq!(of_account(&tiered, true, 3), of(7, 300, 3));
        assert_eq!(of_account(&tiered, false, 1), of(1_000, 1_000, 1));
        assert_eq!(of_account(&tiered, true, 1), None, "it is not bounded");
        assert_eq!(of_account(&tiered, false, 5), None);
        let flat = read(used(1, 2, limits(0, 9)));
        assert_eq!(of_account(&flat, false, 3), of(2, 9, 3));
        assert_eq!(of_account(&flat, true, 3), of(1, 0, 3), "the server takes nothing there");
    }
}
