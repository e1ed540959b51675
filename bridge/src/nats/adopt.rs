//! Receipts that another process gave: one that a restart replaced, or another replica. Leases are the broker's, so the worker
//! goes on with them; this process has to know of a lease what the one before knew.
//!
//! JetStream can't be asked which delivery of a message is the one that counts, and its answers act on any. Two things
//! together say it. The server gives a message to nobody else within one lease after the last `+WPI`; and a worker takes no
//! extension whose answer comes after its lease is over by its own clock. So the delivery is held on to first, and then
//! looked at: an answer that comes in time comes before anybody else could have got the job. For a worker that does not
//! keep to its clock there are the record, the result, and what whoever got the job since said of it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Nats;
use super::names::{self, Address};
use super::receipt::Token;
use super::settle::lost;
use super::state::{Held, Running};
use crate::contract::{ClientId, Job, JobId, Outcome};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::leasing::Receipt;

/// The fate of a lease that another process gave out.
pub(super) enum Adopted {
    /// It stands, one lease from now, and this process knows of it.
    Held(Held),
    /// Its run ended so.
    Ended(Outcome),
}

impl Nats {
    /// Goes on with a lease of which this process knows nothing.
    ///
    /// # Errors
    /// `LeaseLost`: it was settled, somebody else has the job, or it was held for `lease_max`. Others: it is not known.
    pub(super) async fn adopt(
        &self,
        receipt: &Receipt,
        token: &Token,
        operation: &'static str,
    ) -> Result<Adopted, BrokerError> {
        let policy = self.policies().require(&receipt.queue, operation).await?;
        if !self.knows_lease_of(receipt, token).await? {
            return Err(lost(operation, "its consumer is gone"));
        }
        let (asked_at, held_before) = (Instant::now(), self.clock().now().since(token.leased_at));
        let left = policy.lease_max.saturating_sub(held_before);
        if left.is_zero() {
            return Err(lost(operation, "the job was held for `lease_max`"));
        }
        let lease = left.min(self.consumers().lease(&receipt.queue, &token.lane, &policy));
        // Whole, also where less is left: a negative acknowledgement would end the lease of whoever has the job by now. The
        // next heartbeat of this lease shortens it.
        self.api().answer(&token.reply, "+WPI", operation).await?;
        let address = Address::new(&receipt.queue, &receipt.client, receipt.job_id);
        let (kept, record, said) = tokio::join!(
            self.kept_result(&receipt.client, receipt.job_id),
            self.record_at(&address, operation),
            self.said(&receipt.client, receipt.job_id),
        );
        if let Some(kept) = kept?.filter(|kept| kept.result.run_id >= receipt.run_id) {
            return Ok(Adopted::Ended(kept.result.outcome));
        }
        let record = record?.filter(|record| record.seq == token.seq && record.place.is_in_line());
        let job = record.map(|record| record.job()).transpose()?.filter(|job| job.run_id == receipt.run_id);
        let Some(job) = job else { return Err(lost(operation, "its record was replaced")) };
        if said?.is_some_and(|said| said.is_later(receipt.run_id, token.attempt)) {
            return Err(lost(operation, "somebody else has the job"));
        }
        let held = Held {
            client: receipt.client.clone(),
            run: receipt.run_id,
            attempt: token.attempt,
            until: asked_at + lease,
            started: asked_at,
            held_before: Some(held_before),
            leased_at: token.leased_at,
            job: Some(Arc::new(Job { payload: Bytes::new(), ..job })),
            ended: None,
            told: true,
            hurry: CancellationToken::new(),
        };
        tracing::debug!(job_id = %receipt.job_id, attempt = token.attempt, "a lease of another process goes on");
        self.holding().insert(token.key(receipt), held.clone());
        Ok(Adopted::Held(held))
    }

    /// Learns for how long the server leases in this lane; `false` if it has no such consumer, and so no such lease.
    async fn knows_lease_of(&self, receipt: &Receipt, token: &Token) -> Result<bool, BrokerError> {
        if self.consumers().knows(&receipt.queue, &token.lane) {
            return Ok(true);
        }
        let info = self.consumer_info(&receipt.queue, &token.lane).await?;
        if let Some(info) = &info {
            self.consumers().saw(&receipt.queue, &token.lane, info);
        }
        Ok(info.is_some())
    }

    /// The workers' last report of a job.
    pub(super) async fn said(&self, client: &ClientId, job: JobId) -> Result<Option<Running>, BrokerError> {
        let said = self.api().last_at_leader(names::STATE_STREAM, names::state(client, job), "read state").await;
        let said = match said {
            // Without the stream nothing is known of what runs; everything else holds.
            Err(error) if error.kind() == BrokerErrorKind::NotFound => None,
            said => said?,
        };
        Ok(said.and_then(|said| serde_json::from_slice(&said.payload).ok()))
    }
}
