//! `kill -9` of nats-server, of a worker and of an ingress in turn, while clients submit: every acknowledged job has
//! exactly one result, and whoever listens for results hears of none twice.
//!
//! `RELAY_KILL_JOBS` sets the number of jobs (2,000 here, 20,000 where there is time); `RELAY_KILL_SEED` replays a run.

use std::collections::BTreeMap;
use std::process::Command;

use crate::cli_support::Running;
use crate::support::rounds::{Replicas, moment, round};
use crate::support::{Random, Starts, jobs_and_seed};
use futures_util::StreamExt as _;
use relay::client::Client;
use relay_conformance::testing::NatsServer;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Jobs in the suite; enough that every kill hits submissions and handlers in flight.
const JOBS: usize = 2_000;
/// Kills, spread over the submissions: of nats-server, of a worker, of an ingress, and again.
const KILLS: usize = 9;
const WORKERS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_job_has_exactly_one_result_on_nats_whatever_is_killed() {
    let _alone = crate::support::alone().await;
    let (jobs, seed) = jobs_and_seed(JOBS);

    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start().await;
    let (starts, url) = (Starts::new(dir.path()), cluster.nats.url());
    let mut workers = Replicas::start(WORKERS, || starts.worker(&["--nats", &url]));
    let client = Client::new(&cluster.http, None).unwrap();
    let listener = Listener::start(&url).await;
    let kill = async |accepted| cluster.kill_while(&mut workers, Random::new(seed), accepted, jobs).await;
    let runs = round(&client, jobs, kill).await;
    let heard = listener.stop().await;
    let second: u64 = heard.values().map(|times| times - 1).sum();
    let executed = starts.jobs();
    println!(
        "accepted {jobs}, executed {}, handler starts {}, results {}, announced {}, second results seen {second}; \
         kills of nats-server, workers, ingress: {}, {}, {}",
        executed.len(),
        starts.count(),
        runs.len(),
        heard.len(),
        cluster.killed[0],
        workers.killed,
        cluster.killed[1],
    );
    assert_eq!(second, 0, "a second result was announced");
    assert_eq!(executed, runs.into_keys().collect());
    workers.stop();
    cluster.ingress.unwrap().stop();
}

/// Somebody who listens for results with a NATS client, over all kills, and counts what comes for each job.
struct Listener {
    stop: oneshot::Sender<()>,
    counting: JoinSet<BTreeMap<String, u64>>,
}

impl Listener {
    async fn start(url: &str) -> Self {
        let nats = async_nats::connect(url).await.unwrap();
        let mut announced = nats.subscribe("relay.reply.>").await.unwrap();
        // Once it is answered the subscription is in place: a flush alone does not wait for the server.
        nats.request("relay.nobody", "".into()).await.unwrap_err();
        let (stop, mut stopped) = oneshot::channel();
        let mut counting = JoinSet::new();
        counting.spawn(async move {
            let mut heard = BTreeMap::new();
            loop {
                tokio::select! {
                    Some(result) = announced.next() => *heard.entry(result.subject.to_string()).or_default() += 1,
                    _ = &mut stopped => break heard,
                }
            }
        });
        Self { stop, counting }
    }

    /// How often each job's result was announced.
    async fn stop(mut self) -> BTreeMap<String, u64> {
        self.stop.send(()).unwrap();
        self.counting.join_next().await.unwrap().unwrap()
    }
}

/// nats-server and an ingress: processes that are killed.
struct Cluster {
    nats: NatsServer,
    http: String,
    ingress: Option<Running>,
    /// How often nats-server was killed, and the ingress.
    killed: [u32; 2],
}

impl Cluster {
    async fn start() -> Self {
        let nats = NatsServer::start().await;
        let mut cluster = Self { nats, http: "http://127.0.0.1:0".to_owned(), ingress: None, killed: [0; 2] };
        cluster.start_ingress();
        cluster
    }

    /// From the second time on, on the same port.
    fn start_ingress(&mut self) {
        let url = self.nats.url();
        let args = ["serve", "--no-auth", "--json", "--provision", "--lease", "2s", "--retry-base", "50ms"];
        let places = ["--log", "error", "--nats", &url, "--listen", &self.http["http://".len()..]];
        let ingress = Running::start(args.iter().chain(&places));
        self.http = ingress.url();
        self.ingress = Some(ingress);
    }

    /// Kills at equal distances while submissions go on.
    async fn kill_while<C: Fn() -> Command>(
        &mut self,
        workers: &mut Replicas<C>,
        mut random: Random,
        mut accepted: watch::Receiver<usize>,
        jobs: usize,
    ) {
        for kill in 0..KILLS {
            moment(&mut accepted, jobs, KILLS, kill).await;
            match kill % 3 {
                0 => {
                    self.nats.restart().await;
                    self.killed[0] += 1;
                }
                1 => workers.kill_one(&mut random),
                _ => {
                    self.ingress.take().unwrap().kill();
                    self.start_ingress();
                    self.killed[1] += 1;
                }
            }
        }
    }
}
