//! Ends runs without a worker's word: runs that the client cancelled, and runs that expired.
//!
//! A cancel has three steps, and a crash may come between them: the record is marked, the result is recorded, the
//! record leaves the line. A process that leases or sweeps a marked record does the rest.

use crate::records::find::known_record;
use std::sync::Arc;

use async_nats::HeaderMap;

use crate::records::find::Records;
use crate::records::held::HeldJobs;
use crate::records::letters::LetterStore;
use crate::records::results::ResultEntries;
use crate::stored::control;
use crate::stored::names::{self, Place};
use crate::stored::record::{Outgoing, Record};
use crate::wire::api::{Api, Written};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Job, JobId, JobResult, JobStatus, Outcome, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::rules::refusal::{contended, no_job};
use relay_bridge::rules::{self, Ended, Known, Verdict};

const OPERATION: &str = "cancel";
/// How long the sweep's entry of a cancel is kept, in seconds, if nobody sweeps.
const ENTRY_SECS: u64 = 24 * 3_600;
/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;

/// Ends runs that no worker ends: the client cancelled them, or their deadline passed.
pub(crate) struct Runs {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) held: Arc<HeldJobs>,
}

impl Runs {
    pub(crate) async fn cancel_job(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        let mut meant: Option<(Record, Job)> = None;
        for _ in 0..TRIES {
            let found = self.records.look(client, job).await?;
            // Only the run that was open when the client asked, and no later one: that has begun because this one
            // ended.
            if let Some((record, open)) = &meant
                && found.record.as_ref().is_some_and(|(_, job)| job.run_id > open.run_id)
            {
                let kept = found.kept.as_ref().map(|kept| &kept.result).filter(|kept| kept.run_id == open.run_id);
                return match kept {
                    Some(ended) => self.records.status_of_record(record, open, Some(ended)).await,
                    None => self.records.status_of(&found).await?.ok_or_else(|| no_job(OPERATION, job)),
                };
            }
            if rules::cancel(found.known().as_ref(), job, self.clock.now()).refused()?.is_err() {
                if meant.is_none()
                    && let Some(ended) = found.ended()
                {
                    // The first call may have broken off before.
                    self.letters.drop_letter_of(ended).await?;
                }
                return self.records.status_of(&found).await?.ok_or_else(|| no_job(OPERATION, job));
            }
            let Some((record, open)) = &found.record else { continue };
            meant = found.record.clone();
            // Should this process end here, a sweep finishes it.
            self.api.publish(Outgoing::begun(&record.address, ENTRY_SECS), OPERATION).await?;
            let Some(marked) = self.mark(record).await? else { continue };
            self.finish_cancel(&marked, open).await?;
            // The worker that holds it learns of it by a heartbeat anyway.
            self.api.tell(names::control(&open.queue), HeaderMap::new(), control::ended(job)).await;
        }
        Err(contended(OPERATION, job))
    }

    /// The record with its mark, or `None` if it was replaced meanwhile.
    async fn mark(&self, record: &Record) -> Result<Option<Record>, BrokerError> {
        if record.is_cancelled() {
            return Ok(Some(record.clone()));
        }
        // From a timer it comes into line, in the same write that ends the timer: the process that leases it does the
        // rest.
        let place = record.line().unwrap_or(Place::Line);
        let draft = record.rewrite().cancelled(Some(self.clock.now()));
        let headers = draft.headers.clone();
        match self.api.publish(draft.to(place), OPERATION).await? {
            Written::At(seq) => Ok(Some(Record { place, seq, headers, at: self.clock.now(), ..record.clone() })),
            Written::Conflict(_) => Ok(None),
        }
    }

    /// The second step of a cancel: the outcome, then the record leaves the line.
    pub(crate) async fn finish_cancel(&self, record: &Record, job: &Job) -> Result<(), BrokerError> {
        self.end_run(record, job, rules::cancel).await.map(drop)
    }

    /// Ends an open run without a handler's word, as `rule` says, and takes its record out of line. Returns the result,
    /// if this call recorded it.
    pub(crate) async fn end_run(
        &self,
        record: &Record,
        job: &Job,
        rule: fn(Option<&Known>, JobId, Timestamp) -> Verdict<JobResult>,
    ) -> Result<Option<JobResult>, BrokerError> {
        let running = self.held.running(&job.client, job.id, job.run_id).await?;
        let attempts = running.as_ref().map_or(0, |running| running.attempt).max(record.charged());
        let started_at = running.map(|running| running.started_at);
        let facts = rules::Record { attempts, started_at, ..known_record(record, job) };
        let known = Known { record: Some(facts), ended: None };
        let (ended, result) = self.record_end(job, known, rule).await?;
        if ended.run == job.run_id {
            self.held.holding.ended(job.id, job.run_id, ended.outcome);
            // One that waits for its time and was never given out has no letter.
            let by_hand = matches!(ended.outcome, Outcome::Cancelled | Outcome::Expired);
            if by_hand && (attempts > 0 || record.place != Place::Timer) {
                self.letters.drop_letter(&job.client, job.id, job.run_id).await?;
            }
        }
        self.retire(record, job).await?;
        Ok(result)
    }

    /// Takes the record of a run that ended out of line; the record is deleted if nobody needs it any more. Whatever
    /// comes between the two writes, a record in line whose run has ended is settled by the process that leases it.
    pub(crate) async fn retire(&self, record: &Record, job: &Job) -> Result<(), BrokerError> {
        let stream = record.address.stream();
        if !job.keep_record {
            self.api.delete(&stream, record.seq, "retire").await?;
            return Ok(());
        }
        if record.place == Place::Ended {
            return Ok(());
        }
        if let Written::At(_) = self.api.publish(record.rewrite().to(Place::Ended), "retire").await?
            && record.place.is_in_line()
        {
            self.api.delete(&stream, record.seq, "retire").await?;
        }
        Ok(())
    }

    /// Ends a run as `rule` says, unless it has ended. Returns how it, or a later run, ended, and the result if this
    /// call recorded it.
    pub(crate) async fn record_end(
        &self,
        job: &Job,
        mut known: Known,
        rule: impl Fn(Option<&Known>, JobId, Timestamp) -> Verdict<JobResult>,
    ) -> Result<(Ended, Option<JobResult>), BrokerError> {
        const OPERATION: &str = "end run";
        let mut expected = 0;
        for _ in 0..TRIES {
            let verdict = rule(Some(&known), job.id, self.clock.now());
            let Ok(result) = verdict.refused()? else {
                let ended = known.ended.ok_or_else(|| contended(OPERATION, job.id))?;
                return Ok((ended, None));
            };
            if let Written::At(_) = self.results.write_result(&result, job.due_at, expected, OPERATION).await? {
                return Ok((Ended::of(&result), Some(result)));
            }
            let entry;
            (expected, entry) = self.results.standing_result(&job.client, &job.queue, job.id).await?;
            if entry.as_ref().is_some_and(|entry| entry.result == result) {
                // Its own first try, whose confirmation was lost.
                return Ok((Ended::of(&result), Some(result)));
            }
            known.ended = entry.map(|entry| entry.ended());
        }
        Err(contended(OPERATION, job.id))
    }
}
