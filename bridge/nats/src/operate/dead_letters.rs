//! The capability for operators (`DeadLetters`): list, get, redrive, purge. Each letter is one message whose subject
//! says of which run it is and since when it is kept, so that a listing goes by names and not by payloads.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use tokio::sync::Semaphore;

use crate::closing::Alive;
use crate::operate::redrive::Redrives;
use crate::records::letters::LetterStore;
use crate::records::letters::Rank;
use crate::stored::names::Letter;
use relay_bridge::contract::{JobId, QueueName, RunId};
use relay_bridge::dead_letters::{DeadLetter, DeadLetters, LETTERS_PASSED_MAX, LetterHead, LetterPlace, Letters};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::Enqueued;

/// The most dead letters of one list.
const LIST_MAX: u32 = 1_000;
/// How many letters' headers are read at once: 64 KiB each at most.
const HEADS: usize = 100;
/// The fewest for which the server is asked.
const HEADS_MIN: usize = 25;
/// How many letters are read at once that don't say in their headers what a list shows, of all lists together: they are read whole,
/// with their payloads.
const READS: usize = 16;

/// Serves operators: fills `DeadLetters`.
pub(crate) struct Operator {
    letters: Arc<LetterStore>,
    redrives: Arc<Redrives>,
    reads: Semaphore,
    _alive: Arc<Alive>,
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
        let filter = queue.map_or_else(|| Letter::ALL.to_owned(), Letter::in_queue);
        let limit = usize::try_from(limit.clamp(1, LIST_MAX)).unwrap_or(1);
        let before = match after {
            Some(place) => Some(rank(place).ok_or_else(|| place.unknown())?),
            None => None,
        };
        // Some of the names may be of letters that are past their keeping, or have other keys.
        let names = self.letters.letters(&filter, before, limit + LETTERS_PASSED_MAX).await?;
        let mut unread = names.len();
        let is_cut = unread == limit + LETTERS_PASSED_MAX;
        let mut found = Letters::default();
        for some in names.chunks(limit.clamp(HEADS_MIN, HEADS)) {
            let mut headers = self.letters.headers(some).await;
            let named: Vec<_> =
                some.iter().map(|name| (name.clone(), headers.remove(&name.subject()).unwrap_or_default())).collect();
            let mut reads = futures_util::stream::iter(named)
                .map(|(name, headers)| async move { (name.rank(), self.listed(&name, headers).await) })
                .buffered(READS);
            while found.letters.len() < limit
                && let Some(((at, run), letter)) = reads.next().await
            {
                unread -= 1;
                found.letters.extend(letter?.filter(|head| head.letter.has_key_prefix(key_prefix)));
                found.next = if unread > 0 || is_cut { format!("{at}.{run}").parse().ok() } else { None };
            }
            if found.letters.len() == limit {
                break;
            }
        }
        Ok(found)
    }

    async fn count(&self, queue: &QueueName, max: u32) -> Result<Option<u64>, BrokerError> {
        let counted = self.letters.count(&Letter::in_queue(queue)).await?;
        Ok(Some(counted.min(max.into())))
    }

    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError> {
        match self.letters.letters(&Letter::of_job(job), None, 1).await?.first() {
            Some(newest) => self.letters.letter(newest).await,
            None => Ok(None),
        }
    }

    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        self.redrives.redrive_letter(job, run).await
    }

    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        self.letters.remove_letters(job, run, "purge dead letter").await
    }
}

impl Operator {
    pub(crate) fn new(letters: Arc<LetterStore>, redrives: Arc<Redrives>, alive: Arc<Alive>) -> Self {
        Self { letters, redrives, reads: Semaphore::new(READS), _alive: alive }
    }

    /// Reads a letter for a list, and keeps no payload. A letter that only a newer relay can read does not end the list.
    async fn listed(&self, name: &Letter, headers: HeaderMap) -> Result<Option<LetterHead>, BrokerError> {
        // Never closed.
        let _reading = self.reads.acquire().await;
        match self.letters.head(name, headers).await {
            Err(error) if !error.is_transient() => {
                tracing::error!(job_id = %name.address.job, run_id = %name.run, %error, "a dead letter can't be read");
                Ok(None)
            }
            other => other,
        }
    }
}

fn rank(place: &LetterPlace) -> Option<Rank> {
    let (at, run) = place.as_str().split_once('.')?;
    Some((at.parse().ok()?, run.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use relay_bridge::contract::Timestamp;

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
