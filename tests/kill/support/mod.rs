//! The shared parts of the tests that kill processes: clients that never give up, and what they find in the end.

pub(crate) mod rounds;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use relay::api::ResultView;
use relay::client::retry::Patience;
use relay::client::{Client, ClientError, NewJob, ResultsFilter, Submitted};
use relay_bridge::contract::{JobId, Outcome, RunId};
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::cli_support::relay;

/// Clients at a time.
const CLIENTS: usize = 32;
/// Tries again soon, and for longer than any restart takes.
pub(crate) const PATIENCE: Patience = Patience {
    waits_for_connection: true,
    base: Duration::from_millis(20),
    cap: Duration::from_millis(500),
    give_up_after: Duration::from_secs(120),
};

/// Waits until no other round runs: each takes all that a machine has.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static ROUND: Mutex<()> = Mutex::const_new(());
    ROUND.lock().await
}

/// Submits `jobs` jobs, each under a key of its own, and says in `progress` how many were accepted.
pub(crate) async fn submit_all(
    client: Client,
    jobs: usize,
    progress: watch::Sender<usize>,
) -> Result<Vec<Submitted>, ClientError> {
    let (client, progress) = (&client, &progress);
    stream::iter(0..jobs)
        .map(|at| async move {
            let job = NewJob {
                key: Some(format!("job-{at}").parse().unwrap()),
                content_type: "text/plain".to_owned(),
                ..NewJob::new("default".parse().unwrap(), Bytes::from(format!("payload of job {at}")))
            };
            let submitted = PATIENCE.repeat(true, || client.submit(&job), |_| {}).await?;
            progress.send_modify(|count| *count += 1);
            Ok(submitted)
        })
        .buffer_unordered(CLIENTS)
        .try_collect()
        .await
}

/// Waits for the result of each job, which must be the handler's; the run it is of.
pub(crate) async fn all_finished(client: &Client, jobs: &BTreeSet<JobId>) -> BTreeMap<JobId, RunId> {
    stream::iter(jobs.iter().copied())
        .map(|job| finished(client, job))
        .buffer_unordered(CLIENTS)
        .try_collect()
        .await
        .unwrap()
}

async fn finished(client: &Client, job: JobId) -> Result<(JobId, RunId), ClientError> {
    loop {
        let wait = Duration::from_secs(50);
        if let Some(result) = PATIENCE.repeat(true, || client.wait(job, wait), |_| {}).await? {
            assert_eq!(result.outcome, Outcome::Succeeded, "{job}: {:?}", result.payload);
            assert!(result.payload.starts_with(b"payload of job "), "{job}: {:?}", result.payload);
            return Ok((job, result.run_id));
        }
    }
}

/// All of the client's results, by the cursor.
pub(crate) async fn whole_log(client: &Client) -> Result<Vec<ResultView>, ClientError> {
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let page = client.page(&ResultsFilter { after: after.clone(), ..ResultsFilter::default() }).await?;
        if page.entries.is_empty() {
            return Ok(entries);
        }
        entries.extend(page.entries);
        after = Some(page.next);
    }
}

/// A file with a line per handler start, written by the handlers.
pub(crate) struct Starts(PathBuf);

impl Starts {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.join("starts"))
    }

    /// A worker that takes jobs from where `flags` say. Its handlers give back what they get.
    pub(crate) fn worker(&self, flags: &[&str]) -> Command {
        let args = ["worker", "--json", "--slots", "8", "--log", "error"].iter().chain(flags);
        let script = r#"echo "$RELAY_JOB_ID" >> "$1"; exec cat"#;
        relay(args.copied().chain(["--", "sh", "-c", script, "handler", self.0.to_str().unwrap()]))
    }

    /// The jobs that were started.
    pub(crate) fn jobs(&self) -> BTreeSet<JobId> {
        self.lines().iter().map(|line| line.parse().unwrap()).collect()
    }

    /// How many starts there were.
    pub(crate) fn count(&self) -> usize {
        self.lines().len()
    }

    fn lines(&self) -> Vec<String> {
        // Before the first start there is no file.
        std::fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// Numbers from a seed (xorshift64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number from 0 to `max`.
    pub(crate) fn draw(&mut self, max: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (max + 1)
    }
}

/// How many jobs, which is `default` unless `RELAY_KILL_JOBS` says otherwise, and the seed, which `RELAY_KILL_SEED` sets.
pub(crate) fn jobs_and_seed(default: usize) -> (usize, u64) {
    let jobs = from_environment("RELAY_KILL_JOBS").map_or(default, |jobs| usize::try_from(jobs).unwrap());
    let seed = from_environment("RELAY_KILL_SEED").unwrap_or_else(|| std::process::id().into());
    println!("replay with RELAY_KILL_SEED={seed} RELAY_KILL_JOBS={jobs}");
    (jobs, seed)
}

/// A number from the environment.
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}
