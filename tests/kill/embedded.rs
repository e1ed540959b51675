//! `kill -9` of the server while clients submit, and of workers at random: every acknowledged job has exactly one result.
//!
//! `RELAY_KILL_JOBS` sets the number of jobs (2,000 here, 20,000 where there is time); `RELAY_KILL_SEED` replays a run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli_support::Running;
use crate::support::rounds::{Replicas, moment, round};
use crate::support::{Random, Starts, jobs_and_seed};
use relay::client::Client;
use relay_embedded::store;
use rusqlite::Connection;
use tokio::sync::watch;

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
    let mut cluster = Cluster::start(dir.path());
    let (starts, connect) = (Starts::new(dir.path()), cluster.connect.clone());
    let mut workers = Replicas::start(WORKERS, || starts.worker(&["--connect", &connect]));
    let client = Client::new(&cluster.url, None).unwrap();
    let kill = async |accepted| cluster.kill_while(&mut workers, Random::new(seed), accepted, jobs).await;
    let runs = round(&client, jobs, kill).await;
    let workers_killed = workers.killed;
    workers.stop();
    cluster.server.unwrap().stop();

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
    assert_eq!(starts.jobs(), runs.into_keys().collect());
    let lines = starts.count();
    println!("{jobs} jobs, {ROUNDS} kills of the server, {workers_killed} of workers, {lines} handler starts");
}

/// A server on disk, a process that is killed.
struct Cluster {
    dir: PathBuf,
    url: String,
    connect: String,
    server: Option<Running>,
}

impl Cluster {
    fn start(dir: &Path) -> Self {
        let mut cluster = Self {
            dir: dir.to_owned(),
            url: "http://127.0.0.1:0".to_owned(),
            connect: "127.0.0.1:0".to_owned(),
            server: None,
        };
        cluster.start_server();
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

    /// Kills the server at equal distances while submissions go on, and a worker or two at random moments in between.
    async fn kill_while<C: Fn() -> Command>(
        &mut self,
        workers: &mut Replicas<C>,
        mut random: Random,
        mut accepted: watch::Receiver<usize>,
        jobs: usize,
    ) {
        for kill in 0..ROUNDS {
            let between = jobs / (ROUNDS + 1);
            for _ in 0..=random.draw(1) {
                let at = between * kill + usize::try_from(random.draw(between as u64)).unwrap();
                accepted.wait_for(|count| *count >= at).await.unwrap();
                workers.kill_one(&mut random);
            }
            moment(&mut accepted, jobs, ROUNDS, kill).await;
            self.server.take().unwrap().kill();
            self.start_server();
        }
    }
}
