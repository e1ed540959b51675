//! Jobs that ended badly, with their payload and the reason, kept `dead_retention` for an operator.

use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

pub use crate::contract::dead_letter::DeadLetter;
use crate::contract::extra::Extra;
use crate::contract::ids::InvalidId;
use crate::contract::{Job, JobId, QueueName, RunId};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::job_queue::Enqueued;

/// The most dead letters that one [`list`](DeadLetters::list) reads in vain, because their keys begin otherwise.
pub const LETTERS_PASSED_MAX: usize = 1_000;

/// A dead letter as a list has it: without the payload, which may be a thousand times as large as the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterHead {
    /// The letter; its job's payload is empty.
    pub letter: DeadLetter,
    /// The size of the payload in bytes.
    pub size: u64,
}

impl LetterHead {
    /// The part that a list has of a letter that was read whole. Fields of a newer writer are left out: they would keep the memory in
    /// which the letter was read.
    #[must_use]
    pub fn of(letter: DeadLetter) -> Self {
        let size = letter.job.payload.len() as u64;
        let job = Job { payload: Bytes::new(), extra: Extra::default(), ..letter.job };
        Self { letter: DeadLetter { job, extra: Extra::default(), ..letter }, size }
    }
}

/// A page of dead letters.
#[derive(Clone, Debug, Default)]
pub struct Letters {
    /// The letters, the one that was kept last first.
    pub letters: Vec<LetterHead>,
    /// Where to go on; `None` if there is no older letter.
    pub next: Option<LetterPlace>,
}

/// A place in a broker's list of dead letters, which only that broker reads: 1 to 128 visible ASCII characters. It stays good
/// when the letter there is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LetterPlace(String);

impl LetterPlace {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An adapter's answer to a place that is not its own.
    #[must_use]
    pub fn unknown(&self) -> BrokerError {
        let why = format!("`{}` is no place in the list of dead letters: begin without one", self.0);
        BrokerError::new(BrokerErrorKind::Invalid, "list dead letters", why)
    }
}

impl FromStr for LetterPlace {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        const BYTES_MAX: usize = 128;
        let fits = (1..=BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        let problem = || format!("must be 1 to {BYTES_MAX} visible ASCII characters, as `next` of a page gave them");
        fits.then(|| Self(text.to_owned())).ok_or_else(|| InvalidId { what: "place in the list", problem: problem() })
    }
}

impl<'de> Deserialize<'de> for LetterPlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Lists, redrives and removes dead letters, over all clients.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Dead letters of `queue` (all queues if `None`) whose job's key begins with `key_prefix` (any if `None`), behind `after`, at
    /// most `limit` (1 to 1,000): the one first that the broker kept last. A broker looks at a bounded number of letters, so a
    /// page can be short, or empty, and still have a next one. Payloads are in no list: a broker that can't read the rest
    /// alone holds a bounded number of them, however many lists are asked for at a time.
    ///
    /// # Errors
    /// `Invalid` if `after` is no place that this broker gave.
    async fn list(
        &self,
        queue: Option<&QueueName>,
        key_prefix: Option<&str>,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Letters, BrokerError>;

    /// How many dead letters of `queue` there are, counted up to `max`: as many stand for more. Those that are past their keeping may
    /// count until they are removed. `None` where the broker would have to read them all.
    async fn count(&self, queue: &QueueName, max: u32) -> Result<Option<u64>, BrokerError>;

    /// The newest dead letter of `job`, or `None`.
    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError>;

    /// Starts the run after the dead one, with a whole `job_ttl` before it, and removes the dead letter. Idempotent by
    /// generation: a second call finds the run that the first one started.
    ///
    /// # Errors
    /// `NotFound` if there is no dead letter of that run; `StateConflict` if the run did not fail after all, or if the key is
    /// another job's by now. The letter stays.
    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError>;

    /// Removes the dead letter of a run for good. `false` if there was none.
    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError>;
}
