//! The embedded broker behind the worker listener keeps every promise of the suite when its workers come over TCP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use relay::auth::{Presented, Refused};
use relay::ingress::tcp::{WorkerAuth, WorkerGrant, serve_workers};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, Timestamp, WorkerId};
use relay_bridge::leasing::Leasing;
use relay_conformance::newer_envelope;
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_remote::{Remote, RemoteConfig};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

relay_conformance::conformance_tests!(remote, super::Fixture::open().await);

/// A store on disk, a listener on a port of its own, and a worker that is connected.
struct Fixture {
    clock: Clock,
    folder: tempfile::TempDir,
    running: Mutex<Running>,
}

struct Running {
    crashes: u32,
    store: Embedded,
    remote: Arc<Remote>,
    address: SocketAddr,
    shutdown: CancellationToken,
    listener: JoinSet<std::io::Result<()>>,
}

struct Anyone;

impl WorkerAuth for Anyone {
    fn authorize<'a>(
        &'a self,
        _: &'a WorkerId,
        _: Option<&'a str>,
        _: Presented<'a>,
    ) -> BoxFuture<'a, Result<WorkerGrant, Refused>> {
        Box::pin(std::future::ready(Ok(WorkerGrant::default())))
    }
}

impl Running {
    async fn start(clock: &Clock, path: PathBuf, address: SocketAddr, crashes: u32) -> Self {
        let config = EmbeddedConfig { path: Some(path), clock: clock.clone(), ..EmbeddedConfig::default() };
        let store = Embedded::open(config).await.unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let (shutdown, mut listener) = (CancellationToken::new(), JoinSet::new());
        let leasing = store.broker().leasing;
        listener.spawn(serve_workers(tcp, leasing, Arc::new(Anyone), shutdown.clone(), Duration::ZERO));
        let remote = Arc::new(connect(address, "suite".parse().unwrap()).await);
        Self { crashes, store, remote, address, shutdown, listener }
    }
}

async fn connect(address: SocketAddr, worker: WorkerId) -> Remote {
    Remote::connect(RemoteConfig::new(address.to_string(), worker)).await.unwrap()
}

impl Fixture {
    async fn open() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_763_865_086_007));
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let running = Running::start(&clock, file(&folder, 0), address, 0).await;
        Self { clock, folder, running: Mutex::new(running) }
    }
}

/// The file that is open after `crashes` crashes.
fn file(folder: &tempfile::TempDir, crashes: u32) -> PathBuf {
    folder.path().join(format!("relay-{crashes}.db"))
}

#[async_trait]
impl relay_conformance::Fixture for Fixture {
    fn broker(&self) -> Broker {
        let running = self.running.lock().unwrap();
        let leasing: Arc<dyn Leasing> = Arc::clone(&running.remote) as _;
        Broker { leasing, ..running.store.broker() }
    }

    async fn worker(&self, worker: &WorkerId) -> Arc<dyn Leasing> {
        let address = self.running.lock().unwrap().address;
        Arc::new(connect(address, worker.clone()).await)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn reopen(&self) -> bool {
        let (crashes, store, address) = {
            let running = self.running.lock().unwrap();
            (running.crashes, running.store.clone(), running.address)
        };
        // The state that a loss of power leaves: file and log as they are on disk at this moment. The file is copied
        // first, because a checkpoint only ever copies out of the log.
        let (before, after) = (file(&self.folder, crashes), file(&self.folder, crashes + 1));
        // The marker before both, because no store is behind its marker.
        let marker = |path: &PathBuf| path.with_extension("db.marker");
        std::fs::copy(marker(&before), marker(&after)).unwrap();
        let log = |path: &PathBuf| path.with_extension("db-wal");
        std::fs::copy(&before, &after).unwrap();
        std::fs::copy(log(&before), log(&after)).unwrap();
        let mut listener = {
            let mut running = self.running.lock().unwrap();
            running.shutdown.cancel();
            std::mem::take(&mut running.listener)
        };
        listener.join_next().await.unwrap().unwrap().unwrap();
        store.close().await;
        // Workers that were connected find it again on the same port.
        let reopened = Running::start(&self.clock, after, address, crashes + 1).await;
        *self.running.lock().unwrap() = reopened;
        true
    }

    fn takes_queues_of_caller(&self) -> bool {
        false
    }

    async fn make_newer(&self, job: &Job) -> bool {
        let path = file(&self.folder, self.running.lock().unwrap().crashes);
        let connection = rusqlite::Connection::open(path).unwrap();
        let changed = connection
            .execute(
                "UPDATE payloads SET envelope = ?1 WHERE length(envelope) = length(?1)
                 AND (SELECT count(*) FROM payloads) = 1",
                [newer_envelope(job).to_vec()],
            )
            .unwrap();
        assert_eq!(changed, 1, "the one job that waits");
        true
    }
}
