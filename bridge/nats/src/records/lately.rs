//! Runs that this process put in line a moment ago: their state is known without asking the server.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use relay_bridge::contract::{ClientId, JobId, RunId};
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

#[derive(Debug)]
struct Put {
    client: ClientId,
    run: RunId,
    at: Instant,
}

impl Lately {
    /// Notes that the run was put in line, by a write that was sent not before `at`.
    pub(crate) fn note(&self, client: &ClientId, job: JobId, run: RunId, at: Instant) {
        let mut halves = self.halves();
        let is_old = halves.since.is_some_and(|since| at.saturating_duration_since(since) >= FOR);
        if is_old || halves.newer.len() >= RUNS_MAX {
            halves.older = std::mem::take(&mut halves.newer);
            halves.since = None;
        }
        halves.since.get_or_insert(at);
        halves.newer.insert(job, Put { client: client.clone(), run, at });
    }

    /// The run of the client's job, and when it was put in line; `None` if that was not here, or is long ago.
    pub(crate) fn put(&self, client: &ClientId, job: JobId) -> Option<(RunId, Instant)> {
        let halves = self.halves();
        let put = halves.newer.get(&job).or_else(|| halves.older.get(&job))?;
        (put.client == *client && put.at.elapsed() < 2 * FOR).then_some((put.run, put.at))
    }

    fn halves(&self) -> MutexGuard<'_, Halves> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_bridge::contract::Timestamp;

    fn run() -> (JobId, RunId) {
        (JobId::mint(), RunId::mint(Timestamp::from_millis(1_763_865_086_007), None))
    }

    #[test]
    fn the_last_runs_are_known_to_their_client_and_the_others_are_forgotten() {
        let (lately, client, now) = (Lately::default(), "a".parse().unwrap(), Instant::now());
        let runs: Vec<_> = (0..=2 * RUNS_MAX).map(|_| run()).collect();
        for (job, run) in &runs {
            lately.note(&client, *job, *run, now);
        }
        assert_eq!(lately.put(&client, runs[0].0), None);
        for (job, run) in &runs[RUNS_MAX..] {
            assert_eq!(lately.put(&client, *job), Some((*run, now)));
        }
        assert_eq!(lately.put(&"b".parse().unwrap(), runs[RUNS_MAX].0), None);
    }

    #[test]
    fn a_run_of_long_ago_is_forgotten_though_nothing_comes_after_it() {
        let (lately, client) = (Lately::default(), "a".parse().unwrap());
        let Some(long_ago) = Instant::now().checked_sub(2 * FOR) else { return };
        let (job, run) = run();
        lately.note(&client, job, run, long_ago);
        assert_eq!(lately.put(&client, job), None);
    }
}
