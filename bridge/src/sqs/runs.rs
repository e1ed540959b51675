//! What a client does to a run: cancel it, start the next one, erase what it left.

use super::Sqs;
use super::item::Item;
use super::names;
use super::record::{OUTLIVES, Record, beginning};
use super::table::Written;
use crate::contract::envelope::{encode_job, encode_result};
use crate::contract::{ClientId, Job, JobId, JobResult, JobStatus, RunId};
use crate::error::BrokerError;
use crate::job_queue::Enqueued;
use crate::rules;
use crate::rules::refusal::{conflict, no_job};

impl Sqs {
    /// Ends the run as cancelled, unless it ended before.
    pub(super) async fn cancel_run(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        const OPERATION: &str = "cancel";
        let record = self.owned(client, job, OPERATION).await?;
        let known = record.as_ref().map(Record::known).transpose()?;
        let verdict = rules::cancel(known.as_ref(), job, self.clock().now()).refused()?;
        let record = record.ok_or_else(|| no_job(OPERATION, job))?;
        let Ok(result) = verdict else {
            // The call that ended it may not have come so far.
            if rules::retract_letter(known.as_ref(), record.run) {
                self.take_letter(job, record.run, OPERATION).await?;
            }
            return record.status(self.clock().now());
        };
        self.end_without_worker(&record, &result).await?;
        // Whoever ended it: this is how.
        let record = self.owned(client, job, OPERATION).await?.ok_or_else(|| no_job(OPERATION, job))?;
        record.status(self.clock().now())
    }

    /// Starts the run after generation `from`.
    pub(super) async fn rerun_job(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "rerun";
        let record = self.owned(client, job, OPERATION).await?;
        let known = record.as_ref().map(Record::known).transpose()?;
        let now = self.clock().now();
        let verdict = rules::rerun(known.as_ref(), job, from, now).refused()?;
        let record = record.ok_or_else(|| no_job(OPERATION, job))?;
        let Ok(next) = verdict else { return Ok(Enqueued::Known(record.status(now)?)) };
        let policy = self.policies().require(&next.queue, OPERATION).await?;
        let limit = policy.client(client).max_queued;
        if let Some(full) = self.over_quota(&next.queue, client, limit, OPERATION).await? {
            return Err(full);
        }
        let payload = self.whole_job(&record, None, OPERATION).await?.payload;
        self.start_next(&record, Job { payload, ..next }, false, OPERATION).await
    }

    /// Starts `next`, the run after the record's, which has ended. `bring` writes the payload anew.
    pub(super) async fn start_next(
        &self,
        record: &Record,
        next: Job,
        bring: bool,
        operation: &'static str,
    ) -> Result<Enqueued, BrokerError> {
        let (now, job, before) = (self.clock().now(), next.id, record.run);
        let payload_run = if bring { Some(next.run_id) } else { record.payload_run() };
        let separate = payload_run.filter(|_| next.payload.len() > super::record::INLINE_MAX);
        if let Some(run) = separate {
            // Again with its bytes: its time was that of the run before, and it may be gone by now.
            let item = Item::at(&names::payload(job, run)).binary("payload", next.payload.as_ref());
            self.table().put(item.kept_until(next.keep_until() + OUTLIVES), operation).await?;
        }
        let mut values = Item::default().text(":before", before.to_string()).time(":now", now);
        let mut change = "SET #prev = :before".to_owned();
        let mut fields = beginning(&next, self.wire(), now, self.is_fifo());
        if let Some(run) = separate {
            fields = fields.text("payload_run", run.to_string());
        }
        for (name, value) in fields.0 {
            change.push_str(&format!(", #{name} = :{name}"));
            values = values.with(&format!(":{name}"), value);
        }
        change.push_str(" REMOVE #lease, #lease_end, #started, #waiters");
        let condition = "#run = :before AND #result_run = :before AND attribute_not_exists(#erased) AND #keep > :now";
        match self.table().update(&record.key(), &change, condition, values, operation).await? {
            Written::Done(item) => {
                self.counted(&next.queue, &next.client);
                self.send_quietly(&next).await;
                Ok(Enqueued::Created(Record::read(item)?.status(now)?))
            }
            Written::Refused(item) => {
                let found = Record::read(item.ok_or_else(|| no_job(operation, job))?)?;
                self.started_before(&found, before, operation)
            }
        }
    }

    /// The run that somebody else started after `before`, if that is what the record has.
    pub(super) fn started_before(
        &self,
        found: &Record,
        before: RunId,
        operation: &'static str,
    ) -> Result<Enqueued, BrokerError> {
        if found.item.get_text("prev").is_some_and(|prev| *prev == before.to_string()) {
            return Ok(Enqueued::Known(found.status(self.clock().now())?));
        }
        Err(conflict(operation, "the job changed meanwhile: look at it again"))
    }

    /// Removes payload and result of a finished job.
    pub(super) async fn erase_job(&self, client: &ClientId, job_id: JobId) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        let record = self.owned(client, job_id, OPERATION).await?;
        let known = record.as_ref().map(Record::known).transpose()?;
        let left = rules::erase(known.as_ref(), job_id).refused()?;
        let (Some(record), Ok(Some(job))) = (record, left) else { return Ok(()) };
        // Its key is the record's.
        let result = self.finished(&record, OPERATION).await?.result;
        let result = JobResult { key: None, ..rules::erased_result(result) };
        let values = Item::default()
            .binary(":job", encode_job(&job, self.wire()))
            .binary(":result", encode_result(&result, self.wire()))
            .number(":none", 0)
            .flag(":erased", true)
            .text(":run", record.run.to_string());
        let change = "SET #job = :job, #result = :result, #result_size = :none, #erased = :erased REMOVE #payload_run, #result_by, #result_claim";
        let condition = "#run = :run AND #result_run = :run";
        if let Written::Refused(_) = self.table().update(&record.key(), change, condition, values, OPERATION).await? {
            return Err(conflict(OPERATION, "the job was started again meanwhile"));
        }
        // Everything else of the job, whichever run left it. A crash in between is repeated by the caller, who got no answer.
        self.remove_beside(job_id, OPERATION).await
    }

    /// Removes every item of a job but its record.
    async fn remove_beside(&self, job: JobId, operation: &'static str) -> Result<(), BrokerError> {
        let partition = names::job_partition(job);
        let mut after = None;
        loop {
            let query = super::table::Query { partition: ("pk", &partition), after, ..Default::default() };
            let found = self.table().query(query, operation).await?;
            for item in &found.items {
                let key = names::Key { pk: partition.clone(), sk: item.need_text("sk")?.to_owned() };
                if key != names::record(job) {
                    self.table().remove(&key, operation).await?;
                }
            }
            after = found.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}
