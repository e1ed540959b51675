//! Results: recorded once per run, looked up, erased.
//!
//! *Finished* means that the result's run is the record's. Both are read at the leaders: a replica that lags behind would
//! answer a result that was erased, or a run that was started anew, as it was before.

use std::time::Duration;

use async_trait::async_trait;

use super::Nats;
use super::api::Written;
use super::entry::{self, Entry};
use super::names::{self, RESULTS_STREAM};
use crate::contract::{ClientId, JobId, JobResult, Outcome, RunId, Timestamp};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::leasing::Recorded;
use crate::result_log::{Finished, Lookup, Page, ResultLog, Start};

/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;

#[async_trait]
impl ResultLog for Nats {
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        self.look_up(client, job).await
    }

    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        self.wait_for(client, job, wait).await
    }

    async fn wait_ahead(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        self.listen_for(client, job, run, wait).await
    }

    async fn page(&self, client: &ClientId, from: &Start, limit: u32, wait: Duration) -> Result<Page, BrokerError> {
        self.read_page(client, from, limit, wait).await
    }
}

impl Nats {
    /// Records `result` unless the run, or a greater one, has one. The caller has looked at the record, whose run is the
    /// result's, and says when that run was due: the result is kept at least as long as the record.
    ///
    /// # Errors
    /// `TooLarge`, `Overloaded`, `Unavailable`: no effect. `Ambiguous`: record it again.
    pub(super) async fn record_result(&self, result: &JobResult, due_at: Timestamp) -> Result<Recorded, BrokerError> {
        const OPERATION: &str = "record";
        let (actual, limit) = (result.payload.len() as u64, self.payload_max());
        if actual > limit {
            let why = format!("the result has {actual} bytes, the server takes {limit}");
            return Err(BrokerError::new(BrokerErrorKind::TooLarge { actual, limit }, OPERATION, why));
        }
        let mut expected = 0;
        for _ in 0..TRIES {
            let now = self.clock().now();
            let keep_until = now.max(due_at) + Duration::from_millis(result.keep_ms);
            let message = entry::record(result, keep_until, now, self.wire(), expected);
            if let Written::At(_) = self.api().publish(message, OPERATION).await? {
                return Ok(Recorded::First);
            }
            let Some(found) = self.entry_at_leader(&result.client, result.job_id).await? else {
                expected = 0;
                continue;
            };
            if found.result == *result && !found.erased {
                // Its own first try, whose confirmation was lost.
                return Ok(Recorded::First);
            }
            if found.result.run_id >= result.run_id {
                let (outcome, attempt) = (found.result.outcome, result.attempt);
                tracing::info!(job_id = %result.job_id, run_id = %result.run_id, attempt, %outcome, "result superseded");
                return Ok(Recorded::Superseded(outcome));
            }
            expected = found.seq;
        }
        let why = format!("others keep writing results of job {}: record it again", result.job_id);
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }

    /// The job's result that is kept, of whatever run, as the leader has it.
    pub(super) async fn kept_result(&self, client: &ClientId, job: JobId) -> Result<Option<Finished>, BrokerError> {
        let found = self.entry_at_leader(client, job).await?;
        match found.filter(|entry| !entry.is_past_keeping(self.clock().now())) {
            Some(entry) => Ok(Some(entry.finished(self.log_id().await?))),
            None => Ok(None),
        }
    }

    async fn entry_at_leader(&self, client: &ClientId, job: JobId) -> Result<Option<Entry>, BrokerError> {
        let subject = names::result_anywhere(client, job);
        let found = self.api().last_at_leader(RESULTS_STREAM, subject, "read result").await?;
        found.map(Entry::read).transpose()
    }

    /// Where the client's job stands, as the leaders have it.
    pub(super) async fn look_up(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        let found = self.look(client, job).await?;
        if found.ended().is_some()
            && let Some(kept) = found.kept
        {
            return Ok(Lookup::Finished(Box::new(kept)));
        }
        let status = self.status_of(&found).await?;
        Ok(status.map_or(Lookup::Absent, |status| Lookup::Open(Box::new(status))))
    }

    /// Removes the payload of the job's result for good; its outcome and its place stay. Idempotent. `None` if the job has
    /// no result.
    ///
    /// First what stays is written, then the result is deleted: a crash between the two leaves the call unanswered and the
    /// result as it was, to be erased again.
    pub(super) async fn erase_result(&self, client: &ClientId, job: JobId) -> Result<Option<Outcome>, BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..TRIES {
            let Some(entry) = self.entry_at_leader(client, job).await? else { return Ok(None) };
            let (outcome, run) = (entry.result.outcome, entry.result.run_id);
            if !entry.erased {
                let stub = entry.erase(self.wire(), self.clock().now());
                if let Written::Conflict(_) = self.api().publish(stub, OPERATION).await? {
                    continue;
                }
            }
            let subject = names::result(client, job);
            let Some(left) = self.api().last_at_leader(RESULTS_STREAM, subject, OPERATION).await? else {
                return Ok(Some(outcome));
            };
            let seq = left.seq;
            if Entry::read(left)?.result.run_id > run {
                return Ok(Some(outcome));
            }
            // That it is gone is seen by looking again: the server gives one error for a message that was gone and for one
            // that it could not delete.
            self.api().overwrite(RESULTS_STREAM, seq, OPERATION).await?;
        }
        let why = format!("the result of job {job} is not deleted, or others keep writing results: erase it again");
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }
}
