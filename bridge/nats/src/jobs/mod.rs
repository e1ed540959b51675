//! The submitter's half: enqueue, status, cancel, rerun, erase, list, depth, sweep.

pub(crate) mod enqueue;
pub(crate) mod list;
pub(crate) mod look_back;
pub(crate) mod remembered;
pub(crate) mod storage;
pub(crate) mod storage_limit;
pub(crate) mod sweep;

use async_trait::async_trait;

use crate::Nats;
use crate::records::find::status_of_new;
use crate::stored::bookings::Booking;
use crate::stored::names::{Address, Place};
use crate::stored::record::{Draft, Record};
use crate::wire::api::Written;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules;
use relay_bridge::rules::refusal::{contended, no_job};

/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;

#[async_trait]
impl JobQueue for Nats {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        self.accept(job).await
    }

    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        let found = self.look(client, job).await?;
        self.status_of(&found).await
    }

    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        self.cancel_job(client, job).await
    }

    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        self.rerun_job(client, job, from).await
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.erase_job(client, job).await
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.list_jobs(client, filter).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.policies().require(queue, "depth").await?;
        let timers = self.count(queue, crate::stored::names::timers(queue), 1);
        let (infos, parked) = tokio::try_join!(self.consumer_infos(queue), timers)?;
        Ok(infos.iter().fold(Depth { parked, ..Depth::default() }, |depth, info| Depth {
            waiting: depth.waiting + info.num_pending,
            leased: depth.leased + info.num_ack_pending,
            ..depth
        }))
    }

    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        let policy = self.policies().require(queue, "count").await?;
        self.count_waiting(queue, client, &policy).await.map(Some)
    }

    async fn oldest(&self, _: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        // Each lane has a first one of its own: as many reads as there are clients.
        Ok(None)
    }

    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        Ok(Exact { depth: self.depth(queue).await?, oldest: self.oldest(queue).await? })
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.sweep_step(limit).await
    }
}

impl Nats {
    async fn rerun_job(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "rerun";
        let found = self.look(client, job).await?;
        let queue = match (&found.record, &found.kept) {
            (Some((record, _)), _) => record.address.queue.clone(),
            (None, Some(kept)) => kept.result.queue.clone(),
            (None, None) => return Err(no_job(OPERATION, job)),
        };
        let address = Address::new(&queue, client, job);
        let (mut facts, mut room) = ((found, None), None);
        for _ in 0..TRIES {
            let (found, written) = facts;
            let now = self.clock().now();
            let Ok(next) = rules::rerun(found.known().as_ref(), job, from, now).refused()? else {
                let status = self.status_of(&found).await?;
                return status.map(Enqueued::Known).ok_or_else(|| no_job(OPERATION, job));
            };
            let policy = self.policies().require(&queue, OPERATION).await?;
            let booking = match &mut room {
                Some(booking) => booking,
                None => room.insert(self.room_for(&next, &policy, OPERATION).await??),
            };
            let record = found.record.map(|(record, _)| record).or(written);
            if self.start(&address, &next, record, &policy, Some(booking), OPERATION).await? {
                return Ok(Enqueued::Created(status_of_new(&next)));
            }
            facts = self.look_at(&address, OPERATION).await?;
        }
        Err(contended(OPERATION, job))
    }

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
        let line = self.lane_for(&address.queue, &address.client, policy).await?.place();
        self.note_deadline(next, Some(policy.job_ttl)).await?;
        let draft = match &record {
            Some(record) if record.is_erased() => Draft::instead_of(record, next, self.wire()),
            Some(record) => record.rewrite().with_job(next, self.wire()).charged(0).cancelled(None),
            None => Draft::new(next, self.wire()),
        };
        let message = draft.to(line);
        let written = match booking {
            Some(booking) => self.api().publish_booked(message, booking, operation).await?,
            None => self.api().publish(message, operation).await?,
        };
        let Written::At(_) = written else { return Ok(false) };
        if let Some(old) = record.filter(|record| record.place != line) {
            self.api().delete(&address.stream(), old.seq, operation).await?;
        }
        Ok(true)
    }

    /// The record first: a crash after it leaves the call unanswered and nothing that could run again.
    async fn erase_job(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..TRIES {
            let found = self.look(client, job).await?;
            let Ok(left) = rules::erase(found.known().as_ref(), job).refused()? else { return Ok(()) };
            let bare = left.filter(|_| found.record.as_ref().is_some_and(|(record, _)| !record.is_erased()));
            if let (Some((record, _)), Some(bare)) = (&found.record, bare) {
                let draft = record.rewrite().with_job(&bare, self.wire()).erased();
                let Written::At(seq) = self.api().publish(draft.to(Place::Ended), OPERATION).await? else { continue };
                self.erase_before(&record.address, seq).await?;
            } else if let Some((record, _)) = &found.record {
                // Erased already, but whoever did so may have ended before the rest.
                self.erase_before(&record.address, record.seq).await?;
            } else if let Some(kept) = &found.kept {
                // A record past its keeping counts as absent, and has the payload.
                if let Some(past) = self.find_in(std::slice::from_ref(&kept.result.queue), client, job).await? {
                    self.erase_before(&past.address, past.seq + 1).await?;
                }
            }
            // The letters last: whoever writes one looks at the record and the result after.
            self.erase_result(client, job).await?;
            return self.erase_letter(job).await;
        }
        Err(contended(OPERATION, job))
    }

    /// Overwrites what the address had before `seq`. That it is gone is seen by looking: the server gives one error for a
    /// message that was gone and for one that it could not delete.
    async fn erase_before(&self, address: &Address, seq: u64) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        let stream = address.stream();
        for _ in 0..TRIES {
            let first = self.api().next_at_leader(&stream, 1, address.anywhere(), OPERATION).await?;
            let Some(old) = first.filter(|first| first.seq < seq) else { return Ok(()) };
            self.api().overwrite(&stream, old.seq, OPERATION).await?;
        }
        let why = format!("a message of job {} is not deleted: erase it again", address.job);
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }
}
