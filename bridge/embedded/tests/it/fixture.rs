//! The embedded broker in memory and on disk, on a clock that the tests move.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, Timestamp};
use relay_conformance::newer_envelope;
use relay_embedded::{Embedded, EmbeddedConfig};

/// A store of its own for each test.
pub(crate) struct Fixture {
    clock: Clock,
    store: Mutex<Embedded>,
    folder: Option<Folder>,
}

struct Folder {
    folder: tempfile::TempDir,
    crashes: Mutex<u32>,
}

impl Folder {
    /// The file that is open after `crashes` crashes.
    fn file(&self, crashes: u32) -> PathBuf {
        self.folder.path().join(format!("relay-{crashes}.db"))
    }
}

async fn open(clock: &Clock, path: Option<PathBuf>) -> Embedded {
    Embedded::open(EmbeddedConfig { path, clock: clock.clone(), ..EmbeddedConfig::default() }).await.unwrap()
}

impl Fixture {
    pub(crate) async fn memory() -> Self {
        let clock = start();
        Self { store: Mutex::new(open(&clock, None).await), clock, folder: None }
    }

    pub(crate) async fn disk() -> Self {
        let folder = Folder { folder: tempfile::tempdir().unwrap(), crashes: Mutex::new(0) };
        let clock = start();
        Self { store: Mutex::new(open(&clock, Some(folder.file(0))).await), clock, folder: Some(folder) }
    }

    fn store(&self) -> Embedded {
        self.store.lock().unwrap().clone()
    }
}

fn start() -> Clock {
    Clock::manual(Timestamp::from_millis(1_763_865_086_007))
}

#[async_trait]
impl relay_conformance::Fixture for Fixture {
    fn broker(&self) -> Broker {
        self.store().broker()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn reopen(&self) -> bool {
        let Some(folder) = &self.folder else {
            self.store().close().await;
            let empty = open(&self.clock, None).await;
            *self.store.lock().unwrap() = empty;
            return false;
        };
        // The state after a loss of power: the file and its log as they are on disk at this moment, without a last
        // commit or a checkpoint. The file is copied first, because a checkpoint only ever copies out of the log.
        let (before, after) = {
            let mut crashes = folder.crashes.lock().unwrap();
            *crashes += 1;
            (folder.file(*crashes - 1), folder.file(*crashes))
        };
        // The marker before both, because no store is behind its marker.
        let marker = |path: &PathBuf| path.with_extension("db.marker");
        std::fs::copy(marker(&before), marker(&after)).unwrap();
        let log = |path: &PathBuf| path.with_extension("db-wal");
        std::fs::copy(&before, &after).unwrap();
        std::fs::copy(log(&before), log(&after)).unwrap();
        let reopened = open(&self.clock, Some(after)).await;
        let crashed = std::mem::replace(&mut *self.store.lock().unwrap(), reopened);
        crashed.close().await;
        true
    }

    async fn make_newer(&self, job: &Job) -> bool {
        let Some(folder) = &self.folder else { return false };
        let path = folder.file(*folder.crashes.lock().unwrap());
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
