//! The jobs that this process gave out, so that their results are recorded without another read of the record.

use relay_bridge::support::lock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use relay_bridge::contract::{Job, JobId, Timestamp};
use relay_bridge::leasing::Receipt;
use relay_bridge::rules;

/// From so many jobs on, those whose lease is over are looked for and dropped.
const SWEEP_FROM: usize = 1_024;

/// Jobs that this process gave to workers and that run. As many again may be held whose workers died.
#[derive(Default)]
pub(crate) struct HeldJobs(Mutex<Inner>);

/// A job that was given out.
struct Given {
    record: rules::Record,
    lease: [u8; 16],
    end: Timestamp,
}

#[derive(Default)]
struct Inner {
    jobs: HashMap<JobId, Given>,
    sweep_at: usize,
}

impl HeldJobs {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// Notes that a worker has the job under a lease that ends at `end`.
    pub(crate) fn insert(&self, record: rules::Record, (lease, end): ([u8; 16], Timestamp), now: Timestamp) {
        let mut inner = self.lock();
        if inner.jobs.len() >= inner.sweep_at.max(SWEEP_FROM) {
            inner.jobs.retain(|_, given| given.end > now);
            inner.sweep_at = inner.jobs.len() * 2;
        }
        let job = Arc::new(Job { payload: Bytes::new(), ..Arc::unwrap_or_clone(record.job) });
        inner.jobs.insert(job.id, Given { record: rules::Record { job, ..record }, lease, end });
    }

    /// Notes that the lease of this attempt was extended until `end`, if this process gave that lease.
    pub(crate) fn extended(&self, receipt: &Receipt, attempt: u32, end: Timestamp) {
        if let Some(given) = self.lock().jobs.get_mut(&receipt.job_id)
            && (given.record.job.run_id, given.record.attempts) == (receipt.run_id, attempt)
        {
            given.end = end;
        }
    }

    /// Whether this lease was given by this process and stands, for the job as the receipt names it.
    pub(crate) fn stands(&self, receipt: &Receipt, lease: &[u8; 16], now: Timestamp) -> bool {
        self.lock().jobs.get(&receipt.job_id).is_some_and(|given| {
            let job = &given.record.job;
            let named = (job.run_id, &job.client, &job.queue) == (receipt.run_id, &receipt.client, &receipt.queue);
            named && given.lease == *lease && given.end > now
        })
    }

    /// The job's record as it was when the job was given out last. `None` after the end of that lease, because other
    /// processes may then give the job out again.
    pub(crate) fn of(&self, job: JobId, now: Timestamp) -> Option<rules::Record> {
        self.lock().jobs.get(&job).filter(|given| given.end > now).map(|given| given.record.clone())
    }

    /// Notes that the delivery ended.
    pub(crate) fn remove(&self, job: JobId) {
        self.lock().jobs.remove(&job);
    }
}
