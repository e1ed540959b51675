//! Keeps dead letters, and takes back those of runs that did not fail after all.
//!
//! A letter is written once per run, before the run's result. A message that is no letter of the run that its subject
//! names counts as absent, and is replaced.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};

use crate::records::find::Records;
use crate::records::held::HeldJobs;
use crate::records::letter_heads;
use crate::records::policies::Policies;
use crate::records::results::ResultEntries;
use crate::stored::names::{Address, DEAD_STREAM, Letter, LetterKind};
use crate::stored::record::{EXPECTED_SUBJECT, Outgoing, Stored, envelope_error, number};
use crate::stored::result_entry::ttl_secs;
use crate::wire::api::{Api, Written};
use crate::wire::stream_calls;
use bytes::Bytes;
use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::{EnvelopeError, WireVersion, decode_dead_letter, encode_dead_letter};
use relay_bridge::contract::{ClientId, JobId, JobResult, Outcome, QueueName, RunId, Timestamp};
use relay_bridge::dead_letters::{DeadLetter, LetterHead};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::refusal::{contended, may_touch};
use relay_bridge::rules::{self, Ended, Known};

/// Header of a mark: the run that the letter was redriven in.
pub(crate) const REDRIVEN_RUN: HeaderName = HeaderName::from_static("Relay-Redriven-Run");
/// Header of a mark: when it was written, in milliseconds since the epoch.
pub(crate) const REDRIVEN_AT: HeaderName = HeaderName::from_static("Relay-Redriven-At");

/// How many letters of a job are erased at once.
const READS: usize = 16;
/// How often the letters of a job are looked for while they are erased, [`READS`] at a time.
const ERASE_TRIES: usize = 64;
/// Until when the letter is kept, in milliseconds since the epoch.
const KEEP_UNTIL: HeaderName = HeaderName::from_static("Relay-Keep-Until");

/// A letter's place in the order of a list: when the letter was kept first, then its run.
pub(crate) type Rank = (u64, RunId);

/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;

/// The kind of the last message about a run that ended badly.
enum Standing {
    /// Its letter, or the mark that it was redriven.
    Letter,
    /// Nothing that counts, with this sequence; 0: there is none.
    Other(u64),
}

/// Keeps, finds and takes back dead letters.
pub(crate) struct LetterStore {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) policies: Arc<Policies>,
    pub(crate) rule_counts: Arc<rules::Counts>,
    pub(crate) wire: WireVersion,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) held: Arc<HeldJobs>,
}

impl LetterStore {
    /// Keeps a dead letter as the rules say.
    pub(crate) async fn keep_letter(&self, sent: &DeadLetter) -> Result<(), BrokerError> {
        const OPERATION: &str = "dead-letter";
        let job = &sent.job;
        let policy = self.policies.require(&job.queue, OPERATION).await?;
        let address = Address::new(&job.queue, &job.client, job.id);
        let (found, _) = self.records.look_at(&address, OPERATION).await?;
        let mut known = found.known();
        if let Some(record) = known.as_mut().and_then(|known| known.record.as_mut()) {
            let held = self.held.holding.of(job.id).filter(|held| held.run == job.run_id);
            // As for a result: a caller that does not hold the job says no more than the policy allows.
            record.attempts = match held {
                Some(held) => held.attempt,
                None => record.attempts.max(policy.max_attempts.saturating_add(1)),
            };
        }
        let kept = match rules::keep_letter(known.as_ref(), sent, self.clock.now()).refused() {
            Ok(Ok(kept)) => kept,
            Ok(Err(())) if found.is_erased() => return self.erase_letter(job.id).await,
            Ok(Err(())) => return Ok(()),
            // A job without a key is gone when its run is settled: nothing tells whether a copy is the client's.
            Err(refused) if found.record.is_none() => {
                let is_of_run = |result: &JobResult| result.queue == job.queue && result.run_id >= job.run_id;
                if found.kept.as_ref().is_some_and(|kept| is_of_run(&kept.result)) {
                    return if found.is_erased() { self.erase_letter(job.id).await } else { Ok(()) };
                }
                // A letter that is there was written before.
                let last = self.last_about(job.id, job.run_id, OPERATION).await?;
                return last.filter(|(name, _)| name.address == address).map(drop).ok_or(refused);
            }
            Err(refused) => return Err(refused),
        };
        self.write_letter(&kept, &policy, OPERATION).await
    }

    /// Writes a letter, unless the run has one, or had one that was redriven. Then looks at the job again: a caller that ended
    /// the run, or erased the job, meanwhile may have looked for the letter before it was there.
    pub(crate) async fn write_letter(
        &self,
        letter: &DeadLetter,
        policy: &QueuePolicy,
        operation: &'static str,
    ) -> Result<(), BrokerError> {
        let job = &letter.job;
        let (address, mut instead_of) = (Address::new(&job.queue, &job.client, job.id), 0);
        for _ in 0..TRIES {
            let now = self.clock.now();
            let kind = LetterKind::Kept(u64::try_from(now.as_millis()).unwrap_or(0));
            let name = Letter { address: address.clone(), run: job.run_id, kind };
            let payload = encode_dead_letter(letter, self.wire).into();
            let headers = letter_heads::write(letter, self.wire);
            let message = message(&name, headers, payload, now + policy.dead_retention, now, instead_of);
            if let Written::At(seq) = self.api.publish(message, operation).await? {
                if instead_of > 0 {
                    self.api.delete(DEAD_STREAM, instead_of, operation).await?;
                }
                let (kept, record) = tokio::join!(
                    self.results.kept_result(&job.client, job.id),
                    self.records.record_at(&address, operation),
                );
                let (kept, record) = (kept?, record?);
                let erased = kept.as_ref().is_some_and(|kept| kept.erased && kept.result.run_id >= job.run_id);
                if erased || record.is_some_and(|record| record.is_erased()) {
                    return self.erase_letter(job.id).await;
                }
                let known = kept.map(|kept| Known { record: None, ended: Some(Ended::of(&kept.result)) });
                if rules::retract_letter(known.as_ref(), job.run_id)
                    && self.api.delete(DEAD_STREAM, seq, operation).await?
                {
                    self.rule_counts.retracted();
                }
                return Ok(());
            }
            match self.about(job.id, job.run_id, operation).await? {
                Standing::Letter => return Ok(()),
                Standing::Other(seq) => instead_of = seq,
            }
        }
        Err(contended(operation, job.id))
    }

    /// Whether a run has its letter, or had one that was redriven.
    pub(crate) async fn has_letter(
        &self,
        job: JobId,
        run: RunId,
        operation: &'static str,
    ) -> Result<bool, BrokerError> {
        Ok(matches!(self.about(job, run, operation).await?, Standing::Letter))
    }

    /// The letter of a run, if it has one.
    ///
    /// # Errors
    /// `NewerVersion`, and those of the broker.
    pub(crate) async fn letter_of(
        &self,
        job: JobId,
        run: RunId,
        operation: &'static str,
    ) -> Result<Option<DeadLetter>, BrokerError> {
        let found = self.api.last_at_leader(DEAD_STREAM, Letter::of_run(job, run), operation).await?;
        let named = found.and_then(|found| Some((Letter::parse(&found.subject)?, found)));
        named.filter(|(name, _)| !name.is_mark()).map_or(Ok(None), |(name, found)| self.read_letter(&name, found))
    }

    async fn about(&self, job: JobId, run: RunId, operation: &'static str) -> Result<Standing, BrokerError> {
        let found = self.api.last_at_leader(DEAD_STREAM, Letter::of_run(job, run), operation).await?;
        let Some(found) = found else { return Ok(Standing::Other(0)) };
        let seq = found.seq;
        let stands = match Letter::parse(&found.subject) {
            Some(name) if name.is_mark() => redriven(&found, run).is_some(),
            // One of a newer relay is a letter.
            Some(name) => !matches!(self.read_letter(&name, found), Ok(None)),
            None => false,
        };
        Ok(if stands { Standing::Letter } else { Standing::Other(seq) })
    }

    /// Takes back the letter of a run that succeeded, was cancelled or expired.
    pub(crate) async fn retract_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        const OPERATION: &str = "retract dead letter";
        let Some((name, seq)) = self.last_about(job, run, OPERATION).await?.filter(|(name, _)| !name.is_mark()) else {
            return Ok(());
        };
        may_touch(OPERATION, &name.address.queue, within)?;
        let kept = self.results.kept_result(&name.address.client, job).await?;
        let known = kept.map(|kept| Known { record: None, ended: Some(Ended::of(&kept.result)) });
        if rules::retract_letter(known.as_ref(), run) && self.api.delete(DEAD_STREAM, seq, OPERATION).await? {
            self.rule_counts.retracted();
        }
        Ok(())
    }

    /// Removes the letter of a run that ended, and not badly.
    pub(crate) async fn drop_letter(&self, client: &ClientId, job: JobId, run: RunId) -> Result<(), BrokerError> {
        const OPERATION: &str = "retract dead letter";
        let last = self.last_about(job, run, OPERATION).await?;
        if let Some((_, seq)) = last.filter(|(name, _)| !name.is_mark() && name.address.client == *client)
            && self.api.delete(DEAD_STREAM, seq, OPERATION).await?
        {
            self.rule_counts.retracted();
        }
        Ok(())
    }

    /// Removes the letter of the run that `result` ended, if that outcome leaves no letter and one may be there: a run
    /// that succeeded at its first attempt has none.
    pub(crate) async fn drop_letter_of(&self, result: &JobResult) -> Result<(), BrokerError> {
        if rules::leaves_letter(result.outcome) || result.outcome == Outcome::Succeeded && result.attempt <= 1 {
            return Ok(());
        }
        self.drop_letter(&result.client, result.job_id, result.run_id).await
    }

    /// The name and the sequence of the last message about a run.
    async fn last_about(
        &self,
        job: JobId,
        run: RunId,
        operation: &'static str,
    ) -> Result<Option<(Letter, u64)>, BrokerError> {
        let found = self.api.last_if_any(DEAD_STREAM, Letter::of_run(job, run), operation).await?;
        Ok(found.and_then(|found| Some((Letter::parse(&found.subject)?, found.seq))))
    }

    /// Overwrites all letters of a job: its payload is to be gone.
    pub(crate) async fn erase_letter(&self, job: JobId) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..ERASE_TRIES {
            let letters = self.letters(&Letter::of_job(job), None, READS).await?;
            if letters.is_empty() {
                return Ok(());
            }
            for letter in letters {
                if let Some(found) = self.api.last_at_leader(DEAD_STREAM, letter.subject(), OPERATION).await? {
                    self.api.overwrite(DEAD_STREAM, found.seq, OPERATION).await?;
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
            if let Some(found) = self.api.last_at_leader(DEAD_STREAM, name.subject(), operation).await? {
                any |= self.api.delete(DEAD_STREAM, found.seq, operation).await?;
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
        let (subjects, _) = stream_calls::subjects(&self.api, DEAD_STREAM, &filter, 0, operation).await?;
        Ok(subjects.iter().filter_map(|subject| Letter::parse(subject)).collect())
    }

    /// The names of the letters that `filter` covers and that are older than `before`, at most `limit`; the one that
    /// was kept last comes first.
    pub(crate) async fn letters(
        &self,
        filter: &str,
        before: Option<Rank>,
        limit: usize,
    ) -> Result<Vec<Letter>, BrokerError> {
        const OPERATION: &str = "list dead letters";
        // The newest of all pages of names: no more of them are kept than are wanted.
        let mut newest = BTreeMap::new();
        let mut offset = 0;
        loop {
            let (subjects, total) = stream_calls::subjects(&self.api, DEAD_STREAM, filter, offset, OPERATION).await?;
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

    /// How many letters `filter` covers, in one request: beyond the 100,000 names of one answer, as many as those.
    pub(crate) async fn count(&self, filter: &str) -> Result<u64, BrokerError> {
        let (subjects, _) = stream_calls::subjects(&self.api, DEAD_STREAM, filter, 0, "count dead letters").await?;
        let names = subjects.iter().filter_map(|subject| Letter::parse(subject));
        Ok(names.filter(|letter| !letter.is_mark()).count() as u64)
    }

    pub(crate) async fn letter(&self, name: &Letter) -> Result<Option<DeadLetter>, BrokerError> {
        match self.api.last_at_leader(DEAD_STREAM, name.subject(), "read dead letter").await? {
            Some(found) => self.read_letter(name, found),
            None => Ok(None),
        }
    }

    /// The headers of letters by their subjects, read without the letters. They may be missing.
    pub(crate) async fn headers(&self, names: &[Letter]) -> HashMap<String, HeaderMap> {
        let subjects: Vec<_> = names.iter().map(Letter::subject).collect();
        let read = self.api.headers(DEAD_STREAM, &subjects, "list dead letters").await;
        read.inspect_err(
            |error| tracing::debug!(%error, "headers of dead letters can't be read: the letters are read whole"),
        )
        .unwrap_or_default()
    }

    /// The part of a letter that a list shows: by `headers`, of which some may be missing, or by all of it.
    ///
    /// # Errors
    /// As [`Self::letter`].
    pub(crate) async fn head(&self, name: &Letter, headers: HeaderMap) -> Result<Option<LetterHead>, BrokerError> {
        let Some(read) = letter_heads::read(&headers) else {
            return Ok(self.letter(name).await?.map(LetterHead::of));
        };
        let (letter, size) = match read {
            Ok(LetterHead { letter, size }) => (Ok(letter), size),
            Err(unreadable) => (Err(unreadable), 0),
        };
        let letter = self.judge(name, &headers, letter)?;
        Ok(letter.map(|letter| LetterHead { letter, size }))
    }

    /// The letter in a message; `None` if it is past its keeping, or no letter: a program that may write there may
    /// write anything.
    ///
    /// # Errors
    /// `NewerVersion`.
    pub(crate) fn read_letter(&self, name: &Letter, found: Stored) -> Result<Option<DeadLetter>, BrokerError> {
        self.judge(name, &found.headers, decode_dead_letter(&found.payload))
    }

    fn judge(
        &self,
        name: &Letter,
        headers: &HeaderMap,
        read: Result<DeadLetter, EnvelopeError>,
    ) -> Result<Option<DeadLetter>, BrokerError> {
        if keep_until(headers) <= self.clock.now() {
            return Ok(None);
        }
        let whose = format!("dead letter of job {}", name.address.job);
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

/// The content of a mark.
pub(crate) struct Redriven {
    /// The run that starts, or was started.
    pub(crate) run: RunId,
    pub(crate) at: Timestamp,
}

/// The content of a mark about `run`; `None` if it names no later run: no relay wrote it.
pub(crate) fn redriven(mark: &Stored, run: RunId) -> Option<Redriven> {
    let begun: RunId = mark.headers.get(REDRIVEN_RUN)?.as_str().parse().ok()?;
    let at = Timestamp::from_millis(number(&mark.headers, REDRIVEN_AT)?);
    (begun > run).then_some(Redriven { run: begun, at })
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

pub(crate) fn keep_until(headers: &HeaderMap) -> Timestamp {
    number::<i64>(headers, KEEP_UNTIL).map_or(Timestamp::MAX, Timestamp::from_millis)
}

/// Logs that a run which did not fail may keep a letter: its result is there, and no caller is to try again for that.
pub(crate) fn letter_may_stay(job_id: JobId, run_id: RunId, error: &BrokerError) {
    tracing::warn!(%job_id, %run_id, %error, "whether the run left a dead letter can't be looked up: purge it if it did");
}
