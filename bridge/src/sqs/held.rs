//! The jobs that this process gave out, so that their results are recorded without another read of the record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::contract::{Job, JobId, Timestamp};
use crate::rules;

/// From so many on, those whose time is over are looked for.
const SWEEP_FROM: usize = 1_024;

/// Jobs in the hands of workers that were served here. It holds as many as run, and as many more whose workers died.
#[derive(Default)]
pub(super) struct Held(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    jobs: HashMap<JobId, (rules::Record, Timestamp)>,
    sweep_at: usize,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has the job, until `until` at the latest.
    pub(super) fn insert(&self, record: rules::Record, until: Timestamp, now: Timestamp) {
        let mut inner = self.lock();
        if inner.jobs.len() >= inner.sweep_at.max(SWEEP_FROM) {
            inner.jobs.retain(|_, (_, until)| *until > now);
            inner.sweep_at = inner.jobs.len() * 2;
        }
        let job = Arc::new(Job { payload: Bytes::new(), ..Arc::unwrap_or_clone(record.job) });
        inner.jobs.insert(job.id, (rules::Record { job, ..record }, until));
    }

    /// The job's record, as known when the job was given out last.
    pub(super) fn of(&self, job: JobId) -> Option<rules::Record> {
        self.lock().jobs.get(&job).map(|(record, _)| record.clone())
    }

    /// The delivery ended.
    pub(super) fn remove(&self, job: JobId) {
        self.lock().jobs.remove(&job);
    }
}
