//! Extends and ends deliveries. A lease that is over by the holder's own clock is not touched again: the server would
//! let its answers act on the worker that holds the job now.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::leases::lost::lost;
use crate::leases::settling::Settling;
use crate::records::held::Held;
use crate::stored::names::{Address, Lane};
use crate::stored::receipt::Token;
use crate::stored::record::Record;
use relay_bridge::contract::job::DELAY_MAX;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Held as StillHeld, Receipt};
use relay_bridge::settlement::Settlement;

/// The shortest delay there is before a retry.
const RETRY_MIN: Duration = Duration::from_millis(1);

impl Settling {
    /// The lease as this process knows it, if it is not over; `None` if another process gave it out, or it was settled.
    pub(crate) fn live(
        &self,
        receipt: &Receipt,
        token: &Token,
        operation: &'static str,
    ) -> Result<Option<Arc<Held>>, BrokerError> {
        let held = self.held.holding.get(&token.key(receipt));
        if held.as_ref().is_some_and(|held| held.until <= Instant::now()) {
            return Err(lost(operation, "its time is over"));
        }
        let named = (receipt.run_id, &receipt.client, &receipt.queue);
        Ok(held.filter(|held| (held.run, &held.job.client, &held.job.queue) == named))
    }

    /// The lease that a receipt names; if another process gave it out, it is taken over.
    pub(crate) async fn held(
        &self,
        receipt: &Receipt,
        token: &Token,
        operation: &'static str,
    ) -> Result<Arc<Held>, BrokerError> {
        match self.live(receipt, token, operation)? {
            Some(held) => Ok(held),
            None => self.adopt(receipt, token, operation).await,
        }
    }

    /// The answer to a holder that comes late: how its run ended, if it did and that can be read.
    async fn too_late(&self, receipt: &Receipt, lost: BrokerError) -> Result<StillHeld, BrokerError> {
        if lost.kind() != BrokerErrorKind::LeaseLost {
            return Err(lost);
        }
        let kept = self.results.kept_result(&receipt.client, receipt.job_id).await.ok().flatten();
        let ended = kept.filter(|kept| kept.result.run_id >= receipt.run_id);
        ended.map_or(Err(lost), |kept| Ok(StillHeld::Ended(kept.result.outcome)))
    }

    pub(crate) async fn extend_lease(&self, receipt: &Receipt) -> Result<StillHeld, BrokerError> {
        const OPERATION: &str = "extend";
        let token = Token::read(receipt, OPERATION)?;
        let live = match self.live(receipt, &token, OPERATION) {
            Err(lost) => return self.too_late(receipt, lost).await,
            Ok(live) => live,
        };
        let Some(held) = live else {
            let held = match self.adopt(receipt, &token, OPERATION).await {
                Err(failure) => return self.too_late(receipt, failure).await,
                Ok(held) => held,
            };
            if let Some(outcome) = held.ended {
                return Ok(StillHeld::Ended(outcome));
            }
            self.held.tell_state(receipt.job_id, &held, true).await;
            return Ok(StillHeld::Until(held.until - held.started));
        };
        if let Some(outcome) = held.ended {
            return Ok(StillHeld::Ended(outcome));
        }
        let policy = self.policies.require(&receipt.queue, OPERATION).await?;
        let asked_at = Instant::now();
        let left = policy.lease_max.saturating_sub(asked_at - held.started + held.held_before.unwrap_or_default());
        if left.is_zero() {
            return Err(lost(OPERATION, "the job was held for `lease_max`"));
        }
        let whole = self.lanes.consumers.lease(&receipt.queue, &held.lane, &policy);
        let lease = left.min(whole);
        // The server extends by a whole lease or, told that the job may be had again after a while, by that.
        let answer = match lease == whole {
            true => "+WPI".to_owned(),
            false => format!("-NAK {{\"delay\":{}}}", lease.as_nanos()),
        };
        // A worker that came with a receipt of another process may not keep to its clock: others' reports are read each
        // time.
        let said = async {
            match held.held_before {
                Some(_) => self.held.said(&receipt.client, receipt.job_id).await.ok().flatten(),
                None => None,
            }
        };
        let (confirmed, kept, said) = tokio::join!(
            self.api.answer(&held.reply, answer, OPERATION),
            self.results.kept_result(&receipt.client, receipt.job_id),
            said,
        );
        let ended = kept.as_ref().ok().and_then(Option::as_ref).filter(|kept| kept.result.run_id >= receipt.run_id);
        if let Some(kept) = ended {
            self.held.holding.ended(receipt.job_id, receipt.run_id, kept.result.outcome);
            return Ok(StillHeld::Ended(kept.result.outcome));
        }
        confirmed?;
        if said.is_some_and(|said| said.is_later(receipt.run_id, held.attempt)) {
            self.held.holding.remove(&token.key(receipt));
            return Err(lost(OPERATION, "somebody else has the job"));
        }
        if held.until <= Instant::now() {
            return Err(lost(OPERATION, "its time was over before the extension was confirmed"));
        }
        if let Err(error) = kept {
            // The lease is extended all the same; whether the run has ended is for the next heartbeat.
            tracing::debug!(job_id = %receipt.job_id, %error, "whether a run has ended could not be looked up");
        }
        let key = token.key(receipt);
        self.held.holding.change(&key, |held| held.until = asked_at + lease);
        if let Some(held) = self.held.holding.get(&key).filter(|held| held.told) {
            self.held.tell_state(receipt.job_id, &held, true).await;
        }
        Ok(StillHeld::Until(lease))
    }

    pub(crate) async fn settle_delivery(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        const OPERATION: &str = "settle";
        let token = Token::read(receipt, OPERATION)?;
        let held = self.held(receipt, &token, OPERATION).await?;
        let settled = self.apply(receipt, &token, &held, settlement).await;
        if !matches!(&settled, Err(error) if error.kind() != BrokerErrorKind::LeaseLost) {
            self.held.holding.remove(&token.key(receipt));
            self.offer_freed_slot(receipt, &held.lane).await;
            if held.told && held.ended.is_none() {
                self.held.tell_state(receipt.job_id, &held, false).await;
            }
        }
        settled
    }

    async fn apply(
        &self,
        receipt: &Receipt,
        token: &Token,
        held: &Held,
        settlement: &Settlement,
    ) -> Result<(), BrokerError> {
        const OPERATION: &str = "settle";
        let address = Address::new(&receipt.queue, &receipt.client, receipt.job_id);
        let completes = matches!(settlement, Settlement::Complete | Settlement::DeadLetter);
        let ended = match held.ended {
            // The job leaves the line, whatever is asked for.
            Some(_) => true,
            // A job that nobody ended, as far as this process knows, may go back without asking.
            None if !completes => false,
            None => {
                let kept = self.results.kept_result(&receipt.client, receipt.job_id).await?;
                kept.is_some_and(|kept| kept.result.run_id >= receipt.run_id)
            }
        };
        if ended {
            return self.end_delivery(&held.reply, &held.lane, &address, token.seq, held.job.keep_record).await;
        }
        let found = self.records.record_at(&address, OPERATION).await?;
        let Some(record) = found.filter(|record| record.seq == token.seq && record.place.is_in_line()) else {
            return Err(lost(OPERATION, "its record was replaced"));
        };
        let (delay, spent) = match settlement {
            Settlement::Complete | Settlement::DeadLetter => {
                let why = "the run has no result yet: record it first";
                return Err(BrokerError::new(BrokerErrorKind::Invalid, OPERATION, why));
            }
            Settlement::RetryAfter(delay) => ((*delay).clamp(RETRY_MIN, DELAY_MAX), held.attempt),
            Settlement::HandBack(delay) => ((*delay).min(DELAY_MAX), held.attempt.saturating_sub(1)),
        };
        let back = self.back(&record, spent, delay).await?;
        if back { Ok(()) } else { Err(lost(OPERATION, "its record was replaced")) }
    }

    async fn back(&self, record: &Record, spent: u32, delay: Duration) -> Result<bool, BrokerError> {
        let job = record.job().ok();
        match delay.is_zero() {
            true => self.timers.put_back(record, spent, job.as_ref()).await,
            false => self.timers.park(record, spent, self.clock.now() + delay, job.as_ref()).await,
        }
    }

    /// Ends the delivery of a run that has its result. A record that nobody needs any more goes with it.
    pub(crate) async fn end_delivery(
        &self,
        reply: &str,
        lane: &Lane,
        address: &Address,
        seq: u64,
        keep_record: bool,
    ) -> Result<(), BrokerError> {
        if keep_record {
            return self.acks.acknowledge(&address.queue, lane, reply, "settle").await;
        }
        // Without its message there is no delivery: one step for both.
        self.api.delete(&address.stream(), seq, "settle").await.map(drop)
    }

    /// A delivery ended: its lane may give one more.
    async fn offer_freed_slot(&self, receipt: &Receipt, lane: &Lane) {
        if let Some(line) = self.lines.known_line(&receipt.queue).await {
            let policy = self.policies.require(&receipt.queue, "settle").await;
            if policy.is_ok_and(|policy| policy.client(&receipt.client).max_running < u32::MAX) {
                line.more(lane);
                // A call that waits pulls for it.
                line.woken.notify_one();
            }
        }
    }
}
