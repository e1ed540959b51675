//! Dead letters: one message each, whose subject says of which run and since when, so that a listing reads names and not
//! payloads.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::Nats;
use crate::stored::names::{DEAD_STREAM, Letter};
use crate::stored::record::{EXPECTED_SUBJECT, Outgoing, Stored, envelope_error, number};
use crate::stored::result_entry::ttl_secs;
use crate::wire::stream_calls;
use relay_bridge::contract::envelope::decode_dead_letter;
use relay_bridge::contract::{JobId, QueueName, RunId, Timestamp};
use relay_bridge::dead_letters::{DeadLetter, DeadLetters, LETTERS_PASSED_MAX, LetterPlace, Letters};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;

/// The most dead letters of one list.
const LIST_MAX: u32 = 1_000;
/// How many letters of a list are read at once.
const READS: usize = 16;
/// How often the letters of a job are looked for while they are erased, [`READS`] at a time.
const ERASE_TRIES: usize = 64;
/// Until when the letter is kept, in milliseconds since the epoch.
const KEEP_UNTIL: HeaderName = HeaderName::from_static("Relay-Keep-Until");

/// A letter's place in the order of a list: when the letter was kept first, then its run.
type Rank = (u64, RunId);

#[async_trait]
impl DeadLetters for Nats {
    async fn list(
        &self,
        queue: Option<&QueueName>,
        key_prefix: Option<&str>,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Letters, BrokerError> {
        let filter = queue.map_or_else(|| Letter::ALL.to_owned(), Letter::in_queue);
        let limit = usize::try_from(limit.clamp(1, LIST_MAX)).unwrap_or(1);
        let before = match after {
            Some(place) => Some(rank(place).ok_or_else(|| place.unknown())?),
            None => None,
        };
        // Some of the names may be of letters that are past their keeping, or have other keys.
        let names = self.letters(&filter, before, limit + LETTERS_PASSED_MAX).await?;
        let mut unread = names.len();
        let is_cut = unread == limit + LETTERS_PASSED_MAX;
        let mut found = Letters::default();
        let mut reads = futures_util::stream::iter(names)
            .map(|name| async move { (name.rank(), self.listed(&name).await) })
            .buffered(READS);
        while found.letters.len() < limit
            && let Some(((at, run), letter)) = reads.next().await
        {
            unread -= 1;
            found.letters.extend(letter?.filter(|letter| letter.has_key_prefix(key_prefix)));
            found.next = if unread > 0 || is_cut { format!("{at}.{run}").parse().ok() } else { None };
        }
        Ok(found)
    }

    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError> {
        match self.letters(&Letter::of_job(job), None, 1).await?.first() {
            Some(newest) => self.letter(newest).await,
            None => Ok(None),
        }
    }

    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        self.redrive_letter(job, run).await
    }

    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        self.remove_letters(job, run, "purge dead letter").await
    }
}

impl Nats {
    /// Overwrites all letters of a job: its payload is to be gone.
    pub(crate) async fn erase_letter(&self, job: JobId) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..ERASE_TRIES {
            let letters = self.letters(&Letter::of_job(job), None, READS).await?;
            if letters.is_empty() {
                return Ok(());
            }
            for letter in letters {
                if let Some(found) = self.api().last_at_leader(DEAD_STREAM, letter.subject(), OPERATION).await? {
                    self.api().overwrite(DEAD_STREAM, found.seq, OPERATION).await?;
                }
            }
        }
        let why = format!("dead letters of job {job} are not deleted: erase it again");
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }

    /// Removes the letter of a run, and leaves its mark. `false` if there was no letter.
    pub(crate) async fn remove_letters(
        &self,
        job: JobId,
        run: RunId,
        operation: &'static str,
    ) -> Result<bool, BrokerError> {
        let mut any = false;
        // One, unless a release before this one wrote one as well.
        for name in self.names_of(job, run, operation).await?.into_iter().filter(|name| !name.is_mark()) {
            if let Some(found) = self.api().last_at_leader(DEAD_STREAM, name.subject(), operation).await? {
                any |= self.api().delete(DEAD_STREAM, found.seq, operation).await?;
            }
        }
        Ok(any)
    }

    /// The names of the letter and the mark of a run.
    pub(crate) async fn names_of(
        &self,
        job: JobId,
        run: RunId,
        operation: &'static str,
    ) -> Result<Vec<Letter>, BrokerError> {
        let filter = Letter::of_run(job, run);
        let (subjects, _) = stream_calls::subjects(self.api(), DEAD_STREAM, &filter, 0, operation).await?;
        Ok(subjects.iter().filter_map(|subject| Letter::parse(subject)).collect())
    }

    /// The names of the letters that `filter` covers, that which was kept last first, older than `before`, at most `limit`.
    async fn letters(&self, filter: &str, before: Option<Rank>, limit: usize) -> Result<Vec<Letter>, BrokerError> {
        const OPERATION: &str = "list dead letters";
        // The newest of all pages of names: no more of them are kept than are wanted.
        let mut newest = BTreeMap::new();
        let mut offset = 0;
        loop {
            let (subjects, total) = stream_calls::subjects(self.api(), DEAD_STREAM, filter, offset, OPERATION).await?;
            offset += subjects.len();
            let is_last = subjects.is_empty() || offset >= total;
            for subject in subjects {
                let Some(letter) = Letter::parse(&subject).filter(|letter| !letter.is_mark()) else { continue };
                if before.is_none_or(|before| letter.rank() < before) {
                    newest.insert(letter.rank(), letter);
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

    async fn letter(&self, name: &Letter) -> Result<Option<DeadLetter>, BrokerError> {
        match self.api().last_at_leader(DEAD_STREAM, name.subject(), "read dead letter").await? {
            Some(found) => self.read_letter(name, found),
            None => Ok(None),
        }
    }

    /// For a list, which one letter that only a newer relay can read does not end.
    async fn listed(&self, name: &Letter) -> Result<Option<DeadLetter>, BrokerError> {
        match self.letter(name).await {
            Err(error) if !error.is_transient() => {
                tracing::error!(job_id = %name.address.job, run_id = %name.run, %error, "a dead letter can't be read");
                Ok(None)
            }
            other => other,
        }
    }

    /// The letter in a message; `None` if it is past its keeping, or no letter: whoever may write there may write anything.
    ///
    /// # Errors
    /// `NewerVersion`.
    pub(crate) fn read_letter(&self, name: &Letter, found: Stored) -> Result<Option<DeadLetter>, BrokerError> {
        if keep_until(&found) <= self.clock().now() {
            return Ok(None);
        }
        let whose = format!("dead letter of job {}", name.address.job);
        let read = decode_dead_letter(&found.payload);
        match read.map_err(|why| envelope_error(&why, "read dead letter", &whose)) {
            Err(error) if error.kind() == BrokerErrorKind::Corrupt => {
                tracing::error!(run_id = %name.run, %error, "it counts as absent");
                Ok(None)
            }
            Ok(letter) if !is_called(&letter, name) => {
                let job_id = letter.job.id;
                tracing::error!(run_id = %name.run, %job_id, "a dead letter of another job than its name says: it counts as absent");
                Ok(None)
            }
            read => read.map(Some),
        }
    }
}

/// Whether a letter is of the job and the run that its subject names: a program that may write there could have another
/// client's job started.
fn is_called(letter: &DeadLetter, name: &Letter) -> bool {
    let (job, address) = (&letter.job, &name.address);
    (job.id, job.run_id, &job.client, &job.queue) == (address.job, name.run, &address.client, &address.queue)
}

/// A message about a run that ended badly, if the last one about it has sequence `expected` (0: there is none).
pub(crate) fn message(
    name: &Letter,
    mut headers: HeaderMap,
    payload: Bytes,
    keep_until: Timestamp,
    now: Timestamp,
    expected: u64,
) -> Outgoing {
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
    headers.insert(EXPECTED_SUBJECT, Letter::of_run(name.address.job, name.run));
    headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl_secs(keep_until, now)));
    headers.insert(KEEP_UNTIL, keep_until.as_millis().to_string());
    Outgoing { subject: name.subject(), headers, payload, hint: None }
}

pub(crate) fn keep_until(found: &Stored) -> Timestamp {
    number::<i64>(&found.headers, KEEP_UNTIL).map_or(Timestamp::MAX, Timestamp::from_millis)
}

fn rank(place: &LetterPlace) -> Option<Rank> {
    let (at, run) = place.as_str().split_once('.')?;
    Some((at.parse().ok()?, run.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_list_is_read_as_it_was_given() {
        let run = RunId::mint(Timestamp::from_millis(7), None);
        assert_eq!(rank(&format!("7.{run}").parse().unwrap()), Some((7, run)));
        for no_place in ["7", "seven.1", &run.to_string()] {
            assert_eq!(rank(&no_place.parse().unwrap()), None, "{no_place}");
        }
    }
}
