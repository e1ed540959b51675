//! Extending and ending leases. The record is written first, under the condition that this lease still holds it; then
//! the message is hidden or deleted. After a crash in between, the message comes again, and its receiver reads the
//! record.

use crate::adapter::leases::held::HeldJobs;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::ReturnValue;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::{SqsQueue, SqsQueues};
use crate::adapter::aws::table::{Table, Written};
use crate::adapter::jobs::attempts::Attempts;
use crate::adapter::jobs::quota::Places;
use crate::adapter::jobs::sending::Sender;
use crate::adapter::leases::lines::Lines;
use crate::adapter::leases::running_limit::{Owed, Slots, kept_until};
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::receipt::{Token, lost};
use crate::adapter::stored::record::{QUEUED, Record, left_to_sweep, next_look};
use crate::adapter::stored::records::Records;
use crate::adapter::stored::wake_up::Sending;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::Timestamp;
use relay_bridge::contract::job::DELAY_MAX;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Held, Receipt};
use relay_bridge::settlement::Settlement;

/// The shortest delay of a retry.
const RETRY_MIN: Duration = Duration::from_millis(1);
/// The longest wait for which a message is hidden. Longer waits would leave messages in flight, which SQS bounds and
/// scalers count.
const HIDDEN_MAX: Duration = Duration::from_secs(30);

/// The condition that this lease holds the run, that the run is open, and that the job is the one that the receipt names: a
/// worker is trusted with a queue because its receipt names that queue.
const HELD: &str = "#run = :run AND #queue = :queue AND #client = :client AND #state = :leased AND #lease = :lease AND #lease_end > :now \
                    AND (attribute_not_exists(#result_run) OR #result_run < :run)";

fn held(receipt: &Receipt, token: &Token, now: Timestamp) -> Item {
    Item::default()
        .text(":run", receipt.run_id.to_string())
        .text(":queue", receipt.queue.as_str())
        .text(":client", receipt.client.as_str())
        .text(":leased", crate::adapter::stored::record::LEASED)
        .binary(":lease", token.lease.as_slice())
        .time(":now", now)
}

/// Whether the record is of the run, the client and the queue that a receipt names.
fn is_named(record: &Record, receipt: &Receipt) -> bool {
    (record.run, &record.client, &record.queue) == (receipt.run_id, &receipt.client, &receipt.queue)
}

/// Ends and extends leases.
pub(crate) struct Settling {
    pub(crate) held: Arc<HeldJobs>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) settings: Settings,
    pub(crate) table: Table,
    pub(crate) records: Arc<Records>,
    pub(crate) places: Arc<Places>,
    pub(crate) attempts: Arc<Attempts>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) owed: Owed,
}

impl Settling {
    /// Holds the job for one more lease.
    pub(crate) async fn extend_lease(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        const OPERATION: &str = "extend";
        let token = Token::read(receipt, OPERATION)?;
        let policy = self.policies.require(&receipt.queue, OPERATION).await?;
        let now = self.settings.clock.now();
        let bounded = policy.client(&receipt.client).max_running != u32::MAX;
        let mut end = now + policy.lease;
        let owed = bounded && self.owed.begin(token.lease, end, now);
        let before = loop {
            let written = self.write_end(receipt, &token, end, (now, policy.lease_max)).await?;
            let refused = match written {
                Written::Done(before) => break Record::read(before)?,
                Written::Refused(item) => item.map(Record::read).transpose()?,
            };
            let record = refused.filter(|record| is_named(record, receipt));
            // `lease_max` ends it sooner. Since when the job is held the record says: a receipt is its worker's word.
            let last = record.as_ref().filter(|record| record.is_held_by(&token.lease) && record.lease_end() > now);
            let last = last.and_then(Record::started_at).map(|started| started + policy.lease_max);
            if let Some(last) = last.filter(|last| now < *last && *last < end) {
                end = last;
                continue;
            }
            self.owed.is_paid(&token.lease);
            let ended = record.and_then(|record| record.ended());
            return ended.map(Held::Ended).ok_or_else(|| lost(receipt.job_id, OPERATION));
        };
        self.held.extended(receipt, token.attempt, end);
        if bounded {
            let started = before.started_at().unwrap_or(now);
            let kept = |end| kept_until(started, end, policy.lease);
            // If the SDK repeated this write, it finds its own end of the lease.
            if owed || before.lease_end() == end || kept(before.lease_end()) < kept(end) {
                self.slots.keep_slot(&receipt.queue, &receipt.client, &token.lease, kept(end)).await?;
            }
            self.owed.is_paid(&token.lease);
        }
        let held = end.since(now);
        self.hide(&*self.queues.of(&receipt.queue, OPERATION).await?, &token, held + self.settings.skew).await;
        Ok(Held::Until(held))
    }

    /// Writes that the lease ends at `end`, unless the job has been held for so long that this would be beyond `lease_max`.
    async fn write_end(
        &self,
        receipt: &Receipt,
        token: &Token,
        end: Timestamp,
        (now, lease_max): (Timestamp, Duration),
    ) -> Result<Written, BrokerError> {
        let condition = format!("{HELD} AND #started >= :earliest");
        let values = held(receipt, token, now).time(":end", end).time(":earliest", end - lease_max);
        let (key, change) = (names::record(receipt.job_id), "SET #lease_end = :end");
        self.table.update_telling(ReturnValue::AllOld, &key, change, &condition, values, "extend").await
    }

    /// Refuses a receipt whose lease does not hold its job. It costs a read only if another process gave the lease, or it
    /// is over.
    pub(crate) async fn require_lease(&self, receipt: &Receipt, operation: &'static str) -> Result<(), BrokerError> {
        let token = Token::read(receipt, operation)?;
        let now = self.settings.clock.now();
        if self.held.stands(receipt, &token.lease, now) {
            return Ok(());
        }
        let holds =
            |record: &Record| is_named(record, receipt) && record.is_held_by(&token.lease) && record.lease_end() > now;
        let record = self.records.record_of(receipt.job_id, operation).await?;
        record.filter(holds).map(drop).ok_or_else(|| lost(receipt.job_id, operation))
    }

    /// Ends the delivery.
    pub(crate) async fn settle_delivery(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        const OPERATION: &str = "settle";
        let token = Token::read(receipt, OPERATION)?;
        let settled = match settlement {
            Settlement::Complete | Settlement::DeadLetter => self.complete(receipt, &token, OPERATION).await,
            Settlement::RetryAfter(delay) => {
                self.put_back(receipt, &token, (*delay).clamp(RETRY_MIN, DELAY_MAX), false, OPERATION).await
            }
            Settlement::HandBack(delay) => {
                self.put_back(receipt, &token, (*delay).min(DELAY_MAX), true, OPERATION).await
            }
        };
        let over = !matches!(&settled, Err(error) if error.kind() == BrokerErrorKind::Invalid || error.is_transient());
        if over {
            self.held.remove(receipt.job_id);
            self.owed.is_paid(&token.lease);
        }
        if settled.is_ok() && !matches!(settlement, Settlement::HandBack(_)) {
            self.attempts.end(&receipt.queue);
        }
        if over && self.is_bounded(receipt).await {
            self.slots.free_slot(&receipt.queue, &receipt.client, &token.lease).await?;
            self.lines.slot_freed(&receipt.queue);
        }
        settled
    }

    async fn is_bounded(&self, receipt: &Receipt) -> bool {
        let policy = self.policies.require(&receipt.queue, "settle").await;
        policy.is_ok_and(|policy| policy.client(&receipt.client).max_running != u32::MAX)
    }

    /// Takes the message of a run that has ended out of line.
    async fn complete(&self, receipt: &Receipt, token: &Token, operation: &'static str) -> Result<(), BrokerError> {
        let record = self.records.record_of(receipt.job_id, operation).await?;
        if record.as_ref().is_some_and(|record| record.queue != receipt.queue) {
            return Err(lost(receipt.job_id, operation));
        }
        let open = record.filter(|record| record.run == receipt.run_id && record.ended().is_none());
        if let Some(record) = open {
            if record.is_held_by(&token.lease) && record.lease_end() > self.settings.clock.now() {
                let why = "the run has no result yet: record it first";
                return Err(BrokerError::new(BrokerErrorKind::Invalid, operation, why));
            }
            return Err(lost(receipt.job_id, operation));
        }
        if token.handle.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.queues.of(&receipt.queue, operation).await?.delete(&token.handle).await {
            tracing::debug!(job_id = %receipt.job_id, %error, "a message is not deleted: who receives it next deletes it");
        }
        Ok(())
    }

    /// Puts the run back in line, not to be leased before `delay` has passed.
    async fn put_back(
        &self,
        receipt: &Receipt,
        token: &Token,
        delay: Duration,
        unspent: bool,
        operation: &'static str,
    ) -> Result<(), BrokerError> {
        let now = self.settings.clock.now();
        let due = now + delay;
        let long = delay > HIDDEN_MAX;
        let mut change = "SET #state = :queued, #due = :due".to_owned();
        let mut values = held(receipt, token, now).text(":queued", QUEUED).time(":due", due);
        if unspent {
            change.push_str(", #attempt = #attempt - :one");
            values = values.number(":one", 1);
        }
        if long {
            // The sweep sees to it that the job is taken when its time has come.
            let deadline =
                self.records.record_of(receipt.job_id, operation).await?.map_or(due, |record| record.deadline);
            change.push_str(", #ix_at = :look");
            values = values.text(":look", names::moment(next_look(due, deadline, now, self.queues.config().fifo)));
        }
        change.push_str(" REMOVE #lease, #lease_end");
        let key = names::record(receipt.job_id);
        let record = match self.table.update(&key, &change, HELD, values, operation).await? {
            Written::Done(item) => Record::read(item)?,
            Written::Refused(item) => {
                let record = item.map(Record::read).transpose()?;
                let own = |record: &Record| {
                    // If the SDK repeated this write, it finds its own `due`: nobody else writes this time.
                    is_named(record, receipt) && record.ended().is_none() && !record.is_leased() && record.due == due
                };
                record.filter(own).ok_or_else(|| lost(receipt.job_id, operation))?
            }
        };
        self.places.join_line(&receipt.queue, &receipt.client, operation).await;
        let queue = self.queues.of(&receipt.queue, operation).await?;
        if !long {
            self.hide(&queue, token, delay).await;
            return Ok(());
        }
        // The new message is sent before the old one goes: there is always one, or a time at which the sweep sends one.
        if !left_to_sweep(due, now, self.queues.config().fifo) {
            let sent = match self.records.whole_job(&record, None, operation).await {
                Ok(job) => self.sender.wake(&job, due, Sending::Again).await,
                Err(unreadable) => Err(unreadable),
            };
            if let Err(error) = sent {
                tracing::warn!(job_id = %receipt.job_id, %error, "a parked job was not sent: its old message comes again");
                return Ok(());
            }
        }
        if let Err(error) = queue.delete(&token.handle).await {
            tracing::debug!(job_id = %receipt.job_id, %error, "a message is not deleted: it comes again and waits");
        }
        Ok(())
    }

    /// Makes the message come again after `time`. If that fails, it comes when its present time is over, and its
    /// receiver reads the record.
    async fn hide(&self, queue: &SqsQueue, token: &Token, time: Duration) {
        if token.handle.is_empty() {
            return;
        }
        if let Err(error) = queue.hide(&token.handle, time).await {
            tracing::debug!(%error, "a message is not hidden as long as it should be");
        }
    }

    /// Hands back deliveries that nobody took; they spend no attempt.
    pub(crate) async fn hand_back_all(&self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            let back = Settlement::HandBack(Duration::ZERO);
            if let Err(error) = self.settle_delivery(&delivery.receipt, &back).await {
                tracing::warn!(job_id = %delivery.job.id, %error, "a lease nobody took was not handed back: it ends by itself");
            }
        }
    }
}
