//! `kill -9` of nats-server, of a worker and of an ingress in turn, while clients submit: every acknowledged job has
//! exactly one result, and whoever listens for results hears of none twice.
//!
//! `RELAY_KILL_JOBS` sets the number of jobs (2,000 here, 20,000 where there is time); `RELAY_KILL_SEED` replays a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::cli_support::Running;
use crate::support::bridges::moment;
use crate::support::{Random, Starts, all_finished, jobs_and_seed, submit_all, whole_log};
use futures_util::StreamExt as _;
use relay::client::{Client, Submitted};
use relay_bridge::contract::JobId;
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
    let mut cluster = Cluster::start(dir.path(), seed).await;
    let client = Client::new(&cluster.http, None).unwrap();
    let listener = Listener::start(&cluster.nats.url()).await;

    let (progress, accepted) = watch::channel(0_usize);
    // On a task of its own: clients must not wait while the test starts processes.
    let mut submissions = JoinSet::new();
    submissions.spawn(submit_all(client.clone(), jobs, progress));
    cluster.kill_while(accepted, jobs).await;
    let acknowledged = submissions.join_next().await.unwrap().unwrap().unwrap();
    let acknowledged: BTreeSet<JobId> = acknowledged.iter().map(Submitted::job_id).collect();
    assert_eq!(acknowledged.len(), jobs, "one job per key");

    // Job by job: the result is there, and it is the handler's. In the client's log: one entry per job, of that run.
    let runs = all_finished(&client, &acknowledged).await;
    let log = whole_log(&client).await.unwrap();
    let logged = log.iter().filter(|entry| runs.get(&entry.job_id) == Some(&entry.run_id)).count();
    let heard = listener.stop().await;
    let second: u64 = heard.values().map(|times| times - 1).sum();
    let executed = cluster.starts.jobs();
    println!(
        "accepted {jobs}, executed {}, handler starts {}, results {}, announced {}, second results seen {second}, lost {}; \
         kills of nats-server, workers, ingress: {:?}",
        executed.len(),
        cluster.starts.count(),
        log.len(),
        heard.len(),
        jobs - runs.len(),
        cluster.killed,
    );
    assert_eq!(second, 0, "a second result was announced");
    assert_eq!((log.len(), logged, runs.len()), (jobs, jobs, jobs), "one result per job");
    assert_eq!(executed, acknowledged);
    cluster.stop();
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

/// nats-server, an ingress, and workers that reach NATS themselves: processes that are killed.
struct Cluster {
    nats: NatsServer,
    http: String,
    /// A line per handler start, written by the handlers.
    starts: Starts,
    ingress: Option<Running>,
    workers: Vec<Running>,
    killed: [u32; 3],
    random: Random,
}

impl Cluster {
    async fn start(dir: &Path, seed: u64) -> Self {
        let mut cluster = Self {
            nats: NatsServer::start().await,
            http: "http://127.0.0.1:0".to_owned(),
            starts: Starts::new(dir),
            ingress: None,
            workers: Vec::new(),
            killed: [0; 3],
            random: Random::new(seed),
        };
        cluster.start_ingress();
        cluster.workers = (0..WORKERS).map(|_| cluster.worker()).collect();
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

    fn worker(&self) -> Running {
        let url = self.nats.url();
        Running::start_command(self.starts.worker(&["--nats", &url]))
    }

    /// Kills at equal distances while submissions go on.
    async fn kill_while(&mut self, mut accepted: watch::Receiver<usize>, jobs: usize) {
        for kill in 0..KILLS {
            moment(&mut accepted, jobs, KILLS, kill).await;
            match kill % 3 {
                0 => self.nats.restart().await,
                1 => {
                    let victim = usize::try_from(self.random.draw(WORKERS as u64 - 1)).unwrap();
                    self.workers.swap_remove(victim).kill();
                    let replacement = self.worker();
                    self.workers.push(replacement);
                }
                _ => {
                    self.ingress.take().unwrap().kill();
                    self.start_ingress();
                }
            }
            self.killed[kill % 3] += 1;
        }
    }

    fn stop(self) {
        self.workers.into_iter().for_each(Running::stop);
        self.ingress.unwrap().stop();
    }
}
