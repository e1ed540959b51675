//! Claims: from a received message to a delivery. The message names the job, and one conditional write of its record
//! decides whether the job may run.

use std::sync::Arc;
use std::time::Duration;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::{Table, Written};
use crate::adapter::jobs::quota::Places;
use crate::adapter::jobs::spares::Spares;
use crate::adapter::leases::held::HeldJobs;
use crate::adapter::leases::line::Line;
use crate::adapter::leases::received::{Claimed, Received};
use crate::adapter::leases::running_limit::Slots;
use crate::adapter::leases::settle::Settling;
use crate::adapter::results::recording::Recording;
use crate::adapter::stored::receipt::Token;
use crate::adapter::stored::record::{LEASED, QUEUED, Record, left_to_sweep};
use crate::adapter::stored::records::Records;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::Timestamp;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Receipt};
use relay_bridge::newer_jobs::NewerJobs;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

const OPERATION: &str = "lease";
/// How often a claim is tried while the record changes or its time is about to come, and how near that time has to be:
/// messages come back a little before their lease has ended.
const TRIES: u32 = 3;
const NEAR: Duration = Duration::from_millis(500);
/// How long until a job that this build can't read comes again: a newer release may read it.
const UNREADABLE: Duration = Duration::from_secs(30);

/// Claims the jobs of messages.
pub(crate) struct Claims {
    pub(crate) held: Arc<HeldJobs>,
    pub(crate) newer_jobs: Arc<NewerJobs>,
    pub(crate) settings: Settings,
    pub(crate) spares: Arc<Spares>,
    pub(crate) table: Table,
    pub(crate) records: Arc<Records>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) places: Arc<Places>,
    pub(crate) recording: Arc<Recording>,
    pub(crate) settling: Arc<Settling>,
}

impl Claims {
    /// Leases the job of a message, if its record lets it.
    pub(crate) async fn claim(
        &self,
        line: &Line,
        policy: &Arc<QueuePolicy>,
        received: Received,
    ) -> Result<Claimed, BrokerError> {
        let lease = *uuid::Uuid::new_v4().as_bytes();
        let bound = policy.client(&received.wake.client).max_running;
        let bounded = bound != u32::MAX;
        if bounded && !self.slots.take_slot(&line.name, &received.wake.client, &lease, policy.lease, bound).await? {
            return Ok(Claimed::Bounded(received));
        }
        let claimed = self.claim_record(line, policy, &received, lease).await;
        if bounded && !matches!(claimed, Ok(Claimed::Delivery(_))) {
            self.slots.free_slot(&line.name, &received.wake.client, &lease).await?;
        }
        claimed
    }

    async fn claim_record(
        &self,
        line: &Line,
        policy: &QueuePolicy,
        received: &Received,
        lease: [u8; 16],
    ) -> Result<Claimed, BrokerError> {
        let wake = &received.wake;
        let key = names::record(wake.job);
        for _ in 0..TRIES {
            let now = self.settings.clock.now();
            let from = if received.is_fresh() { received.received_at } else { now };
            let until = from + policy.lease_max;
            let end = (from + policy.lease).min(until);
            let free = now - self.settings.skew;
            let change = "SET #was = #state, #state = :leased, #lease = :lease, #lease_end = :end, #started = :now, \
                          #attempt = #attempt + :one";
            let condition = "#run = :run AND #keep > :now AND #deadline > :now \
                             AND (attribute_not_exists(#result_run) OR #result_run < :run) \
                             AND ((#state = :queued AND #due <= :now) OR (#state = :leased AND #lease_end <= :free))";
            let values = Item::default()
                .text(":run", wake.run.to_string())
                .text(":leased", LEASED)
                .text(":queued", QUEUED)
                .binary(":lease", lease.as_slice())
                .time(":end", end)
                .time(":now", now)
                .time(":free", free)
                .number(":one", 1);
            match self.table.update(&key, change, condition, values, OPERATION).await? {
                Written::Done(item) => return self.deliver(line, policy, received, item, lease, until).await,
                Written::Refused(item) => {
                    let record = Record::read_kept(item, now)?;
                    match record {
                        // The SDK repeated a write whose answer was lost, and found its own lease.
                        Some(record) if record.run == wake.run && record.is_held_by(&lease) => {
                            return self.deliver(line, policy, received, record.item, lease, until).await;
                        }
                        record => match self.refused(line, received, record, now).await? {
                            Some(again) => tokio::time::sleep(again).await,
                            None => return Ok(Claimed::Nothing),
                        },
                    }
                }
            }
        }
        line.queue.hide(&received.handle, Duration::from_secs(1)).await?;
        Ok(Claimed::Nothing)
    }

    /// Deletes or hides the message, as the record demands; if the job may run soon, returns after how long to try
    /// again.
    async fn refused(
        &self,
        line: &Line,
        received: &Received,
        record: Option<Record>,
        now: Timestamp,
    ) -> Result<Option<Duration>, BrokerError> {
        let queue = &line.queue;
        // The record is gone or has ended, or the message is of an earlier run: nobody needs the message.
        let Some(record) = record.filter(|record| record.run == received.wake.run && record.ended().is_none()) else {
            self.spent(line, received);
            queue.delete(&received.handle).await?;
            return Ok(None);
        };
        if record.deadline <= now {
            match self.recording.expire(&record).await {
                Ok(ended) => {
                    if ended.is_none() {
                        self.spent(line, received);
                    }
                    queue.delete(&received.handle).await?;
                }
                Err(error) => {
                    tracing::debug!(job_id = %record.job_id, %error, "not expired by its message: the sweep looks at it");
                    queue.hide(&received.handle, UNREADABLE).await?;
                }
            }
            return Ok(None);
        }
        let at = if record.is_leased() { record.lease_end() + self.settings.skew } else { record.due };
        let wait = at.since(now);
        if wait <= NEAR {
            return Ok(Some(wait));
        }
        if record.is_leased() {
            self.spent(line, received);
        }
        if !record.is_leased() && left_to_sweep(record.due, now, false) {
            // Parked: the sweep sends another message when it is due.
            queue.delete(&received.handle).await?;
        } else {
            queue.hide(&received.handle, wait).await?;
        }
        Ok(None)
    }

    /// Notes that a message for which no job waited was received, and is not in line any more.
    fn spent(&self, line: &Line, received: &Received) {
        if received.first {
            self.spares.change(&line.name, -1);
        }
    }

    /// The delivery of a record that was leased.
    async fn deliver(
        &self,
        line: &Line,
        policy: &QueuePolicy,
        received: &Received,
        item: Item,
        lease: [u8; 16],
        until: Timestamp,
    ) -> Result<Claimed, BrokerError> {
        let record = Record::read(item)?;
        if record.was_queued() {
            self.places.leave_line(&record.queue, &record.client, OPERATION).await;
        }
        if !received.is_fresh()
            && let Err(error) = line.queue.hide(&received.handle, policy.lease + self.settings.skew).await
        {
            // The record is leased by now. The message comes again too early, and its receiver finds that the job is
            // leased.
            tracing::warn!(queue = %line.name, job_id = %record.job_id, %error, "a message is not hidden as long as its lease");
        }
        let token = Token { lease, attempt: record.attempt, until, handle: received.handle.clone() };
        let receipt = Receipt {
            job_id: record.job_id,
            run_id: record.run,
            client: record.client.clone(),
            queue: record.queue.clone(),
            token: token.write(),
        };
        match self.records.whole_job(&record, received.wake.payload(), OPERATION).await {
            Ok(job) => {
                let given = (lease, record.lease_end());
                self.held.insert(record.facts(job.clone()), given, self.settings.clock.now());
                Ok(Claimed::Delivery(Box::new(Delivery {
                    job,
                    receipt,
                    attempt: record.attempt,
                    leased_at: record.started_at().unwrap_or_else(|| self.settings.clock.now()),
                    lease: policy.lease.min(policy.lease_max),
                })))
            }
            Err(error) => {
                let newer = matches!(error.kind(), BrokerErrorKind::NewerVersion { .. });
                if newer {
                    self.newer_jobs.add();
                }
                if newer || error.kind() == BrokerErrorKind::Corrupt {
                    tracing::warn!(queue = %line.name, job_id = %record.job_id, %error, "a job can't be read: it is handed back");
                }
                self.settling.settle_delivery(&receipt, &Settlement::HandBack(UNREADABLE)).await?;
                Ok(Claimed::Nothing)
            }
        }
    }
}
