//! `kill -9` of the ingress under a client that has all of its submissions in flight over TCP at once, and restarts of one replica after
//! the other under a part of them each: every key has one result, none is lost and none is there twice, and no call fails.
//!
//! `RELAY_KILL_JOBS` sets the number of jobs (2,000 here, 20,000 where there is time).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use relay::client::{Client, Connecting, NewJob, Resolver, ResultsFilter};
use relay_bridge::contract::{JobId, RunId};
use relay_conformance::testing::NatsServer;
use relay_embedded::store;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli_support::Running;
use crate::support::rounds::{account, moment};
use crate::support::{PATIENCE, Starts, jobs_and_seed};

/// Jobs in the suite.
const JOBS: usize = 2_000;
/// Kills of the one ingress, spread over the submissions.
const KILLS: usize = 3;
/// Restarts of the two replicas, in turn; before each of them another part of the jobs is submitted.
const RESTARTS: usize = 4;
/// The part of those that are accepted when a replica stops.
const SOME: usize = 8;
const WORKERS: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_in_flight_over_tcp_has_one_result_whatever_kills_the_ingress() {
    let _alone = crate::support::alone().await;
    let (jobs, _) = jobs_and_seed(JOBS);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut ingress = Ingress::start(&["--data", data.to_str().unwrap()]);
    let starts = Starts::new(dir.path());
    let workers = Workers::start(&starts, &["--connect", ingress.at("workers")]);
    let calls = Calls::new(Client::new(&format!("relay://{}", ingress.at("tcp")), None).unwrap());
    calls
        .round(jobs, async |submit, mut accepted| {
            submit.send_replace(jobs);
            for kill in 0..KILLS {
                moment(&mut accepted, jobs, KILLS, kill).await;
                ingress.running.take().unwrap().kill();
                println!("kill {}: {} submissions were unanswered", kill + 1, jobs - *accepted.borrow());
                ingress.start_again();
            }
        })
        .await;
    workers.stop();
    ingress.running.unwrap().stop();
    // In the file: as many results as jobs, and none was ever written over.
    let (stats, all) = (store::stats(&data.join("relay.db")).unwrap(), jobs as u64);
    assert_eq!((stats.jobs, stats.results, stats.results_recorded, stats.dead_letters), (all, all, all, 0));
    println!("{KILLS} kills of the ingress, {} handler starts", starts.count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_over_tcp_fails_while_two_replicas_are_restarted_in_turn() {
    let _alone = crate::support::alone().await;
    let (jobs, _) = jobs_and_seed(JOBS);
    let dir = tempfile::tempdir().unwrap();
    let nats = NatsServer::start().await;
    let url = nats.url();
    let mut replicas: Vec<_> = (0..2).map(|_| Ingress::start(&["--nats", &url, "--provision"])).collect();
    let starts = Starts::new(dir.path());
    let workers = Workers::start(&starts, &["--nats", &url]);
    let resolver = Arc::new(Replicas(replicas.iter().map(|replica| replica.at("tcp").parse().unwrap()).collect()));
    let connecting = Connecting { resolver, ..Connecting::default() };
    let client = Client::new("relay://replicas.test:7413", None).unwrap().connecting(connecting).unwrap();
    let calls = Calls::new(client);
    calls
        .round(jobs, async |submit, mut accepted| {
            for restart in 0..RESTARTS {
                let [before, until] = [restart, restart + 1].map(|parts| jobs * parts / RESTARTS);
                submit.send_replace(until);
                let some = before + (until - before) / SOME;
                accepted.wait_for(|count| *count >= some).await.unwrap();
                println!("restart {}: {} submissions were unanswered", restart + 1, until - *accepted.borrow());
                let replica = &mut replicas[restart % 2];
                replica.running.take().unwrap().stop();
                replica.start_again();
            }
        })
        .await;
    workers.stop();
    replicas.into_iter().for_each(|replica| replica.running.unwrap().stop());
    println!("{RESTARTS} restarts of two replicas, {} handler starts", starts.count());
}

/// The one client of a round, and how often it tried again.
struct Calls {
    client: Client,
    again: Arc<AtomicUsize>,
}

impl Calls {
    fn new(client: Client) -> Self {
        let again = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&again);
        let told = move |_: &_| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        Self { client: client.patient(PATIENCE).telling(told), again }
    }

    /// Submits `jobs` jobs, each under a key of its own, and follows the results, while `disturb` does what it does to the servers: it
    /// says how many jobs are to be submitted, and is told how many were accepted. In the end each job has one result, by its id and in
    /// the log, and none was seen twice.
    async fn round(&self, jobs: usize, disturb: impl AsyncFnOnce(watch::Sender<usize>, watch::Receiver<usize>)) {
        let ((progress, accepted), (submit, wanted)) = (watch::channel(0), watch::channel(0));
        let (mut submitting, mut following) = (JoinSet::new(), JoinSet::new());
        submitting.spawn(submit_all(self.client.clone(), jobs, wanted, progress));
        following.spawn(follow(self.client.clone(), jobs));
        disturb(submit, accepted).await;
        let acknowledged = submitting.join_next().await.unwrap().unwrap();
        let runs = account(&self.client, jobs, &acknowledged).await;
        let seen = following.join_next().await.unwrap().unwrap();
        let second: u64 = seen.values().map(|times| times - 1).sum();
        println!(
            "accepted {}, results {}, second results {second}, lost {}, failed calls 0, tries beyond the first {}",
            acknowledged.len(),
            runs.len(),
            jobs - runs.len(),
            self.again.load(Ordering::Relaxed),
        );
        assert_eq!(seen.keys().copied().collect::<BTreeMap<_, _>>(), runs, "one result per job, that of its run");
        assert_eq!(second, 0, "a result was followed twice");
    }
}

/// The job of each key, all of those that are wanted at once; a call that fails is a panic.
async fn submit_all(
    client: Client,
    jobs: usize,
    wanted: watch::Receiver<usize>,
    progress: watch::Sender<usize>,
) -> BTreeSet<JobId> {
    let all = stream::iter(0..jobs).then(|at| {
        let mut wanted = wanted.clone();
        async move {
            wanted.wait_for(|count| *count > at).await.unwrap();
            let job = NewJob::new("default".parse().unwrap(), format!("payload of job {at}"));
            NewJob { content_type: "text/plain".to_owned(), ..job.keyed(format!("job-{at}").parse().unwrap()) }
        }
    });
    let mut sent = std::pin::pin!(client.submit_many(all, NonZeroUsize::new(jobs).unwrap()));
    let mut acknowledged = BTreeSet::new();
    while let Some(one) = sent.next().await {
        let submitted = one.answer.unwrap_or_else(|error| panic!("job {}: {error}", one.index));
        assert!(acknowledged.insert(submitted.job_id()), "two keys are one job");
        progress.send_modify(|count| *count += 1);
    }
    acknowledged
}

/// How often each result was pushed, until every job has one.
async fn follow(client: Client, jobs: usize) -> BTreeMap<(JobId, RunId), u64> {
    let (mut seen, mut results) = (BTreeMap::new(), client.results(ResultsFilter::default()));
    while seen.len() < jobs {
        let entry = results.next().await.expect("the stream has no end").unwrap();
        *seen.entry((entry.view.job_id, entry.view.run_id)).or_default() += 1;
    }
    seen
}

/// A server of clients, which comes back on the same ports.
struct Ingress {
    broker: Vec<String>,
    places: BTreeMap<&'static str, String>,
    running: Option<Running>,
}

impl Ingress {
    fn start(broker: &[&str]) -> Self {
        let broker = broker.iter().map(ToString::to_string).collect();
        let places = ["http", "tcp", "workers"].map(|place| (place, "127.0.0.1:0".to_owned())).into();
        let mut new = Self { broker, places, running: None };
        new.start_again();
        new
    }

    fn start_again(&mut self) {
        let args = ["serve", "--no-auth", "--json", "--lease", "2s", "--retry-base", "50ms", "--log", "error"];
        let places = [("--listen", "http"), ("--tcp", "tcp"), ("--worker-listen", "workers")];
        let places = places.iter().flat_map(|(flag, place)| [*flag, self.at(place)]);
        let broker = self.broker.iter().map(String::as_str);
        let running = Running::start(args.into_iter().chain(places).chain(broker));
        for (name, place) in &mut self.places {
            running.ready["listening"][*name].as_str().unwrap().clone_into(place);
        }
        self.running = Some(running);
    }

    fn at(&self, name: &str) -> &str {
        &self.places[name]
    }
}

/// Workers that nobody kills.
struct Workers(Vec<Running>);

impl Workers {
    fn start(starts: &Starts, from: &[&str]) -> Self {
        Self((0..WORKERS).map(|_| Running::start_command(starts.worker(from))).collect())
    }

    fn stop(self) {
        self.0.into_iter().for_each(Running::stop);
    }
}

/// A name with an address for each replica.
#[derive(Debug)]
struct Replicas(Vec<SocketAddr>);

impl Resolver for Replicas {
    fn addresses<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }
}
