//! A round: jobs are submitted while processes are killed, and the account is taken in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use relay::client::{Client, ResultsFilter, Submitted};
use relay_bridge::contract::{JobId, RunId};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Random, Starts, all_finished, submit_all, whole_log};
use crate::cli_support::Running;

/// Processes that do the same, and of which one is killed now and then.
pub(crate) struct Replicas<C> {
    command: C,
    running: Vec<Running>,
    /// How many were killed.
    pub(crate) killed: u32,
}

impl<C: Fn() -> Command> Replicas<C> {
    pub(crate) fn start(count: usize, command: C) -> Self {
        let running = (0..count).map(|_| Running::start_command(command())).collect();
        Self { command, running, killed: 0 }
    }

    /// Kills one of them, and starts another.
    pub(crate) fn kill_one(&mut self, random: &mut Random) {
        let victim = usize::try_from(random.draw(self.running.len() as u64 - 1)).unwrap();
        self.running.swap_remove(victim).kill();
        self.running.push(Running::start_command((self.command)()));
        self.killed += 1;
    }

    pub(crate) fn stop(self) {
        self.running.into_iter().for_each(Running::stop);
    }
}

/// Submits `jobs` jobs, each under a key of its own, while `kill` kills, which is told how many were accepted. In the end each
/// acknowledged job has one result, the handler's: by its id, and as one entry of the client's log, of that run. The runs.
pub(crate) async fn round(
    client: &Client,
    jobs: usize,
    kill: impl AsyncFnOnce(watch::Receiver<usize>),
) -> BTreeMap<JobId, RunId> {
    let (progress, accepted) = watch::channel(0_usize);
    // On a task of its own: clients must not wait while the test starts processes.
    let mut submissions = JoinSet::new();
    submissions.spawn(submit_all(client.clone(), jobs, progress));
    kill(accepted).await;
    let acknowledged = submissions.join_next().await.unwrap().unwrap().unwrap();
    let acknowledged: BTreeSet<JobId> = acknowledged.iter().map(Submitted::job_id).collect();
    account(client, jobs, &acknowledged).await
}

/// Waits for the result of each of the acknowledged jobs, of which there are `jobs`, and looks for one entry of each in the client's
/// log, and for no other. The runs.
pub(crate) async fn account(client: &Client, jobs: usize, acknowledged: &BTreeSet<JobId>) -> BTreeMap<JobId, RunId> {
    assert_eq!(acknowledged.len(), jobs, "one job per key");
    let runs = all_finished(client, acknowledged).await;
    let log = whole_log(client).await.unwrap();
    let logged = log.iter().filter(|entry| runs.get(&entry.job_id) == Some(&entry.run_id)).count();
    assert_eq!((log.len(), logged, runs.len()), (jobs, jobs, jobs), "one result per job in the client's log");
    runs
}

/// Waits for the moment of kill number `kill` of `kills`, which are at equal distances while `all` results come.
pub(crate) async fn moment(results: &mut watch::Receiver<usize>, all: usize, kills: usize, kill: usize) {
    results.wait_for(|seen| *seen >= all / (kills + 1) * (kill + 1)).await.unwrap();
}

/// Submits `jobs` jobs at the server at `source` while `kill` kills, which is told how many results there are. In the end each
/// job has one result at the source, that of its run, none was seen twice on the way, and each was one job at the target.
pub(crate) async fn each_has_one_result(
    source: &str,
    jobs: usize,
    starts: &Starts,
    kill: impl AsyncFnOnce(watch::Receiver<usize>),
) {
    let client = Client::new(source, None).unwrap();
    let (seen, progress) = watch::channel(0_usize);
    let mut following = JoinSet::new();
    following.spawn(follow(client.clone(), jobs, seen));
    let runs = round(&client, jobs, async |_| kill(progress).await).await;
    let entries = following.join_next().await.unwrap().unwrap();
    let second: u64 = entries.values().map(|times| times - 1).sum();
    let at_target = starts.jobs().len();
    println!(
        "submitted {jobs}, jobs at the target {at_target}, handler starts {}, results {}, second results seen {second}",
        starts.count(),
        entries.len(),
    );
    assert_eq!(second, 0, "a second result was seen");
    assert_eq!(entries.keys().copied().collect::<BTreeMap<_, _>>(), runs, "one result per job, that of its run");
    assert_eq!(at_target, jobs, "one job at the target per job at the source");
}

/// Reads the client's results from its log until every job has one, and tells how many there are. How often each result was
/// seen on the way.
async fn follow(client: Client, jobs: usize, seen: watch::Sender<usize>) -> BTreeMap<(JobId, RunId), u64> {
    let (mut entries, mut after) = (BTreeMap::new(), None);
    while entries.len() < jobs {
        // The server may be killed as well: the reader asks again with its cursor.
        let filter = ResultsFilter { after: after.clone(), wait: Duration::from_secs(5), ..ResultsFilter::default() };
        let Ok(page) = client.page(&filter).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        for entry in page.entries {
            *entries.entry((entry.job_id, entry.run_id)).or_default() += 1;
        }
        after = Some(page.next);
        seen.send_replace(entries.len());
    }
    entries
}
