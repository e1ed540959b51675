//! The submitter's half of the line: enqueue, look up, cancel, rerun, list, erase.
//!
//! Every call is made for one client and sees that client's jobs only: another client's are `NotFound`, or absent.

use std::time::Duration;

use async_trait::async_trait;

use crate::contract::{ClientId, Job, JobId, JobResult, JobState, JobStatus, QueueName, Timestamp};
use crate::error::BrokerError;
use crate::load::{KeptPace, Load};

/// Takes jobs and answers for them.
#[async_trait]
pub trait JobQueue: Send + Sync {
    /// Makes `job` durable and puts it in line, or finds the one that has its id already.
    ///
    /// The answer comes after the broker confirmed the record, also for a job that was there: a replay is never
    /// answered before the first write is confirmed. A known job is found before any quota refuses. A record past its
    /// keeping counts as absent: the job starts anew under a greater run, and its old result is not its result.
    ///
    /// # Errors
    /// `TooLarge`, `QuotaExceeded`, `Overloaded`, `Unavailable`, `NotFound` (no such queue): no effect. `Ambiguous`:
    /// enqueue again with the same key.
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError>;

    /// The client's job, or `None`.
    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError>;

    /// Whether the client has such a job in one of `queues`: as its record says, or where that is gone, its result. It is for
    /// callers that may not learn of jobs in other queues, so of such a job no payload and no result is read if the broker
    /// keeps its queue apart from them.
    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError>;

    /// Ends the job's run as `cancelled`, unless it ended before. A queued job never starts; the holder of a leased
    /// one is told at its next heartbeat. Idempotent: the status says which outcome stands.
    ///
    /// # Errors
    /// `NotFound` if the client has no such job.
    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError>;

    /// Starts the run after generation `from` of a finished job. If that run was started already, nothing happens and
    /// its status is the answer: repeating a rerun is harmless, also where the quota is full.
    ///
    /// # Errors
    /// `NotFound`; `StateConflict` if the job is not at `from` or `from + 1`, is not finished, or kept no payload;
    /// `QuotaExceeded` and `Overloaded` as for a submission.
    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError>;

    /// Removes payload, result and the client's own headers of a finished job for good, wherever they are; outcome, key and
    /// times stay. Idempotent.
    ///
    /// # Errors
    /// `NotFound`; `StateConflict` while the run is open.
    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError>;

    /// The client's jobs, newest first, at most `filter.limit` (1 to 1,000). A broker may look at a bounded number of
    /// records, so a page can be short, or empty, and still have a next one.
    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError>;

    /// How much waits and runs in `queue`, over all clients: about, where a broker would have to look through its jobs for
    /// more, and asked for every other second. The effect of a call just answered may be counted a moment later. `NotFound` if
    /// there is no such queue.
    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError>;

    /// How many of the client's jobs in `queue` count against its `max_queued`: in line, or waiting for a time. `None` if the
    /// broker can't tell without looking through them. `NotFound` if there is no such queue.
    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError>;

    /// How many bytes of the client are kept in `queue` and count against its `max_stored`. `None` if the broker does not count
    /// them (`Capabilities::counts_stored`). `NotFound` if there is no such queue.
    async fn stored(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError>;

    /// Since when the job could be taken that waits longest in `queue`, where the broker can say it cheaply; `None` if it
    /// can't, or if none waits.
    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError>;

    /// The same by the jobs, one by one, where [`JobQueue::depth`] says about how many: it takes as long, and costs as much, as
    /// there are jobs.
    ///
    /// # Errors
    /// `NotFound` if there is no such queue; `StateConflict` if more are open than the broker counts.
    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError>;

    /// The work that `queue` has within `within` (at most [`SOON_MAX`](crate::load::SOON_MAX)) and has done: a look for scalers,
    /// which costs the same however much waits. `Capabilities::load` says what it leaves out. `NotFound` if there is no such queue.
    async fn load(&self, queue: &QueueName, within: Duration) -> Result<Load, BrokerError>;

    /// The pace of `queue` that was kept last, if it is still there.
    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError>;

    /// Keeps the pace of `queue` for other processes and the next one, instead of what was kept before. The last one to call
    /// counts. `NotFound` if there is no such queue.
    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError>;

    /// One bounded step of timed work: ends runs past their deadline, removes records, results and dead letters past
    /// their keeping. At most `limit` records. Any number of replicas may run it at once. It never touches a finished
    /// run's outcome.
    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError>;
}

/// The answer to an [`enqueue`](JobQueue::enqueue) or a [`rerun`](JobQueue::rerun).
#[derive(Clone, Debug)]
pub enum Enqueued {
    /// This call put it in line.
    Created(JobStatus),
    /// It was there. The caller compares fingerprints: the same is a replay, another one is a conflict.
    Known(JobStatus),
}

impl Enqueued {
    /// The job, whichever call put it there.
    #[must_use]
    pub fn status(&self) -> &JobStatus {
        match self {
            Self::Created(status) | Self::Known(status) => status,
        }
    }
}

/// Which jobs to list.
#[derive(Clone, Debug)]
pub struct JobFilter {
    /// Only of these queues; `None` for all. A broker does not look at the others.
    pub queues: Option<Vec<QueueName>>,
    /// Only in this state.
    pub state: Option<JobState>,
    /// Only jobs whose key begins with this; those without a key are left out.
    pub key_prefix: Option<String>,
    /// Only older than this job of the client: `next` of the page before. Another client's job finds nothing, and so does
    /// one of a queue that is left out.
    pub after: Option<JobId>,
    /// At most this many, 1 to 1,000.
    pub limit: u32,
}

impl JobFilter {
    /// Whether jobs of `queue` are wanted.
    #[must_use]
    pub fn wants_queue(&self, queue: &QueueName) -> bool {
        self.queues.as_ref().is_none_or(|queues| queues.contains(queue))
    }
}

/// A page of a client's jobs.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// The jobs, newest first.
    pub jobs: Vec<JobStatus>,
    /// Where to go on: `None` if there is no older job. It is the id of no job in a queue that is left out.
    pub next: Option<JobId>,
    /// The broker found the place of [`JobFilter::after`], also if that job is past its keeping and has no status any more. A
    /// broker that does not tell leaves it `false`.
    pub after_known: bool,
}

/// The numbers of jobs that wait and run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// In line now.
    pub waiting: u64,
    /// Waiting for a delay or a backoff to end.
    pub parked: u64,
    /// Held by workers.
    pub leased: u64,
}

/// The jobs that wait and run, counted one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exact {
    /// How much of each.
    pub depth: Depth,
    /// Since when the job could be taken that waits longest, as of [`JobQueue::oldest`].
    pub oldest: Option<Timestamp>,
}

/// The changes of one step of a sweep.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// Runs ended as `expired` in this step.
    pub expired: Vec<JobResult>,
    /// Records, results and dead letters removed.
    pub removed: u64,
    /// Whether more is due now.
    pub more: bool,
}
