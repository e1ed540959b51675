//! `kill -9` of the server while clients submit, and of workers at random: every acknowledged job has exactly one result.
//!
//! `RELAY_KILL_JOBS` sets the number of jobs (2,000 here, 20,000 where there is time); `RELAY_KILL_SEED` replays a run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cli_support::Running;
use crate::support::{Random, Starts, all_finished, jobs_and_seed, submit_all, whole_log};
use relay::client::{Client, Submitted};
use relay_bridge::contract::JobId;
use relay_embedded::store;
use rusqlite::Connection;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Jobs in the suite; enough that every kill hits submissions and handlers in flight.
const JOBS: usize = 2_000;
/// Kills of the server, spread over the submissions.
const ROUNDS: usize = 5;
const WORKERS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_job_has_exactly_one_result_whatever_is_killed() {
    let _alone = crate::support::alone().await;
    let (jobs, seed) = jobs_and_seed(JOBS);

    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), seed);
    let client = Client::new(&cluster.url, None).unwrap();

    let (progress, accepted) = watch::channel(0_usize);
    // On a task of its own: clients must not wait while the test starts processes.
    let mut submissions = JoinSet::new();
    submissions.spawn(submit_all(client.clone(), jobs, progress));
    cluster.kill_while(accepted, jobs).await;
    let acknowledged = submissions.join_next().await.unwrap().unwrap().unwrap();
    let acknowledged: BTreeSet<JobId> = acknowledged.iter().map(Submitted::job_id).collect();
    assert_eq!(acknowledged.len(), jobs, "one job per key");

    // Over HTTP, job by job: the result is there, and it is the handler's.
    let runs = all_finished(&client, &acknowledged).await;
    // Over HTTP, the client's log: one entry per job, of that run.
    let log = whole_log(&client).await.unwrap();
    assert_eq!(log.len(), jobs, "one result per job in the client's log");
    assert!(log.iter().all(|entry| runs.get(&entry.job_id) == Some(&entry.run_id)));

    let workers_killed = cluster.workers_killed;
    let starts = cluster.stop();

    // In the file: as many results as jobs, and none was ever written over.
    let file = dir.path().join("data").join("relay.db");
    let stats = store::stats(&file).unwrap();
    let all = jobs as u64;
    assert_eq!((stats.jobs, stats.results, stats.results_recorded, stats.dead_letters), (all, all, all, 0));
    let rows = Connection::open(&file).unwrap();
    let count = |query: &str| rows.query_row(query, [], |row| row.get::<_, usize>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM results"), jobs);
    assert_eq!(count("SELECT count(DISTINCT seq) FROM results"), jobs);
    assert_eq!(store::check(&file).unwrap().problems, Vec::<String>::new());

    // On the handlers' side: every job was started, some more than once.
    assert_eq!(starts.jobs(), acknowledged);
    let lines = starts.count();
    println!("{jobs} jobs, {ROUNDS} kills of the server, {workers_killed} of workers, {lines} handler starts");
}

/// A server on disk and its workers, all of them processes that are killed.
struct Cluster {
    dir: PathBuf,
    url: String,
    connect: String,
    starts: Starts,
    server: Option<Running>,
    workers: Vec<Running>,
    workers_killed: u32,
    random: Random,
}

impl Cluster {
    fn start(dir: &Path, seed: u64) -> Self {
        let mut cluster = Self {
            dir: dir.to_owned(),
            url: "http://127.0.0.1:0".to_owned(),
            connect: "127.0.0.1:0".to_owned(),
            starts: Starts::new(dir),
            server: None,
            workers: Vec::new(),
            workers_killed: 0,
            random: Random::new(seed),
        };
        cluster.start_server();
        cluster.workers = (0..WORKERS).map(|_| cluster.worker()).collect();
        cluster
    }

    /// From the second time on, on the same store and the same ports.
    fn start_server(&mut self) {
        let data = self.dir.join("data");
        let args = ["serve", "--no-auth", "--json", "--lease", "2s", "--retry-base", "50ms", "--log", "error"];
        let places = ["--listen", &self.url["http://".len()..], "--worker-listen", &self.connect, "--data"];
        let server = Running::start(args.iter().chain(&places).copied().chain([data.to_str().unwrap()]));
        (self.url, self.connect) = (server.url(), server.workers());
        self.server = Some(server);
    }

    fn worker(&self) -> Running {
        Running::start_command(self.starts.worker(&["--connect", &self.connect]))
    }

    /// Kills the server at equal distances while submissions go on, and a worker or two at random moments in between.
    async fn kill_while(&mut self, mut accepted: watch::Receiver<usize>, jobs: usize) {
        for round in 0..ROUNDS {
            let between = jobs / (ROUNDS + 1);
            for _ in 0..=self.random.draw(1) {
                let moment = between * round + usize::try_from(self.random.draw(between as u64)).unwrap();
                accepted.wait_for(|count| *count >= moment).await.unwrap();
                let victim = usize::try_from(self.random.draw(WORKERS as u64 - 1)).unwrap();
                self.workers.swap_remove(victim).kill();
                self.workers_killed += 1;
                let replacement = self.worker();
                self.workers.push(replacement);
            }
            accepted.wait_for(|count| *count >= between * (round + 1)).await.unwrap();
            self.server.take().unwrap().kill();
            self.start_server();
        }
    }

    fn stop(self) -> Starts {
        self.workers.into_iter().for_each(Running::stop);
        self.server.unwrap().stop();
        self.starts
    }
}
