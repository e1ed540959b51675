//! The one thread that writes. It drains a bounded channel into one transaction, commits once, and answers then: a
//! commit costs the same for one operation and for five hundred.
//!
//! A transaction that is rolled back leaves nothing in memory either ([`undo`](super::undo)); leases, turns and waiters
//! stay as they were. Memory is rebuilt from the file where the connection can't be trusted any more: it is not known
//! whether a commit took effect, or a transaction could not be rolled back.
//!
//! After a transaction that failed, operations have transactions of their own for a while, and so has timed work: one
//! client's writes that the disk has no room for then cost nobody else anything.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::grant::Pending;
use super::marker::Marker;
use super::numbers::Numbers;
use super::room::Room;
use super::row::JobRow;
use super::schema;
use super::shared::{Done, Shared};
use super::sql;
use super::state::State;
use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::contract::{JobId, LogId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Held, Receipt};

/// The most operations in one commit.
pub(super) const BATCH_MAX: usize = 512;
/// The most operations that wait for the writer; a caller beyond that waits in its own task.
pub(super) const INBOX_MAX: usize = 2 * BATCH_MAX;
/// How long the last checkpoint waits for readers.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(20);

/// One operation: runs inside the transaction, and may leave something to do after the commit.
pub(super) type Work = Box<dyn FnOnce(&mut Writer) -> Option<After> + Send>;
/// Called when the commit is decided: `Err` holds why nothing, or perhaps nothing, took effect.
pub(super) type After = Box<dyn FnOnce(Result<(), &BrokerError>) + Send>;

/// A heartbeat that waits for its answer.
pub(super) struct Beat {
    pub(super) receipt: Receipt,
    pub(super) reply: oneshot::Sender<Result<Held, BrokerError>>,
}

impl Beat {
    pub(super) fn refuse(self, failure: &BrokerError) {
        // A worker that does not wait any more has lost nothing by it.
        drop(self.reply.send(Err(failure.clone())));
    }
}

/// The state that operations work on.
pub(super) struct Writer {
    pub(super) conn: Connection,
    pub(super) state: State,
    pub(super) clock: Clock,
    pub(super) wire: WireVersion,
    pub(super) log: LogId,
    pub(super) pending: VecDeque<Pending>,
    /// The effects of the transaction that wait for its commit.
    pub(super) done: Done,
    /// Heartbeats, which are answered from what is committed, whatever becomes of the transaction beside them.
    pub(super) beats: Vec<Beat>,
    /// The round that waits until the log holds nothing that was erased.
    pub(super) forgetting: Option<oneshot::Sender<bool>>,
    /// Receipts that nobody took and that this step hands back.
    pub(super) abandoned: Vec<Receipt>,
    pub(super) shared: Arc<Shared>,
    pub(super) path: Option<PathBuf>,
    pub(super) numbers: Numbers,
    pub(super) room: Room,
    pub(super) in_transaction: bool,
    /// Set by the first operation of a transaction that failed half-way: the whole of it is rolled back.
    pub(super) failed: bool,
    /// Set while the file can't be opened.
    pub(super) broken: bool,
    /// Set when the store was opened again: all waiters are served at once.
    pub(super) again: bool,
    /// Until when timed work is not tried again, after it failed by itself.
    pub(super) held_off: Option<Duration>,
    /// How many more operations have a transaction of their own.
    pub(super) apart: usize,
    /// Operations of the last commit.
    pub(super) last_batch: usize,
}

impl Writer {
    pub(super) fn new(
        opened: (Connection, LogId, Option<Marker>),
        (path, disk_reserve): (Option<PathBuf>, u64),
        clock: Clock,
        wire: WireVersion,
        shared: Arc<Shared>,
    ) -> Result<Self, BrokerError> {
        let (conn, log, marker) = opened;
        let state = State::load(&conn, Arc::clone(&shared.recent), &clock, None)?;
        let room = Room::new(path.clone(), disk_reserve);
        // Of erasures before, whose process did not get so far.
        shared.set_log_holds_erased(path.is_some());
        let numbers = Numbers::new(path.clone(), marker, clock.monotonic());
        Ok(Self {
            conn,
            state,
            clock,
            wire,
            log,
            pending: VecDeque::new(),
            done: Done::default(),
            beats: Vec::new(),
            forgetting: None,
            abandoned: Vec::new(),
            shared,
            path,
            numbers,
            room,
            in_transaction: false,
            failed: false,
            broken: false,
            again: false,
            held_off: None,
            apart: 0,
            last_batch: 0,
        })
    }

    /// Joins the open transaction, or begins one. Every operation calls it before it writes.
    pub(super) fn begin(&mut self) -> Result<(), BrokerError> {
        if !self.in_transaction {
            self.conn.execute_batch("BEGIN IMMEDIATE").map_err(|e| sql::unavailable(e, "begin"))?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Empties the log of what was erased if a round waits for it, and says whether it is empty of it. Waits for no reader.
    pub(super) fn forget(&mut self) {
        let Some(reply) = self.forgetting.take() else { return };
        if self.shared.log_holds_erased() && !self.broken {
            match self.truncate_log(Duration::ZERO) {
                Ok(emptied) => self.shared.set_log_holds_erased(!emptied),
                Err(failure) => warn!(error = %failure, "the write-ahead log was not emptied of erased jobs"),
            }
        }
        // A round whose caller is gone is nobody's.
        reply.send(!self.shared.log_holds_erased()).ok();
    }

    /// Copies the log into the file and cuts it to nothing; `false` if a reader needs it.
    pub(super) fn truncate_log(&self, wait: Duration) -> rusqlite::Result<bool> {
        self.conn.busy_timeout(wait)?;
        let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
        let emptied = self.conn.query_row(truncate, [], |row| Ok(row.get::<_, i64>(0)? == 0));
        self.conn.busy_timeout(schema::BUSY_TIMEOUT)?;
        emptied
    }

    /// The job with this id, whosever it is.
    pub(super) fn find(&self, id: JobId) -> Result<Option<JobRow>, BrokerError> {
        JobRow::find(&self.conn, self.state.ids.recent(), id)
    }

    /// A job that a newer relay wrote was set aside.
    pub(super) fn note_newer(&self) {
        self.shared.newer_jobs.add();
    }

    /// Takes what nobody took into this step; answers how many they are.
    pub(super) fn take_abandoned(&mut self) -> usize {
        self.abandoned = self.shared.take_abandoned();
        self.abandoned.len()
    }

    /// Runs `op`, and notes when it may have left half of its writes.
    pub(super) fn guarded<T>(
        &mut self,
        op: impl FnOnce(&mut Self) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        if self.failed || self.broken {
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, "store", "the store did not do it"));
        }
        let changes = |writer: &Self| (writer.conn.total_changes(), writer.state.changes());
        let before = changes(self);
        let result = op(self);
        // A refusal that changed nothing, in the file or in memory, concerns its caller alone. A failure, or a refusal with
        // half of its changes done, takes the whole transaction with it.
        if let Err(failure) = &result
            && (failure.kind() == BrokerErrorKind::Unavailable || changes(self) != before)
        {
            error!(error = %failure, source = ?std::error::Error::source(failure).map(ToString::to_string), "store operation failed");
            self.failed = true;
        }
        result
    }

    pub(super) fn commit(&mut self, operations: usize) -> Result<(), BrokerError> {
        if !self.in_transaction && !self.failed {
            return Ok(());
        }
        if !self.failed {
            let last = self.state.last_seq();
            let indexed = self.state.ids.write_some(&self.conn, operations, last);
            let saved = indexed.and_then(|()| self.state.save(&self.conn));
            if let Err(failure) = saved.and_then(|()| self.numbers.raise_if_due(&self.conn, self.clock.monotonic())) {
                error!(error = %failure, source = ?std::error::Error::source(&failure).map(ToString::to_string), "counters could not be saved");
                self.failed = true;
            }
        }
        if self.failed {
            self.roll_back();
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, "store", "the store did not do it"));
        }
        self.in_transaction = false;
        let started = Instant::now();
        let Err(failure) = self.conn.execute_batch("COMMIT") else {
            self.shared.commits.operations.add(operations as u64);
            self.shared.commits.micros.add(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
            self.state.ids.committed();
            self.numbers.committed(self.clock.monotonic());
            return Ok(());
        };
        // Without space the record that makes the transaction one was not written: nothing took effect.
        if sql::is_full(&failure) {
            let failure = sql::unavailable(failure, "commit");
            error!(error = %failure, "commit failed");
            self.roll_back();
            return Err(failure);
        }
        // Whether the commit reached the disk is unknown: say so, and trust the file alone.
        error!(error = %failure, "commit failed: the store is closed and opened again");
        self.undo_step();
        self.broken = true;
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, "commit", "the store did not confirm the write")
            .of_storage()
            .with_source(failure))
    }

    /// Takes back everything that this step did, in the file and in memory.
    fn roll_back(&mut self) {
        self.failed = false;
        self.in_transaction = false;
        // SQLite ends a transaction by itself when there is no space for what it holds.
        let rolled_back = self.conn.is_autocommit() || self.conn.execute_batch("ROLLBACK").is_ok();
        self.undo_step();
        if !rolled_back {
            // This connection sees a state that was never committed: nothing may be read from it.
            self.broken = true;
        }
    }

    fn undo_step(&mut self) {
        self.state.undo_step();
        self.shared.abandon(self.abandoned.drain(..));
    }

    pub(super) fn reopen(&mut self) -> bool {
        let Some(path) = self.path.clone() else {
            // Memory can't be opened again without losing what it holds: the connection stays.
            let idle = self.conn.is_autocommit() || self.conn.execute_batch("ROLLBACK").is_ok();
            match if idle { self.load_again(&self.conn).ok() } else { None } {
                Some(state) => {
                    self.state = state;
                    self.opened_again();
                }
                None => self.broken = true,
            }
            return !self.broken;
        };
        if !self.conn.is_autocommit() && self.conn.execute_batch("ROLLBACK").is_err() {
            warn!("the old connection holds a transaction that can't be rolled back");
        }
        let there = self.numbers.marker().map_or(Ok(()), |marker| marker.finds_files(&path));
        let opened = there
            .and_then(|()| schema::reconnect(&path, self.log))
            .and_then(|conn| Ok((self.load_again(&conn)?, conn)));
        match opened {
            Ok((state, conn)) => {
                warn!(path = %path.display(), "store opened again");
                (self.state, self.conn) = (state, conn);
                self.opened_again();
                true
            }
            Err(failure) => {
                error!(error = %failure, path = %path.display(), "store can't be opened");
                false
            }
        }
    }

    fn opened_again(&mut self) {
        (self.broken, self.again) = (false, true);
        // A commit that nobody heard of may have taken effect.
        self.shared.wake_all();
    }

    /// The state that the file gives after it was lost, with the leases that this process gave out.
    fn load_again(&self, conn: &Connection) -> Result<State, BrokerError> {
        State::load(conn, Arc::clone(&self.shared.recent), &self.clock, Some(&self.state.leases))
    }

    /// Copies what is left of the log into the file, at the end.
    pub(super) fn empty_log(&mut self) {
        if let Some(path) = self.path.as_ref().filter(|_| !self.in_transaction) {
            if let Err(failure) = self.numbers.raise_last(&self.conn) {
                warn!(error = %failure, "the store has no new number: an older copy of it may not be noticed");
            }
            // A long reader, such as a backup, must not hold up the end: the log then stays, and is read at the next start.
            let emptied = self.truncate_log(CHECKPOINT_WAIT);
            let done = emptied.map_err(|e| sql::unavailable(e, "close store")).and_then(|emptied| {
                let Some(marker) = self.numbers.marker().filter(|_| emptied) else { return Ok(()) };
                marker.closed(path)?;
                schema::keep_log(&self.conn, false).map_err(|e| sql::unavailable(e, "close store"))
            });
            if let Err(failure) = done {
                warn!(error = %failure, "the write-ahead log was not emptied: it is read at the next start");
            }
        }
    }
}

/// `op` as work for the writer, and where its answer comes after the commit.
pub(super) fn work<T: Send + 'static>(
    op: impl FnOnce(&mut Writer) -> Result<T, BrokerError> + Send + 'static,
) -> (Work, oneshot::Receiver<Result<T, BrokerError>>) {
    let (reply, answer) = oneshot::channel();
    let work: Work = Box::new(move |writer| {
        let result = writer.guarded(op);
        Some(Box::new(move |decided| {
            let result = match (result, decided) {
                (Ok(_), Err(failure)) => Err(failure.clone()),
                (result, _) => result,
            };
            // Nobody waits for the answer any more: that is the caller's choice.
            drop(reply.send(result));
        }))
    });
    (work, answer)
}

pub(super) fn closed() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, "store", "the store is closed")
}
