//! Dead letters: one message each, whose subject says of which run, so that a listing reads names and not payloads.
//!
//! A letter is written once per run, before the run's result. One of a run that succeeded after all is taken back by the
//! worker; until then nobody can redrive it.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;

use super::entry::ttl_secs;
use super::names::{self, Address, DEAD_STREAM, Letter};
use super::record::{Outgoing, Record, Stored, envelope_error, number};
use super::{Nats, stream_api};
use crate::contract::envelope::{decode_dead_letter, encode_dead_letter};
use crate::contract::{JobId, Outcome, QueueName, RunId, Timestamp};
use crate::dead_letters::{DeadLetter, DeadLetters, LetterPlace, Letters};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::job_queue::Enqueued;

/// The most dead letters of one list.
const LIST_MAX: u32 = 1_000;
/// How many letters of a list are read at once.
const READS: usize = 16;
/// How often the letters of a job are looked for while they are erased, [`READS`] at a time.
const ERASE_TRIES: usize = 64;
/// Until when the letter is kept, in milliseconds since the epoch.
const KEEP_UNTIL: &str = "Relay-Keep-Until";

#[async_trait]
impl DeadLetters for Nats {
    async fn list(
        &self,
        queue: Option<&QueueName>,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Letters, BrokerError> {
        let filter = queue.map_or_else(|| Letter::ALL.to_owned(), Letter::in_queue);
        let limit = usize::try_from(limit.clamp(1, LIST_MAX)).unwrap_or(1);
        let mut before = match after {
            Some(place) => Some(place.as_str().parse::<RunId>().map_err(|_| place.unknown())?),
            None => None,
        };
        loop {
            let newest = self.letters(&filter, before, limit).await?;
            let Some(last) = newest.last() else { return Ok(Letters::default()) };
            let is_last = newest.len() < limit;
            before = Some(last.run);
            let found: Vec<_> = futures_util::stream::iter(newest)
                .map(|letter| async move { self.listed(&letter).await })
                .buffered(READS)
                .try_filter_map(|letter| std::future::ready(Ok(letter)))
                .try_collect()
                .await?;
            // Those that are past their keeping may fill a page.
            if !found.is_empty() {
                let next = before.filter(|_| !is_last).and_then(|run| run.to_string().parse().ok());
                return Ok(Letters { letters: found, next });
            }
        }
    }

    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError> {
        match self.letters(&Letter::of_job(job), None, 1).await?.first() {
            Some(newest) => self.letter(newest).await,
            None => Ok(None),
        }
    }

    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "redrive";
        let name = self.letters(&Letter::of_run(job, run), None, 1).await?.pop();
        let letter = match &name {
            Some(name) => self.letter(name).await?.map(|letter| (name, letter)),
            None => None,
        };
        let Some((name, letter)) = letter else {
            // A second call: the first one took the letter away and started the next run.
            let record = self.record_of_anybody(job).await?;
            let known = match record.map(|record| record.job()).transpose()?.filter(|job| job.run_id > run) {
                Some(known) => self.status_of(&self.look(&known.client, job).await?).await?,
                None => None,
            };
            return known.map(Enqueued::Known).ok_or_else(|| {
                let why = format!("there is no dead letter of job {job} in run {run}");
                BrokerError::new(BrokerErrorKind::NotFound, OPERATION, why)
            });
        };
        let kept = self.kept_result(&name.address.client, job).await?;
        if kept.is_some_and(|kept| kept.result.run_id == run && kept.result.outcome == Outcome::Succeeded) {
            let why = "the run succeeded after all: purge the dead letter instead";
            return Err(BrokerError::new(BrokerErrorKind::StateConflict, OPERATION, why));
        }
        let started = self.next_run(&name.address, letter.job.generation, Some(&letter.job)).await?;
        self.remove_letter(job, run, OPERATION).await?;
        Ok(started)
    }

    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        self.remove_letter(job, run, "purge dead letter").await
    }
}

impl Nats {
    /// Keeps a dead letter: once per run, and only of the run that the job is in.
    pub(super) async fn keep_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        const OPERATION: &str = "dead-letter";
        let job = &letter.job;
        let policy = self.policies().require(&job.queue, OPERATION).await?;
        let address = Address::new(&job.queue, &job.client, job.id);
        let name = Letter { address: address.clone(), run: job.run_id };
        let Some(record) = self.record_at(&address, OPERATION).await? else {
            // A job without a key is gone when its run is settled; a letter that is there was written before.
            if self.letter(&name).await?.is_some() {
                return Ok(());
            }
            let why = format!("there is no job {}", job.id);
            return Err(BrokerError::new(BrokerErrorKind::NotFound, OPERATION, why));
        };
        let current = record.job()?;
        if current.run_id > job.run_id {
            // The job is in a later run: this one needs no letter any more.
            return Ok(());
        }
        if (current.run_id, current.generation) != (job.run_id, job.generation) {
            let why = "the letter names a run that no relay gave out";
            return Err(BrokerError::new(BrokerErrorKind::Invalid, OPERATION, why));
        }
        let now = self.clock().now();
        let keep_until = now + policy.dead_retention;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
        headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl_secs(keep_until, now)));
        headers.insert(KEEP_UNTIL, keep_until.as_millis().to_string());
        let payload = encode_dead_letter(letter, self.wire()).into();
        let message = Outgoing { subject: name.subject(), headers, payload, hint: None };
        // A conflict is the letter of this run, written before.
        self.api().publish(message, OPERATION).await.map(drop)
    }

    /// Takes back the letter of a run that ended well, or by the client's or the clock's hand.
    pub(super) async fn retract_letter(&self, job: JobId, run: RunId) -> Result<(), BrokerError> {
        let Some(name) = self.letters(&Letter::of_run(job, run), None, 1).await?.pop() else { return Ok(()) };
        let kept = self.kept_result(&name.address.client, job).await?.map(|kept| kept.result);
        match kept.filter(|result| result.run_id == run).map(|result| result.outcome) {
            Some(Outcome::Succeeded | Outcome::Cancelled | Outcome::Expired) => {
                self.remove_letter(job, run, "retract dead letter").await.map(drop)
            }
            Some(Outcome::Failed | Outcome::Exhausted) | None => Ok(()),
        }
    }

    /// Overwrites all letters of a job: its payload is to be gone.
    pub(super) async fn erase_letter(&self, address: &Address) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..ERASE_TRIES {
            let letters = self.letters(&Letter::of_job(address.job), None, READS).await?;
            if letters.is_empty() {
                return Ok(());
            }
            for letter in letters {
                if let Some(found) = self.api().last_at_leader(DEAD_STREAM, letter.subject(), OPERATION).await? {
                    self.api().overwrite(DEAD_STREAM, found.seq, OPERATION).await?;
                }
            }
        }
        let why = format!("dead letters of job {} are not deleted: erase it again", address.job);
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }

    async fn remove_letter(&self, job: JobId, run: RunId, operation: &'static str) -> Result<bool, BrokerError> {
        #[derive(Deserialize)]
        struct Purged {
            purged: u64,
        }
        let body = serde_json::json!({ "filter": Letter::of_run(job, run) });
        let purged: Purged = self.api().call(format!("STREAM.PURGE.{DEAD_STREAM}"), &body, operation).await?;
        Ok(purged.purged > 0)
    }

    /// The names of the letters that `filter` covers, newest run first, older than `before`, at most `limit`.
    async fn letters(&self, filter: &str, before: Option<RunId>, limit: usize) -> Result<Vec<Letter>, BrokerError> {
        const OPERATION: &str = "list dead letters";
        // The newest of all pages of names: no more of them are kept than are wanted.
        let mut newest = BTreeMap::new();
        let mut offset = 0;
        loop {
            let (subjects, total) = stream_api::subjects(self.api(), DEAD_STREAM, filter, offset, OPERATION).await?;
            offset += subjects.len();
            let is_last = subjects.is_empty() || offset >= total;
            for subject in subjects {
                let Some(letter) = Letter::parse(&subject) else { continue };
                if before.is_none_or(|before| letter.run < before) {
                    newest.insert((letter.run, letter.address.job), letter);
                    if newest.len() > limit {
                        newest.pop_first();
                    }
                }
            }
            if is_last {
                return Ok(newest.into_values().rev().collect());
            }
        }
    }

    /// For a list, which one letter that can't be read does not end.
    async fn listed(&self, letter: &Letter) -> Result<Option<DeadLetter>, BrokerError> {
        match self.letter(letter).await {
            Err(error) if !error.is_transient() => {
                tracing::error!(job_id = %letter.address.job, run_id = %letter.run, %error, "a dead letter can't be read");
                Ok(None)
            }
            other => other,
        }
    }

    async fn letter(&self, letter: &Letter) -> Result<Option<DeadLetter>, BrokerError> {
        const OPERATION: &str = "read dead letter";
        let found = self.api().last_at_leader(DEAD_STREAM, letter.subject(), OPERATION).await?;
        let kept = |found: &Stored| {
            let until = number::<i64>(&found.headers, KEEP_UNTIL).map_or(Timestamp::MAX, Timestamp::from_millis);
            until > self.clock().now()
        };
        let Some(found) = found.filter(kept) else { return Ok(None) };
        let read = decode_dead_letter(&found.payload);
        read.map(Some)
            .map_err(|why| envelope_error(&why, OPERATION, &format!("dead letter of job {}", letter.address.job)))
    }

    /// The record of a job whose client and queue nobody named.
    async fn record_of_anybody(&self, job: JobId) -> Result<Option<Record>, BrokerError> {
        for (queue, _) in self.policies().queues().await? {
            let stream = names::jobs_stream(&queue);
            match self.api().last_at_leader(&stream, names::record_of_anybody(job), "redrive").await {
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
