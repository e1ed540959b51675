//! relay's side: servers and workers as processes, and the service in this process that workers call for each job.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::extract::Path;
use axum::routing::post;
use relay_bridge::testing::NatsServer;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::SLOTS;
use crate::jobs::{Door, Jobs};
use crate::support::load::Connection;
use crate::support::served::Served;

/// Connections that submit, by turns: enough that a job does not wait for one.
const CONNECTIONS: usize = 16;

/// All that runs for one side; ended when it is dropped.
#[derive(Default)]
pub(crate) struct Running {
    workers: Vec<WorkerProcess>,
    servers: Vec<Served>,
    pub(crate) tasks: JoinSet<()>,
}

/// One server, and workers that are on NATS themselves.
pub(crate) async fn on_nats(relay: &str, nats: &NatsServer, workers: usize, jobs: &Arc<Jobs>) -> (Door, Running) {
    let mut running = Running { servers: vec![Served::start(relay, Some(nats))], ..Running::default() };
    let handler = serve_handlers(&mut running.tasks, jobs).await;
    let start = |number| WorkerProcess::start(relay, ["--nats", &nats.url()], handler, number);
    running.workers = (0..workers).map(start).collect();
    (door(&running).await, running)
}

/// As many servers as workers, each with one that is connected to it.
pub(crate) async fn over_tcp(relay: &str, nats: &NatsServer, workers: usize, jobs: &Arc<Jobs>) -> (Door, Running) {
    let servers = (0..workers).map(|_| Served::start(relay, Some(nats))).collect();
    let mut running = Running { servers, ..Running::default() };
    let handler = serve_handlers(&mut running.tasks, jobs).await;
    for (number, server) in running.servers.iter().enumerate() {
        let source = ["--connect", &server.workers.to_string()];
        running.workers.push(WorkerProcess::start(relay, source, handler, number));
    }
    (door(&running).await, running)
}

/// The first server's.
async fn door(running: &Running) -> Door {
    door_at(running.servers[0].http).await
}

/// HTTP at this address.
pub(crate) async fn door_at(address: SocketAddr) -> Door {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Mutex::new(Connection::open(address).await));
    }
    Door::Http(connections)
}

/// Serves handlers, each worker's at a path of its own.
pub(crate) async fn serve_handlers(tasks: &mut JoinSet<()>, jobs: &Arc<Jobs>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, jobs) = (listener.local_addr().unwrap(), Arc::clone(jobs));
    let handle = async move |Path(worker): Path<usize>, body: bytes::Bytes| jobs.handle(worker, &body).await;
    let app = axum::Router::new().route("/{worker}", post(handle));
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// A worker, killed when it is dropped.
struct WorkerProcess(Child);

impl WorkerProcess {
    /// Starts it and does not wait for it: it is up when its first job comes.
    fn start(relay: &str, source: [&str; 2], handler: SocketAddr, number: usize) -> Self {
        let mut command = Command::new(relay);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_")) {
            command.env_remove(name);
        }
        command.args(["worker", "--log", "error", "--queue", "work", "--slots", &SLOTS.to_string()]).args(source);
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
