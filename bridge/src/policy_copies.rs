//! A broker's copies of its queues' policies in one process. A copy is dropped once a change is told; a policy that was asked for
//! before the change was told may be the one from before, and is not kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::contract::QueueName;
use crate::policy::QueuePolicy;
use crate::support::lock;

/// How old a copy may be before the broker is asked again: for so long at most a process misses a change that it was not told of.
pub const AGE_MAX: Duration = Duration::from_secs(5);

/// The copies, of queues that exist only.
#[derive(Debug, Default)]
pub struct PolicyCopies(Mutex<Copies>);

#[derive(Debug, Default)]
struct Copies {
    /// Each with the moment at which it was asked for.
    of: HashMap<QueueName, (Arc<QueuePolicy>, Instant)>,
    /// When a change was last told, of any queue: changes are rare, and what is not kept is asked for again.
    changed: Option<Instant>,
}

impl PolicyCopies {
    /// The copy of the policy of `queue`, at most [`AGE_MAX`] old.
    #[must_use]
    pub fn get(&self, queue: &QueueName) -> Option<Arc<QueuePolicy>> {
        let copies = lock(&self.0);
        copies.of.get(queue).filter(|(_, asked)| asked.elapsed() < AGE_MAX).map(|(policy, _)| Arc::clone(policy))
    }

    /// Keeps the policy that the broker answered when it was asked at `asked`, unless a change was told since.
    pub fn keep(&self, queue: &QueueName, policy: QueuePolicy, asked: Instant) -> Arc<QueuePolicy> {
        let policy = Arc::new(policy);
        let mut copies = lock(&self.0);
        if copies.is_current(asked) {
            copies.of.insert(queue.clone(), (Arc::clone(&policy), asked));
        }
        policy
    }

    /// Whether no change was told since `asked`.
    #[must_use]
    pub fn is_current(&self, asked: Instant) -> bool {
        lock(&self.0).is_current(asked)
    }

    /// Drops the copy of a queue that is not there.
    pub fn remove(&self, queue: &QueueName) {
        lock(&self.0).of.remove(queue);
    }

    /// Notes that the policy of `queue` changed: the next caller gets it as it is now.
    pub fn changed(&self, queue: &QueueName) {
        let mut copies = lock(&self.0);
        copies.changed = Some(Instant::now());
        copies.of.remove(queue);
    }

    /// Notes that any policy may have changed.
    pub fn all_changed(&self) {
        *lock(&self.0) = Copies { of: HashMap::new(), changed: Some(Instant::now()) };
    }
}

impl Copies {
    fn is_current(&self, asked: Instant) -> bool {
        self.changed.is_none_or(|changed| changed < asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(max_attempts: u32) -> QueuePolicy {
        QueuePolicy { max_attempts, ..QueuePolicy::default() }
    }

    #[test]
    fn a_policy_that_was_asked_for_before_a_change_was_told_is_not_kept() {
        let (copies, queue) = (PolicyCopies::default(), "mail".parse::<QueueName>().unwrap());
        let before = Instant::now();
        copies.keep(&queue, policy(3), before);
        assert_eq!(*copies.get(&queue).unwrap(), policy(3));
        copies.changed(&queue);
        assert_eq!(copies.get(&queue), None);
        assert_eq!(*copies.keep(&queue, policy(3), before), policy(3), "its caller asked before, too");
        assert_eq!(copies.get(&queue), None, "the next one asks again");
        let after = Instant::now() + Duration::from_millis(1);
        copies.keep(&queue, policy(4), after);
        assert_eq!(*copies.get(&queue).unwrap(), policy(4));
        copies.all_changed();
        copies.keep(&queue, policy(3), before);
        assert_eq!(copies.get(&queue), None);
    }

    #[test]
    fn a_copy_is_good_for_a_while() {
        let (copies, queue) = (PolicyCopies::default(), "mail".parse::<QueueName>().unwrap());
        let Some(long_ago) = Instant::now().checked_sub(AGE_MAX) else { return };
        copies.keep(&queue, policy(3), long_ago);
        assert_eq!(copies.get(&queue), None);
        copies.keep(&queue, policy(3), Instant::now());
        copies.remove(&queue);
        assert_eq!(copies.get(&queue), None);
    }
}
