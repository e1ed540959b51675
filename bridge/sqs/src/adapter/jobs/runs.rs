//! Calls on a known job: cancel its run, start the next run, erase its payload and result.

use crate::adapter::results::recording::TRIES;
use std::sync::Arc;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::{Table, Written};
use crate::adapter::jobs::quota::Places;
use crate::adapter::jobs::sending::Sender;
use crate::adapter::results::log::LogReader;
use crate::adapter::results::recording::Recording;
use crate::adapter::stored::letters::LetterStore;
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::record::{INLINE_MAX, OUTLIVES, Record, beginning};
use crate::adapter::stored::records::Records;
use crate::names::{self, Key};
use crate::settings::Settings;
use relay_bridge::contract::envelope::{encode_job, encode_result};
use relay_bridge::contract::{ClientId, Job, JobId, JobResult, JobStatus};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::rules;
use relay_bridge::rules::refusal::{contended, no_job};

/// The outcome of starting a run.
pub(crate) enum Begun {
    /// This is the answer.
    Now(Enqueued),
    /// The record has changed, and is as given; `None` if there is none that is kept.
    Refused(Option<Record>),
}

/// Starts, cancels and erases jobs that are known.
pub(crate) struct Runs {
    pub(crate) policies: Arc<Policies>,
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) settings: Settings,
    pub(crate) table: Table,
    pub(crate) records: Arc<Records>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) places: Arc<Places>,
    pub(crate) recording: Arc<Recording>,
    pub(crate) log: Arc<LogReader>,
    pub(crate) sender: Arc<Sender>,
}

impl Runs {
    /// Ends the run as cancelled, unless it ended before.
    pub(crate) async fn cancel_run(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        const OPERATION: &str = "cancel";
        let record = self.records.owned(client, job, OPERATION).await?;
        let known = record.as_ref().map(Record::known).transpose()?;
        let verdict = rules::cancel(known.as_ref(), job, self.settings.clock.now()).refused()?;
        let record = record.ok_or_else(|| no_job(OPERATION, job))?;
        let Ok(result) = verdict else {
            // The call that ended the run may have stopped before it removed the letter.
            if rules::retract_letter(known.as_ref(), record.run) {
                self.letters.take_letter(job, record.run, OPERATION).await?;
            }
            return record.status(self.settings.clock.now());
        };
        let ended = self.recording.end_without_worker(&record, &result).await?;
        // The record says how the run ended, whichever call ended it.
        let record = self.records.owned(client, job, OPERATION).await?.ok_or_else(|| no_job(OPERATION, job))?;
        if ended && record.was_queued() {
            self.recording.leave_message(&record).await;
            self.places.leave_line(&record.queue, client, OPERATION).await;
        }
        record.status(self.settings.clock.now())
    }

    /// Starts the run after generation `from`.
    pub(crate) async fn rerun_job(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "rerun";
        let mut found = self.records.owned(client, job, OPERATION).await?;
        for _ in 0..TRIES {
            let known = found.as_ref().map(Record::known).transpose()?;
            let now = self.settings.clock.now();
            let verdict = rules::rerun(known.as_ref(), job, from, now).refused()?;
            let record = found.ok_or_else(|| no_job(OPERATION, job))?;
            let Ok(next) = verdict else { return Ok(Enqueued::Known(record.status(now)?)) };
            let policy = self.policies.require(&next.queue, OPERATION).await?;
            let limit = policy.client(client).max_queued;
            if let Some(full) = self.places.take_place(&next.queue, client, limit, OPERATION).await? {
                return Err(full);
            }
            let queue = next.queue.clone();
            let begun = match self.records.whole_job(&record, None, OPERATION).await {
                Ok(Job { payload, .. }) => self.start_next(&record, &Job { payload, ..next }, false, OPERATION).await,
                Err(error) => Err(error),
            };
            let has_place = match &begun {
                Ok(Begun::Now(_)) => true,
                Ok(Begun::Refused(_)) => false,
                // It may be in line.
                Err(error) => !error.had_no_effect(),
            };
            if !has_place {
                self.places.leave_line(&queue, client, OPERATION).await;
            }
            match begun? {
                Begun::Now(enqueued) => return Ok(enqueued),
                Begun::Refused(record) => found = record.filter(|record| record.client == *client),
            }
        }
        Err(contended(OPERATION, job))
    }

    /// Starts `next`, the run after the record's, which has ended. `bring` writes the payload anew.
    pub(crate) async fn start_next(
        &self,
        record: &Record,
        next: &Job,
        bring: bool,
        operation: &'static str,
    ) -> Result<Begun, BrokerError> {
        let now = self.settings.clock.now();
        let payload_run = if bring { Some(next.run_id) } else { record.payload_run() };
        let separate = payload_run.filter(|_| next.payload.len() > INLINE_MAX);
        let apart = separate.map(|run| names::payload(next.id, run));
        if let Some(key) = &apart {
            // The payload is written again: it was kept for as long as the run before, and may be gone by now.
            let item = Item::at(key).binary("payload", next.payload.as_ref());
            self.table.put(item.kept_until(next.keep_until() + OUTLIVES), operation).await?;
        }
        let mut values = Item::default().text(":before", record.run.to_string());
        let mut fields = beginning(next, self.settings.wire_version, now, self.queues.config().fifo);
        if let Some(run) = separate {
            fields = fields.text("payload_run", run.to_string());
        }
        let mut set = Vec::with_capacity(fields.0.len());
        for (name, value) in fields.0 {
            set.push(format!("#{name} = :{name}"));
            values = values.with(&format!(":{name}"), value);
        }
        let change = format!("SET {} REMOVE #lease, #lease_end, #started, #waiters", set.join(", "));
        let condition = "#run = :before AND #result_run = :before AND attribute_not_exists(#erased) AND #keep > :now";
        let written = self.table.update(&record.key(), &change, condition, values.time(":now", now), operation).await?;
        self.begun(written, next, apart, operation).await
    }

    /// The answer to a write that begins `next`, whose payload may lie `apart`.
    pub(crate) async fn begun(
        &self,
        written: Written,
        next: &Job,
        apart: Option<Key>,
        operation: &'static str,
    ) -> Result<Begun, BrokerError> {
        let now = self.settings.clock.now();
        let record = match written {
            Written::Done(item) => Record::read(item)?,
            Written::Refused(item) => match Record::read_kept(item, now)? {
                // The SDK repeated a write whose answer was lost, and found its own record.
                Some(found) if found.run == next.run_id => found,
                found => {
                    // Bytes that the client had removed are not left behind.
                    if let Some(key) = apart.filter(|_| found.as_ref().is_some_and(Record::is_erased)) {
                        self.table.remove(&key, operation).await?;
                    }
                    return Ok(Begun::Refused(found));
                }
            },
        };
        self.places.counted(&next.queue, &next.client);
        self.sender.send_quietly(next).await;
        Ok(Begun::Now(Enqueued::Created(record.status(now)?)))
    }

    /// Removes payload and result of a finished job.
    pub(crate) async fn erase_job(&self, client: &ClientId, job_id: JobId) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        let mut found = self.records.owned(client, job_id, OPERATION).await?;
        for _ in 0..TRIES {
            let known = found.as_ref().map(Record::known).transpose()?;
            let left = rules::erase(known.as_ref(), job_id).refused()?;
            let (Some(record), Ok(Some(job))) = (found, left) else { return Ok(()) };
            // The result's key is read from the record.
            let result = self.log.finished(&record, OPERATION).await?.result;
            let result = JobResult { key: None, ..rules::erased_result(result) };
            let values = Item::default()
                .binary(":job", encode_job(&job, self.settings.wire_version))
                .binary(":result", encode_result(&result, self.settings.wire_version))
                .number(":none", 0)
                .flag(":erased", true)
                .text(":run", record.run.to_string());
            // A claim is a digest, from which a small answer could be recovered.
            let change = "SET #job = :job, #result = :result, #result_size = :none, #erased = :erased \
                          REMOVE #payload_run, #result_by, #result_claim";
            let condition = "#run = :run AND #result_run = :run";
            match self.table.update(&record.key(), change, condition, values, OPERATION).await? {
                // Everything else of the job goes as well, whichever run left it. After a crash in between, the caller
                // got no answer and calls again.
                Written::Done(_) => return self.remove_beside(job_id, OPERATION).await,
                Written::Refused(item) => {
                    found =
                        Record::read_kept(item, self.settings.clock.now())?.filter(|record| record.client == *client);
                }
            }
        }
        Err(contended(OPERATION, job_id))
    }

    /// Removes every item of a job but its record.
    async fn remove_beside(&self, job: JobId, operation: &'static str) -> Result<(), BrokerError> {
        let partition = names::job_partition(job);
        let mut after = None;
        loop {
            let query =
                crate::adapter::aws::table::Query { partition: ("pk", &partition), after, ..Default::default() };
            let found = self.table.query(query, operation).await?;
            for item in &found.items {
                let key = names::Key { pk: partition.clone(), sk: item.need_text("sk")?.to_owned() };
                if key != names::record(job) {
                    self.table.remove(&key, operation).await?;
                }
            }
            after = found.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}
