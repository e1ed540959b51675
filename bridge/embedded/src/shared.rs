//! State that the writer thread and its callers share: the waiters for each result, leases nobody took, and the recent
//! ids.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use super::ids::Recent;
use relay_bridge::contract::{ClientId, JobId, RunId, Timestamp};
use relay_bridge::histogram::Histogram;
use relay_bridge::leasing::{Receipt, Recorded};
use relay_bridge::newer_jobs::NewerJobs;
use relay_bridge::rules::{Counts, Ending, Verdict};
use relay_bridge::support::lock;

/// The cost of commits, since the store was opened.
#[derive(Debug)]
pub struct Commits {
    /// How many callers one commit answered.
    pub operations: Histogram,
    /// How long COMMIT took, in microseconds: the flush to the disk.
    pub micros: Histogram,
}

impl Default for Commits {
    fn default() -> Self {
        const OPERATIONS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
        const MICROS: &[u64] = &[50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000];
        Self { operations: Histogram::new(OPERATIONS), micros: Histogram::new(MICROS) }
    }
}

/// A result that was recorded, with its place in its client's log.
pub(super) struct NewResult {
    pub(super) job: JobId,
    pub(super) run: RunId,
    pub(super) client: ClientId,
    pub(super) n: u64,
    pub(super) at: Timestamp,
    pub(super) envelope: Bytes,
}

/// The news of a transaction, told once it is committed.
#[derive(Default)]
pub(super) struct Done {
    /// For readers to wake.
    pub(super) finished: Vec<NewResult>,
    /// Results to count.
    pub(super) judged: Vec<Verdict<Ending, Recorded>>,
    /// Dead letters that were taken back.
    pub(super) letters_retracted: usize,
}

#[derive(Default)]
pub(super) struct Shared {
    pub(super) commits: Arc<Commits>,
    pub(super) newer_jobs: Arc<NewerJobs>,
    /// Waiters for a job receive its last result.
    pub(super) jobs: Wakers<JobId, Arc<NewResult>>,
    pub(super) clients: Wakers<ClientId, ()>,
    pub(super) recent: Arc<Recent>,
    pub(super) counts: Arc<Counts>,
    /// Receipts whose `lease` future was dropped after the writer had answered.
    abandoned: Mutex<Vec<Receipt>>,
    /// Set before an erasure is committed, and cleared by the writer alone.
    log_holds_erased: AtomicBool,
}

impl Shared {
    /// Whether the log may hold bytes that were erased.
    pub(super) fn log_holds_erased(&self) -> bool {
        self.log_holds_erased.load(Ordering::Acquire)
    }

    pub(super) fn set_log_holds_erased(&self, holds: bool) {
        self.log_holds_erased.store(holds, Ordering::Release);
    }

    /// Wakes the waiters for the results that were committed, and counts what was committed.
    pub(super) fn tell(&self, done: Done) {
        for new in done.finished {
            self.clients.wake(&new.client, || ());
            let job = new.job;
            self.jobs.wake(&job, || Arc::new(new));
        }
        done.judged.iter().for_each(|verdict| self.counts.judged(verdict));
        (0..done.letters_retracted).for_each(|_| self.counts.retracted());
    }

    /// Wakes all waiters for results.
    pub(super) fn wake_all(&self) {
        self.jobs.wake_all();
        self.clients.wake_all();
    }

    /// Bounded by the leases there are: each receipt gets here at most once.
    pub(super) fn abandon(&self, receipts: impl Iterator<Item = Receipt>) {
        lock(&self.abandoned).extend(receipts);
    }

    pub(super) fn has_abandoned(&self) -> bool {
        !lock(&self.abandoned).is_empty()
    }

    pub(super) fn take_abandoned(&self) -> Vec<Receipt> {
        std::mem::take(&mut *lock(&self.abandoned))
    }
}

/// Wakes tasks by key, with news. An entry lives as long as somebody waits on it.
pub(super) struct Wakers<K: Eq + Hash + Clone, N>(Mutex<HashMap<K, Waiting<N>>>);

/// The waiters on one key, their number, and the last news.
struct Waiting<N> {
    notify: Arc<Notify>,
    places: usize,
    news: Option<N>,
}

impl<N> Default for Waiting<N> {
    fn default() -> Self {
        Self { notify: Arc::default(), places: 0, news: None }
    }
}

impl<K: Eq + Hash + Clone, N> Default for Wakers<K, N> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, N: Clone> Wakers<K, N> {
    pub(super) fn register(&self, key: K) -> Registration<'_, K, N> {
        let mut entries = lock(&self.0);
        let waiting = entries.entry(key.clone()).or_default();
        waiting.places += 1;
        let notify = Arc::clone(&waiting.notify);
        drop(entries);
        Registration { wakers: self, key, notify }
    }

    fn wake(&self, key: &K, news: impl FnOnce() -> N) {
        if let Some(waiting) = lock(&self.0).get_mut(key) {
            waiting.news = Some(news());
            waiting.notify.notify_waiters();
        }
    }

    fn wake_all(&self) {
        lock(&self.0).values().for_each(|waiting| waiting.notify.notify_waiters());
    }
}

/// A place among those who wait; gone when dropped.
pub(super) struct Registration<'a, K: Eq + Hash + Clone, N> {
    wakers: &'a Wakers<K, N>,
    key: K,
    pub(super) notify: Arc<Notify>,
}

impl<K: Eq + Hash + Clone, N: Clone> Registration<'_, K, N> {
    /// The last news since somebody waits.
    pub(super) fn news(&self) -> Option<N> {
        lock(&self.wakers.0).get(&self.key).and_then(|waiting| waiting.news.clone())
    }
}

impl<K: Eq + Hash + Clone, N> Drop for Registration<'_, K, N> {
    fn drop(&mut self) {
        let mut entries = lock(&self.wakers.0);
        if let Some(waiting) = entries.get_mut(&self.key) {
            waiting.places -= 1;
            if waiting.places == 0 {
                entries.remove(&self.key);
            }
        }
    }
}
