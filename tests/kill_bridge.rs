//! `kill -9` of two bridges, of the target's nats-server and of the source in turn, while jobs are on their way: every
//! job has exactly one result at the source, none is seen twice, and none became two jobs at the target.
//!
//! `RELAY_KILL_JOBS` sets the number of jobs (2,000 here, 20,000 where there is time); `RELAY_KILL_SEED` replays a run.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

mod cli_support;
mod kill_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cli_support::Running;
use kill_support::{Random, all_finished, from_environment, submit_all};
use relay::client::{Client, ResultsFilter, Submitted};
use relay_bridge::contract::{JobId, RunId};
use relay_bridge::testing::NatsServer;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Jobs in the suite; enough that every kill hits jobs in hand.
const JOBS: usize = 2_000;
/// Kills, spread over the results: of a bridge, of the other one, of one of the two sides, and again.
const KILLS: usize = 9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_of_an_embedded_relay_has_one_result_from_nats_whatever_is_killed() {
    every_job_has_one_result(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_of_a_relay_on_nats_has_one_result_from_another_whatever_is_killed() {
    every_job_has_one_result(true).await;
}

async fn every_job_has_one_result(from_nats: bool) {
    let jobs = from_environment("RELAY_KILL_JOBS").map_or(JOBS, |jobs| usize::try_from(jobs).unwrap());
    let seed = from_environment("RELAY_KILL_SEED").unwrap_or_else(|| std::process::id().into());
    println!("replay with RELAY_KILL_SEED={seed} RELAY_KILL_JOBS={jobs}");

    let dir = tempfile::tempdir().unwrap();
    let mut bridged = Bridged::start(dir.path(), from_nats, seed).await;
    let client = Client::new(&bridged.http, None).unwrap();
    let (seen, progress) = watch::channel(0_usize);
    let (mut following, mut submissions) = (JoinSet::new(), JoinSet::new());
    following.spawn(follow(client.clone(), jobs, seen));
    submissions.spawn(submit_all(client.clone(), jobs, watch::Sender::new(0)));
    bridged.kill_while(progress, jobs).await;
    let acknowledged = submissions.join_next().await.unwrap().unwrap().unwrap();
    let acknowledged: BTreeSet<JobId> = acknowledged.iter().map(Submitted::job_id).collect();
    let runs = all_finished(&client, &acknowledged).await;
    let entries = following.join_next().await.unwrap().unwrap();

    let second: u64 = entries.values().map(|times| times - 1).sum();
    let text = fs::read_to_string(&bridged.starts).unwrap();
    let at_target: BTreeSet<JobId> = text.lines().map(|line| line.parse().unwrap()).collect();
    println!(
        "submitted {jobs}, jobs at the target {}, handler starts {}, results {}, second results seen {second}, lost {}; \
         kills of bridges, target, source: {:?}",
        at_target.len(),
        text.lines().count(),
        entries.len(),
        jobs - runs.len(),
        bridged.killed,
    );
    assert_eq!(second, 0, "a second result was seen");
    assert_eq!(entries.keys().copied().collect::<BTreeMap<_, _>>(), runs, "one result per job, that of its run");
    assert_eq!((runs.len(), at_target.len()), (jobs, jobs), "one job at the target per job at the source");
    bridged.stop();
}

/// Reads the client's results from its log until every job has one, and tells how many there are; then looks once more,
/// at the whole log. How often each result was seen on the way.
async fn follow(client: Client, jobs: usize, seen: watch::Sender<usize>) -> BTreeMap<(JobId, RunId), u64> {
    let (mut entries, mut after) = (BTreeMap::new(), None);
    while entries.len() < jobs {
        // The server is killed as well: whoever reads asks again with its cursor.
        let filter = ResultsFilter { after: after.clone(), wait: Duration::from_secs(5), ..ResultsFilter::default() };
        let Ok(page) = client.results(&filter).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        for entry in page.entries {
            *entries.entry((entry.job_id, entry.run_id)).or_default() += 1;
        }
        after = Some(page.next);
        seen.send_replace(entries.len());
    }
    assert_eq!(kill_support::whole_log(&client).await.unwrap().len(), jobs, "the log has one result per job");
    entries
}

/// Two brokers, two bridges between them, and workers at the target.
struct Bridged {
    http: String,
    /// A line per handler start at the target, written by the handlers.
    starts: PathBuf,
    data: PathBuf,
    outer: Option<NatsServer>,
    inner: NatsServer,
    server: Option<Running>,
    /// Where the source takes workers.
    leases: String,
    workers: Vec<Running>,
    bridges: Vec<Running>,
    killed: [u32; 3],
    random: Random,
}

impl Bridged {
    async fn start(dir: &Path, from_nats: bool, seed: u64) -> Self {
        let outer = if from_nats { Some(NatsServer::start().await) } else { None };
        let inner = NatsServer::start().await;
        let url = inner.url();
        let provisioned = cli_support::run(["provision", "--nats", &url, "--lease", "2s", "--retry-base", "50ms"]);
        assert_eq!(cli_support::code(&provisioned), 0, "{provisioned:?}");
        let mut bridged = Self {
            http: "http://127.0.0.1:0".to_owned(),
            starts: dir.join("starts"),
            data: dir.join("data"),
            outer,
            inner,
            server: None,
            leases: "127.0.0.1:0".to_owned(),
            workers: Vec::new(),
            bridges: Vec::new(),
            killed: [0; 3],
            random: Random::new(seed),
        };
        bridged.start_server();
        bridged.workers = (0..2).map(|_| bridged.worker()).collect();
        bridged.bridges = (0..2).map(|_| bridged.bridge()).collect();
        bridged
    }

    /// From the second time on, on the same ports.
    fn start_server(&mut self) {
        let common = ["serve", "--no-auth", "--json", "--lease", "2s", "--retry-base", "50ms", "--log", "error"];
        let mut args: Vec<String> = common.iter().map(ToString::to_string).collect();
        let listen = self.http["http://".len()..].to_owned();
        args.extend(["--listen".to_owned(), listen, "--worker-listen".to_owned(), self.leases.clone()]);
        match &self.outer {
            Some(nats) => args.extend(["--provision".to_owned(), "--nats".to_owned(), nats.url()]),
            None => args.extend(["--data".to_owned(), self.data.display().to_string()]),
        }
        let server = Running::start(args);
        (self.http, self.leases) = (server.url(), server.workers());
        self.server = Some(server);
    }

    fn worker(&self) -> Running {
        let url = self.inner.url();
        let args = ["worker", "--json", "--nats", &url, "--slots", "8", "--log", "error", "--", "sh", "-c"];
        let script = r#"echo "$RELAY_JOB_ID" >> "$1"; exec cat"#;
        Running::start(args.iter().copied().chain([script, "handler", self.starts.to_str().unwrap()]))
    }

    fn bridge(&self) -> Running {
        let to = self.inner.url();
        let from = match &self.outer {
            Some(nats) => ["--from-nats".to_owned(), nats.url()],
            None => ["--from-tcp".to_owned(), self.leases.clone()],
        };
        let args = ["bridge", "--json", "--nats", &to, "--slots", "32", "--log", "error"];
        Running::start(args.iter().map(ToString::to_string).chain(from))
    }

    /// Kills at equal distances while results come back.
    async fn kill_while(&mut self, mut progress: watch::Receiver<usize>, jobs: usize) {
        for kill in 0..KILLS {
            let moment = jobs / (KILLS + 1) * (kill + 1);
            progress.wait_for(|seen| *seen >= moment).await.unwrap();
            if kill % 3 < 2 {
                let victim = usize::try_from(self.random.draw(1)).unwrap();
                self.bridges.swap_remove(victim).kill();
                let replacement = self.bridge();
                self.bridges.push(replacement);
                self.killed[0] += 1;
            } else if kill % 2 == 0 {
                self.inner.restart().await;
                self.killed[1] += 1;
            } else {
                self.server.take().unwrap().kill();
                if let Some(nats) = &mut self.outer {
                    nats.restart().await;
                }
                self.start_server();
                self.killed[2] += 1;
            }
        }
    }

    fn stop(self) {
        self.bridges.into_iter().chain(self.workers).for_each(Running::stop);
        self.server.unwrap().stop();
    }
}
