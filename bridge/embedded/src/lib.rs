//! The embedded broker: one SQLite file, one writer thread with group commit, readers beside it. Nothing to install.
//!
//! Accepted means flushed: WAL with `synchronous = FULL`, and an answer only after the commit. One process per file.
//!
//! # Layout
//!
//! - `schema`: the file, its lock, its versions, its tables; `marker` with `numbers`: whether it is the file that was there
//!   last; `private`: it is its user's only.
//! - `writer`: the thread that commits; `state` with `lines`: its state in memory; `load`: makes that state from the
//!   file; `undo`: takes back the changes to it by a step that is not committed; `shared`: state that it shares with
//!   its callers.
//! - `room`: whether the disk has room for new jobs; `stored`: the bytes that each client keeps; `recount`: counts anew where an
//!   older release wrote.
//! - `jobs` with `list`, `work`, `results`, `operator`: the capabilities, by their users; `forget`: the end of an erasure;
//!   `fill` with `parked`: looks for scalers; `sweep`: the end of runs, records and dead letters by time.
//! - `dispatch`: chooses the next job; `row`: a job's row; `map`: hash maps; `ids` and `filter`: from an id to its row.
//! - [`store`]: check, statistics and backup of a file; `restore`: how one is put in a store's place.
//!
//! # What repairs a crash
//!
//! `docs/decisions/0002-one-writer-store.md` has the table: crash point, its repair, and the test that shows it.

mod change;
mod dispatch;
#[cfg(test)]
mod failing;
mod fill;
mod filter;
mod forget;
mod grant;
mod ids;
mod jobs;
mod known;
mod lease;
mod lines;
mod list;
mod load;
mod map;
mod marker;
mod numbers;
mod operator;
#[cfg(test)]
mod owners;
mod parked;
#[cfg(test)]
mod parking;
mod private;
mod recount;
mod restore;
mod results;
mod room;
mod row;
mod schema;
mod shared;
mod sql;
mod state;
pub mod store;
mod stored;
mod sweep;
#[cfg(test)]
mod testing;
mod thread;
mod undo;
mod work;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use forget::Rounds;
pub use restore::restore;
use rusqlite::Connection;
pub use shared::Commits;
use shared::Shared;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, watch};
use writer::{Work, Writer, closed};

use relay_bridge::broker::{Broker, Capabilities, Durability, LoadSight};
use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::contract::{JobId, LogId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::Leasing;
use relay_bridge::newer_jobs::NewerJobs;
use relay_bridge::support::lock;

/// The largest payload or result, in bytes: 16 MiB. SQLite would take more; memory for bodies in flight would not.
pub const PAYLOAD_MAX: u64 = 16 * 1024 * 1024;
/// How many connections read at once.
const READERS_MAX: u32 = 4;
/// How many ids the scan at the start reads at once: some milliseconds.
const SCAN_MAX: u32 = 4 * 1024;
/// How long an erasure waits for readers of the log in other processes, and how often it looks.
const FORGET_WITHIN: Duration = Duration::from_secs(5);
const FORGET_AGAIN: Duration = Duration::from_millis(50);
/// The reserve of a disk that nobody set another for, in bytes: 64 MiB.
pub const DISK_RESERVE: u64 = 64 * 1024 * 1024;
/// Where the store is and how it tells time.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The database file, made with its folder if it is not there. `None`: in memory, gone with the process.
    pub path: Option<PathBuf>,
    /// The clock of leases, deadlines and retention.
    pub clock: Clock,
    /// The envelope version that is written.
    pub wire_version: WireVersion,
    /// Bytes of the disk that no new job takes, at most an eighth of it: below it submissions and reruns are `Overloaded`,
    /// while jobs can be finished, cancelled, erased and removed. Default [`DISK_RESERVE`]; 0 is none.
    pub disk_reserve: u64,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        let (clock, wire_version) = (Clock::default(), WireVersion::default());
        Self { path: None, clock, wire_version, disk_reserve: DISK_RESERVE }
    }
}

/// An open store. Clones share it.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
    /// Whether what is leased by this handle ends with this process.
    is_here: bool,
}

struct Inner {
    inbox: Mutex<Option<mpsc::Sender<Work>>>,
    shared: Arc<Shared>,
    clock: Clock,
    log: LogId,
    path: Option<PathBuf>,
    readers: Mutex<Vec<Connection>>,
    reading: Arc<Semaphore>,
    rounds: Rounds,
    closing: watch::Sender<bool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<schema::StoreLock>>,
}

impl Embedded {
    /// Opens or creates a store.
    ///
    /// # Errors
    /// `Unavailable` if the file can't be opened, or another process has it; `Corrupt` if it is damaged or not
    /// relay's; `NewerVersion` if a newer relay wrote it; `StateConflict` if it is not the store that was there last, or its
    /// log is gone. The text names the file and what to do.
    pub async fn open(config: EmbeddedConfig) -> Result<Self, BrokerError> {
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(config));
        opened
            .await
            .map_err(|e| BrokerError::new(BrokerErrorKind::Unavailable, "open store", "interrupted").with_source(e))?
    }

    fn open_blocking(config: EmbeddedConfig) -> Result<Self, BrokerError> {
        let EmbeddedConfig { path, clock, wire_version, disk_reserve } = config;
        let opened = schema::open(path.as_deref())?;
        let shared = Arc::new(Shared::default());
        let log = opened.log;
        let writer = Writer::new(
            (opened.connection, log, opened.marker),
            (path.clone(), disk_reserve),
            clock.clone(),
            wire_version,
            Arc::clone(&shared),
        )?;
        let (inbox, work) = mpsc::channel::<Work>(writer::INBOX_MAX);
        let nudge = inbox.downgrade();
        clock.on_advance(move || {
            if let Some(inbox) = nudge.upgrade() {
                // A full inbox needs no nudge: the writer is about to look at the clock.
                drop(inbox.try_send(Box::new(|_| None)));
            }
        });
        let mut threads = vec![thread("relay-store", writer.run(work))?];
        let (closing, _) = watch::channel(false);
        let reading = Arc::new(Semaphore::new(READERS_MAX as usize));
        if let Some(path) = path.clone() {
            threads.push(thread("relay-ids", scan_ids(path, Arc::clone(&shared), Arc::clone(&reading)))?);
        }
        let inner = Arc::new(Inner {
            inbox: Mutex::new(Some(inbox)),
            shared,
            clock,
            log,
            path,
            readers: Mutex::default(),
            reading,
            rounds: Rounds::default(),
            closing,
            threads: Mutex::new(threads),
            lock: Mutex::new(opened.lock),
        });
        Ok(Self { inner, is_here: false })
    }

    /// The capabilities, all of them backed by this store.
    #[must_use]
    pub fn broker(&self) -> Broker {
        let this = Arc::new(self.clone());
        Broker {
            capabilities: Capabilities {
                adapter: "embedded",
                payload_max: PAYLOAD_MAX,
                durability: if self.inner.path.is_some() { Durability::PowerLoss } else { Durability::None },
                lease_lost_certain: true,
                fair: true,
                one_line: false,
                counts_stored: true,
                load: LoadSight { foresees: true, knows_limits: true, times_attempts: true, age: Duration::ZERO },
            },
            jobs: this.clone(),
            leasing: this.clone(),
            results: this.clone(),
            dead_letters: this.clone(),
            policies: this.clone(),
            provision: this,
            counts: self.inner.shared.counts.clone(),
        }
    }

    /// Leasing for handlers that run in this process and end with it. When another process opens the store, their jobs go
    /// back in line at once, with the attempt spent; those leased through [`broker`](Self::broker) stay leased for one
    /// lease more.
    #[must_use]
    pub fn leasing_here(&self) -> Arc<dyn Leasing> {
        Arc::new(Self { is_here: true, ..self.clone() })
    }

    /// The cost of commits, since the store was opened.
    #[must_use]
    pub fn commits(&self) -> Arc<Commits> {
        Arc::clone(&self.inner.shared.commits)
    }

    /// The jobs that this store hands back because a newer relay wrote them.
    #[must_use]
    pub fn newer_jobs(&self) -> Arc<NewerJobs> {
        Arc::clone(&self.inner.shared.newer_jobs)
    }

    /// Ends all waits, commits what was taken in, and lets go of the file. Calls after it are `Unavailable`.
    pub async fn close(&self) {
        self.inner.closing.send_replace(true);
        drop(lock(&self.inner.inbox).take());
        let threads = std::mem::take(&mut *lock(&self.inner.threads));
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join));
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("a thread of the store panicked");
        }
        lock(&self.inner.readers).clear();
        drop(lock(&self.inner.lock).take());
    }

    fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    fn log(&self) -> LogId {
        self.inner.log
    }

    fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.inner.shared)
    }

    fn inbox(&self) -> Result<mpsc::Sender<Work>, BrokerError> {
        lock(&self.inner.inbox).clone().ok_or_else(closed)
    }

    /// Has the writer look around, unless its inbox is full: then it is about to.
    fn nudge(&self) -> Result<Arc<dyn Fn() + Send + Sync>, BrokerError> {
        let inbox = self.inbox()?.downgrade();
        Ok(Arc::new(move || {
            if let Some(inbox) = inbox.upgrade() {
                drop(inbox.try_send(Box::new(|_| None)));
            }
        }))
    }

    /// Ready once the store is being closed.
    async fn closing(&self) {
        // An error means that the sender is gone, which is closed as well.
        drop(self.inner.closing.subscribe().wait_for(|closing| *closing).await);
    }

    async fn call<T: Send + 'static>(
        &self,
        op: impl FnOnce(&mut Writer) -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let (work, answer) = writer::work(op);
        let sent = lock(&self.inner.inbox).as_ref().ok_or_else(closed)?.try_send(work);
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(work)) => self.inbox()?.send(work).await.map_err(|_| closed())?,
            Err(TrySendError::Closed(_)) => return Err(closed()),
        }
        answer.await.map_err(|_| closed())?
    }

    /// Reads what was committed. In memory there is one connection: the writer's.
    async fn read<T: Send + 'static>(
        &self,
        op: impl FnOnce(&Connection) -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let Some(path) = self.inner.path.clone() else { return self.call(|writer| op(&writer.conn)).await };
        let permit = Arc::clone(&self.inner.reading).acquire_owned().await.map_err(|_| closed())?;
        if *self.inner.closing.borrow() {
            return Err(closed());
        }
        let idle = lock(&self.inner.readers).pop();
        let this = Arc::clone(&self.inner);
        let read = tokio::task::spawn_blocking(move || {
            let reader = match idle {
                Some(reader) => reader,
                None => schema::open_reader(&path)?,
            };
            let result = snapshot(&reader, op);
            lock(&this.readers).push(reader);
            // Held to here, also when the caller is gone: it bounds the readers there are.
            drop(permit);
            result
        });
        read.await.map_err(|e| BrokerError::new(BrokerErrorKind::Unavailable, "read", "interrupted").with_source(e))?
    }
}

/// Runs `op` on one state of the store, whatever is committed meanwhile.
fn snapshot<T>(reader: &Connection, op: impl FnOnce(&Connection) -> Result<T, BrokerError>) -> Result<T, BrokerError> {
    let transaction = reader.unchecked_transaction().map_err(|e| sql::unavailable(e, "read"))?;
    op(&transaction)
}

/// Runs `work` on a thread of its own, with timers but without I/O.
fn thread(name: &str, work: impl Future<Output = ()> + Send + 'static) -> Result<JoinHandle<()>, BrokerError> {
    let failed = |e: std::io::Error| {
        BrokerError::new(BrokerErrorKind::Unavailable, "open store", "can't start a thread").with_source(e)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(work)).map_err(failed)
}

/// Fills the filter of ids beside the writer. Nothing is wrong without it, only slower. Like every reader it has a permit while
/// it reads, and gives it back after [`SCAN_MAX`] ids: an erasure must not wait for the whole of a large store.
async fn scan_ids(path: PathBuf, shared: Arc<Shared>, reading: Arc<Semaphore>) {
    let scan = async {
        let mut after = JobId::from_bytes([0; 16]);
        let reader = schema::open_reader(&path)?;
        loop {
            let permit = reading.acquire().await.map_err(|_| closed())?;
            let last = shared.recent.indexed.scan(&reader, after, SCAN_MAX)?;
            drop(permit);
            let Some(last) = last else { return Ok(()) };
            after = last;
        }
    };
    let scanned: Result<(), BrokerError> = scan.await;
    if let Err(failure) = scanned {
        tracing::warn!(error = %failure, "ids could not be scanned: every new id is looked up");
    }
}
