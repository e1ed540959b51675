//! The requests of a connection that are not answered, by their ids, and the credit of those that follow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use relay_bridge::contract::wire::client::{CREDIT_BYTES_MAX, credit_bytes};
use relay_bridge::support::lock;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The requests of one connection.
#[derive(Default)]
pub(super) struct OpenRequests(Mutex<HashMap<u64, Asking>>);

/// A request that is not answered.
#[derive(Clone)]
pub(super) enum Asking {
    /// It is answered as soon as it can be.
    Plain,
    /// It may be told to wait no longer.
    Waits(CancellationToken),
    /// It is sent results for as long as it has credit.
    Follows(CancellationToken, Arc<Credit>),
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untaken {
    /// There are as many as there may be.
    TooMany,
    /// Another one has its id.
    SameId,
}

impl OpenRequests {
    /// A new request, where there may be `max`.
    pub(super) fn begin(&self, id: u64, asking: Asking, max: usize) -> Result<(), Untaken> {
        let mut open = lock(&self.0);
        if open.contains_key(&id) {
            return Err(Untaken::SameId);
        }
        if open.len() >= max {
            return Err(Untaken::TooMany);
        }
        open.insert(id, asking);
        Ok(())
    }

    /// The request is about to be answered.
    pub(super) fn end(&self, id: u64) {
        let mut open = lock(&self.0);
        open.remove(&id);
        // A burst is not paid for as long as the connection lasts.
        if open.is_empty() && open.capacity() > KEPT {
            open.shrink_to(KEPT);
        }
    }

    pub(super) fn has(&self, id: u64) -> bool {
        lock(&self.0).contains_key(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Has the request wait no longer, if it waits.
    pub(super) fn stop(&self, id: u64) {
        if let Some(Asking::Waits(stop) | Asking::Follows(stop, _)) = lock(&self.0).get(&id) {
            stop.cancel();
        }
    }

    /// Has none of them wait any longer.
    pub(super) fn stop_all(&self) {
        for asking in lock(&self.0).values() {
            if let Asking::Waits(stop) | Asking::Follows(stop, _) = asking {
                stop.cancel();
            }
        }
    }

    /// More credit for the request, if it follows.
    pub(super) fn credit(&self, id: u64, results: u32, bytes: u64) {
        if let Some(Asking::Follows(_, credit)) = lock(&self.0).get(&id) {
            credit.add(results, bytes);
        }
    }
}

/// How much may be pushed.
pub(super) struct Credit {
    left: Mutex<Left>,
    changed: Notify,
}

/// The credit that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) results: u64,
    /// Below 0 by what the last result had more than was left.
    pub(super) bytes: i64,
}

impl Credit {
    pub(super) fn new(results: u32, bytes: u64) -> Arc<Self> {
        let left = Mutex::new(Left { results: u64::from(results), bytes: credit_bytes(bytes) });
        Arc::new(Self { left, changed: Notify::new() })
    }

    /// Adds to it. More than 2^32 results or 2^40 bytes are as good as those.
    fn add(&self, results: u32, bytes: u64) {
        let mut left = lock(&self.left);
        left.results = (left.results + u64::from(results)).min(RESULTS_MAX);
        left.bytes = (left.bytes + credit_bytes(bytes)).min(CREDIT_BYTES_MAX);
        drop(left);
        self.changed.notify_one();
    }

    /// The credit as soon as there is some. Dropping the future loses nothing.
    pub(super) async fn some(&self) -> Left {
        loop {
            let left = *lock(&self.left);
            if left.is_some() {
                return left;
            }
            self.changed.notified().await;
        }
    }

    /// Spends one result of `bytes`, which may be more than is left: what is given next is counted against it. Whether there is still
    /// some.
    pub(super) fn spend(&self, bytes: u64) -> bool {
        let mut left = lock(&self.left);
        left.results = left.results.saturating_sub(1);
        left.bytes = (left.bytes - credit_bytes(bytes)).max(-CREDIT_BYTES_MAX);
        left.is_some()
    }
}

impl Left {
    fn is_some(self) -> bool {
        self.results > 0 && self.bytes > 0
    }
}

/// The room for requests that is kept while there are none.
const KEPT: usize = 16;
const RESULTS_MAX: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_so_many_requests_and_no_two_of_one_id() {
        let open = OpenRequests::default();
        open.begin(1, Asking::Plain, 2).unwrap();
        assert_eq!(open.begin(1, Asking::Plain, 2), Err(Untaken::SameId));
        open.begin(u64::MAX, Asking::Plain, 2).unwrap();
        assert_eq!(open.begin(2, Asking::Plain, 2), Err(Untaken::TooMany));
        open.end(1);
        assert!(open.begin(1, Asking::Plain, 2).is_ok() && open.has(1) && !open.is_empty());
    }

    #[tokio::test]
    async fn what_a_result_has_more_than_was_left_is_counted_against_the_next_credit_and_nothing_overflows() {
        let credit = Credit::new(3, 10);
        assert!(credit.spend(4));
        assert!(!credit.spend(40), "the last one may be larger than what is left");
        credit.add(0, 34);
        {
            let mut waits = std::pin::pin!(credit.some());
            assert!(futures_util::poll!(&mut waits).is_pending(), "it had 34 more than were left");
            credit.add(0, 1);
            assert_eq!(waits.await, Left { results: 1, bytes: 1 });
        }
        assert!(!credit.spend(u64::MAX));
        {
            let mut waits = std::pin::pin!(credit.some());
            assert!(futures_util::poll!(&mut waits).is_pending());
            credit.add(u32::MAX, 0);
            assert!(futures_util::poll!(&mut waits).is_pending(), "there are no bytes yet");
            credit.add(u32::MAX, u64::MAX);
            credit.add(u32::MAX, u64::MAX);
            assert_eq!(waits.await, Left { results: RESULTS_MAX, bytes: CREDIT_BYTES_MAX });
        }
    }
}
