//! Creating what a broker needs before the first job: apart from the data plane, because it has other credentials.

use async_trait::async_trait;

use crate::contract::QueueName;
use crate::error::BrokerError;
use crate::policy::QueuePolicy;

/// Compares what is wanted with what there is, and makes it so.
#[async_trait]
pub trait Provision: Send + Sync {
    /// What `apply` would change for these queues, in order; empty if nothing.
    async fn plan(&self, queues: &[(QueueName, QueuePolicy)]) -> Result<Vec<Change>, BrokerError>;

    /// Makes it so, and says what it changed. Idempotent. Queues that are not named are left alone.
    ///
    /// # Errors
    /// `StateConflict` if a change is destructive and `force` is not set: nothing was changed.
    async fn apply(&self, queues: &[(QueueName, QueuePolicy)], force: bool) -> Result<Vec<Change>, BrokerError>;
}

/// One difference between what is wanted and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The queue.
    pub queue: QueueName,
    /// What differs, from what to what: `retention: 24h -> 1h`.
    pub what: String,
    /// Whether it can shorten what a client relies on; then it needs `force`.
    pub destructive: bool,
}

/// What differs between the policy that is wanted for `queue` and the one there is (`None`: no such queue), field by field.
/// Whether the queue is paused is no difference: a pause stands until it is resumed.
#[must_use]
pub fn policy_changes(queue: &QueueName, found: Option<&QueuePolicy>, wanted: &QueuePolicy) -> Vec<Change> {
    let change = |what: String, destructive| Change { queue: queue.clone(), what, destructive };
    let Some(found) = found else { return vec![change("create the queue".to_owned(), false)] };
    let fields = |policy: &QueuePolicy| match serde_json::to_value(policy) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (fields(found), fields(wanted));
    let mut changed = Vec::new();
    // A field that is in one of them alone has its default in the other.
    let gone = old.keys().filter(|field| !new.contains_key(*field));
    for field in new.keys().chain(gone).filter(|field| *field != "paused") {
        let of = |fields: &serde_json::Map<_, _>| fields.get(field).cloned().unwrap_or_default();
        let (before, value) = (of(&old), of(&new));
        if before != value {
            let kept = ["retention_ms", "dead_retention_ms", "job_ttl_ms"].contains(&field.as_str());
            let shorter = kept && value.as_u64() < before.as_u64();
            changed.push(change(format!("{field}: {before} -> {value}"), shorter));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_to_and_from_what_is_left_out_by_default_is_a_change() {
        let queue = "mail".parse().unwrap();
        let some = QueuePolicy { allowed_clients: ["shop".parse().unwrap()].into(), ..QueuePolicy::default() };
        for (found, wanted, what) in [
            (&QueuePolicy::default(), &some, "allowed_clients: null -> [\"shop\"]"),
            (&some, &QueuePolicy::default(), "allowed_clients: [\"shop\"] -> null"),
        ] {
            let [change] = &policy_changes(&queue, Some(found), wanted)[..] else { panic!("one change: {what}") };
            assert_eq!((change.what.as_str(), change.destructive), (what, false));
        }
        assert!(policy_changes(&queue, Some(&some), &some).is_empty());
    }
}
