//! Redrives a dead letter, in three steps that a crash may come between: a mark is written that names the next run,
//! that run is started, and the letter is removed. The mark stays as long as the letter would have: a letter that comes
//! late finds the mark, and is not kept.

use crate::records::letters::{REDRIVEN_AT, REDRIVEN_RUN};
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::jobs::start::Starts;
use crate::records::find::{Records, status_of_new};
use crate::records::letters::{LetterStore, Redriven, keep_until, message, redriven};
use crate::records::policies::Policies;
use crate::stored::names::{self, Address, DEAD_STREAM, Letter, LetterKind};
use crate::stored::record::Record;
use crate::wire::api::{Api, Written};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, JobId, RunId, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::rules::refusal::{contended, no_letter};
use relay_bridge::rules::{self, SKEW};

/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;
/// The remains of a run that ended badly.
#[derive(Default)]
struct Dead {
    letter: Option<DeadLetter>,
    /// Until when the letter is kept.
    keep_until: Option<Timestamp>,
    redriven: Option<Redriven>,
    /// The address of the letter, or of what is left of it.
    address: Option<Address>,
    /// The sequence of the last message about the run, whatever it is.
    last: u64,
}

/// Redrives dead letters.
pub(crate) struct Redrives {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) policies: Arc<Policies>,
    pub(crate) records: Arc<Records>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) starts: Arc<Starts>,
}

impl Redrives {
    /// Starts the job of a run's letter, and removes the letter.
    pub(crate) async fn redrive_letter(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "redrive";
        for _ in 0..TRIES {
            let dead = self.dead(job, run, OPERATION).await?;
            let address = match &dead.address {
                Some(address) => Some(address.clone()),
                None => self.record_of_anybody(job).await?.map(|record| record.address),
            };
            let Some(address) = address else { return Err(no_letter(OPERATION, job, run)) };
            let (found, written) = self.records.look_at(&address, OPERATION).await?;
            let (known, now) = (found.known(), self.clock.now());
            let verdict = rules::redrive(known.as_ref(), dead.letter.as_ref(), job, run, now);
            let Ok(next) = verdict.refused()? else {
                self.letters.remove_letters(job, run, OPERATION).await?;
                let status = self.records.status_of(&found).await?;
                return status.map(Enqueued::Known).ok_or_else(|| no_letter(OPERATION, job, run));
            };
            let next = match &dead.redriven {
                // The run that the mark names may have ended and gone.
                Some(begun) if known.is_none() && is_past(begun, &next, written.as_ref(), now) => {
                    self.letters.remove_letters(job, run, OPERATION).await?;
                    return Err(no_letter(OPERATION, job, run));
                }
                Some(begun) => Job { run_id: begun.run, ..next },
                None => {
                    let next = after(next, written.as_ref(), now);
                    if !self.mark_redriven(&address, run, &dead, next.run_id).await? {
                        continue;
                    }
                    next
                }
            };
            let policy = self.policies.require(&address.queue, OPERATION).await?;
            if self.starts.start(&address, &next, written, &policy, None, OPERATION).await? {
                self.letters.remove_letters(job, run, OPERATION).await?;
                return Ok(Enqueued::Created(status_of_new(&next)));
            }
        }
        Err(contended(OPERATION, job))
    }

    /// Writes the mark of a letter that starts `next`. `false` if there is something else about the run by now.
    async fn mark_redriven(
        &self,
        address: &Address,
        run: RunId,
        dead: &Dead,
        next: RunId,
    ) -> Result<bool, BrokerError> {
        let now = self.clock.now();
        let name = Letter { address: address.clone(), run, kind: LetterKind::Redriven };
        let mut headers = HeaderMap::new();
        headers.insert(REDRIVEN_RUN, next.to_string());
        headers.insert(REDRIVEN_AT, now.as_millis().to_string());
        let mark = message(&name, headers, Bytes::new(), dead.keep_until.unwrap_or(now), now, dead.last);
        Ok(matches!(self.api.publish(mark, "redrive").await?, Written::At(_)))
    }

    /// The remains of a run that ended badly.
    async fn dead(&self, job: JobId, run: RunId, operation: &'static str) -> Result<Dead, BrokerError> {
        // First, so that a message that comes later than this fails the condition of the next write.
        let last = self.api.last_at_leader(DEAD_STREAM, Letter::of_run(job, run), operation).await?;
        let mut dead = Dead { last: last.map_or(0, |last| last.seq), ..Dead::default() };
        for name in self.letters.names_of(job, run, operation).await? {
            let found = self.api.last_at_leader(DEAD_STREAM, name.subject(), operation).await?;
            let Some(found) = found else { continue };
            dead.address.get_or_insert_with(|| name.address.clone());
            if name.is_mark() {
                dead.redriven = redriven(&found, run);
                continue;
            }
            let until = keep_until(&found.headers);
            if let Some(letter) = self.letters.read_letter(&name, found)? {
                dead.address = Some(name.address);
                dead.keep_until = Some(until);
                dead.letter = Some(letter);
            }
        }
        Ok(dead)
    }

    /// The record of a job of which only the id is known.
    async fn record_of_anybody(&self, job: JobId) -> Result<Option<Record>, BrokerError> {
        for (queue, _) in self.policies.queues().await? {
            let stream = names::jobs_stream(&queue);
            match self.api.last_at_leader(&stream, names::record_of_anybody(job), "redrive").await {
                Ok(Some(found)) => return Record::read(found).map(Some),
                Ok(None) => {}
                // The queue was removed just now.
                Err(error) if error.kind() == BrokerErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Whether the run of a mark may have come and gone: it would not be known any more, or is in a record past its keeping.
fn is_past(begun: &Redriven, next: &Job, written: Option<&Record>, now: Timestamp) -> bool {
    let written = written.and_then(|record| record.job().ok()).map(|job| job.run_id);
    begun.at + Duration::from_millis(next.keep_ms) <= now + SKEW || written.is_some_and(|run| run >= begun.run)
}

/// The next run of a job, after the one of a record that is past its keeping too.
fn after(next: Job, written: Option<&Record>, now: Timestamp) -> Job {
    let before = written.and_then(|record| record.job().ok()).map(|job| job.run_id);
    match before.filter(|before| next.run_id <= *before) {
        Some(before) => Job { run_id: RunId::mint(now, Some(before)), ..next },
        None => next,
    }
}
