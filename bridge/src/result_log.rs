//! The reader's seam: one result, a wait for it, and all of a client's results after a cursor. A read consumes nothing.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::contract::{ClientId, Cursor, JobId, JobResult, JobStatus, RunId};
use crate::error::BrokerError;

/// The most entries of one [`page`](ResultLog::page).
pub const PAGE_ENTRIES_MAX: u32 = 100;
/// The most payload bytes of one [`page`](ResultLog::page); a single larger entry still comes, alone.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// Reads results. Every call is filtered by its client.
#[async_trait]
pub trait ResultLog: Send + Sync {
    /// Where the client's job stands. *Finished* means there is a result whose run is the record's, or a result
    /// without a record.
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError>;

    /// The same, but waits up to `wait` while the run is open. Costs no polling; dropping the future costs nothing.
    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError>;

    /// Waits up to `wait` for the result of `run`, or of a later one, of a job that the caller is about to enqueue: begun
    /// before, it hears of the result of a run that the enqueuing starts without looking anything up. `None` if it did not
    /// come in time, or if the broker has nothing better than [`wait`](Self::wait) once the job is enqueued, and then at
    /// once. What it says of a job that was there already is nothing. Dropping the future costs nothing.
    async fn wait_ahead(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError>;

    /// The client's results after `from`, oldest first, at most `limit` (1 to [`PAGE_ENTRIES_MAX`]) and
    /// [`PAGE_BYTES_MAX`]; if there are none, waits up to `wait` for one. Entries of one client are in the order in
    /// which they were recorded; a result that a later run replaced is no longer among them.
    ///
    /// # Errors
    /// `Invalid` if the cursor is another client's.
    async fn page(&self, client: &ClientId, from: &Start, limit: u32, wait: Duration) -> Result<Page, BrokerError>;
}

/// What there is to know about a job's result.
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
    /// What follows the cursor was removed by retention in part.
    OlderThanRetention,
}
