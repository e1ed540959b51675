//! Ending a run after a worker's result, a client's cancel or a deadline, and keeping or removing its dead letter. The
//! rules decide; if the record has changed meanwhile, they decide again.

use std::sync::Arc;

use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::Table;
use crate::adapter::jobs::quota::Places;
use crate::adapter::jobs::spares::Spares;
use crate::adapter::leases::held::HeldJobs;
use crate::adapter::leases::lines::Lines;
use crate::adapter::results::end::Ends;
use crate::adapter::results::finish::Ended;
use crate::adapter::stored::letters::{LetterStore, letter_goes};
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::record::{Record, left_to_sweep};
use crate::adapter::stored::records::Records;
use crate::limits::PAYLOAD_MAX;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{JobResult, JobState, Outcome};
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::Recorded;
use relay_bridge::rules::refusal::contended;
use relay_bridge::rules::{self, Known};

const OPERATION: &str = "record";
/// How often the rules are asked while others change the record.
pub(crate) const TRIES: u32 = 3;

/// Ends runs, with and without a worker.
pub(crate) struct Recording {
    pub(crate) held: Arc<HeldJobs>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) rule_counts: Arc<rules::Counts>,
    pub(crate) settings: Settings,
    pub(crate) spares: Arc<Spares>,
    pub(crate) table: Table,
    pub(crate) records: Arc<Records>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) ends: Arc<Ends>,
    pub(crate) places: Arc<Places>,
    pub(crate) lines: Arc<Lines>,
}

impl Recording {
    /// Ends the run of a worker's result.
    ///
    /// # Errors
    /// As [`Leasing::record`](relay_bridge::leasing::Leasing::record).
    pub(crate) async fn record_result(&self, sent: &JobResult) -> Result<Recorded, BrokerError> {
        let policy = self.policies.require(&sent.queue, OPERATION).await?;
        let result_max = policy.result_max.min(PAYLOAD_MAX);
        // The job may have been put back for a retry, and another process may have started a later attempt since.
        let is_of = |held: &rules::Record| held.job.run_id == sent.run_id && sent.attempt <= held.attempts;
        let mut known = match self.held.of(sent.job_id, self.settings.clock.now()).filter(is_of) {
            // The write finds whether the run has ended.
            Some(record) => Some(Known { record: Some(record), ended: None }),
            None => self.records.record_of(sent.job_id, OPERATION).await?.map(|record| record.known()).transpose()?,
        };
        let (counts, mut kept_own) = (&self.rule_counts, false);
        for _ in 0..TRIES {
            let ending = match rules::record(known.as_ref(), sent, result_max, self.settings.clock.now()).refused()? {
                Ok(ending) => ending,
                Err(recorded) => {
                    // The letter is of this call, or of an earlier call that stopped before it removed the letter.
                    let again = recorded == Recorded::First && sent.outcome == Outcome::Succeeded && sent.attempt > 1;
                    if (again || kept_own) && letter_goes(known.as_ref(), sent.run_id) {
                        self.letters.take_letter(sent.job_id, sent.run_id, OPERATION).await?;
                    }
                    counts.not_written(&recorded);
                    return Ok(recorded);
                }
            };
            let record = known.as_ref().and_then(|known| known.record.as_ref());
            let due_at = record.map_or(sent.accepted_at, |record| record.job.due_at);
            if ending.keeps_letter {
                kept_own |= self.keep_own_letter(&ending.result).await?;
            }
            match self.ends.end(ending.result.clone(), due_at).await? {
                Ended::Now => {
                    counts.written(&ending);
                    if ending.takes_letter {
                        self.letters.take_letter(sent.job_id, sent.run_id, OPERATION).await?;
                    }
                    return Ok(Recorded::First);
                }
                Ended::Refused(record) => known = record.map(|record| record.known()).transpose()?,
            }
        }
        Err(contended(OPERATION, sent.job_id))
    }

    /// Keeps the letter of a run that is about to end as failed, if its worker has sent none; returns whether it did.
    async fn keep_own_letter(&self, result: &JobResult) -> Result<bool, BrokerError> {
        let letter = names::dead_letter(result.job_id, result.run_id);
        if self.table.is_kept(&letter, self.settings.clock.now(), OPERATION).await? {
            return Ok(false);
        }
        let record = self.records.record_of(result.job_id, OPERATION).await?;
        let Some(record) = record.filter(|record| record.run == result.run_id && record.ended().is_none()) else {
            return Ok(false);
        };
        let job = self.records.whole_job(&record, None, OPERATION).await?;
        match rules::letters::own_letter(&job, result) {
            Some(letter) => self.letters.put_letter(&letter).await,
            None => Ok(false),
        }
    }

    /// Ends an open run without a worker's result, and removes the dead letter that its worker may have kept without
    /// recording a result. Returns whether this call ended the run.
    pub(crate) async fn end_without_worker(&self, record: &Record, result: &JobResult) -> Result<bool, BrokerError> {
        let Ended::Now = self.ends.end(result.clone(), record.job()?.due_at).await? else { return Ok(false) };
        // The run has ended even if the letter is left: a redrive refuses such a letter.
        if let Err(error) = self.letters.take_letter(result.job_id, result.run_id, OPERATION).await {
            tracing::warn!(job_id = %result.job_id, %error, "the dead letter of a run that was ended is left: purge it");
        }
        Ok(true)
    }

    /// Deals with the message of a run that ended while it was in line. If the message is at hand, it is deleted. Else
    /// it stays in line and is counted as spare, unless it was received before or never sent.
    pub(crate) async fn leave_message(&self, record: &Record) {
        let at_hand = self.lines.delete_at_hand(record).await;
        if !at_hand
            && record.attempt == 0
            && !left_to_sweep(record.due, self.settings.clock.now(), self.queues.config().fifo)
        {
            self.spares.change(&record.queue, 1);
        }
    }

    /// Ends a run whose deadline has passed; `None` if this call did not end it.
    pub(crate) async fn expire(&self, record: &Record) -> Result<Option<JobResult>, BrokerError> {
        match rules::expire(Some(&record.known()?), record.job_id, self.settings.clock.now()).refused()? {
            Ok(result) if self.end_without_worker(record, &result).await? => {
                // Nobody can have leased the job since its record was read: its deadline has passed.
                if record.state() == JobState::Queued {
                    self.places.leave_line(&record.queue, &record.client, OPERATION).await;
                }
                Ok(Some(result))
            }
            Ok(_) => Ok(None),
            Err(()) => Ok(None),
        }
    }
}
