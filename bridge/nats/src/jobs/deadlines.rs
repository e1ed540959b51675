//! Ends runs whose time is over, and bounds how much one step of a sweep does.

use std::sync::Arc;

use crate::records::end_run::Runs;
use crate::records::letters::LetterStore;
use crate::records::results::ResultEntries;
use crate::records::timers::{OUT_OF_ORDER, UNREADABLE_FOR};
use crate::stored::names::Address;
use crate::stored::record::{Outgoing, Record, is_unreadable};
use crate::wire::api::Api;
use bytes::Bytes;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::Swept;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules;

pub(crate) const OPERATION: &str = "sweep";
/// How many bytes of records come in one read, about.
pub(crate) const BYTES_MAX: usize = 1024 * 1024;

/// How long an entry that is left for later is kept, in seconds.
const KEEP_SECS: u64 = 24 * 3_600;

/// The state of a run's deadline, for a sweep that comes by its record in the order of the stream.
pub(crate) enum Deadline {
    /// The deadline has passed: the run ends.
    Passed,
    /// The deadline is later, and so are those of the records behind it.
    InOrder,
    /// The deadline is later than those behind it, because its job was given longer than the queue gives now. It needs
    /// an entry of its own, because nobody comes by here again.
    Later,
}

impl Deadline {
    pub(crate) fn of(record: &Record, job: &Job, policy: &QueuePolicy, now: Timestamp) -> Self {
        match () {
            () if job.expires_at <= now => Self::Passed,
            () if job.expires_at <= record.at + policy.job_ttl + OUT_OF_ORDER => Self::InOrder,
            () => Self::Later,
        }
    }
}

/// The progress of one step of a sweep, and its bounds.
pub(crate) struct Step {
    pub(crate) swept: Swept,
    /// How many records and entries may still be dealt with.
    pub(crate) left: u32,
    /// How many entries may still be looked at: at most half of the step, so that lanes have theirs.
    pub(crate) entries: u32,
    /// How many settled records may still be looked at, so that many of them hold up nothing else.
    pub(crate) back: u32,
    pub(crate) now: Timestamp,
}

impl Step {
    pub(crate) fn dealt_with(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.swept.more |= self.left == 0;
    }
}

/// Ends runs that are past their deadline.
pub(crate) struct Deadlines {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) runs: Arc<Runs>,
}

impl Deadlines {
    /// Gives a job that this build can't read an entry again in a while: it must not hold up the others, nor be
    /// forgotten.
    pub(crate) async fn leave_for_later(
        &self,
        address: &Address,
        why: &BrokerError,
        step: &Step,
    ) -> Result<(), BrokerError> {
        tracing::error!(job_id = %address.job, error = %why, "a job can't be swept: left for later");
        let again = Outgoing::deadline_at(address, step.now + UNREADABLE_FOR, &Bytes::new(), KEEP_SECS);
        self.api.publish(again, OPERATION).await.map(drop)
    }

    /// Ends the run unless it has ended.
    pub(crate) async fn end_by_time(&self, record: &Record, job: &Job, step: &mut Step) -> Result<(), BrokerError> {
        let kept = match self.results.kept_result(&job.client, job.id).await {
            Err(error) if is_unreadable(&error) => {
                return self.leave_for_later(&record.address, &error, step).await;
            }
            kept => kept?,
        };
        if let Some(kept) = kept.filter(|kept| kept.result.run_id >= job.run_id) {
            // The caller that ended the run may have broken off before the run's letter went.
            return self.letters.drop_letter_of(&kept.result).await;
        }
        // A record past its keeping counts as absent. The result of its run, which is kept at least as long, may be gone: a run
        // that ended would end once more. The server removes the record.
        if job.keep_until() <= self.clock.now() {
            return Ok(());
        }
        if record.is_cancelled() {
            return self.runs.finish_cancel(record, job).await;
        }
        step.swept.expired.extend(self.runs.end_run(record, job, rules::expire).await?);
        Ok(())
    }
}
