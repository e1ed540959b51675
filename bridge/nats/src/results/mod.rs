//! Results: recorded once per run, looked up, erased.
//!
//! *Finished* means that the result's run is the record's. Both are read at the leaders: a replica that lags behind would
//! answer a result that was erased, or a run that was started anew, as it was before.

pub(crate) mod follow;
pub(crate) mod waiting;

use std::time::Duration;

use async_trait::async_trait;

use crate::Nats;
use crate::records::find::known_record;
use crate::stored::names::{self, Address, RESULTS_STREAM};
use crate::stored::record::Stored;
use crate::stored::result_entry::{self, Entry};
use crate::wire::api::Written;
use relay_bridge::contract::{ClientId, Job, JobId, JobResult, Outcome, QueueName, RunId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::Recorded;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, ResultLog, Start};
use relay_bridge::rules::refusal::contended;
use relay_bridge::rules::{self, Ended, Known, Payload, Verdict};

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

    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        self.read_page(client, from, filter, limit, wait).await
    }
}

/// Says that a run which did not fail may keep a letter: its result is there, and no caller is to try again for that.
pub(crate) fn letter_may_stay(job_id: JobId, run_id: RunId, error: &BrokerError) {
    tracing::warn!(%job_id, %run_id, %error, "whether the run left a dead letter can't be looked up: purge it if it did");
}

impl Nats {
    /// Records what a worker sent, as the rules say. Of a job that this process holds no record is read.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`: it will never be taken. Others: the run may have its letter, or its result, by now. Record it
    /// again.
    pub(crate) async fn record_sent(&self, sent: &JobResult) -> Result<Recorded, BrokerError> {
        const OPERATION: &str = "record";
        let policy = self.policies().require(&sent.queue, OPERATION).await?;
        let (result_max, run) = (policy.result_max.min(self.payload_max()), sent.run_id);
        let mut known = self.held_record(sent).map(|record| Known { record: Some(record), ended: None });
        let holds = known.is_some();
        let (mut expected, mut own_letter) = (0, false);
        for _ in 0..TRIES {
            if known.is_none() {
                let found;
                (found, expected) = self.known_to_record(sent, &policy, OPERATION).await?;
                known = found;
            }
            let now = self.clock().now();
            let verdict = rules::record(known.as_ref(), sent, result_max, now);
            let ending = match verdict.refused()? {
                Ok(ending) => ending,
                Err(recorded) => {
                    self.rule_counts().not_written(&recorded);
                    let ended = known.as_ref().and_then(|known| known.ended.as_ref()).filter(|ended| ended.run == run);
                    if let Some(ended) = ended {
                        self.holding().ended(sent.job_id, run, ended.outcome);
                        // Behind a success its worker takes back the letter that it sent, and knows of no other attempt's.
                        let is_relays = own_letter || !holds || ended.outcome != Outcome::Succeeded;
                        if is_relays && rules::retract_letter(known.as_ref(), run) {
                            self.drop_letter(&sent.client, sent.job_id, run).await?;
                        }
                    }
                    return Ok(recorded);
                }
            };
            let Some(due_at) = known.as_ref().and_then(|known| known.record.as_ref()).map(|record| record.job.due_at)
            else {
                known = None;
                continue;
            };
            // Mostly its worker has sent it.
            if ending.keeps_letter && !self.has_letter(sent.job_id, run, OPERATION).await? {
                if !self.keep_own_letter(&ending.result, &policy).await? {
                    // The job is in another run by now, or gone.
                    known = None;
                    continue;
                }
                own_letter = true;
            }
            if let Written::At(_) = self.write_result(&ending.result, due_at, expected, OPERATION).await? {
                self.rule_counts().written(&ending);
                self.holding().ended(sent.job_id, run, ending.result.outcome);
                let dropped = match ending.takes_letter {
                    true => self.drop_letter(&sent.client, sent.job_id, run).await,
                    false => self.drop_letter_of(&ending.result).await,
                };
                dropped.unwrap_or_else(|error| letter_may_stay(sent.job_id, run, &error));
                return Ok(Recorded::First);
            }
            let entry;
            (expected, entry) = self.standing_result(&sent.client, &sent.queue, sent.job_id).await?;
            if let Some(known) = &mut known {
                known.ended = entry.map(|entry| entry.ended());
            }
        }
        Err(contended(OPERATION, sent.job_id))
    }

    /// The record of a job that this process holds in the run of a result, as it was when it was given out.
    fn held_record(&self, sent: &JobResult) -> Option<rules::Record> {
        let held = self.holds(sent.job_id)?;
        let job = held.job.clone();
        if (job.run_id, &job.client, &job.queue) != (sent.run_id, &sent.client, &sent.queue) {
            return None;
        }
        let payload = if job.keep_record { Payload::Kept } else { Payload::NotKept };
        let (attempts, started_at) = (held.attempt, Some(held.leased_at));
        Some(rules::Record { job, attempts, started_at, payload })
    }

    /// The leaders' knowledge of the job of a result, and the sequence of the result that is to be replaced. How many
    /// attempts there were is not known here: no more than the policy allows, and one that finds them spent.
    async fn known_to_record(
        &self,
        sent: &JobResult,
        policy: &QueuePolicy,
        operation: &'static str,
    ) -> Result<(Option<Known>, u64), BrokerError> {
        let (expected, ended) = self.standing_result(&sent.client, &sent.queue, sent.job_id).await?;
        let address = Address::new(&sent.queue, &sent.client, sent.job_id);
        let record = match self.record_at(&address, operation).await? {
            Some(record) => {
                let job = record.job()?;
                let mut known = known_record(&record, &job);
                known.attempts = known.attempts.max(policy.max_attempts.saturating_add(1));
                Some(known).filter(|_| job.keep_until() > self.clock().now())
            }
            None => None,
        };
        let ended = ended.map(|entry| entry.ended());
        let known = (record.is_some() || ended.is_some()).then_some(Known { record, ended });
        Ok((known, expected))
    }

    /// Keeps relay's own letter of a run that ends badly, before its result. `false` if the job is not in that run.
    async fn keep_own_letter(&self, result: &JobResult, policy: &QueuePolicy) -> Result<bool, BrokerError> {
        const OPERATION: &str = "record";
        let address = Address::new(&result.queue, &result.client, result.job_id);
        let Some(record) = self.record_at(&address, OPERATION).await? else { return Ok(false) };
        let job = record.job()?;
        if job.run_id != result.run_id {
            return Ok(false);
        }
        if let Some(letter) = rules::letters::own_letter(&job, result).filter(|_| !record.is_erased()) {
            self.write_letter(&letter, policy, OPERATION).await?;
        }
        Ok(true)
    }

    /// Ends a run as `rule` says, unless it has ended: what ended it, or a later run, and the result if it is this call's.
    pub(crate) async fn record_end(
        &self,
        job: &Job,
        mut known: Known,
        rule: impl Fn(Option<&Known>, JobId, Timestamp) -> Verdict<JobResult>,
    ) -> Result<(Ended, Option<JobResult>), BrokerError> {
        const OPERATION: &str = "end run";
        let mut expected = 0;
        for _ in 0..TRIES {
            let verdict = rule(Some(&known), job.id, self.clock().now());
            let Ok(result) = verdict.refused()? else {
                let ended = known.ended.ok_or_else(|| contended(OPERATION, job.id))?;
                return Ok((ended, None));
            };
            if let Written::At(_) = self.write_result(&result, job.due_at, expected, OPERATION).await? {
                return Ok((Ended::of(&result), Some(result)));
            }
            let entry;
            (expected, entry) = self.standing_result(&job.client, &job.queue, job.id).await?;
            if entry.as_ref().is_some_and(|entry| entry.result == result) {
                // Its own first try, whose confirmation was lost.
                return Ok((Ended::of(&result), Some(result)));
            }
            known.ended = entry.map(|entry| entry.ended());
        }
        Err(contended(OPERATION, job.id))
    }

    /// Writes a result if the last one of its job has sequence `expected` (0: there is none).
    async fn write_result(
        &self,
        result: &JobResult,
        due_at: Timestamp,
        expected: u64,
        operation: &'static str,
    ) -> Result<Written, BrokerError> {
        let now = self.clock().now();
        let keep_until = rules::record::keep_until(result, due_at, now);
        self.api().publish(result_entry::record(result, keep_until, now, self.wire(), expected), operation).await
    }

    /// The job's result that is kept, of whatever run, as the leader has it. One that nobody can read is none.
    pub(crate) async fn kept_result(&self, client: &ClientId, job: JobId) -> Result<Option<Finished>, BrokerError> {
        let found = self.last_result(client, job).await?.and_then(|last| last.entry);
        match found.filter(|entry| !entry.is_past_keeping(self.clock().now())) {
            Some(entry) => Ok(Some(entry.finished(self.log_id().await?))),
            None => Ok(None),
        }
    }

    /// The sequence of the last message about the job's result (0: there is none), and the result in it that counts: one that
    /// is kept still, and of the job's queue.
    async fn standing_result(
        &self,
        client: &ClientId,
        queue: &QueueName,
        job: JobId,
    ) -> Result<(u64, Option<Entry>), BrokerError> {
        let Some(Last { seq, entry }) = self.last_result(client, job).await? else { return Ok((0, None)) };
        let now = self.clock().now();
        Ok((seq, entry.filter(|entry| entry.result.queue == *queue && !entry.is_past_keeping(now))))
    }

    /// The last message about the job's result.
    ///
    /// # Errors
    /// `NewerVersion`: a newer relay wrote it.
    async fn last_result(&self, client: &ClientId, job: JobId) -> Result<Option<Last>, BrokerError> {
        let subject = names::result_anywhere(client, job);
        let Some(found) = self.api().last_if_any(RESULTS_STREAM, subject, "read result").await? else {
            return Ok(None);
        };
        let seq = found.seq;
        Ok(Some(Last { seq, entry: readable(found)? }))
    }

    /// Where the client's job stands, as the leaders have it.
    pub(crate) async fn look_up(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
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
    /// One that can't be read is deleted. First what stays is written, then the result is deleted: a crash between the two leaves
    /// the call unanswered and the result as it was, to be erased again.
    pub(crate) async fn erase_result(&self, client: &ClientId, job: JobId) -> Result<Option<Outcome>, BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..TRIES {
            let Some(last) = self.last_result(client, job).await? else { return Ok(None) };
            let Some(entry) = last.entry else {
                // It is to be gone, whatever it says.
                self.api().overwrite(RESULTS_STREAM, last.seq, OPERATION).await?;
                continue;
            };
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
            if readable(left)?.is_some_and(|left| left.result.run_id > run) {
                return Ok(Some(outcome));
            }
            // That it is gone is seen by looking again: the server gives one error for a message that was gone and for one
            // that it could not delete.
            self.api().overwrite(RESULTS_STREAM, seq, OPERATION).await?;
        }
        Err(contended(OPERATION, job))
    }
}

/// The last message about a job's result.
struct Last {
    seq: u64,
    /// The message as an entry; `None` if nobody can read it.
    entry: Option<Entry>,
}

/// A result as it was stored. A program that may write there may write what is none: that is told, and ends no reading.
fn readable(stored: Stored) -> Result<Option<Entry>, BrokerError> {
    match Entry::read(stored) {
        Err(error) if error.kind() == BrokerErrorKind::Corrupt => {
            tracing::error!(%error, "a result can't be read: it counts as absent");
            Ok(None)
        }
        read => read.map(Some),
    }
}
