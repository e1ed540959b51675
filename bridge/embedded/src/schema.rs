//! The store's file: opening, locking, versions and tables.
//!
//! `user_version` is `major * 1000 + minor`. A minor version is additive and the release before opens it; a newer
//! major version is refused.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use uuid::Uuid;

use super::marker::{self, Marker};
use super::private;
use super::recount::count_unless_counted;
use super::sql::{explain, log_id, unavailable};
use relay_bridge::contract::LogId;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// `rely` in ASCII: tells a relay store from any other SQLite file.
pub(super) const APPLICATION_ID: i32 = 0x7265_6c79;
/// The schema this build writes.
pub(super) const MAJOR: i32 = 1;
pub(super) const MINOR: i32 = 5;

/// After a commit that leaves this many pages (8 MiB) in the write-ahead log, SQLite copies them into the file and starts
/// the log over. It never waits for a reader.
const LOG_PAGES: i32 = 2 * 1024;
/// How long a connection waits for another one's lock.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Page cache of the writer, in KiB: this bound keeps memory flat with the backlog.
const WRITER_CACHE_KIB: i32 = 12 * 1024;
const READER_CACHE_KIB: i32 = 1024;

// ids: where a job's row is, for rows up to counters.ids_upto (see `ids.rs` for the others).
// jobs: narrow rows that change; payloads: wide rows that are written once. `seq` is the order of acceptance.
// state: 0 waiting, 1 leased, 2 parked, 3 finished. timer_at: when a sweep must look at it: the deadline of an open
// run, the end of keeping of a finished one. in_order_at: the deadline of the first run, if no row before this one has a
// later one there (see `sweep.rs`): while timer_at is the same, the row is found by its place and is in no index of times.
// lease: the number of the last lease, which its receipt holds too. lease_here: 1 if its holder is a handler in the process
// that has the store open.
// results.n: the place in the client's log, which counts that client's results only. counters.next_n counts those of all, and
// no n is beyond it; counters.own_n is the same unless a relay of 1.3 wrote, which numbers results by it. clients.from_n: how
// far that counted when it did, because cursors of that relay may stand anywhere up to there.
// parked: jobs in state 2 by the second of due_at; no row has 0 of them.
const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE counters(id INTEGER PRIMARY KEY, next_seq INTEGER NOT NULL, next_n INTEGER NOT NULL,
  ids_upto INTEGER NOT NULL, in_order_to INTEGER NOT NULL DEFAULT 0, own_n INTEGER NOT NULL DEFAULT 1) STRICT;
CREATE TABLE queues(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, policy TEXT NOT NULL) STRICT;
CREATE TABLE clients(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, removed_n INTEGER NOT NULL DEFAULT 0,
  from_n INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE lines(queue INTEGER NOT NULL, client INTEGER NOT NULL, waiting INTEGER NOT NULL, parked INTEGER NOT NULL,
  stored INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(queue, client)) WITHOUT ROWID, STRICT;
CREATE TABLE parked(queue INTEGER NOT NULL, second INTEGER NOT NULL, client INTEGER NOT NULL, jobs INTEGER NOT NULL,
  PRIMARY KEY(queue, second, client)) WITHOUT ROWID, STRICT;
CREATE TABLE ids(id BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE jobs(seq INTEGER PRIMARY KEY, queue INTEGER NOT NULL, client INTEGER NOT NULL, id BLOB NOT NULL,
  run BLOB NOT NULL, generation INTEGER NOT NULL, state INTEGER NOT NULL, attempt INTEGER NOT NULL,
  timer_at INTEGER NOT NULL, due_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, size INTEGER NOT NULL,
  payload INTEGER NOT NULL, started_at INTEGER, finished_at INTEGER, outcome TEXT, in_order_at INTEGER,
  lease INTEGER, lease_here INTEGER) STRICT;
CREATE INDEX jobs_line ON jobs(queue, client, state, seq);
CREATE INDEX jobs_due ON jobs(due_at) WHERE state = 2;
CREATE INDEX jobs_timer ON jobs(timer_at) WHERE timer_at IS NOT in_order_at;
CREATE TABLE payloads(seq INTEGER PRIMARY KEY, envelope BLOB NOT NULL) STRICT;
CREATE TABLE results(seq INTEGER PRIMARY KEY, n INTEGER NOT NULL, client INTEGER NOT NULL, run BLOB NOT NULL,
  outcome TEXT NOT NULL, at INTEGER NOT NULL, erased INTEGER NOT NULL, envelope BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX results_log ON results(client, n);
CREATE TABLE dead_letters(job BLOB NOT NULL, run BLOB NOT NULL, queue INTEGER NOT NULL, remove_at INTEGER NOT NULL,
  envelope BLOB NOT NULL, PRIMARY KEY(job, run)) STRICT;
CREATE INDEX dead_letters_queue ON dead_letters(queue);
CREATE INDEX dead_letters_remove ON dead_letters(remove_at);
";

/// From 1.0 to 1.1. A relay of 1.0 can open the upgraded store: the deadlines that it writes count as out of order, and
/// are indexed.
const TO_MINOR_1: &str = "
ALTER TABLE counters ADD COLUMN in_order_to INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN in_order_at INTEGER;
DROP INDEX jobs_timer;
CREATE INDEX jobs_timer ON jobs(timer_at) WHERE timer_at IS NOT in_order_at;
";

/// From 1.1 to 1.2. A relay of 1.1 can open the upgraded store: it puts every leased job back in line when it does.
const TO_MINOR_2: &str = "
ALTER TABLE jobs ADD COLUMN lease INTEGER;
ALTER TABLE jobs ADD COLUMN lease_here INTEGER;
";

/// From 1.2 to 1.3. A relay of 1.2 can open the upgraded store: it never used the index that is gone.
const TO_MINOR_3: &str = "
DROP INDEX dead_letters_run;
CREATE INDEX dead_letters_queue ON dead_letters(queue);
";

/// From 1.3 to 1.4. A relay of 1.3 can open the upgraded store: it goes on from the number of all results,
/// and counts no bytes, which are counted anew then (see `recount.rs`).
const TO_MINOR_4: &str = "
ALTER TABLE counters ADD COLUMN own_n INTEGER NOT NULL DEFAULT 0;
ALTER TABLE clients ADD COLUMN from_n INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lines ADD COLUMN stored INTEGER NOT NULL DEFAULT 0;
";

/// From 1.4 to 1.5. A relay of 1.4 can open the upgraded store: it does not count parked jobs by their time, which are counted
/// anew then (see `recount.rs`).
const TO_MINOR_5: &str = "
CREATE TABLE parked(queue INTEGER NOT NULL, second INTEGER NOT NULL, client INTEGER NOT NULL, jobs INTEGER NOT NULL,
  PRIMARY KEY(queue, second, client)) WITHOUT ROWID, STRICT;
";

/// The steps to each minor version from the one before, in their order.
const UPGRADES: &[(i32, &str)] = &[(1, TO_MINOR_1), (2, TO_MINOR_2), (3, TO_MINOR_3), (4, TO_MINOR_4), (5, TO_MINOR_5)];

/// The writer's connection, the log id, and the lock that keeps other processes out (`None` in memory).
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) log: LogId,
    pub(super) lock: Option<StoreLock>,
    /// `None` in memory, and where it could not be written.
    pub(super) marker: Option<Marker>,
}

/// Opens or creates the store at `path`, or a new one in memory.
pub(super) fn open(path: Option<&Path>) -> Result<Opened, BrokerError> {
    let Some(path) = path else {
        let connection = Connection::open_in_memory().map_err(|e| unavailable(e, "open store"))?;
        let log = initialise(&connection, "memory")?;
        return Ok(Opened { connection, log, lock: None, marker: None });
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        private::create_folder(folder).map_err(|e| {
            BrokerError::new(
                BrokerErrorKind::Unavailable,
                "open store",
                format!("can't create the folder {}: {e}", folder.display()),
            )
            .with_source(e)
        })?;
    }
    let lock = lock(path)?;
    let found = Marker::beside(path)?;
    let (connection, log) = connect(path, found.as_ref())?;
    private::warn_of_open(path);
    // A full disk does not prevent a start: the jobs in the store can still be read.
    let marker = Marker::opened(found, path, &connection, log).inspect_err(
        |failure| tracing::warn!(error = %failure, "marker not written: a log that is deleted is not noticed at the next start"),
    );
    Ok(Opened { connection, log, lock: Some(lock), marker: marker.ok() })
}

/// The writer's connection to a store whose lock is held already.
fn connect(path: &Path, marker: Option<&Marker>) -> Result<(Connection, LogId), BrokerError> {
    let shown = path.display().to_string();
    if !path.exists() {
        // SQLite makes the log and its index with the permissions of the file. An error is SQLite's to tell.
        drop(private::open(path));
    }
    let connection = Connection::open(path).map_err(|e| explain(e, &shown))?;
    keep_log(&connection, true).map_err(|e| explain(e, &shown))?;
    match (check_version(&connection, &shown)?, marker) {
        (Some(_), marker) => Marker::admits(marker, path, &connection)?,
        // Tables are committed before the first marker is written.
        (None, Some(_)) => return Err(marker::refused(path, "holds no store, and one was there")),
        (None, None) => {}
    }
    let log = initialise(&connection, &shown)?;
    Ok((connection, log))
}

/// The writer's connection to the store with this log, after it was lost. Makes nothing: a file that is gone stays gone,
/// and another store in its place is refused.
pub(super) fn reconnect(path: &Path, log: LogId) -> Result<Connection, BrokerError> {
    let shown = path.display().to_string();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| explain(e, &shown))?;
    keep_log(&connection, true).map_err(|e| explain(e, &shown))?;
    let same = check_version(&connection, &shown)?.is_some() && initialise(&connection, &shown)? == log;
    same.then_some(connection).ok_or_else(|| {
        let why = format!("{shown} is another store than the one that was open: restart relay to use it");
        BrokerError::new(BrokerErrorKind::Unavailable, "open store", why)
    })
}

/// A connection that only reads, for queries beside the writer.
pub(super) fn open_reader(path: &Path) -> Result<Connection, BrokerError> {
    reader(path, path.as_os_str(), OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// A connection that reads the file at `path` as it is, and makes no log beside it where there is none.
pub(super) fn open_without_log(path: &Path) -> Result<Connection, BrokerError> {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    reader(path, uri.as_ref(), OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)
}

fn reader(path: &Path, name: &OsStr, flags: OpenFlags) -> Result<Connection, BrokerError> {
    let shown = path.display().to_string();
    let connection = Connection::open_with_flags(name, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let connection = connection.map_err(|e| explain(e, &shown))?;
    check_version(&connection, &shown)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB).map_err(|e| explain(e, &shown))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|e| explain(e, &shown))?;
    prepare_once(&connection, 64).map_err(|e| explain(e, &shown))?;
    Ok(connection)
}

/// Keeps statements prepared. Without the stability guarantee SQLite plans a statement anew at each binding that could
/// touch a partial index, which took 45 % of the writer's time: <https://www.sqlite.org/queryplanner-ng.html#qpstab>
fn prepare_once(connection: &Connection, statements: usize) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(statements);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(|_| ())
}

/// Whether the log stays when the connection is closed. It goes only where the marker says that it may be missing.
pub(super) fn keep_log(connection: &Connection, keep: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop)
}

/// A log id of its own: after a restore, cursors into the old log must be noticed.
pub(super) fn new_log_id() -> LogId {
    LogId(*Uuid::now_v7().as_bytes())
}

/// Keeps other processes out of a store until it is dropped.
pub(super) struct StoreLock(File);

impl Drop for StoreLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that was forked just now has it too, until it runs its program.
        self.0.unlock().ok();
    }
}

/// Keeps other processes out of the store at `path`.
pub(super) fn lock(path: &Path) -> Result<StoreLock, BrokerError> {
    let lock_path = PathBuf::from(format!("{}.lock", path.display()));
    let failed = |detail: String| BrokerError::new(BrokerErrorKind::Unavailable, "open store", detail);
    let file = private::open(&lock_path).map_err(|e| {
        let lock = lock_path.display();
        failed(format!("can't open {lock}: {e}: see that this user may write there, or use another --data"))
            .with_source(e)
    })?;
    file.try_lock().map_err(|e| {
        failed(format!(
            "the store {} is in use by another relay process: stop it, or use another --data",
            path.display()
        ))
        .with_source(e)
    })?;
    Ok(StoreLock(file))
}

fn initialise(connection: &Connection, shown: &str) -> Result<LogId, BrokerError> {
    let sql = |e| explain(e, shown);
    prepare_once(connection, 128).map_err(sql)?;
    let version = check_version(connection, shown)?;
    // Pages that are rearranged keep old copies of rows in their free space, out of an erasure's reach. `FAST` clears
    // that space whenever it costs no page write of its own.
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = {LOG_PAGES};
             PRAGMA cache_size = -{WRITER_CACHE_KIB}; PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = OFF;
             PRAGMA secure_delete = FAST;"
        ))
        .map_err(sql)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sql)?;
    if version.is_none() {
        let log = new_log_id();
        let transaction = connection.unchecked_transaction().map_err(sql)?;
        transaction.execute_batch(TABLES).map_err(sql)?;
        transaction.execute("INSERT INTO meta(key, value) VALUES('log_id', ?1)", [&log.0[..]]).map_err(sql)?;
        transaction
            .execute("INSERT INTO counters(id, next_seq, next_n, ids_upto) VALUES(1, 1, 1, 0)", [])
            .map_err(sql)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
        transaction.pragma_update(None, "user_version", MAJOR * 1000 + MINOR).map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    if let Some(version) = version.filter(|version| *version < MAJOR * 1000 + MINOR) {
        let transaction = connection.unchecked_transaction().map_err(sql)?;
        for (_, upgrade) in UPGRADES.iter().filter(|(minor, _)| version < MAJOR * 1000 + minor) {
            transaction.execute_batch(upgrade).map_err(sql)?;
        }
        transaction.pragma_update(None, "user_version", MAJOR * 1000 + MINOR).map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    count_unless_counted(connection, version).map_err(sql)?;
    log_id(connection, shown)
}

/// The file's version, `None` for a file that is empty; refuses what this build must not touch.
fn check_version(connection: &Connection, shown: &str) -> Result<Option<i32>, BrokerError> {
    let number = |pragma: &str| {
        connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0)).map_err(|e| explain(e, shown))
    };
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|e| explain(e, shown))?;
    if tables == 0 && application == 0 && version == 0 {
        return Ok(None);
    }
    if application != APPLICATION_ID {
        return Err(BrokerError::new(
            BrokerErrorKind::Corrupt,
            "open store",
            format!("{shown} is an SQLite file of another program: choose another --data"),
        ));
    }
    let (major, minor) = (version / 1000, version % 1000);
    if major > MAJOR {
        return Err(BrokerError::new(
            BrokerErrorKind::NewerVersion {
                found: u16::try_from(major).unwrap_or(u16::MAX),
                newest: u16::try_from(MAJOR).unwrap_or(u16::MAX),
            },
            "open store",
            format!("{shown} has version {major}.{minor}, this relay reads up to {MAJOR}: start the newer relay"),
        ));
    }
    Ok(Some(version))
}
