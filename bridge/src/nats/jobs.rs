//! The submitter's half: enqueue, status, cancel, rerun, erase, list, depth, sweep.

use async_trait::async_trait;

use super::Nats;
use super::api::Written;
use super::find::status_of_new;
use super::names::{Address, Place};
use super::record::Draft;
use crate::contract::envelope::Extra;
use crate::contract::{ClientId, Job, JobId, JobStatus, QueueName, RunId, Timestamp};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::job_queue::{Depth, Enqueued, JobFilter, JobQueue, Listed, Swept};

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
        let found = self.look(client, job).await?;
        let address = match (&found.record, &found.kept) {
            (Some((record, _)), _) => record.address.clone(),
            (None, Some(kept)) => Address::new(&kept.result.queue, client, job),
            (None, None) => {
                return Err(BrokerError::new(BrokerErrorKind::NotFound, "rerun", format!("there is no job {job}")));
            }
        };
        self.next_run(&address, from, None).await
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.erase_job(client, job).await
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.list_jobs(client, filter).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.policies().require(queue, "depth").await?;
        let timers = self.count(queue, super::names::timers(queue), 1);
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

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.sweep_step(limit).await
    }
}

impl Nats {
    /// Starts the run after generation `from` of a finished job, or finds that it was started. `dead` is the job of a
    /// dead letter: with it the payload is there although the record may not be, and the run that died must have ended.
    ///
    /// # Errors
    /// `NotFound`, `StateConflict`.
    pub(super) async fn next_run(
        &self,
        address: &Address,
        from: u32,
        dead: Option<&Job>,
    ) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "rerun";
        let refuse = |why: String| Err(BrokerError::new(BrokerErrorKind::StateConflict, OPERATION, why));
        let (client, job) = (&address.client, address.job);
        for _ in 0..TRIES {
            let (now, kept) = (self.clock().now(), self.kept_result(client, job).await?);
            let record = self.record_at(address, OPERATION).await?;
            let current = record.as_ref().map(|record| record.job()).transpose()?;
            let live = current.as_ref().filter(|current| current.keep_until() > now);
            if let (Some(record), Some(live)) = (&record, live) {
                let ended = kept.as_ref().map(|kept| &kept.result).filter(|result| result.run_id >= live.run_id);
                if live.generation == from.saturating_add(1) && live.generation > from {
                    return Ok(Enqueued::Known(self.status_of_record(record, live, ended).await?));
                }
                if live.generation != from {
                    return refuse(format!("the job is in generation {}, not {from}", live.generation));
                }
                if ended.is_none() {
                    return refuse(format!("generation {from} has not ended: wait for it, or cancel it"));
                }
                if record.is_erased() {
                    return refuse("the payload was erased: submit the job again".to_owned());
                }
            } else if let Some(kept) = kept.as_ref().filter(|kept| kept.result.generation == from.saturating_add(1)) {
                // That run came and went: its record is not kept any more.
                let done = super::find::Found { record: None, kept: Some(kept.clone()) };
                let status = self.status_of(&done).await?;
                return status.map(Enqueued::Known).ok_or_else(|| gone(job));
            }
            // A record that is there is the truth; a worker's letter brings back the payload alone.
            let Some(base) = live.or(dead) else {
                return match kept {
                    Some(_) => refuse("the payload was not kept: submit it again, or set `keep_keyless`".to_owned()),
                    None => Err(gone(job)),
                };
            };
            let before = [current.as_ref().map(|job| job.run_id), kept.map(|kept| kept.result.run_id)];
            let before = before.into_iter().flatten().max().unwrap_or(base.run_id).max(base.run_id);
            let mut next = base.next_run(now);
            next.run_id = RunId::mint(now, Some(before));
            let policy = self.policies().require(&address.queue, OPERATION).await?;
            let line = self.lane_for(&address.queue, client, &policy).await?.place();
            self.note_deadline(&next, Some(policy.job_ttl)).await?;
            let draft = match &record {
                Some(record) => record.rewrite().with_job(&next, self.wire()).charged(0).cancelled(None),
                None => Draft::new(&next, self.wire()),
            };
            if let Written::At(_) = self.api().publish(draft.to(line), OPERATION).await? {
                if let Some(old) = record.filter(|record| record.place != line) {
                    self.api().delete(&address.stream(), old.seq, OPERATION).await?;
                }
                return Ok(Enqueued::Created(status_of_new(&next)));
            }
        }
        let why = format!("others keep changing job {job}: try again");
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }

    /// The record first: a crash after it leaves the call unanswered and nothing that could run again.
    async fn erase_job(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..TRIES {
            let found = self.look(client, job).await?;
            if found.ended().is_none() {
                found.require(job, OPERATION)?;
                let why = "the run has not ended: cancel it first";
                return Err(BrokerError::new(BrokerErrorKind::StateConflict, OPERATION, why));
            }
            if let Some((record, kept)) = found.record.as_ref().filter(|(record, _)| !record.is_erased()) {
                let bare = Job {
                    payload: bytes::Bytes::new(),
                    headers: Default::default(),
                    extra: Extra::default(),
                    ..kept.clone()
                };
                let draft = record.rewrite().with_job(&bare, self.wire()).erased();
                let Written::At(seq) = self.api().publish(draft.to(Place::Ended), OPERATION).await? else { continue };
                self.erase_before(&record.address, seq).await?;
                self.erase_letter(&record.address).await?;
            } else if let Some((record, _)) = &found.record {
                // Erased already, but whoever did so may have ended before the rest.
                self.erase_before(&record.address, record.seq).await?;
                self.erase_letter(&record.address).await?;
            } else if let Some(kept) = &found.kept {
                self.erase_letter(&Address::new(&kept.result.queue, client, job)).await?;
            }
            self.erase_result(client, job).await?;
            return Ok(());
        }
        let why = format!("others keep changing job {job}: erase it again");
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
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

fn gone(job: JobId) -> BrokerError {
    BrokerError::new(BrokerErrorKind::NotFound, "rerun", format!("there is no job {job}"))
}
