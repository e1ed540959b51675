//! Accepts submissions: one conditional write makes the record, which is the job's place in line too. A key that is
//! known is answered from its record, before any quota refuses it.

use crate::records::find::status_of_new;
use std::sync::Arc;

use crate::jobs::room::Room;
use crate::line::lanes::Lanes;
use crate::records::find::{Found, Records};
use crate::records::policies::Policies;
use crate::records::policy_changes::PolicyChanges;
use crate::records::results::ResultEntries;
use crate::records::timers::Timers;
use crate::stored::bookings::Booking;
use crate::stored::names::Address;
use crate::stored::record::Draft;
use crate::wire::api::{Api, Written};
use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::contract::{Job, JobStatus, RunId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::refusal;
use tokio::time::Instant;

const OPERATION: &str = "enqueue";
/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;
/// Accepts jobs that are submitted.
pub(crate) struct Submissions {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) payload_max: u64,
    pub(crate) policies: Arc<Policies>,
    pub(crate) wire: WireVersion,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) room: Arc<Room>,
    pub(crate) policy_changes: Arc<PolicyChanges>,
}

impl Submissions {
    pub(crate) async fn accept(&self, mut job: Job) -> Result<Enqueued, BrokerError> {
        let (actual, limit) = (job.payload.len() as u64, self.payload_max);
        if actual > limit {
            return Err(refusal::too_large(OPERATION, actual, limit));
        }
        self.policy_changes.hear();
        let policy = self.policies.require(&job.queue, OPERATION).await?;
        let address = Address::new(&job.queue, &job.client, job.id);
        let mut booking = match self.taken(&job, &policy).await? {
            Ok(booking) => booking,
            Err(refused) => {
                return Box::pin(self.known(&address))
                    .await?
                    .map_or(Err(refused), |status| Ok(Enqueued::Known(status)));
            }
        };
        let line = self.lanes.lane_for(&job.queue, &job.client, &policy).await?.place();
        self.timers.note_deadline(&job, Some(policy.job_ttl)).await?;
        let mut old = None;
        for _ in 0..TRIES {
            let draft = match &old {
                None => Draft::new(&job, self.wire),
                Some(old) => Draft::instead_of(old, &job, self.wire),
            };
            let (now, sent) = (self.clock.now(), Instant::now());
            let due = job.due(now);
            let message = if due > now {
                let keep = self.timers.keep_on_timer(due, Some(&job));
                draft.on_timer(due, keep, line)
            } else {
                draft.to(line)
            };
            if let Written::At(_) = self.api.publish_booked(message, &mut booking, OPERATION).await? {
                self.records.lately.note(&job, sent);
                let next_attempt_at = Some(due).filter(|due| *due > now);
                return Ok(Enqueued::Created(JobStatus { next_attempt_at, ..status_of_new(&job) }));
            }
            let Some(record) = self.records.record_at(&address, OPERATION).await? else {
                old = None;
                continue;
            };
            let found = record.job()?;
            let now = self.clock.now();
            if found.keep_until() > now {
                let found = Found { kept: None, record: Some((record, found)) };
                return Box::pin(self.status_known(found)).await.map(Enqueued::Known);
            }
            // Past its keeping it counts as absent: the key starts anew, in a greater run.
            if job.run_id <= found.run_id {
                job.run_id = RunId::mint(now, Some(found.run_id));
            }
            old = Some(record);
        }
        Err(refusal::contended(OPERATION, job.id))
    }

    /// The job, if it is known.
    async fn known(&self, address: &Address) -> Result<Option<JobStatus>, BrokerError> {
        let Some(record) = self.records.record_at(address, OPERATION).await? else { return Ok(None) };
        let job = record.job()?;
        if job.keep_until() <= self.clock.now() {
            return Ok(None);
        }
        self.status_known(Found { kept: None, record: Some((record, job)) }).await.map(Some)
    }

    async fn status_known(&self, mut found: Found) -> Result<JobStatus, BrokerError> {
        if let Some((record, job)) = &found.record {
            found.kept = self.results.kept_result(&record.address.client, job.id).await?;
        }
        let gone = || BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, "the job went away meanwhile: try again");
        self.records.status_of(&found).await?.ok_or_else(gone)
    }

    /// The booked bytes of a job that is not known yet, or why it is not taken.
    async fn taken(&self, job: &Job, policy: &QueuePolicy) -> Result<Result<Booking, BrokerError>, BrokerError> {
        let actual = job.payload.len() as u64;
        if actual > policy.payload_max {
            return Ok(Err(refusal::too_large(OPERATION, actual, policy.payload_max)));
        }
        self.room.room_for(job, policy, OPERATION).await
    }
}
