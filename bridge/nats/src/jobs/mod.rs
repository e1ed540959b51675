//! The capability for submitters (`JobQueue`): enqueue, status, cancel, rerun, erase, list, depth, sweep.

pub(crate) mod deadlines;
pub(crate) mod enqueue;
pub(crate) mod list;
pub(crate) mod look_back;
pub(crate) mod looks;
pub(crate) mod remembered;
pub(crate) mod room;
pub(crate) mod start;
pub(crate) mod storage;
pub(crate) mod storage_limit;
pub(crate) mod sweep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::closing::Alive;
use crate::jobs::enqueue::Submissions;
use crate::jobs::list::Listing;
use crate::jobs::looks::Looks;
use crate::jobs::room::Room;
use crate::jobs::start::Starts;
use crate::jobs::sweep::Sweep;
use crate::line::lanes::Lanes;
use crate::records::end_run::Runs;
use crate::records::find::{Records, status_of_new};
use crate::records::letters::LetterStore;
use crate::records::policies::Policies;
use crate::records::results::ResultEntries;
use crate::stored::names::{Address, Place};
use crate::wire::api::{Api, Written};
use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::rules;
use relay_bridge::rules::refusal::{contended, no_job};

/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;

/// Serves submitters: fills `JobQueue` with the parts of this layer.
pub(crate) struct Jobs {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) policies: Arc<Policies>,
    pub(crate) wire: WireVersion,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) room: Arc<Room>,
    pub(crate) starts: Arc<Starts>,
    pub(crate) submissions: Arc<Submissions>,
    pub(crate) listing: Arc<Listing>,
    pub(crate) looks: Looks,
    pub(crate) sweep: Arc<Sweep>,
    pub(crate) _alive: Arc<Alive>,
}

#[async_trait]
impl JobQueue for Jobs {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        self.submissions.accept(job).await
    }

    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        let found = self.records.look(client, job).await?;
        self.records.status_of(&found).await
    }

    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        self.records.is_in(client, job, queues).await
    }

    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        self.runs.cancel_job(client, job).await
    }

    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        self.rerun_job(client, job, from).await
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.erase_job(client, job).await
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.listing.list_jobs(client, filter).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.policies.require(queue, "depth").await?;
        let timers = self.room.count(queue, crate::stored::names::timers(queue), 1);
        let (infos, parked) = tokio::try_join!(self.lanes.consumer_infos(queue), timers)?;
        Ok(infos.iter().fold(Depth { parked, ..Depth::default() }, |depth, info| Depth {
            waiting: depth.waiting + info.num_pending,
            leased: depth.leased + info.num_ack_pending,
            ..depth
        }))
    }

    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        let policy = self.policies.require(queue, "count").await?;
        self.room.count_waiting(queue, client, &policy).await.map(Some)
    }

    async fn stored(&self, _: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.policies.require(queue, "count").await?;
        Ok(None)
    }

    async fn oldest(&self, _: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        // Each lane has an oldest job of its own: this would take as many reads as there are clients.
        Ok(None)
    }

    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        Ok(Exact { depth: self.depth(queue).await?, oldest: self.oldest(queue).await? })
    }

    async fn load(&self, queue: &QueueName, _: Duration) -> Result<Load, BrokerError> {
        self.looks.look(queue).await
    }

    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        self.looks.kept_pace(queue).await
    }

    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.looks.keep_pace(queue, pace).await
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.sweep.sweep_step(limit).await
    }
}

impl Jobs {
    async fn rerun_job(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        const OPERATION: &str = "rerun";
        let found = self.records.look(client, job).await?;
        let queue = match (&found.record, &found.kept) {
            (Some((record, _)), _) => record.address.queue.clone(),
            (None, Some(kept)) => kept.result.queue.clone(),
            (None, None) => return Err(no_job(OPERATION, job)),
        };
        let address = Address::new(&queue, client, job);
        let (mut facts, mut room) = ((found, None), None);
        for _ in 0..TRIES {
            let (found, written) = facts;
            let now = self.clock.now();
            let Ok(next) = rules::rerun(found.known().as_ref(), job, from, now).refused()? else {
                let status = self.records.status_of(&found).await?;
                return status.map(Enqueued::Known).ok_or_else(|| no_job(OPERATION, job));
            };
            let policy = self.policies.require(&queue, OPERATION).await?;
            let booking = match &mut room {
                Some(booking) => booking,
                None => room.insert(self.room.room_for(&next, &policy, OPERATION).await??),
            };
            let record = found.record.map(|(record, _)| record).or(written);
            if self.starts.start(&address, &next, record, &policy, Some(booking), OPERATION).await? {
                return Ok(Enqueued::Created(status_of_new(&next)));
            }
            facts = self.records.look_at(&address, OPERATION).await?;
        }
        Err(contended(OPERATION, job))
    }

    /// Erases the record first: a crash after it leaves the call unanswered and nothing that could run again.
    async fn erase_job(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..TRIES {
            let found = self.records.look(client, job).await?;
            let Ok(left) = rules::erase(found.known().as_ref(), job).refused()? else { return Ok(()) };
            let bare = left.filter(|_| found.record.as_ref().is_some_and(|(record, _)| !record.is_erased()));
            if let (Some((record, _)), Some(bare)) = (&found.record, bare) {
                let draft = record.rewrite().with_job(&bare, self.wire).erased();
                let Written::At(seq) = self.api.publish(draft.to(Place::Ended), OPERATION).await? else { continue };
                self.erase_before(&record.address, seq).await?;
            } else if let Some((record, _)) = &found.record {
                // It is erased already, but the process that did so may have ended before the rest.
                self.erase_before(&record.address, record.seq).await?;
            } else if let Some(kept) = &found.kept {
                // A record past its keeping counts as absent, and has the payload.
                if let Some(past) = self.records.find_in(std::slice::from_ref(&kept.result.queue), client, job).await? {
                    self.erase_before(&past.address, past.seq + 1).await?;
                }
            }
            // The letters last: a process that writes one looks at the record and the result after.
            self.results.erase_result(client, job).await?;
            return self.letters.erase_letter(job).await;
        }
        Err(contended(OPERATION, job))
    }

    /// Overwrites the messages that the address had before `seq`. The loop looks again to see that they are gone: the
    /// server gives one error for a message that was gone and for one that it could not delete.
    async fn erase_before(&self, address: &Address, seq: u64) -> Result<(), BrokerError> {
        const OPERATION: &str = "erase";
        let stream = address.stream();
        for _ in 0..TRIES {
            let first = self.api.next_at_leader(&stream, 1, address.anywhere(), OPERATION).await?;
            let Some(old) = first.filter(|first| first.seq < seq) else { return Ok(()) };
            self.api.overwrite(&stream, old.seq, OPERATION).await?;
        }
        let why = format!("a message of job {} is not deleted: erase it again", address.job);
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }
}
