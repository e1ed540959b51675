//! Starts the next run of a job that is known: for a rerun, and for a redrive.

use std::sync::Arc;

use crate::line::lanes::Lanes;
use crate::records::timers::Timers;
use crate::stored::bookings::Booking;
use crate::stored::names::Address;
use crate::stored::record::{Draft, Record};
use crate::wire::api::{Api, Written};
use relay_bridge::contract::Job;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;

/// Starts runs.
pub(crate) struct Starts {
    pub(crate) api: Api,
    pub(crate) wire: WireVersion,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) timers: Arc<Timers>,
}

impl Starts {
    /// Puts the next run of a job in line, in the place of `record`; `booking` has its bytes, if it was admitted. `false` if
    /// something else is there by now.
    pub(crate) async fn start(
        &self,
        address: &Address,
        next: &Job,
        record: Option<Record>,
        policy: &QueuePolicy,
        booking: Option<&mut Booking>,
        operation: &'static str,
    ) -> Result<bool, BrokerError> {
        let line = self.lanes.lane_for(&address.queue, &address.client, policy).await?.place();
        self.timers.note_deadline(next, Some(policy.job_ttl)).await?;
        let draft = match &record {
            Some(record) if record.is_erased() => Draft::instead_of(record, next, self.wire),
            Some(record) => record.rewrite().with_job(next, self.wire).charged(0).cancelled(None),
            None => Draft::new(next, self.wire),
        };
        let message = draft.to(line);
        let written = match booking {
            Some(booking) => self.api.publish_booked(message, booking, operation).await?,
            None => self.api.publish(message, operation).await?,
        };
        let Written::At(_) = written else { return Ok(false) };
        if let Some(old) = record.filter(|record| record.place != line) {
            self.api.delete(&address.stream(), old.seq, operation).await?;
        }
        Ok(true)
    }
}
