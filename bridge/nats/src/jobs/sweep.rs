//! What time demands, in bounded steps that any replica may run: runs past their deadline end, cancels that a crash broke
//! off are finished.
//!
//! Jobs with the queue's own `job_ttl` expire in the order of the stream, so a lane is looked at from its lowest
//! unsettled record to the first one that is not due. Deadlines out of that order leave an entry of their own: shorter
//! ones when they are written, longer ones when they are passed by. Settled records are looked at by [`crate::jobs::look_back`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::Nats;
use crate::jobs::look_back::{self, LookingBack};
use crate::jobs::remembered::Remembered;
use crate::leases::deliver::UNREADABLE_FOR;
use crate::line::lost_lanes::Census;
use crate::stored::names::{self, Address, Lane};
use crate::stored::record::{Outgoing, Record, Stored, is_unreadable};
use crate::wire::direct_get::{BATCH_MAX, Stretch};
use crate::wire::stream_calls;
use relay_bridge::contract::{Job, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Swept;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules;

pub(crate) const OPERATION: &str = "sweep";
/// The most records of one step.
const STEP_MAX: u32 = 1_000;
/// How many bytes of records come in one read, about.
pub(crate) const BYTES_MAX: usize = 1024 * 1024;
/// How long the entry of a cancel that was just begun is left alone.
const BEGUN_JUST_NOW: Duration = Duration::from_secs(10);
/// How much later than that of a job written in the same moment a deadline must be to be out of order.
pub(crate) const OUT_OF_ORDER: Duration = Duration::from_secs(10);

/// How far each lane and the entries of each queue were looked at, and which queue comes first in the next step.
#[derive(Debug, Default)]
pub(crate) struct Sweeping {
    places: Remembered<(QueueName, Lane), u64>,
    entries: Remembered<QueueName, LeftAlone>,
    first: AtomicUsize,
    pub(crate) census: Census,
    pub(crate) looking_back: LookingBack,
}

/// The entries of a queue that were too young to be removed.
#[derive(Clone, Copy, Debug)]
struct LeftAlone {
    /// When the oldest of them was stored.
    since: Timestamp,
    /// Behind them.
    next: u64,
}

/// The demand of time on the run of a record that is come by in the order of the stream.
pub(crate) enum Deadline {
    /// It ends.
    Passed,
    /// It is for later, and so are those behind it.
    InOrder,
    /// It is later than those behind it, as its job was given longer than the queue gives now: it needs an entry of its own,
    /// as nobody comes by here again.
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

/// One step as it goes.
pub(crate) struct Step {
    pub(crate) swept: Swept,
    /// How many records and entries may still be dealt with.
    left: u32,
    /// How many entries may still be looked at: at most half of the step, so that lanes have theirs.
    entries: u32,
    /// How many settled records may still be looked at, so that many of them hold up nothing else.
    pub(crate) back: u32,
    pub(crate) now: Timestamp,
}

impl Step {
    fn dealt_with(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.swept.more |= self.left == 0;
    }
}

impl Nats {
    pub(crate) async fn sweep_step(&self, limit: u32) -> Result<Swept, BrokerError> {
        let mut queues = self.queues(true).await?;
        self.0.line.sweeping.census.retain(&queues);
        let first = self.0.line.sweeping.first.fetch_add(1, Ordering::Relaxed) % queues.len().max(1);
        queues.rotate_left(first);
        let left = limit.clamp(1, STEP_MAX);
        let entries = left.div_ceil(2);
        let mut step = Step {
            swept: Swept::default(),
            left,
            entries,
            back: left.min(look_back::RECORDS_MAX),
            now: self.clock().now(),
        };
        let log = self.look_at_log().await.inspect_err(|error| self.0.line.sweeping.looking_back.warn(error));
        let mut failed = Vec::new();
        for queue in &queues {
            if step.left == 0 {
                break;
            }
            match self.sweep_queue(queue, log.is_ok(), &mut step).await {
                // Removed just now.
                Err(error) if error.kind() == BrokerErrorKind::NotFound => {}
                Err(error) => {
                    // One queue whose stream has no leader holds up no other.
                    tracing::debug!(%queue, %error, "a queue was not swept: it is tried again in the next step");
                    failed.push(error);
                }
                Ok(()) => {}
            }
        }
        if failed.len() == queues.len()
            && let Some(error) = failed.pop()
        {
            return Err(error);
        }
        Ok(step.swept)
    }

    async fn sweep_queue(&self, queue: &QueueName, has_log: bool, step: &mut Step) -> Result<(), BrokerError> {
        let policy = self.policies().require(queue, OPERATION).await?;
        self.restore_lost_lanes(queue, &policy).await;
        self.sweep_overdue(queue, step).await?;
        // A lane whose consumer has no leader just now is for the next step.
        let consumers = self.answering_consumers(queue).await?.0;
        let mut lanes: Vec<_> = consumers.iter().filter_map(|info| Some((info.lane()?, info))).collect();
        for (lane, info) in &lanes {
            if step.left == 0 {
                return Ok(());
            }
            if info.num_pending + info.num_ack_pending > 0 {
                self.sweep_lane(queue, lane, info.ack_floor.stream_seq + 1, &policy, step).await?;
            }
        }
        if has_log {
            // A long history of one client holds up nobody else's.
            let first = self.0.line.sweeping.first.load(Ordering::Relaxed) % lanes.len().max(1);
            lanes.rotate_left(first);
            for (lane, info) in &lanes {
                self.look_back(queue, lane, info.ack_floor.stream_seq, &policy, step).await?;
            }
        }
        Ok(())
    }

    /// Deadlines that have an entry, and cancels that were begun. Entries that are left alone for now are no work that is due.
    async fn sweep_overdue(&self, queue: &QueueName, step: &mut Step) -> Result<(), BrokerError> {
        let stream = names::jobs_stream(queue);
        let entries = &self.0.line.sweeping.entries;
        let mut young = entries.get(queue).filter(|left| left.since + BEGUN_JUST_NOW > step.now);
        let (mut from, mut any_done) = (young.map_or(1, |young| young.next), false);
        while step.entries > 0 {
            let (subject, messages) = (names::overdue(queue), BATCH_MAX.min(step.entries as usize));
            let stretch = Stretch { from, subject, messages, bytes: BYTES_MAX };
            let batch = self.api().batch(&stream, &stretch, OPERATION).await?;
            for entry in &batch.messages {
                from = entry.seq + 1;
                step.entries = step.entries.saturating_sub(1);
                if self.end_overdue(entry, step).await? {
                    self.api().delete(&stream, entry.seq, OPERATION).await?;
                    step.dealt_with();
                    any_done = true;
                } else {
                    young = Some(LeftAlone { since: young.map_or(entry.at, |young| young.since), next: from });
                }
            }
            if batch.is_end || batch.messages.is_empty() {
                break;
            }
        }
        step.swept.more |= step.entries == 0 && any_done;
        entries.set(queue.clone(), young);
        Ok(())
    }

    /// Whether the entry is done with.
    async fn end_overdue(&self, entry: &Stored, step: &mut Step) -> Result<bool, BrokerError> {
        let Some(address) = Address::parse_overdue(&entry.subject) else { return Ok(true) };
        let Some(record) = self.record_at(&address, OPERATION).await? else {
            return Ok(entry.at + BEGUN_JUST_NOW <= step.now);
        };
        let job = match record.job() {
            Ok(job) if job.expires_at <= step.now || record.is_cancelled() => job,
            Ok(_) => return Ok(entry.at + BEGUN_JUST_NOW <= step.now),
            Err(unreadable) => return self.leave_for_later(&address, &unreadable, step).await.map(|()| true),
        };
        self.end_by_time(&record, &job, step).await?;
        Ok(true)
    }

    /// What this build can't read must not hold up the others, nor be forgotten: it has an entry again in a while.
    async fn leave_for_later(&self, address: &Address, why: &BrokerError, step: &Step) -> Result<(), BrokerError> {
        tracing::error!(job_id = %address.job, error = %why, "a job can't be swept: left for later");
        let again = Outgoing::deadline_at(address, step.now + UNREADABLE_FOR, &Bytes::new(), KEEP_SECS);
        self.api().publish(again, OPERATION).await.map(drop)
    }

    /// A lane, from its lowest unsettled record on.
    async fn sweep_lane(
        &self,
        queue: &QueueName,
        lane: &Lane,
        floor: u64,
        policy: &QueuePolicy,
        step: &mut Step,
    ) -> Result<(), BrokerError> {
        let (stream, places) = (names::jobs_stream(queue), &self.0.line.sweeping.places);
        let looked_to = |next| places.set((queue.clone(), lane.clone()), Some(next));
        let remembered = places.get(&(queue.clone(), lane.clone())).unwrap_or(0);
        // The first one tells whether there is anything to do, and mostly there is not.
        let (mut from, mut messages) = (floor.max(remembered), 1);
        while step.left > 0 {
            let subject = lane.filter(queue);
            let stretch = Stretch { from, subject, messages, bytes: BYTES_MAX };
            let batch = self.api().batch(&stream, &stretch, OPERATION).await?;
            let (is_end, read) = (batch.is_end, batch.messages.len());
            if read == 0 && from == remembered {
                let last = stream_calls::get(self.api(), &stream, OPERATION).await?.info.state.last_sequence;
                if remembered > last + 1 {
                    // Another stream than the one that was looked at: from the floor next time.
                    looked_to(0);
                    break;
                }
            }
            for stored in batch.messages {
                let seq = stored.seq;
                if !self.end_in_order(stored, policy, step).await? {
                    looked_to(seq);
                    return Ok(());
                }
                from = seq + 1;
                step.dealt_with();
            }
            looked_to(from);
            if is_end || read == 0 {
                break;
            }
            messages = BATCH_MAX.min(step.left.max(1) as usize);
        }
        Ok(())
    }

    /// Whether what comes after the record may be due as well.
    async fn end_in_order(&self, stored: Stored, policy: &QueuePolicy, step: &mut Step) -> Result<bool, BrokerError> {
        let record = match Record::read(stored) {
            Ok(record) => record,
            Err(stray) => {
                // The worker that takes it out of line warns of it.
                tracing::debug!(error = %stray, "passed over by the sweep: look at it with `nats stream get`");
                return Ok(true);
            }
        };
        let job = match record.job() {
            Ok(job) => job,
            Err(unreadable) => return self.leave_for_later(&record.address, &unreadable, step).await.map(|()| true),
        };
        match Deadline::of(&record, &job, policy, step.now) {
            Deadline::InOrder if !record.is_cancelled() => return Ok(false),
            Deadline::Later if !record.is_cancelled() => self.note_deadline(&job, None).await?,
            _ => self.end_by_time(&record, &job, step).await?,
        }
        Ok(true)
    }

    /// Ends the run unless it has ended.
    pub(crate) async fn end_by_time(&self, record: &Record, job: &Job, step: &mut Step) -> Result<(), BrokerError> {
        let kept = match self.kept_result(&job.client, job.id).await {
            Err(error) if is_unreadable(&error) => {
                return self.leave_for_later(&record.address, &error, step).await;
            }
            kept => kept?,
        };
        if let Some(kept) = kept.filter(|kept| kept.result.run_id >= job.run_id) {
            // The caller that ended the run may have broken off before the run's letter went.
            return self.drop_letter_of(&kept.result).await;
        }
        // A record past its keeping counts as absent. The result of its run, which is kept at least as long, may be gone: a run
        // that ended would end once more. The server removes the record.
        if job.keep_until() <= self.clock().now() {
            return Ok(());
        }
        if record.is_cancelled() {
            return self.finish_cancel(record, job).await;
        }
        step.swept.expired.extend(self.end_run(record, job, rules::expire).await?);
        Ok(())
    }
}

/// How long an entry that is left for later is kept, in seconds.
const KEEP_SECS: u64 = 24 * 3_600;
