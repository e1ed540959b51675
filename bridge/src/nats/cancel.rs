//! Runs that end without a worker's word: cancelled by the client, or expired.
//!
//! A cancel has steps that a crash may come between: the record is marked, the result is recorded, the record leaves the
//! line. Whoever leases or sweeps a marked record does the rest.

use async_nats::HeaderMap;

use super::Nats;
use super::api::Written;
use super::find::Found;
use super::hints;
use super::names::{self, Place};
use super::record::{Outgoing, Record};
use crate::contract::result::End;
use crate::contract::{ClientId, Failure, Job, JobId, JobResult, JobStatus, Outcome};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::leasing::Recorded;

const OPERATION: &str = "cancel";
/// How long the sweep's entry of a cancel is kept, in seconds, if nobody sweeps.
const ENTRY_SECS: u64 = 24 * 3_600;
/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;

impl Nats {
    pub(super) async fn cancel_job(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        for _ in 0..TRIES {
            let found = self.look(client, job).await?;
            let Some((record, open)) = found.record.as_ref().filter(|_| found.ended().is_none()) else {
                let not_found =
                    || BrokerError::new(BrokerErrorKind::NotFound, OPERATION, format!("there is no job {job}"));
                return self.status_of(&found).await?.ok_or_else(not_found);
            };
            // Should this process end here, a sweep finishes it.
            self.api().publish(Outgoing::begun(&record.address, ENTRY_SECS), OPERATION).await?;
            let Some(marked) = self.mark(record).await? else { continue };
            self.finish_cancel(&marked, open).await?;
            // Whoever holds it learns of it by a heartbeat anyway.
            self.api().tell(names::control(&open.queue), HeaderMap::new(), hints::ended(job)).await;
            let found = self.look(client, job).await?;
            if let Some(status) = self.status_of(&found).await?.filter(|status| status.state.outcome().is_some()) {
                return Ok(status);
            }
            if found.ended().is_none() && found.record.is_none() {
                break;
            }
        }
        let why = format!("others keep changing job {job}: cancel it again");
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }

    /// The record with its mark, or `None` if it was replaced meanwhile.
    async fn mark(&self, record: &Record) -> Result<Option<Record>, BrokerError> {
        if record.is_cancelled() {
            return Ok(Some(record.clone()));
        }
        // From a timer it comes into line, in the same write that ends the timer: whoever leases it does the rest.
        let place = record.line().unwrap_or(Place::Line);
        let draft = record.rewrite().cancelled(Some(self.clock().now()));
        let headers = draft.headers.clone();
        match self.api().publish(draft.to(place), OPERATION).await? {
            Written::At(seq) => Ok(Some(Record { place, seq, headers, at: self.clock().now(), ..record.clone() })),
            Written::Conflict(_) => Ok(None),
        }
    }

    /// The second step of a cancel: the outcome, then the record leaves the line.
    pub(super) async fn finish_cancel(&self, record: &Record, job: &Job) -> Result<Recorded, BrokerError> {
        let failure = Failure::new("cancelled", "the client cancelled the job");
        self.end_run(record, job, Outcome::Cancelled, failure).await.map(|(_, recorded)| recorded)
    }

    /// Ends an open run without a handler's word, and takes its record out of line.
    pub(super) async fn end_run(
        &self,
        record: &Record,
        job: &Job,
        outcome: Outcome,
        failure: Failure,
    ) -> Result<(JobResult, Recorded), BrokerError> {
        let running = self.running(&job.client, job.id, job.run_id).await?;
        let attempt = running.as_ref().map_or(0, |running| running.attempt).max(record.charged());
        let started_at = running.map(|running| running.started_at).filter(|_| attempt > 0);
        let end = End { attempt, started_at, finished_at: self.clock().now() };
        let result = JobResult::unsuccessful(job, outcome, end, failure);
        let recorded = self.record_result(&result, job.due_at).await?;
        let ended = match recorded {
            Recorded::First => outcome,
            Recorded::Superseded(outcome) => outcome,
        };
        self.holding().ended(job.id, job.run_id, ended);
        self.retire(record, job).await?;
        Ok((result, recorded))
    }

    /// Takes the record of a run that ended out of line: it goes if nobody needs it any more. Whatever comes between the
    /// two writes, a record in line whose run has ended is settled by whoever leases it.
    pub(super) async fn retire(&self, record: &Record, job: &Job) -> Result<(), BrokerError> {
        let stream = record.address.stream();
        if !job.keep_record {
            self.api().delete(&stream, record.seq, "retire").await?;
            return Ok(());
        }
        if record.place == Place::Ended {
            return Ok(());
        }
        if let Written::At(_) = self.api().publish(record.rewrite().to(Place::Ended), "retire").await?
            && record.place.is_in_line()
        {
            self.api().delete(&stream, record.seq, "retire").await?;
        }
        Ok(())
    }
}

impl Found {
    /// The record and its job, which must be there.
    pub(super) fn require(&self, job: JobId, operation: &'static str) -> Result<&(Record, Job), BrokerError> {
        self.record
            .as_ref()
            .ok_or_else(|| BrokerError::new(BrokerErrorKind::NotFound, operation, format!("there is no job {job}")))
    }
}
