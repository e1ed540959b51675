//! Jobs that ended badly: an item of the run each, found by the index by time.

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::Sqs;
use super::item::Item;
use super::jobs::no_job;
use super::names::{self, Key};
use super::record::{INLINE_MAX, Record, new_record, payload_item, unreadable};
use super::schema::BY_TIME;
use super::table::{Query, Written};
use crate::contract::envelope::{decode_dead_letter, encode_dead_letter};
use crate::contract::{JobId, Outcome, QueueName, RunId};
use crate::dead_letters::{DeadLetter, DeadLetters, LetterPlace, Letters};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::job_queue::Enqueued;

#[async_trait]
impl DeadLetters for Sqs {
    async fn list(
        &self,
        queue: Option<&QueueName>,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Letters, BrokerError> {
        const OPERATION: &str = "list dead letters";
        let limit = usize::try_from(limit.clamp(1, 1_000)).unwrap_or(1);
        let queues = match queue {
            Some(queue) => vec![queue.clone()],
            None => self.policies().names(OPERATION).await?,
        };
        // Runs are ordered by when they began; `~` is behind all of them.
        let mut before = after.map_or_else(|| "~".to_owned(), |place| place.as_str().to_owned());
        let mut letters = Vec::new();
        loop {
            let keys = self.letters_before(&queues, &before, limit, OPERATION).await?;
            let Some((last, _)) = keys.last() else { return Ok(Letters { letters, next: None }) };
            before = last.clone();
            let wanted: Vec<_> = keys.iter().map(|(_, key)| key.clone()).collect();
            // Few at once: each may be as large as an item can be.
            for chunk in wanted.chunks(25) {
                let mut found = self.table().get_many(chunk, OPERATION).await?;
                found.sort_by(|a, b| b.get_text("ix_at").cmp(&a.get_text("ix_at")));
                for item in found.iter().filter(|item| !item.is_past(self.clock().now())) {
                    if letters.len() == limit {
                        let last: Option<&DeadLetter> = letters.last();
                        let next = last.and_then(|last| last.job.run_id.to_string().parse().ok());
                        return Ok(Letters { letters, next });
                    }
                    match letter(item) {
                        Ok(letter) => letters.push(letter),
                        Err(error) => tracing::warn!(%error, "a dead letter can't be read by this release"),
                    }
                }
            }
        }
    }

    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError> {
        const OPERATION: &str = "read dead letter";
        let (partition, last) = (names::job_partition(job), format!("{}~", names::DEAD));
        let query = Query {
            partition: ("pk", &partition),
            places: Some(("sk", names::DEAD, &last)),
            backwards: true,
            limit: Some(1),
            ..Query::default()
        };
        let found = self.table().query(query, OPERATION).await?.items;
        let kept = found.iter().find(|item| !item.is_past(self.clock().now()));
        kept.map(letter).transpose()
    }

    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "redrive";
        let conflict = |why: &str| Err(BrokerError::new(BrokerErrorKind::StateConflict, OPERATION, why));
        let no_letter = || {
            BrokerError::new(
                BrokerErrorKind::NotFound,
                OPERATION,
                format!("run {run} of job {job} left no dead letter"),
            )
        };
        let key = names::dead_letter(job, run);
        let item = self.table().get(&key, OPERATION).await?.filter(|item| !item.is_past(self.clock().now()));
        let record = self.record_of(job, OPERATION).await?;
        let started = |record: &Record| record.item.get_text("prev").is_some_and(|prev| *prev == run.to_string());
        if let Some(record) = record.as_ref().filter(|record| started(record)) {
            let known = self.started_before(record, run, OPERATION)?;
            // Started by somebody who did not come to removing it, or by a rerun.
            self.table().remove(&key, OPERATION).await?;
            return Ok(known);
        }
        let letter = letter(&item.ok_or_else(no_letter)?)?;
        let started = match record {
            None => self.begin_anew(&letter).await?,
            Some(record) if record.run != run => return conflict("the job is in a later run already"),
            Some(record) => match record.ended() {
                Some(Outcome::Failed | Outcome::Exhausted) => {
                    self.start_next(&record, &letter.job, true, OPERATION).await?
                }
                Some(outcome) => return conflict(&format!("the run ended as {outcome} after all")),
                None => return conflict("the run has not ended"),
            },
        };
        self.table().remove(&key, OPERATION).await?;
        Ok(started)
    }

    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        let removed = self.table().remove(&names::dead_letter(job, run), "purge dead letter").await?;
        Ok(removed.is_some_and(|item| !item.is_past(self.clock().now())))
    }
}

impl Sqs {
    /// Keeps the job and why its run ended, unless it is in a later run.
    pub(super) async fn keep_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        const OPERATION: &str = "dead-letter";
        let job = &letter.job;
        let record = self.record_of(job.id, OPERATION).await?;
        let record = record.filter(|record| record.client == job.client && record.queue == job.queue);
        let record = record.ok_or_else(|| no_job(job.id, OPERATION))?;
        if record.run > job.run_id {
            return Ok(());
        }
        let policy = self.policies().require(&job.queue, OPERATION).await?;
        let item = Item::at(&names::dead_letter(job.id, job.run_id))
            .text("ix", names::dead_partition(&job.queue))
            .text("ix_at", job.run_id.to_string())
            .text("client", job.client.as_str())
            .binary("letter", encode_dead_letter(letter, self.wire()))
            .kept_until(self.clock().now() + policy.dead_retention);
        self.table().put(item, OPERATION).await
    }

    /// Takes back the dead letter of a run that did not fail after all.
    pub(super) async fn retract_letter(&self, job: JobId, run: RunId) -> Result<(), BrokerError> {
        const OPERATION: &str = "retract dead letter";
        let Some(record) = self.record_of(job, OPERATION).await? else { return Ok(()) };
        let ended_well = matches!(record.ended(), Some(Outcome::Succeeded | Outcome::Cancelled | Outcome::Expired));
        if record.run == run && ended_well {
            self.table().remove(&names::dead_letter(job, run), OPERATION).await?;
        }
        Ok(())
    }

    /// Starts the next run of a job of which nothing but the dead letter is left.
    async fn begin_anew(&self, letter: &DeadLetter) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "redrive";
        let now = self.clock().now();
        let next = letter.job.next_run(now);
        if next.payload.len() > INLINE_MAX {
            self.table().put(payload_item(&next), OPERATION).await?;
        }
        let before = letter.job.run_id.to_string();
        let item = new_record(&next, self.wire(), now, self.is_fifo()).text("prev", &before);
        let values = Item::default().time(":now", now);
        let written =
            self.table().put_if(item.clone(), "attribute_not_exists(#pk) OR #keep <= :now", values, OPERATION).await?;
        match written {
            Written::Done(_) => {
                self.send_quietly(&next).await;
                Ok(Enqueued::Created(Record::read(item)?.status(now)?))
            }
            Written::Refused(found) => {
                let found = Record::read(found.ok_or_else(|| no_job(letter.job.id, OPERATION))?)?;
                self.started_before(&found, letter.job.run_id, OPERATION)
            }
        }
    }

    /// The next dead letters before `before`, newest first, at most `limit`: their runs and keys.
    async fn letters_before(
        &self,
        queues: &[QueueName],
        before: &str,
        limit: usize,
        operation: &'static str,
    ) -> Result<Vec<(String, Key)>, BrokerError> {
        let partitions: Vec<_> = queues.iter().map(names::dead_partition).collect();
        let asked = i32::try_from(limit + 1).unwrap_or(i32::MAX);
        let mut keys = Vec::new();
        for some in partitions.chunks(16) {
            let queries = some.iter().map(|partition| {
                let query = Query {
                    index: Some(BY_TIME),
                    partition: ("ix", partition),
                    places: Some(("ix_at", "0", before)),
                    backwards: true,
                    limit: Some(asked),
                    ..Query::default()
                };
                self.table().query(query, operation)
            });
            for item in try_join_all(queries).await?.into_iter().flat_map(|found| found.items) {
                let key = Key { pk: item.need_text("pk")?.to_owned(), sk: item.need_text("sk")?.to_owned() };
                keys.push((item.need_text("ix_at")?.to_owned(), key));
            }
        }
        keys.retain(|(run, _)| run.as_str() < before);
        keys.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        keys.truncate(limit);
        Ok(keys)
    }
}

fn letter(item: &Item) -> Result<DeadLetter, BrokerError> {
    decode_dead_letter(&item.need_binary("letter")?).map_err(unreadable)
}
