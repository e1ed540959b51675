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

#[derive(Default)]
struct Inner {
    jobs: HashMap<JobId, (rules::Record, Timestamp)>,
    sweep_at: usize,
}

impl HeldJobs {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// Notes that a worker has the job under a lease that ends at `end`.
    pub(crate) fn insert(&self, record: rules::Record, end: Timestamp, now: Timestamp) {
        let mut inner = self.lock();
        if inner.jobs.len() >= inner.sweep_at.max(SWEEP_FROM) {
            inner.jobs.retain(|_, (_, end)| *end > now);
            inner.sweep_at = inner.jobs.len() * 2;
        }
        let job = Arc::new(Job { payload: Bytes::new(), ..Arc::unwrap_or_clone(record.job) });
        inner.jobs.insert(job.id, (rules::Record { job, ..record }, end));
    }

    /// Notes that the lease of this attempt was extended until `end`, if this process gave that lease.
    pub(crate) fn extended(&self, receipt: &Receipt, attempt: u32, end: Timestamp) {
        if let Some((record, until)) = self.lock().jobs.get_mut(&receipt.job_id)
            && (record.job.run_id, record.attempts) == (receipt.run_id, attempt)
        {
            *until = end;
        }
    }

    /// The job's record as it was when the job was given out last. `None` after the end of that lease, because other
    /// processes may then give the job out again.
    pub(crate) fn of(&self, job: JobId, now: Timestamp) -> Option<rules::Record> {
        self.lock().jobs.get(&job).filter(|(_, end)| *end > now).map(|(record, _)| record.clone())
    }

    /// Notes that the delivery ended.
    pub(crate) fn remove(&self, job: JobId) {
        self.lock().jobs.remove(&job);
    }
}
