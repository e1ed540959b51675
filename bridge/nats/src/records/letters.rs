//! Which dead letters are kept, and which are taken back.
//!
//! A letter is written once per run, before the run's result. One of a run that did not fail after all is taken back. A message
//! that is no letter of the run that its subject names counts as absent, and is replaced.

use async_nats::HeaderMap;

use crate::Nats;
use crate::operate::dead_letters::message;
use crate::operate::redrive::redriven;
use crate::stored::names::{Address, DEAD_STREAM, Letter, LetterKind};
use crate::wire::api::Written;
use relay_bridge::contract::envelope::encode_dead_letter;
use relay_bridge::contract::{ClientId, JobId, JobResult, Outcome, RunId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::refusal::contended;
use relay_bridge::rules::{self, Ended, Known};

/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;

/// The kind of the last message about a run that ended badly.
enum Standing {
    /// Its letter, or the mark that it was redriven.
    Letter,
    /// Nothing that counts, with this sequence; 0: there is none.
    Other(u64),
}

impl Nats {
    /// Keeps a dead letter as the rules say.
    pub(crate) async fn keep_letter(&self, sent: &DeadLetter) -> Result<(), BrokerError> {
        const OPERATION: &str = "dead-letter";
        let job = &sent.job;
        let policy = self.policies().require(&job.queue, OPERATION).await?;
        let address = Address::new(&job.queue, &job.client, job.id);
        let (found, _) = self.look_at(&address, OPERATION).await?;
        let mut known = found.known();
        if let Some(record) = known.as_mut().and_then(|known| known.record.as_mut()) {
            let held = self.holds(job.id).filter(|held| held.run == job.run_id);
            // As of a result: who does not hold the job says no more than the policy allows.
            record.attempts = match held {
                Some(held) => held.attempt,
                None => record.attempts.max(policy.max_attempts.saturating_add(1)),
            };
        }
        let kept = match rules::keep_letter(known.as_ref(), sent, self.clock().now()).refused() {
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
            let now = self.clock().now();
            let kind = LetterKind::Kept(u64::try_from(now.as_millis()).unwrap_or(0));
            let name = Letter { address: address.clone(), run: job.run_id, kind };
            let payload = encode_dead_letter(letter, self.wire()).into();
            let message = message(&name, HeaderMap::new(), payload, now + policy.dead_retention, now, instead_of);
            if let Written::At(seq) = self.api().publish(message, operation).await? {
                if instead_of > 0 {
                    self.api().delete(DEAD_STREAM, instead_of, operation).await?;
                }
                let (kept, record) =
                    tokio::join!(self.kept_result(&job.client, job.id), self.record_at(&address, operation),);
                let (kept, record) = (kept?, record?);
                let erased = kept.as_ref().is_some_and(|kept| kept.erased && kept.result.run_id >= job.run_id);
                if erased || record.is_some_and(|record| record.is_erased()) {
                    return self.erase_letter(job.id).await;
                }
                let known = kept.map(|kept| Known { record: None, ended: Some(Ended::of(&kept.result)) });
                if rules::retract_letter(known.as_ref(), job.run_id)
                    && self.api().delete(DEAD_STREAM, seq, operation).await?
                {
                    self.rule_counts().retracted();
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
        let found = self.api().last_at_leader(DEAD_STREAM, Letter::of_run(job, run), operation).await?;
        let named = found.and_then(|found| Some((Letter::parse(&found.subject)?, found)));
        named.filter(|(name, _)| !name.is_mark()).map_or(Ok(None), |(name, found)| self.read_letter(&name, found))
    }

    async fn about(&self, job: JobId, run: RunId, operation: &'static str) -> Result<Standing, BrokerError> {
        let found = self.api().last_at_leader(DEAD_STREAM, Letter::of_run(job, run), operation).await?;
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

    /// Takes back the letter of a run that ended well, or by the client's or the clock's hand.
    pub(crate) async fn retract_letter(&self, job: JobId, run: RunId) -> Result<(), BrokerError> {
        const OPERATION: &str = "retract dead letter";
        let Some((name, seq)) = self.last_about(job, run, OPERATION).await?.filter(|(name, _)| !name.is_mark()) else {
            return Ok(());
        };
        let kept = self.kept_result(&name.address.client, job).await?;
        let known = kept.map(|kept| Known { record: None, ended: Some(Ended::of(&kept.result)) });
        if rules::retract_letter(known.as_ref(), run) && self.api().delete(DEAD_STREAM, seq, OPERATION).await? {
            self.rule_counts().retracted();
        }
        Ok(())
    }

    /// Removes the letter of a run that ended, and not badly.
    pub(crate) async fn drop_letter(&self, client: &ClientId, job: JobId, run: RunId) -> Result<(), BrokerError> {
        const OPERATION: &str = "retract dead letter";
        let last = self.last_about(job, run, OPERATION).await?;
        if let Some((_, seq)) = last.filter(|(name, _)| !name.is_mark() && name.address.client == *client)
            && self.api().delete(DEAD_STREAM, seq, OPERATION).await?
        {
            self.rule_counts().retracted();
        }
        Ok(())
    }

    /// The same of the run that a result ended, if that leaves no letter and one may be there: what succeeded at once has none.
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
        let found = self.api().last_if_any(DEAD_STREAM, Letter::of_run(job, run), operation).await?;
        Ok(found.and_then(|found| Some((Letter::parse(&found.subject)?, found.seq))))
    }
}
