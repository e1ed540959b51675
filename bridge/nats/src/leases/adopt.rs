//! Takes over receipts of another process: one that a restart replaced, or another replica. Leases are the broker's, so
//! the worker goes on with them, and this process has to learn of a lease what the process before knew.
//!
//! JetStream can't be asked which delivery of a message is the one that counts, and it takes answers to any of them.
//! Two things together decide it. The server gives a message to nobody else within one lease after the last `+WPI`; and
//! a worker takes no extension whose answer comes after its lease is over by its own clock. So an answer that comes in
//! time comes before anybody else could have got the job. For a worker that does not keep to its clock there are the
//! record, the result, and the report of the worker that got the job since. They are looked at first, so that such a
//! worker does not prolong another's lease.
//!
//! A receipt is not signed. Its claims are held against the record before anything acts on the delivery.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::leases::lost::lost;
use crate::leases::settling::Settling;
use crate::records::held::Held;
use crate::stored::names::Address;
use crate::stored::receipt::Token;
use crate::stored::record::Record;
use relay_bridge::contract::Job;
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::Receipt;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::SKEW;

impl Settling {
    /// Goes on with a lease that this process does not know, for one lease from now. If its run has ended, it is not
    /// held again, and the answer says how the run ended.
    ///
    /// # Errors
    /// `LeaseLost`: it was settled, somebody else has the job, it was held for `lease_max`, or no relay gave the receipt.
    /// Others: it is not known.
    pub(crate) async fn adopt(
        &self,
        receipt: &Receipt,
        token: &Token,
        operation: &'static str,
    ) -> Result<Arc<Held>, BrokerError> {
        let own = self.held.holding.of(receipt.job_id);
        if own.is_some_and(|held| held.run == receipt.run_id && held.attempt > token.attempt) {
            return Err(lost(operation, "somebody else has the job"));
        }
        let policy = self.policies.require(&receipt.queue, operation).await?;
        if !self.knows_lease_of(receipt, token).await? {
            return Err(lost(operation, "its consumer is gone"));
        }
        let address = Address::new(&receipt.queue, &receipt.client, receipt.job_id);
        let (kept, record, said) = tokio::join!(
            self.results.kept_result(&receipt.client, receipt.job_id),
            self.records.record_at(&address, operation),
            self.held.said(&receipt.client, receipt.job_id),
        );
        let (kept, said) = (kept?.filter(|kept| kept.result.run_id >= receipt.run_id), said?);
        let record = record?.filter(|record| is_of(record, token, &policy));
        let job = record.map(|record| record.job()).transpose()?.filter(|job| job.run_id == receipt.run_id);
        let Some(job) = job else { return Err(lost(operation, "its record was replaced")) };
        let (asked_at, now) = (Instant::now(), self.clock.now());
        // The process that gave it out, or took it over before, reported since when it is held.
        let since = said.as_ref().and_then(|said| said.since(receipt.run_id, token.attempt));
        let leased_at = since.map_or(token.leased_at, |since| since.min(token.leased_at));
        let held_before = now.since(leased_at);
        let left = policy.lease_max.saturating_sub(held_before);
        let held = Arc::new(Held {
            run: receipt.run_id,
            attempt: token.attempt,
            until: asked_at + left.min(self.lanes.consumers.lease(&receipt.queue, &token.lane, &policy)),
            started: asked_at,
            held_before: Some(held_before),
            leased_at,
            job: Arc::new(Job { payload: Bytes::new(), ..job }),
            reply: token.reply.clone(),
            lane: token.lane.clone(),
            ended: kept.map(|kept| kept.result.outcome),
            told: true,
            letterless: false,
            connections: self.api.connections(),
            hurry: CancellationToken::new(),
        });
        if held.ended.is_some() {
            return Ok(held);
        }
        if left.is_zero() {
            return Err(lost(operation, "the job was held for `lease_max`"));
        }
        if leased_at > now + SKEW {
            return Err(lost(operation, "it has not begun"));
        }
        if said.is_some_and(|said| said.is_later(receipt.run_id, token.attempt)) {
            return Err(lost(operation, "somebody else has the job"));
        }
        // A whole lease, also where less is left: a negative acknowledgement would end the lease of the worker that has
        // the job by now. The next heartbeat of this lease shortens it.
        self.api.answer(&token.reply, "+WPI", operation).await?;
        tracing::debug!(job_id = %receipt.job_id, attempt = token.attempt, "a lease of another process goes on");
        self.held.holding.insert(token.key(receipt), held.clone());
        Ok(held)
    }

    /// Learns for how long the server leases in this lane; `false` if it has no such consumer, and so no such lease.
    async fn knows_lease_of(&self, receipt: &Receipt, token: &Token) -> Result<bool, BrokerError> {
        if self.lanes.consumers.knows(&receipt.queue, &token.lane) {
            return Ok(true);
        }
        let info = self.lanes.consumer_info(&receipt.queue, &token.lane).await?;
        if let Some(info) = &info {
            self.lanes.consumers.saw(&receipt.queue, &token.lane, info);
        }
        Ok(info.is_some())
    }
}

/// Whether a receipt may be of a delivery of this message: it says the attempt that the delivery was, and not one beyond the
/// last that may be given out.
fn is_of(record: &Record, token: &Token, policy: &QueuePolicy) -> bool {
    let (spent, delivered) = (record.charged(), u32::try_from(token.delivered).unwrap_or(u32::MAX));
    record.seq == token.seq
        && record.address.lane(record.place).as_ref() == Some(&token.lane)
        && delivered > 0
        && token.attempt == spent.saturating_add(delivered)
        && token.attempt <= policy.max_attempts.max(spent).saturating_add(1)
}
