//! An erasure ends when the log holds nothing that was erased: rounds that take all readers' places and cut the log to nothing.
//! One round serves all erasures that were committed before it began, so that readers stand aside once for many.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, oneshot};

use super::writer::{Writer, closed};
use super::{Embedded, FORGET_AGAIN, FORGET_WITHIN, READERS_MAX};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// The rounds of a store, one at a time.
#[derive(Default)]
pub(super) struct Rounds {
    /// How many have begun.
    begun: AtomicU64,
    /// The last that ended. A caller that goes away in its round leaves this as it was, and the next one begins another.
    ended: Mutex<Ended>,
}

#[derive(Clone, Copy, Default)]
struct Ended {
    /// Counted from 1.
    round: u64,
    emptied: bool,
}

impl Embedded {
    /// Ready when the log holds nothing that was erased. It can't be emptied while somebody reads: readers of this process
    /// begin after it, those of others are waited for.
    ///
    /// # Errors
    /// `Unavailable` if others read for five seconds, or the store is closed.
    pub(super) async fn forget(&self) -> Result<(), BrokerError> {
        let until = self.clock().monotonic() + FORGET_WITHIN;
        while !self.has_forgotten().await? {
            let now = self.clock().monotonic();
            if now >= until {
                let why = "the job is erased, but its bytes are in the write-ahead log still, which somebody reads for long, \
                           perhaps a backup: retry when that has ended, which is safe and completes it";
                return Err(BrokerError::new(BrokerErrorKind::Unavailable, "erase", why));
            }
            self.clock().sleep_until(now + FORGET_AGAIN).await;
        }
        Ok(())
    }

    /// Whether the log holds nothing that was erased before this call, after a round that began since then if it did.
    async fn has_forgotten(&self) -> Result<bool, BrokerError> {
        let (rounds, shared) = (&self.inner.rounds, &self.inner.shared);
        // Those that began already may have missed what this caller erased.
        let before = rounds.begun.load(Ordering::Relaxed);
        if !shared.log_holds_erased() {
            return Ok(true);
        }
        let mut ended = rounds.ended.lock().await;
        if ended.round > before {
            return Ok(ended.emptied);
        }
        let round = rounds.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let none_reads = self.inner.reading.acquire_many(READERS_MAX).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let work = move |writer: &mut Writer| {
            writer.forgetting = Some(reply);
            None
        };
        self.inbox()?.send(Box::new(work)).await.map_err(|_| closed())?;
        let emptied = answer.await.map_err(|_| closed())?;
        drop(none_reads);
        *ended = Ended { round, emptied };
        Ok(emptied)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use bytes::Bytes;
    use futures_util::future::join_all;

    use crate::testing::Store;
    use relay_bridge::contract::Job;

    const SECRET: &[u8] = b"SECRET-PAYLOAD";

    /// Jobs of the client `me` that are over, whose payloads are in the log.
    async fn finished(store: &Store, count: usize) -> Vec<Job> {
        let jobs = &store.store.broker().jobs;
        let mut finished = Vec::new();
        for _ in 0..count {
            let job = Job { payload: Bytes::from_static(SECRET), ..store.job("me", None, 1) };
            jobs.enqueue(job.clone()).await.unwrap();
            jobs.cancel(&job.client, job.id).await.unwrap();
            finished.push(job);
        }
        finished
    }

    async fn erase(store: &Store, jobs: &[Job]) {
        let broker = store.store.broker();
        let erased = store.in_one_batch(join_all(jobs.iter().map(|job| broker.jobs.erase(&job.client, job.id))));
        for erased in erased.await {
            erased.unwrap();
        }
    }

    fn rounds(store: &Store) -> u64 {
        store.store.inner.rounds.begun.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn erasures_that_come_together_share_rounds_and_leave_nothing_in_the_log() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        let store = Store::open_at(Some(&path), |_| {}).await;
        let jobs = finished(&store, 100).await;
        let held = |file: &str| {
            let bytes = std::fs::read(folder.path().join(file)).unwrap();
            bytes.windows(SECRET.len()).filter(|part| *part == SECRET).count()
        };
        assert!(held("relay.db-wal") >= jobs.len(), "the log holds the payloads before");
        erase(&store, &jobs).await;
        assert_eq!((held("relay.db-wal"), held("relay.db")), (0, 0), "an answered erasure is in no file");
        let first = rounds(&store);
        assert!((1..=2).contains(&first), "{first} rounds for {} erasures", jobs.len());

        erase(&store, &jobs).await;
        assert_eq!(rounds(&store), first, "an erasure of what is erased lets readers be");
        store.store.close().await;
    }

    #[tokio::test]
    async fn an_erasure_whose_caller_went_away_in_its_round_holds_up_no_other() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = Store::open_at(Some(&folder.path().join("relay.db")), |_| {}).await;
        let jobs = finished(&store, 2).await;
        let broker = store.store.broker();
        let reader = store.store.inner.reading.acquire().await.unwrap();
        let mut gone = Box::pin(broker.jobs.erase(&jobs[0].client, jobs[0].id));
        while rounds(&store) == 0 {
            tokio::select! {
                biased;
                erased = &mut gone => panic!("{erased:?} although somebody reads"),
                () = tokio::task::yield_now() => {}
            }
        }
        drop((gone, reader));
        broker.jobs.erase(&jobs[1].client, jobs[1].id).await.unwrap();
        assert_eq!(rounds(&store), 2);
        assert!(!store.store.inner.shared.log_holds_erased());
        store.store.close().await;
    }
}
