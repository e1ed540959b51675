//! The jobs that this process gave out, so that their results are recorded without another read of the record.

use relay_bridge::support::lock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use relay_bridge::contract::{Job, JobId, Timestamp};
use relay_bridge::leasing::Receipt;
use relay_bridge::rules;

/// From so many on, those whose time is over are looked for.
const SWEEP_FROM: usize = 1_024;

/// Jobs in the hands of workers that were served here. It holds as many as run, and as many more whose workers died.
#[derive(Default)]
pub(crate) struct HeldJobs(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    jobs: HashMap<JobId, (rules::Record, Timestamp)>,
    sweep_at: usize,
}

impl HeldJobs {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// A worker has the job under a lease that ends at `end`.
    pub(crate) fn insert(&self, record: rules::Record, end: Timestamp, now: Timestamp) {
        let mut inner = self.lock();
        if inner.jobs.len() >= inner.sweep_at.max(SWEEP_FROM) {
            inner.jobs.retain(|_, (_, end)| *end > now);
            inner.sweep_at = inner.jobs.len() * 2;
        }
        let job = Arc::new(Job { payload: Bytes::new(), ..Arc::unwrap_or_clone(record.job) });
        inner.jobs.insert(job.id, (rules::Record { job, ..record }, end));
    }

    /// The lease of this attempt was extended until `end`, if it is one that this process gave.
    pub(crate) fn extended(&self, receipt: &Receipt, attempt: u32, end: Timestamp) {
        if let Some((record, until)) = self.lock().jobs.get_mut(&receipt.job_id)
            && (record.job.run_id, record.attempts) == (receipt.run_id, attempt)
        {
            *until = end;
        }
    }

    /// The job's record, as known when the job was given out last; not behind the end of that lease, from when on others may
    /// give it out again.
    pub(crate) fn of(&self, job: JobId, now: Timestamp) -> Option<rules::Record> {
        self.lock().jobs.get(&job).filter(|(_, end)| *end > now).map(|(record, _)| record.clone())
    }

    /// The delivery ended.
    pub(crate) fn remove(&self, job: JobId) {
        self.lock().jobs.remove(&job);
    }
}
