//! relay's side: servers and workers as processes, and the service in this process that workers call for each job.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::SLOTS;
use crate::jobs::{Jobs, Submitter};
use crate::nodes::Nodes;
use crate::support::load::Connection;
use crate::support::served::Served;

/// Connections that submit, by turns: enough that a job does not wait for one.
const CONNECTIONS: usize = 16;

/// All that runs for one side; ended when it is dropped.
#[derive(Default)]
pub(crate) struct Running {
    workers: Vec<WorkerProcess>,
    pub(crate) servers: Vec<Served>,
    pub(crate) tasks: JoinSet<()>,
}

/// One server, and workers that are on NATS themselves.
pub(crate) async fn on_nats(relay: &str, nats: &Nodes, workers: usize, jobs: &Arc<Jobs>) -> (Submitter, Running) {
    let running = Running::start(relay, &nats.url(), nats.replicas(), (workers, SLOTS), jobs).await;
    (submitter(&running).await, running)
}

/// As many servers as workers, each with one that is connected to it.
pub(crate) async fn over_tcp(relay: &str, nats: &Nodes, workers: usize, jobs: &Arc<Jobs>) -> (Submitter, Running) {
    let servers = (0..workers).map(|_| Served::start_on(relay, Some((nats.url(), nats.replicas())))).collect();
    let mut running = Running { servers, ..Running::default() };
    let handler = serve_handlers(&mut running.tasks, jobs).await;
    for (number, server) in running.servers.iter().enumerate() {
        let source = ["--connect", &server.workers.to_string()];
        running.workers.push(WorkerProcess::start(relay, source, SLOTS, handler, number));
    }
    (submitter(&running).await, running)
}

impl Running {
    /// A server on the NATS at `url`, with so many copies of each message, and so many workers of so many slots.
    pub(crate) async fn start(
        relay: &str,
        url: &str,
        replicas: usize,
        (workers, slots): (usize, usize),
        jobs: &Arc<Jobs>,
    ) -> Self {
        let mut running =
            Self { servers: vec![Served::start_on(relay, Some((url.to_owned(), replicas)))], ..Self::default() };
        running.add_workers(relay, url, (workers, slots), jobs).await;
        running
    }

    /// So many more workers of so many slots.
    pub(crate) async fn add_workers(
        &mut self,
        relay: &str,
        url: &str,
        (workers, slots): (usize, usize),
        jobs: &Arc<Jobs>,
    ) {
        let handler = serve_handlers(&mut self.tasks, jobs).await;
        let start = |number| WorkerProcess::start(relay, ["--nats", url], slots, handler, number);
        self.workers.extend((0..workers).map(start));
    }
}

/// The first server's.
pub(crate) async fn submitter(running: &Running) -> Submitter {
    submitter_at(running.servers[0].http).await
}

/// HTTP at this address.
pub(crate) async fn submitter_at(address: SocketAddr) -> Submitter {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Mutex::new(Connection::open(address).await));
    }
    Submitter::Http(connections)
}

/// Serves handlers, each worker's at a path of its own.
pub(crate) async fn serve_handlers(tasks: &mut JoinSet<()>, jobs: &Arc<Jobs>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, jobs) = (listener.local_addr().unwrap(), Arc::clone(jobs));
    let handle = async move |Path(worker): Path<usize>, body: bytes::Bytes| match jobs.handle(worker, &body).await {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let app = axum::Router::new().route("/{worker}", post(handle));
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// A worker, killed when it is dropped.
struct WorkerProcess(Child);

impl WorkerProcess {
    /// Starts it and does not wait for it: it is up when its first job comes.
    fn start(relay: &str, source: [&str; 2], slots: usize, handler: SocketAddr, number: usize) -> Self {
        let mut command = Command::new(relay);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_")) {
            command.env_remove(name);
        }
        command.args(["worker", "--log", "error", "--queue", "work", "--slots", &slots.to_string()]).args(source);
        command.args(["--http", &format!("http://{handler}/{number}")]);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
