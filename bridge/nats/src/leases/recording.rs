//! Records results that workers sent, as the rules say.

use std::sync::Arc;

use crate::records::find::{Records, known_record};
use crate::records::held::HeldJobs;
use crate::records::letters::{LetterStore, letter_may_stay};
use crate::records::policies::Policies;
use crate::records::results::ResultEntries;
use crate::stored::names::Address;
use crate::wire::api::Written;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{JobResult, Outcome};
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::Recorded;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::refusal::contended;
use relay_bridge::rules::{self, Known, Payload};

/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;

/// Records results.
pub(crate) struct Recording {
    pub(crate) clock: Clock,
    pub(crate) payload_max: u64,
    pub(crate) policies: Arc<Policies>,
    pub(crate) rule_counts: Arc<rules::Counts>,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) held: Arc<HeldJobs>,
}

impl Recording {
    /// Records a result that a worker sent, as the rules say. If this process holds the job, no record is read.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`: it will never be taken. Others: the run may have its letter, or its result, by now. Record it
    /// again.
    pub(crate) async fn record_sent(&self, sent: &JobResult) -> Result<Recorded, BrokerError> {
        const OPERATION: &str = "record";
        let policy = self.policies.require(&sent.queue, OPERATION).await?;
        let (result_max, run) = (policy.result_max.min(self.payload_max), sent.run_id);
        let mut known = self.held_record(sent).map(|record| Known { record: Some(record), ended: None });
        let holds = known.is_some();
        let (mut expected, mut own_letter) = (0, false);
        for _ in 0..TRIES {
            if known.is_none() {
                let found;
                (found, expected) = self.known_to_record(sent, &policy, OPERATION).await?;
                known = found;
            }
            let now = self.clock.now();
            let verdict = rules::record(known.as_ref(), sent, result_max, now);
            let ending = match verdict.refused()? {
                Ok(ending) => ending,
                Err(recorded) => {
                    self.rule_counts.not_written(&recorded);
                    let ended = known.as_ref().and_then(|known| known.ended.as_ref()).filter(|ended| ended.run == run);
                    if let Some(ended) = ended {
                        self.held.holding.ended(sent.job_id, run, ended.outcome);
                        // After a success the worker takes back the letter that it sent, and knows of no other
                        // attempt's.
                        let is_relays = own_letter || !holds || ended.outcome != Outcome::Succeeded;
                        if is_relays && rules::retract_letter(known.as_ref(), run) {
                            self.letters.drop_letter(&sent.client, sent.job_id, run).await?;
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
            // Mostly the worker has sent the letter.
            if ending.keeps_letter && !self.letters.has_letter(sent.job_id, run, OPERATION).await? {
                if !self.keep_own_letter(&ending.result, &policy).await? {
                    // The job is in another run by now, or gone.
                    known = None;
                    continue;
                }
                own_letter = true;
            }
            if let Written::At(_) = self.results.write_result(&ending.result, due_at, expected, OPERATION).await? {
                self.rule_counts.written(&ending);
                self.held.holding.ended(sent.job_id, run, ending.result.outcome);
                let dropped = match ending.takes_letter {
                    true => self.letters.drop_letter(&sent.client, sent.job_id, run).await,
                    false => self.letters.drop_letter_of(&ending.result).await,
                };
                match dropped {
                    Ok(()) if ending.takes_letter => self.held.holding.letterless(sent.job_id, run),
                    Ok(()) => {}
                    Err(error) => letter_may_stay(sent.job_id, run, &error),
                }
                return Ok(Recorded::First);
            }
            let entry;
            (expected, entry) = self.results.standing_result(&sent.client, &sent.queue, sent.job_id).await?;
            if let Some(known) = &mut known {
                known.ended = entry.map(|entry| entry.ended());
            }
        }
        Err(contended(OPERATION, sent.job_id))
    }

    /// The record of a job that this process holds in the run of a result, as it was when it was given out.
    fn held_record(&self, sent: &JobResult) -> Option<rules::Record> {
        let held = self.held.holding.of(sent.job_id)?;
        let job = held.job.clone();
        if (job.run_id, &job.client, &job.queue) != (sent.run_id, &sent.client, &sent.queue) {
            return None;
        }
        let payload = if job.keep_record { Payload::Kept } else { Payload::NotKept };
        let (attempts, started_at) = (held.attempt, Some(held.leased_at));
        Some(rules::Record { job, attempts, started_at, payload })
    }

    /// The facts about a result's job, as the leaders have them, and the sequence of the result that is to be replaced.
    /// The number of attempts is not known here: at most as many as the policy allows, and one that finds them spent.
    async fn known_to_record(
        &self,
        sent: &JobResult,
        policy: &QueuePolicy,
        operation: &'static str,
    ) -> Result<(Option<Known>, u64), BrokerError> {
        let (expected, ended) = self.results.standing_result(&sent.client, &sent.queue, sent.job_id).await?;
        let address = Address::new(&sent.queue, &sent.client, sent.job_id);
        let record = match self.records.record_at(&address, operation).await? {
            Some(record) => {
                let job = record.job()?;
                let mut known = known_record(&record, &job);
                known.attempts = known.attempts.max(policy.max_attempts.saturating_add(1));
                Some(known).filter(|_| job.keep_until() > self.clock.now())
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
        let Some(record) = self.records.record_at(&address, OPERATION).await? else { return Ok(false) };
        let job = record.job()?;
        if job.run_id != result.run_id {
            return Ok(false);
        }
        if let Some(letter) = rules::letters::own_letter(&job, result).filter(|_| !record.is_erased()) {
            self.letters.write_letter(&letter, policy, OPERATION).await?;
        }
        Ok(true)
    }
}
