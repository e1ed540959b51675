//! Dead letters in the table: keeping them and taking them back, as the rules say.

use crate::adapter::stored::record::unreadable;
use relay_bridge::contract::envelope::{WireVersion, decode_dead_letter, encode_dead_letter};
use std::sync::Arc;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::{Table, Written};
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::record::Record;
use crate::adapter::stored::records::Records;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{JobId, QueueName, RunId};
use relay_bridge::dead_letters::{DeadLetter, LetterHead};
use relay_bridge::error::BrokerError;
use relay_bridge::rules::refusal::may_touch;
use relay_bridge::rules::{self, Known, Payload, Verdict};

/// The attributes that a list reads: not the letter itself, in which the payload is.
pub(crate) const LISTED: &str = "#pk, #sk, #ix_at, #keep, #head, #size";
/// The bytes of a letter and of the part that lists show, at most: an item holds 400 KiB with its names and its other values.
const LETTER_MAX: usize = 398 * 1_024;

/// Keeps and takes back dead letters.
pub(crate) struct LetterStore {
    pub(crate) policies: Arc<Policies>,
    pub(crate) rule_counts: Arc<rules::Counts>,
    pub(crate) settings: Settings,
    pub(crate) table: Table,
    pub(crate) records: Arc<Records>,
}

impl LetterStore {
    /// Keeps a worker's dead letter, as the rules say.
    pub(crate) async fn keep_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        const OPERATION: &str = "dead-letter";
        let (job, run) = (letter.job.id, letter.job.run_id);
        let record = self.records.record_of(job, OPERATION).await?;
        let known = record.as_ref().map(Record::known).transpose()?;
        let verdict = rules::keep_letter(known.as_ref(), letter, self.settings.clock.now()).refused()?;
        let (Ok(mut kept), Some(record)) = (verdict, record) else {
            // An earlier call may have kept the letter, and ended before it looked again.
            if letter_goes(known.as_ref(), run) {
                self.take_letter(job, run, OPERATION).await?;
            }
            return Ok(());
        };
        if kept.job.payload.is_empty() {
            kept.job = self.records.whole_job(&record, None, OPERATION).await?;
        }
        if !self.put_letter(&kept).await? {
            return Ok(());
        }
        // The run may have been cancelled, or have ended and started anew, since the record was read.
        let record = self.records.record_of(job, OPERATION).await?;
        let known = record.as_ref().map(Record::known).transpose()?;
        if matches!(rules::keep_letter(known.as_ref(), letter, self.settings.clock.now()), Verdict::Already(())) {
            self.remove_letter(job, run, OPERATION).await?;
        }
        Ok(())
    }

    /// Writes a dead letter, once per run: the time at which it was first kept gives it its place. Returns whether
    /// there was none.
    pub(crate) async fn put_letter(&self, letter: &DeadLetter) -> Result<bool, BrokerError> {
        const OPERATION: &str = "dead-letter";
        let (job, now) = (&letter.job, self.settings.clock.now());
        let policy = self.policies.require(&job.queue, OPERATION).await?;
        let item = Item::at(&names::dead_letter(job.id, job.run_id))
            .text("ix", names::dead_partition(&job.queue))
            .text("ix_at", names::dead_place(now, job.run_id))
            .text("client", job.client.as_str())
            .kept_until(now + policy.dead_retention);
        let item = written(item, letter, self.settings.wire_version);
        let values = Item::default().time(":now", now);
        let condition = "attribute_not_exists(#pk) OR #keep <= :now";
        Ok(matches!(self.table.put_if(item, condition, values, OPERATION).await?, Written::Done(_)))
    }

    /// Takes back the dead letter of a run that did not fail after all.
    pub(crate) async fn retract_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        const OPERATION: &str = "retract dead letter";
        let Some(record) = self.records.record_of(job, OPERATION).await? else { return Ok(()) };
        may_touch(OPERATION, &record.queue, within)?;
        if rules::retract_letter(Some(&record.known()?), run) {
            self.take_letter(job, run, OPERATION).await?;
        }
        Ok(())
    }

    /// Removes the dead letter of a run that should not leave one, if there is one, and counts the removal.
    pub(crate) async fn take_letter(&self, job: JobId, run: RunId, operation: &'static str) -> Result<(), BrokerError> {
        if self.remove_letter(job, run, operation).await? {
            self.rule_counts.retracted();
        }
        Ok(())
    }

    /// Removes the dead letter of a run; returns whether there was one.
    pub(crate) async fn remove_letter(
        &self,
        job: JobId,
        run: RunId,
        operation: &'static str,
    ) -> Result<bool, BrokerError> {
        let removed = self.table.remove(&names::dead_letter(job, run), operation).await?;
        Ok(removed.is_some_and(|item| !item.is_past(self.settings.clock.now())))
    }
}

/// Whether the letter of `run` must not stay, although the run was right to leave it while it was open.
pub(crate) fn letter_goes(known: Option<&Known>, run: RunId) -> bool {
    let erased = |record: &rules::Record| record.job.run_id == run && record.payload == Payload::Erased;
    rules::retract_letter(known, run) || known.and_then(|known| known.record.as_ref()).is_some_and(erased)
}

/// The letter, and apart from it what a list shows: an item that has no room for both has the letter alone.
fn written(item: Item, letter: &DeadLetter, version: WireVersion) -> Item {
    let LetterHead { letter: head, size } = LetterHead::of(letter.clone());
    let (whole, head) = (encode_dead_letter(letter, version), encode_dead_letter(&head, version));
    let fits = whole.len() + head.len() <= LETTER_MAX;
    let item = item.binary("letter", whole);
    if fits { item.binary("head", head).number("size", size) } else { item }
}

/// The part of a letter's item that a list shows; `None` if there is none: the letter has to be read whole.
pub(crate) fn head(item: &Item) -> Option<Result<LetterHead, BrokerError>> {
    let (head, size) = (item.get_binary("head")?, item.get_number("size")?);
    let read = decode_dead_letter(&head).map_err(unreadable);
    Some(read.map(|letter| LetterHead { size, ..LetterHead::of(letter) }))
}

pub(crate) fn letter(item: &Item) -> Result<DeadLetter, BrokerError> {
    decode_dead_letter(&item.need_binary("letter")?).map_err(unreadable)
}
