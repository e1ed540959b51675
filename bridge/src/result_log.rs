//! The reader's seam: one result, a wait for it, and all of a client's results after a cursor. A read consumes nothing.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::contract::{ClientId, Cursor, IdempotencyKey, JobId, JobResult, JobStatus, QueueName, RunId};
use crate::error::BrokerError;

/// The most entries of one [`page`](ResultLog::page).
pub const PAGE_ENTRIES_MAX: u32 = 100;
/// The most payload bytes of one [`page`](ResultLog::page); a single larger entry still comes, alone.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// The most results that one [`page`](ResultLog::page) passes over because its filter leaves them out.
pub const PASSED_MAX: usize = 1_000;
/// The most payload bytes of results that one [`page`](ResultLog::page) passes over, and one result more.
pub const PASSED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Reads results. Every call is filtered by its client.
#[async_trait]
pub trait ResultLog: Send + Sync {
    /// Where the client's job stands. *Finished* means there is a result whose run is the record's, or a result
    /// without a record.
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError>;

    /// The same, but waits up to `wait` while the run is open. Costs no polling; dropping the future costs nothing.
    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError>;

    /// Waits up to `wait` for the result of `run`, or of a later one, of a job that the caller is about to enqueue:
    /// begun before, it hears of the result of a run that the enqueuing starts without looking anything up. `None` if
    /// it did not come in time, or if the broker has nothing better than [`wait`](Self::wait) once the job is enqueued,
    /// and then at once. Its answer says nothing about a job that was there already. Dropping the future costs nothing.
    async fn wait_ahead(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError>;

    /// The client's results after `from` that `filter` wants, oldest first, at most `limit` (1 to [`PAGE_ENTRIES_MAX`])
    /// and [`PAGE_BYTES_MAX`]; if there are no results at all, waits up to `wait` for one. Entries of one client are in
    /// the order in which they were recorded; a result that a later run replaced is no longer among them.
    ///
    /// A result that the filter leaves out counts as read: `next` is behind it, and a wait ends with it. A page passes over
    /// at most [`PASSED_MAX`] such results, so it may be short, or empty, and still have moved on.
    ///
    /// # Errors
    /// `Invalid` if the cursor is another client's.
    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError>;
}

/// Which of a client's results are wanted: by default all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResultFilter {
    /// Only of these queues; `None` for all.
    pub queues: Option<Vec<QueueName>>,
    /// Only of jobs whose key begins with this; those without a key are left out.
    pub key_prefix: Option<String>,
}

impl ResultFilter {
    /// All of them.
    pub const ALL: Self = Self { queues: None, key_prefix: None };

    /// Whether it leaves nothing out.
    #[must_use]
    pub fn wants_all(&self) -> bool {
        self.queues.is_none() && self.key_prefix.is_none()
    }

    /// Whether the result of a job in `queue` with this key is wanted.
    #[must_use]
    pub fn wants(&self, queue: &QueueName, key: Option<&IdempotencyKey>) -> bool {
        self.queues.as_ref().is_none_or(|wanted| wanted.contains(queue))
            && IdempotencyKey::begins_with(key, self.key_prefix.as_deref())
    }
}

/// The answer to a look-up of a job's result.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The run ended.
    Finished(Box<Finished>),
    /// The run is open.
    Open(Box<JobStatus>),
    /// No such job of this client, or all of it is past its keeping.
    Absent,
}

/// A finished run's result.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The result. Its payload is empty if `erased`.
    pub result: JobResult,
    /// Where it is in the client's log.
    pub cursor: Cursor,
    /// Whether the payload was erased: outcome and times stay (`result-expired`).
    pub erased: bool,
}

/// Where to start reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest result that is kept.
    Oldest,
    /// At the end: only what comes from now on.
    Now,
    /// After what was read before.
    After(Cursor),
}

/// A stretch of one client's results.
#[derive(Clone, Debug)]
pub struct Page {
    /// Set if the cursor could not be continued and reading restarted at the oldest result that is kept.
    pub reset: Option<Reset>,
    /// The results, oldest first.
    pub entries: Vec<Finished>,
    /// Where to continue; also set if there are no entries.
    pub next: Cursor,
}

/// Why reading restarted at the oldest result that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reset {
    /// The log is another one than the cursor's, or went back behind it: a restore, or a new store.
    LogReplaced,
    /// Retention removed a part of the results after the cursor.
    OlderThanRetention,
}
