//! The audit of workers: the ones that were not let in, the beginning and the end of each session, and at its
//! greatest level each job that a worker is given.

use std::sync::Arc;

use relay_bridge::contract::WorkerId;
use relay_bridge::leasing::Receipt;

use super::WorkerListener;
use super::session::Session;
use crate::api::Slug;
use crate::audit::record::{Action, Door, Outcome, Record};
use crate::audit::{Audit, Full};
use crate::auth::Presented;

/// A session of a worker, as the audit sees it.
pub(super) struct SessionLine {
    audit: Option<Arc<Audit>>,
    begun: Option<Record>,
}

impl SessionLine {
    /// Writes that a worker was let in.
    ///
    /// # Errors
    /// [`Full`], where every call has to be on record and there is no room for another one.
    pub(super) fn begin(
        server: &WorkerListener,
        presented: &Presented<'_>,
        worker: &WorkerId,
        method: &'static str,
    ) -> Result<Self, Full> {
        let audit = server.audit.clone();
        let Some(line) = audit.as_ref().map(|audit| audit.begin(Door::Worker, Action::Connect)).transpose()?.flatten()
        else {
            return Ok(Self { audit, begun: None });
        };
        let mut begun = None;
        let mut line = line;
        line.set(|record| {
            record.who = Some(worker.to_string());
            record.method = Some(method);
            record.source = presented.address;
            record.endpoint = presented.endpoint.map(ToOwned::to_owned);
            begun = Some(record.clone());
        });
        line.end(200, None);
        Ok(Self { audit, begun })
    }

    /// Writes that the session ended, and why.
    pub(super) fn end(self, why: &str) {
        let (Some(audit), Some(begun)) = (self.audit, self.begun) else { return };
        let (time, detail) = (audit.now(), Some(why.to_owned()));
        audit.write(Record { time, action: Action::Disconnect, outcome: Outcome::Allowed, detail, ..begun });
    }
}

/// Writes that a worker was not let in.
pub(super) fn refused(server: &WorkerListener, presented: &Presented<'_>, method: &'static str, why: &str) {
    let Some(audit) = &server.audit else { return };
    audit.refused(Door::Worker, Slug::Unauthenticated, |record| {
        let endpoint = presented.endpoint.map(ToOwned::to_owned);
        let (source, detail) = (presented.address, Some(why.to_owned()));
        Record { method: Some(method), endpoint, source, detail, ..record }
    });
}

impl Session {
    /// Writes that the worker is given a job, where such calls are written.
    pub(super) fn writes_a_lease(&self, receipt: &Receipt) {
        let Some(audit) = self.server.audit.as_ref().filter(|audit| audit.wants(Action::Lease)) else { return };
        audit.write(Record {
            outcome: Outcome::Allowed,
            who: Some(self.worker.to_string()),
            queue: Some(receipt.queue.clone()),
            job: Some(receipt.job_id),
            ..Record::new(audit.now(), Door::Worker, Action::Lease)
        });
    }
}
