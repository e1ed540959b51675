//! The only server is stopped and started again, five times while one job runs: the worker over TCP goes on with the job that
//! it holds, because leases belong to the broker and not to the process that gave them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cli_support::{Running, relay};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use relay::client::retry::Patience;
use relay::client::{Client, NewJob};
use relay_bridge::contract::{JobState, Outcome};
use relay_conformance::testing::NatsServer;

/// Restarts while the job runs: by SIGTERM and by SIGKILL in turn.
const RESTARTS: u32 = 5;
/// How many leases pass before each of them, so that none of them meets the job's first lease.
const LEASES_EACH: u32 = 2;
/// The lease, unless the machine is so busy that a server takes long to start.
const LEASE: Duration = Duration::from_secs(2);
/// How many times as long as the start of a server a lease is at least.
const STARTS_IN_A_LEASE: u32 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_holds_a_job_of_ten_leases_through_five_restarts_of_the_embedded_broker() {
    let data = tempfile::tempdir().unwrap();
    through_restarts(&["--data", data.path().to_str().unwrap()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_holds_a_job_of_ten_leases_through_five_restarts_of_the_only_server_on_nats() {
    let nats = NatsServer::start().await;
    through_restarts(&["--nats", &nats.url(), "--provision", "--no-nats-listen"]).await;
}

async fn through_restarts(broker: &[&str]) {
    // How long a start takes here, and the addresses that stay.
    let began = Instant::now();
    let first = Running::start_command(serve(broker, "127.0.0.1:0", "127.0.0.1:0", LEASE));
    let lease = LEASE.max(began.elapsed() * STARTS_IN_A_LEASE);
    let (http, workers) = (first.ready["listening"]["http"].as_str().unwrap().to_owned(), first.workers());
    first.stop();
    let start = || Running::start_command(serve(broker, &http, &workers, lease));

    let mut server = start();
    let folder = tempfile::tempdir().unwrap();
    let worker = Running::start_command(worker(folder.path(), &workers));
    let client = Client::new(&server.url(), None).unwrap();
    let job = client.submit(&job()).await.unwrap().job_id();
    // Opens once the handler reads: it has started.
    let gate = folder.path().join("gate");
    let gate = tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(gate).unwrap());
    let gate = gate.await.unwrap();
    for restart in 0..RESTARTS {
        tokio::time::sleep(lease * LEASES_EACH).await;
        match restart % 2 {
            // Its drain is much shorter than the job.
            0 => server.stop(),
            _ => server.kill(),
        }
        server = start();
    }
    tokio::time::sleep(lease * LEASES_EACH).await;
    assert_eq!(starts(folder.path()), 1, "the handler was started again");
    let patience = Patience::default();
    let status = patience.repeat(true, || client.status(job), |_| {}).await.unwrap();
    assert_eq!((status.receipt.state, status.attempt), (JobState::Leased, 1));

    // The handler ends.
    drop(gate);
    let patience = Patience::default();
    let result = patience.repeat(true, || client.wait(job, Duration::from_secs(20)), |_| {}).await.unwrap().unwrap();
    assert_eq!((result.outcome, result.attempt), (Outcome::Succeeded, 1));
    assert_eq!(starts(folder.path()), 1);
    worker.stop();
    server.stop();
}

fn serve(broker: &[&str], http: &str, workers: &str, lease: Duration) -> Command {
    let lease = format!("{}ms", lease.as_millis());
    let of_server = ["serve", "--json", "--no-auth", "--listen", http, "--worker-listen", workers];
    relay(of_server.iter().chain(&["--queue", "default", "--lease", &lease, "--drain", "100ms"]).chain(broker))
}

/// A worker whose handler notes that it starts, and runs until the gate is closed.
fn worker(folder: &Path, address: &str) -> Command {
    mkfifo(&folder.join("gate"), Mode::S_IRWXU).unwrap();
    let handler = format!("echo started >> '{0}/starts'; cat '{0}/gate'", folder.display());
    relay(["worker", "--json", "--connect", address, "--queue", "default", "--slots", "1", "--", "sh", "-c", &handler])
}

fn starts(folder: &Path) -> usize {
    fs::read_to_string(folder.join("starts")).unwrap().lines().count()
}

fn job() -> NewJob {
    NewJob {
        key: Some("long".parse().unwrap()),
        content_type: "text/plain".to_owned(),
        ..NewJob::new("default".parse().unwrap(), "work")
    }
}
