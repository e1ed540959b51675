//! Runs that this process put in line a moment ago: their state is known without asking the server.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use relay_bridge::contract::{ClientId, Job, JobId, QueueName, RunId};
use relay_bridge::support::lock;

/// For how long a run is remembered at least, unless there are more than [`RUNS_MAX`].
const FOR: Duration = Duration::from_secs(30);
/// How many runs are in one of the two halves at most.
const RUNS_MAX: usize = 4_096;

/// The last runs that this process put in line. A run that was forgotten is asked for like any other.
#[derive(Debug, Default)]
pub(crate) struct Lately(Mutex<Halves>);

/// When the newer half is full or old, it becomes the older one, which is forgotten.
#[derive(Debug, Default)]
struct Halves {
    newer: HashMap<JobId, Put>,
    older: HashMap<JobId, Put>,
    /// When the newer half began.
    since: Option<Instant>,
}

/// A run that this process put in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) client: ClientId,
    /// The job's queue, for ever.
    pub(crate) queue: QueueName,
    pub(crate) run: RunId,
    /// Whether the job's record stays when its run has ended.
    pub(crate) keeps_record: bool,
    /// When it was put in line: not after that.
    pub(crate) at: Instant,
}

impl Lately {
    /// Notes that the job's run was put in line, by a write that was sent not before `at`.
    pub(crate) fn note(&self, job: &Job, at: Instant) {
        let (client, queue) = (job.client.clone(), job.queue.clone());
        let put = Put { client, queue, run: job.run_id, keeps_record: job.keep_record, at };
        let mut halves = self.halves();
        let is_old = halves.since.is_some_and(|since| at.saturating_duration_since(since) >= FOR);
        if is_old || halves.newer.len() >= RUNS_MAX {
            halves.older = std::mem::take(&mut halves.newer);
            halves.since = None;
        }
        halves.since.get_or_insert(at);
        halves.newer.insert(job.id, put);
    }

    /// The run of the client's job that was put in line; `None` if that was not here, or is long ago.
    pub(crate) fn put(&self, client: &ClientId, job: JobId) -> Option<Put> {
        let halves = self.halves();
        let put = halves.newer.get(&job).or_else(|| halves.older.get(&job))?;
        (put.client == *client && put.at.elapsed() < 2 * FOR).then(|| put.clone())
    }

    fn halves(&self) -> MutexGuard<'_, Halves> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_bridge::contract::{Submission, Timestamp};
    use relay_bridge::policy::QueuePolicy;

    fn job() -> Job {
        let submission = Submission::plain("a".parse().unwrap(), "work".parse().unwrap(), "text/plain", vec![]);
        submission.accept(&QueuePolicy::default(), Timestamp::from_millis(1_763_865_086_007))
    }

    #[test]
    fn the_last_runs_are_known_to_their_client_and_the_others_are_forgotten() {
        let (lately, now) = (Lately::default(), Instant::now());
        let first = job();
        let jobs: Vec<_> = (0..=2 * RUNS_MAX).map(|_| Job { id: JobId::mint(), ..first.clone() }).collect();
        for job in &jobs {
            lately.note(job, now);
        }
        assert_eq!(lately.put(&first.client, jobs[0].id), None);
        for job in &jobs[RUNS_MAX..] {
            let (client, queue) = (job.client.clone(), job.queue.clone());
            let put = Put { client, queue, run: job.run_id, keeps_record: false, at: now };
            assert_eq!(lately.put(&first.client, job.id), Some(put));
        }
        assert_eq!(lately.put(&"b".parse().unwrap(), jobs[RUNS_MAX].id), None);
    }

    #[test]
    fn a_run_of_long_ago_is_forgotten_though_nothing_comes_after_it() {
        let (lately, job) = (Lately::default(), job());
        let Some(long_ago) = Instant::now().checked_sub(2 * FOR) else { return };
        lately.note(&job, long_ago);
        assert_eq!(lately.put(&job.client, job.id), None);
    }
}
