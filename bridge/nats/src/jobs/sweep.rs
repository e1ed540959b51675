//! The sweep, in bounded steps that any replica may run: it ends runs past their deadline, and finishes cancels that a
//! crash broke off.
//!
//! Jobs with the queue's own `job_ttl` expire in the order of the stream, so a lane is looked at from its lowest
//! unsettled record to the first one that is not due. Deadlines out of that order leave an entry of their own: shorter
//! ones when they are written, longer ones when they are passed by. Settled records are looked at by
//! [`crate::jobs::look_back`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::jobs::deadlines::{BYTES_MAX, Deadline, Deadlines, OPERATION, Step};
use crate::jobs::look_back::{self, LookBack};
use crate::jobs::remembered::Remembered;
use crate::line::lanes::Lanes;
use crate::line::lost_lanes::LostLanes;
use crate::records::find::Records;
use crate::records::policies::Policies;
use crate::records::timers::Timers;
use crate::stored::names::{self, Address, Lane};
use crate::stored::record::{Record, Stored};
use crate::wire::api::Api;
use crate::wire::direct_get::{BATCH_MAX, Stretch};
use crate::wire::stream_calls;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Swept;
use relay_bridge::policy::QueuePolicy;

/// The most records of one step.
const STEP_MAX: u32 = 1_000;
/// How long the entry of a cancel that was just begun is left alone.
const BEGUN_JUST_NOW: Duration = Duration::from_secs(10);

/// How far each lane and the entries of each queue were looked at, and which queue comes first in the next step.
#[derive(Debug, Default)]
pub(crate) struct Sweeping {
    places: Remembered<(QueueName, Lane), u64>,
    entries: Remembered<QueueName, LeftAlone>,
    first: AtomicUsize,
}

/// The entries of a queue that were too young to be removed.
#[derive(Clone, Copy, Debug)]
struct LeftAlone {
    /// When the oldest of them was stored.
    since: Timestamp,
    /// The first sequence behind them.
    next: u64,
}

/// Runs the steps of the sweep.
pub(crate) struct Sweep {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) policies: Arc<Policies>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) lost_lanes: Arc<LostLanes>,
    pub(crate) records: Arc<Records>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) deadlines: Arc<Deadlines>,
    pub(crate) history: Arc<LookBack>,
    pub(crate) sweeping: Sweeping,
}

impl Sweep {
    pub(crate) async fn sweep_step(&self, limit: u32) -> Result<Swept, BrokerError> {
        let mut queues = self.records.queues(true).await?;
        self.lost_lanes.checked.retain(&queues);
        let first = self.sweeping.first.fetch_add(1, Ordering::Relaxed) % queues.len().max(1);
        queues.rotate_left(first);
        let left = limit.clamp(1, STEP_MAX);
        let entries = left.div_ceil(2);
        let mut step = Step {
            swept: Swept::default(),
            left,
            entries,
            back: left.min(look_back::RECORDS_MAX),
            now: self.clock.now(),
        };
        let log = self.history.look_at_log().await.inspect_err(|error| self.history.looking.warn(error));
        log.iter().for_each(|results| self.policies.saw_results(results));
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
        let policy = self.policies.require(queue, OPERATION).await?;
        self.lost_lanes.restore_lost_lanes(queue, &policy).await;
        self.sweep_overdue(queue, step).await?;
        // A lane whose consumer has no leader just now is for the next step.
        let consumers = self.lanes.answering_consumers(queue).await?.0;
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
            let first = self.sweeping.first.load(Ordering::Relaxed) % lanes.len().max(1);
            lanes.rotate_left(first);
            for (lane, info) in &lanes {
                self.history.look_back(queue, lane, info, &policy, step).await?;
            }
        }
        Ok(())
    }

    /// Deadlines that have an entry, and cancels that were begun. Entries that are left alone for now are no work that is due.
    async fn sweep_overdue(&self, queue: &QueueName, step: &mut Step) -> Result<(), BrokerError> {
        let stream = names::jobs_stream(queue);
        let entries = &self.sweeping.entries;
        let mut young = entries.get(queue).filter(|left| left.since + BEGUN_JUST_NOW > step.now);
        let (mut from, mut any_done) = (young.map_or(1, |young| young.next), false);
        while step.entries > 0 {
            let (subject, messages) = (names::overdue(queue), BATCH_MAX.min(step.entries as usize));
            let stretch = Stretch { from, subject, messages, bytes: BYTES_MAX };
            let batch = self.api.batch(&stream, &stretch, OPERATION).await?;
            for entry in &batch.messages {
                from = entry.seq + 1;
                step.entries = step.entries.saturating_sub(1);
                if self.end_overdue(entry, step).await? {
                    self.api.delete(&stream, entry.seq, OPERATION).await?;
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
        let Some(record) = self.records.record_at(&address, OPERATION).await? else {
            return Ok(entry.at + BEGUN_JUST_NOW <= step.now);
        };
        let job = match record.job() {
            Ok(job) if job.expires_at <= step.now || record.is_cancelled() => job,
            Ok(_) => return Ok(entry.at + BEGUN_JUST_NOW <= step.now),
            Err(unreadable) => return self.deadlines.leave_for_later(&address, &unreadable, step).await.map(|()| true),
        };
        self.deadlines.end_by_time(&record, &job, step).await?;
        Ok(true)
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
        let (stream, places) = (names::jobs_stream(queue), &self.sweeping.places);
        let looked_to = |next| places.set((queue.clone(), lane.clone()), Some(next));
        let remembered = places.get(&(queue.clone(), lane.clone())).unwrap_or(0);
        // The first one tells whether there is anything to do, and mostly there is not.
        let (mut from, mut messages) = (floor.max(remembered), 1);
        while step.left > 0 {
            let subject = lane.filter(queue);
            let stretch = Stretch { from, subject, messages, bytes: BYTES_MAX };
            let batch = self.api.batch(&stream, &stretch, OPERATION).await?;
            let (is_end, read) = (batch.is_end, batch.messages.len());
            if read == 0 && from == remembered {
                let last = stream_calls::get(&self.api, &stream, OPERATION).await?.info.state.last_sequence;
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

    /// Ends the record's run if that is due. `true` if the records behind it may be due as well.
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
            Err(unreadable) => {
                return self.deadlines.leave_for_later(&record.address, &unreadable, step).await.map(|()| true);
            }
        };
        match Deadline::of(&record, &job, policy, step.now) {
            Deadline::InOrder if !record.is_cancelled() => return Ok(false),
            Deadline::Later if !record.is_cancelled() => self.timers.note_deadline(&job, None).await?,
            _ => self.deadlines.end_by_time(&record, &job, step).await?,
        }
        Ok(true)
    }
}
