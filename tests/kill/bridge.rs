//! `kill -9` of two bridges, of the target's nats-server and of the source in turn, while jobs are on their way: every
//! job has exactly one result at the source, none is seen twice, and none became two jobs at the target.
//!
//! `RELAY_KILL_JOBS` sets the number of jobs (2,000 here, 20,000 where there is time); `RELAY_KILL_SEED` replays a run.

use std::path::{Path, PathBuf};

use crate::cli_support::Running;
use crate::support::rounds::{Replicas, each_has_one_result, moment};
use crate::support::{Random, Starts, jobs_and_seed};
use relay_conformance::testing::NatsServer;
use tokio::sync::watch;

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
    let _alone = crate::support::alone().await;
    let (jobs, seed) = jobs_and_seed(JOBS);
    let dir = tempfile::tempdir().unwrap();
    let (starts, mut sides) = (Starts::new(dir.path()), Sides::start(dir.path(), from_nats).await);
    let url = sides.inner.url();
    let workers: Vec<_> = (0..2).map(|_| Running::start_command(starts.worker(&["--nats", &url]))).collect();
    let from = match &sides.outer {
        Some(nats) => ["--from-nats".to_owned(), nats.url()],
        None => ["--from-tcp".to_owned(), sides.leases.clone()],
    };
    let mut bridges = Replicas::start(2, || {
        let args = ["bridge", "--json", "--nats", &url, "--slots", "32", "--log", "error", &from[0], &from[1]];
        crate::cli_support::relay(args)
    });
    let source = sides.http.clone();
    each_has_one_result(&source, jobs, &starts, async |progress| {
        sides.kill_while(&mut bridges, Random::new(seed), progress, jobs).await;
    })
    .await;
    println!("kills of bridges {}, of target and source {:?}", bridges.killed, sides.killed);
    bridges.stop();
    workers.into_iter().for_each(Running::stop);
    sides.server.unwrap().stop();
}

/// Two brokers, and the server at the source.
struct Sides {
    http: String,
    data: PathBuf,
    outer: Option<NatsServer>,
    inner: NatsServer,
    server: Option<Running>,
    /// Where the source takes workers.
    leases: String,
    /// How often the target was killed, and the source.
    killed: [u32; 2],
}

impl Sides {
    async fn start(dir: &Path, from_nats: bool) -> Self {
        let outer = if from_nats { Some(NatsServer::start().await) } else { None };
        let inner = NatsServer::start().await;
        let url = inner.url();
        let provisioned =
            crate::cli_support::run(["provision", "--nats", &url, "--lease", "2s", "--retry-base", "50ms"]);
        assert_eq!(crate::cli_support::code(&provisioned), 0, "{provisioned:?}");
        let mut sides = Self {
            http: "http://127.0.0.1:0".to_owned(),
            data: dir.join("data"),
            outer,
            inner,
            server: None,
            leases: "127.0.0.1:0".to_owned(),
            killed: [0; 2],
        };
        sides.start_server();
        sides
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

    /// Kills at equal distances while results come back.
    async fn kill_while<C: Fn() -> std::process::Command>(
        &mut self,
        bridges: &mut Replicas<C>,
        mut random: Random,
        mut progress: watch::Receiver<usize>,
        jobs: usize,
    ) {
        for kill in 0..KILLS {
            moment(&mut progress, jobs, KILLS, kill).await;
            if kill % 3 < 2 {
                bridges.kill_one(&mut random);
            } else if kill % 2 == 0 {
                self.inner.restart().await;
                self.killed[0] += 1;
            } else {
                self.server.take().unwrap().kill();
                if let Some(nats) = &mut self.outer {
                    nats.restart().await;
                }
                self.start_server();
                self.killed[1] += 1;
            }
        }
    }
}
