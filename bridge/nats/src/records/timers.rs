//! Puts a job back in line: at once, by replacing the record; or later, by a timer that does so. Each is one write
//! under the condition that the record is the one that was leased, so the second of two has no effect.
//!
//! A job on a timer occupies no place among a client's leased jobs, however short its backoff is. A negative
//! acknowledgement with a delay would occupy one.

use std::time::Duration;

use crate::stored::record::{Outgoing, Record};
use crate::wire::api::{Api, Written};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, Timestamp};
use relay_bridge::error::BrokerError;

/// How long a job whose envelope this build can't read is set aside before it is offered again.
pub(crate) const UNREADABLE_FOR: Duration = Duration::from_secs(30);
/// A deadline is out of order if it is later by more than this than that of a job written in the same moment.
pub(crate) const OUT_OF_ORDER: Duration = Duration::from_secs(10);
/// How much longer than its own time a timer's message is kept.
const KEEP_ALLOWANCE: Duration = Duration::from_secs(3_600);
/// A deadline needs an entry of its own if it is earlier by more than this than that of a job submitted now.
pub(crate) const IN_ORDER: Duration = Duration::from_secs(1);

/// Puts records on timers and back in line.
pub(crate) struct Timers {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
}

impl Timers {
    /// Puts the leased `record` on a timer until `at`, with `spent` attempts. `false` if the record was replaced. `job`
    /// is the job in the record, if that can be read.
    pub(crate) async fn park(
        &self,
        record: &Record,
        spent: u32,
        at: Timestamp,
        job: Option<&Job>,
    ) -> Result<bool, BrokerError> {
        if let Some(job) = job {
            self.note_deadline(job, None).await?;
        }
        let keep = self.keep_on_timer(at, job);
        let timer = record.rewrite().charged(spent).on_timer(at, keep, record.place);
        if let Written::Conflict(_) = self.api.publish(timer, "park").await? {
            return Ok(false);
        }
        // Its delivery ends with it. If this is lost, the next process that gets the message finds the timer.
        self.api.delete(&record.address.stream(), record.seq, "park").await?;
        Ok(true)
    }

    /// Puts the leased `record` back in line at once. `false` if the record was replaced.
    pub(crate) async fn put_back(&self, record: &Record, spent: u32, job: Option<&Job>) -> Result<bool, BrokerError> {
        if let Some(job) = job {
            self.note_deadline(job, None).await?;
        }
        let again = record.rewrite().charged(spent).to(record.place);
        Ok(matches!(self.api.publish(again, "hand back").await?, Written::At(_)))
    }

    /// How many seconds a timer's message must be kept.
    pub(crate) fn keep_on_timer(&self, at: Timestamp, job: Option<&Job>) -> u64 {
        let keep = job.map_or(Duration::ZERO, |job| Duration::from_millis(job.keep_ms));
        (at.since(self.clock.now()) + keep + KEEP_ALLOWANCE).as_secs()
    }

    /// Leaves an entry for the sweep if the deadline of `job`, whose record is being written now, comes before that of a
    /// job submitted now, or long after it: the sweep goes by the order of the stream, and would find it late, or have
    /// passed it by. `job_ttl` is the queue's, if the record is a new one.
    pub(crate) async fn note_deadline(&self, job: &Job, job_ttl: Option<Duration>) -> Result<(), BrokerError> {
        let written = self.clock.now().max(job.due_at);
        let is_in_order = |job_ttl| {
            let usual = written + job_ttl;
            job.expires_at + IN_ORDER >= usual && job.expires_at <= usual + OUT_OF_ORDER
        };
        if job_ttl.is_some_and(is_in_order) {
            return Ok(());
        }
        let keep = job.expires_at.since(self.clock.now()) + Duration::from_millis(job.keep_ms) + KEEP_ALLOWANCE;
        let address = crate::stored::names::Address::new(&job.queue, &job.client, job.id);
        let deadline = Outgoing::deadline(&address, job, keep.as_secs());
        // Boxed: few jobs need it, and the future of every submission would be the larger by it.
        Box::pin(self.api.publish(deadline, "note deadline")).await.map(drop)
    }
}
