//! What a client does to a run: cancel it, start the next one, erase what it left.

use bytes::Bytes;

use super::Sqs;
use super::item::Item;
use super::jobs::no_job;
use super::names;
use super::record::{OUTLIVES, Record, beginning};
use super::table::Written;
use crate::contract::envelope::{Extra, encode_job, encode_result};
use crate::contract::{ClientId, Failure, Job, JobId, JobResult, JobStatus, Outcome, RunId};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::job_queue::Enqueued;

fn conflict(operation: &'static str, why: impl Into<String>) -> BrokerError {
    BrokerError::new(BrokerErrorKind::StateConflict, operation, why)
}

impl Sqs {
    /// Ends the run as cancelled, unless it ended before.
    pub(super) async fn cancel_run(&self, client: &ClientId, job_id: JobId) -> Result<JobStatus, BrokerError> {
        const OPERATION: &str = "cancel";
        let record = self.owned(client, job_id, OPERATION).await?.ok_or_else(|| no_job(job_id, OPERATION))?;
        if record.ended().is_some() {
            return record.status(self.clock().now());
        }
        let failure = Failure::new("cancelled", "the client cancelled the job");
        self.end_without_worker(&record, &record.job()?, Outcome::Cancelled, failure).await?;
        // Whoever ended it: this is how.
        let record = self.owned(client, job_id, OPERATION).await?.ok_or_else(|| no_job(job_id, OPERATION))?;
        record.status(self.clock().now())
    }

    /// Starts the run after generation `from`.
    pub(super) async fn rerun_job(&self, client: &ClientId, job_id: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "rerun";
        let record = self.owned(client, job_id, OPERATION).await?.ok_or_else(|| no_job(job_id, OPERATION))?;
        let job = record.job()?;
        let now = self.clock().now();
        if from != 0 && job.generation == from.saturating_add(1) {
            return Ok(Enqueued::Known(record.status(now)?));
        }
        if job.generation != from {
            return Err(conflict(OPERATION, format!("the job is at generation {}, not {from}", job.generation)));
        }
        if record.ended().is_none() {
            return Err(conflict(OPERATION, "the run has not ended"));
        }
        if record.is_erased() || !job.keep_record {
            return Err(conflict(OPERATION, "the job's payload is not kept"));
        }
        let job = self.whole_job(&record, None, OPERATION).await?;
        self.start_next(&record, &job, false, OPERATION).await
    }

    /// Starts the run after that of `job`, which is the record's and has ended. `bring` writes the payload anew.
    pub(super) async fn start_next(
        &self,
        record: &Record,
        job: &Job,
        bring: bool,
        operation: &'static str,
    ) -> Result<Enqueued, BrokerError> {
        let now = self.clock().now();
        let next = job.next_run(now);
        let payload_run = if bring { Some(next.run_id) } else { record.payload_run() };
        let separate = payload_run.filter(|_| next.payload.len() > super::record::INLINE_MAX);
        if let Some(run) = separate {
            // Again with its bytes: its time was that of the run before, and it may be gone by now.
            let item = Item::at(&names::payload(job.id, run)).binary("payload", next.payload.as_ref());
            self.table().put(item.kept_until(next.keep_until() + OUTLIVES), operation).await?;
        }
        let mut values = Item::default().text(":before", job.run_id.to_string()).time(":now", now);
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
                let found = Record::read(item.ok_or_else(|| no_job(job.id, operation))?)?;
                self.started_before(&found, job.run_id, operation)
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
        let record = self.owned(client, job_id, OPERATION).await?.ok_or_else(|| no_job(job_id, OPERATION))?;
        if record.ended().is_none() {
            return Err(conflict(OPERATION, "the run has not ended: cancel it first"));
        }
        let finished = self.finished(&record, OPERATION).await?;
        let failure = finished.result.failure.map(|failure| Failure { detail: String::new(), ..failure });
        let result = JobResult { payload: Bytes::new(), failure, extra: Extra::default(), ..finished.result };
        let job = Job { payload: Bytes::new(), headers: Default::default(), extra: Extra::default(), ..record.job()? };
        let values = Item::default()
            .binary(":job", encode_job(&job, self.wire()))
            .binary(":result", encode_result(&result, self.wire()))
            .number(":none", 0)
            .flag(":erased", true)
            .text(":run", record.run.to_string());
        let change = "SET #job = :job, #result = :result, #result_size = :none, #erased = :erased REMOVE #payload_run";
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
