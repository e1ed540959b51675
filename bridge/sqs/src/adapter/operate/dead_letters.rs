//! The operators' calls on dead letters: list, read, redrive, purge. Each dead letter is an item of its run, and the
//! index by time finds it.

use crate::adapter::results::recording::TRIES;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio::sync::Semaphore;
use tokio_util::sync::DropGuard;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::{Query, Table, Written};
use crate::adapter::jobs::quota::Places;
use crate::adapter::jobs::runs::{Begun, Runs};
use crate::adapter::stored::letters::{LISTED, LetterStore, head, letter};
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::record::{INLINE_MAX, Record, new_record, payload_item};
use crate::adapter::stored::records::Records;
use crate::adapter::stored::schema::BY_TIME;
use crate::names::{self, Key};
use crate::settings::Settings;
use relay_bridge::contract::{Job, JobId, QueueName, RunId};
use relay_bridge::dead_letters::{DeadLetter, DeadLetters, LETTERS_PASSED_MAX, LetterHead, LetterPlace, Letters};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::rules;
use relay_bridge::rules::refusal::{contended, no_letter};

/// How many such reads there are at once, of all lists together: a letter of a release before this one is read whole, with its
/// payload.
const READS: usize = 2;
/// The items of one such read.
const CHUNK: usize = 25;
/// The fewest letters whose keys are asked for at once.
const ROUND_MIN: usize = 100;

/// Bounds the reads of lists.
pub(crate) struct Reads(Semaphore);

impl Default for Reads {
    fn default() -> Self {
        Self(Semaphore::new(READS))
    }
}

/// A letter as an item has it: its place in the list, whether it is past its keeping, and what a list shows of it.
type Found = (Option<LetterPlace>, bool, Result<LetterHead, BrokerError>);

/// The dead letters, for operators.
pub(crate) struct Operator {
    pub(crate) policies: Arc<Policies>,
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) settings: Settings,
    pub(crate) table: Table,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) records: Arc<Records>,
    pub(crate) places: Arc<Places>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) reads: Reads,
    pub(crate) _alive: Arc<DropGuard>,
}

#[async_trait]
impl DeadLetters for Operator {
    async fn list(
        &self,
        queue: Option<&QueueName>,
        key_prefix: Option<&str>,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Letters, BrokerError> {
        const OPERATION: &str = "list dead letters";
        let limit = usize::try_from(limit.clamp(1, 1_000)).unwrap_or(1);
        let queues = match queue {
            Some(queue) => vec![queue.clone()],
            None => self.policies.names(OPERATION).await?,
        };
        // `~` sorts behind all places.
        let mut before = match after {
            Some(place) if names::is_dead_place(place.as_str()) => place.as_str().to_owned(),
            Some(place) => return Err(place.unknown()),
            None => "~".to_owned(),
        };
        let (mut letters, mut passed) = (Letters::default(), 0);
        loop {
            // Enough at once, so that letters whose keys begin otherwise are not asked for one by one.
            let keys = self.letters_before(&queues, &before, limit.max(ROUND_MIN), OPERATION).await?;
            let Some((last, _)) = keys.last() else {
                letters.next = None;
                return Ok(letters);
            };
            before = last.clone();
            let wanted: Vec<_> = keys.iter().map(|(_, key)| key.clone()).collect();
            // Few at once: each may be as large as an item can be.
            for chunk in wanted.chunks(CHUNK) {
                for (place, past, head) in self.heads(chunk, OPERATION).await? {
                    let full = letters.letters.len() == limit;
                    if passed == LETTERS_PASSED_MAX || full && !past {
                        return Ok(letters);
                    }
                    if !full {
                        letters.next = place.or(letters.next);
                    }
                    match head {
                        _ if past => passed += 1,
                        Ok(head) if head.letter.has_key_prefix(key_prefix) => letters.letters.push(head),
                        Ok(_) => passed += 1,
                        Err(error) => {
                            tracing::warn!(%error, "a dead letter can't be read by this release");
                            passed += 1;
                        }
                    }
                }
            }
        }
    }

    async fn count(&self, _: &QueueName, _: u32) -> Result<Option<u64>, BrokerError> {
        // A count costs as many read units as the letters themselves.
        Ok(None)
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
        let found = self.table.query(query, OPERATION).await?.items;
        let kept = found.iter().find(|item| !item.is_past(self.settings.clock.now()));
        kept.map(letter).transpose()
    }

    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "redrive";
        let now = self.settings.clock.now();
        let item = self.table.get(&names::dead_letter(job, run), OPERATION).await?;
        let letter = item.filter(|item| !item.is_past(now)).map(|item| letter(&item)).transpose()?;
        let mut record = self.records.record_of(job, OPERATION).await?;
        for _ in 0..TRIES {
            let known = record.as_ref().map(Record::known).transpose()?;
            let now = self.settings.clock.now();
            let verdict = rules::redrive(known.as_ref(), letter.as_ref(), job, run, now).refused()?;
            let begun = match (verdict, &record) {
                (Ok(next), Some(record)) => self.runs.start_next(record, &next, true, OPERATION).await?,
                (Ok(next), None) => self.begin_anew(&next, OPERATION).await?,
                (Err(()), Some(record)) => Begun::Now(Enqueued::Known(record.status(now)?)),
                (Err(()), None) => return Err(no_letter(OPERATION, job, run)),
            };
            match begun {
                Begun::Now(started) => {
                    if let Enqueued::Created(status) = &started {
                        self.places.join_line(&status.queue, &status.client, OPERATION).await;
                    }
                    self.letters.remove_letter(job, run, OPERATION).await?;
                    return Ok(started);
                }
                Begun::Refused(found) => record = found,
            }
        }
        Err(contended(OPERATION, job))
    }

    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        const OPERATION: &str = "purge dead letter";
        // The SDK repeats a removal whose answer was lost, and is told that there was none.
        let was_kept = self.table.is_kept(&names::dead_letter(job, run), self.settings.clock.now(), OPERATION).await?;
        Ok(self.letters.remove_letter(job, run, OPERATION).await? || was_kept)
    }
}

impl Operator {
    /// Some letters without their payloads, newest first. Those of releases that wrote no such part are read whole.
    async fn heads(&self, keys: &[Key], operation: &'static str) -> Result<Vec<Found>, BrokerError> {
        // Never closed.
        let _reading = self.reads.0.acquire().await;
        let mut found = self.table.get_parts(keys, Some(LISTED), operation).await?;
        let lacking = found.extract_if(.., |item| head(item).is_none());
        let lacking: Vec<_> = lacking.filter_map(|item| item.key()).collect();
        found.extend(self.table.get_many(&lacking, operation).await?);
        found.sort_by(|a, b| b.get_text("ix_at").cmp(&a.get_text("ix_at")));
        let now = self.settings.clock.now();
        let shown = |item: Item| {
            let place = item.get_text("ix_at").and_then(|at| at.parse().ok());
            (place, item.is_past(now), head(&item).unwrap_or_else(|| letter(&item).map(LetterHead::of)))
        };
        Ok(found.into_iter().map(shown).collect())
    }

    /// Starts `next`, a run of a job of which nothing but the dead letter is left.
    async fn begin_anew(&self, next: &Job, operation: &'static str) -> Result<Begun, BrokerError> {
        let now = self.settings.clock.now();
        let apart = (next.payload.len() > INLINE_MAX).then(|| names::payload(next.id, next.run_id));
        if apart.is_some() {
            self.table.put(payload_item(next), operation).await?;
        }
        let item = new_record(next, self.settings.wire_version, now, self.queues.config().fifo);
        let values = Item::default().time(":now", now);
        let condition = "attribute_not_exists(#pk) OR #keep <= :now";
        let written = match self.table.put_if(item.clone(), condition, values, operation).await? {
            Written::Done(_) => Written::Done(item),
            refused => refused,
        };
        self.runs.begun(written, next, apart, operation).await
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
                self.table.query(query, operation)
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
