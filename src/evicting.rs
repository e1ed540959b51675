//! Places for connections of which nobody knows yet whether they are good for anything: a newcomer always has one, and takes
//! that of the oldest where all are taken. Peers that hold places for nothing then keep nobody out, because they get older.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use relay_bridge::support::lock;
use tokio_util::sync::CancellationToken;

/// A bounded number of places.
#[derive(Clone, Debug)]
pub(crate) struct EvictingPool {
    max: usize,
    members: Arc<Mutex<Members>>,
}

#[derive(Debug, Default)]
struct Members {
    last: u64,
    /// The oldest first.
    here: BTreeMap<u64, CancellationToken>,
}

impl EvictingPool {
    /// `max` places, one at least.
    pub(crate) fn new(max: usize) -> Self {
        Self { max: max.max(1), members: Arc::default() }
    }

    /// A place, at once. The oldest member is told to leave if there was none.
    pub(crate) fn enter(&self) -> Member {
        self.enter_as(CancellationToken::new())
    }

    /// The same for somebody who is told to leave by `evicted`.
    pub(crate) fn enter_as(&self, evicted: CancellationToken) -> Member {
        let mut members = lock(&self.members);
        while members.here.len() >= self.max
            && let Some((_, oldest)) = members.here.pop_first()
        {
            oldest.cancel();
        }
        members.last += 1;
        let number = members.last;
        members.here.insert(number, evicted.clone());
        Member { pool: self.clone(), number, evicted }
    }
}

/// A place, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Member {
    pool: EvictingPool,
    number: u64,
    /// Cancelled when somebody else needs the place.
    pub(crate) evicted: CancellationToken,
}

impl Member {
    /// Makes this the newest member, unless it was told to leave.
    pub(crate) fn renew(&mut self) {
        let mut members = lock(&self.pool.members);
        if let Some(evicted) = members.here.remove(&self.number) {
            members.last += 1;
            self.number = members.last;
            members.here.insert(self.number, evicted);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        lock(&self.pool.members).here.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room_for_the_newest_and_one_that_left_for_nobody() {
        let pool = EvictingPool::new(2);
        let (first, second) = (pool.enter(), pool.enter());
        let third = pool.enter();
        assert!(first.evicted.is_cancelled() && !second.evicted.is_cancelled());
        drop((first, third));
        let fourth = pool.enter();
        assert!(!second.evicted.is_cancelled());
        let fifth = pool.enter();
        assert!(second.evicted.is_cancelled() && !fourth.evicted.is_cancelled() && !fifth.evicted.is_cancelled());
    }

    #[test]
    fn a_member_that_is_renewed_leaves_after_those_that_came_meanwhile() {
        let pool = EvictingPool::new(2);
        let (mut first, second) = (pool.enter(), pool.enter());
        first.renew();
        let third = pool.enter();
        assert!(second.evicted.is_cancelled() && !first.evicted.is_cancelled());
        let _fourth = pool.enter();
        assert!(first.evicted.is_cancelled() && !third.evicted.is_cancelled());
        first.renew();
        assert!(!third.evicted.is_cancelled(), "it is gone already");
    }
}
