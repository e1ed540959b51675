//! The marker beside a store's file: which store was here last, and whether its write-ahead log may be missing.
//!
//! To SQLite a file without its log, an older copy, or an empty file in its place is a database as good as any, and to
//! open it would lose accepted jobs without a word. So a store has a number, in itself and in its marker, which only grows:
//! when the store is opened, when it is closed, and now and then in between (see `numbers`), never for each commit.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::private;
use super::sql::{log_id, unavailable};
use relay_bridge::contract::LogId;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// The key of the number in the store, called after what raised it first.
pub(super) const NUMBER: &str = "openings";
/// The key of the same number where the release that raised it counts bytes: one before 1.4 raises the other alone.
pub(super) const COUNTED: &str = "counted";
/// The same for parked jobs, which a release before 1.5 does not count by their time.
pub(super) const COUNTED_PARKED: &str = "counted_parked";

/// The marker of one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    store: String,
    #[serde(rename = "openings")]
    number: u64,
    /// Whether everything is in the file: its log may be missing.
    clean: bool,
    /// While another store is put in the place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restoring: Option<Restoring>,
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Restoring {
    /// The store that was there is being moved away.
    Moving,
    /// Nothing of it is left: a file in its place, if there is one, is the copy.
    Placing,
}

impl Marker {
    /// The marker of a store that was not opened yet.
    pub(super) fn of_new(log: LogId) -> Self {
        Self { store: name(log), number: 0, clean: true, restoring: None }
    }

    /// The marker of a place that is refused until the restore is done.
    pub(super) fn while_restoring(&self, restoring: Restoring) -> Self {
        Self { restoring: Some(restoring), ..self.clone() }
    }

    /// How far a restore came that was interrupted, if one was.
    pub(super) fn restoring(path: &Path) -> Result<Option<Restoring>, BrokerError> {
        Ok(Self::read(path)?.and_then(|marker| marker.restoring))
    }

    /// The marker beside the store at `path`, if there is one, after a look at the files that it speaks of.
    pub(super) fn beside(path: &Path) -> Result<Option<Self>, BrokerError> {
        let marker = Self::read(path)?;
        marker.as_ref().map_or(Ok(()), |marker| marker.finds_files(path))?;
        Ok(marker)
    }

    fn read(path: &Path) -> Result<Option<Self>, BrokerError> {
        let text = match std::fs::read(place(path)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path, error)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| refused(path, "has a marker beside it that is damaged").with_source(error))
    }

    /// Refuses a file or a log that was here and is gone.
    pub(super) fn finds_files(&self, path: &Path) -> Result<(), BrokerError> {
        if self.restoring.is_some() {
            let folder = folder_of(path).display();
            let why = format!(
                "{} is the place of a restore that was interrupted: repeat `relay store restore FILE --data {folder}`; \
                 what was there is kept, in part perhaps in {}.replaced",
                path.display(),
                path.display()
            );
            return Err(BrokerError::new(BrokerErrorKind::StateConflict, "open store", why));
        }
        if std::fs::metadata(path).map_or(0, |file| file.len()) == 0 {
            return Err(refused(path, "is gone or empty, and a store was there"));
        }
        if !self.clean && !log_exists(path) {
            let why = "has lost its write-ahead log (`-wal`), which held accepted jobs (if another program or an older \
                       relay had it open since, nothing is lost: restore this file)";
            return Err(refused(path, why));
        }
        Ok(())
    }

    /// Refuses a store that is not the one that was here last. One that never had a marker may have none.
    pub(super) fn admits(found: Option<&Self>, path: &Path, conn: &Connection) -> Result<(), BrokerError> {
        let number = number(conn)?;
        let why = match found {
            None if number.is_some() => "is a copy: the marker of a store is not beside it",
            Some(marker) if marker.store != name(log_id(conn, &path.display().to_string())?) => {
                "is another store than the one that was there"
            }
            Some(marker) if number.unwrap_or(0) < marker.number => "is older than the store that was there",
            _ => return Ok(()),
        };
        Err(refused(path, why))
    }

    /// Raises the number for an opening, in the store and then in the marker: a store is never behind its marker.
    pub(super) fn opened(found: Option<Self>, path: &Path, conn: &Connection, log: LogId) -> Result<Self, BrokerError> {
        let before = match found {
            Some(marker) => marker,
            None => {
                let marker = Self::of_new(log);
                marker.write(path)?;
                marker
            }
        };
        let number = number(conn)?.unwrap_or(0).max(before.number);
        let marker = Self { number, clean: false, ..Self::of_new(log) }.raised(conn)?;
        marker.write(path)?;
        Ok(marker)
    }

    /// Raises the number in the store. This is the marker to write once that is committed.
    pub(super) fn raised(&self, conn: &Connection) -> Result<Self, BrokerError> {
        let number = self.number + 1;
        conn.prepare_cached("INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?4), (?2, ?4), (?3, ?4)")
            .and_then(|mut insert| insert.execute(params![NUMBER, COUNTED, COUNTED_PARKED, number.to_be_bytes()]))
            .map_err(|e| unavailable(e, "number store"))?;
        Ok(Self { number, ..self.clone() })
    }

    /// Notes that the log was copied into the file.
    pub(super) fn closed(&self, path: &Path) -> Result<(), BrokerError> {
        Self { clean: true, ..self.clone() }.write(path)
    }

    /// Takes the place of what was there, as a whole.
    pub(super) fn write(&self, path: &Path) -> Result<(), BrokerError> {
        let (marker, next) = (place(path), PathBuf::from(format!("{}.marker-new", path.display())));
        let text = serde_json::to_vec(self).map_err(|error| failed(path, error))?;
        // One that a crash left behind; the lock says that nobody else is writing it.
        std::fs::remove_file(&next).ok();
        let written = private::create_new(&next)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&next, &marker))
            .and_then(|()| sync_folder(path));
        written.map_err(|error| failed(path, error))
    }
}

/// Whether the store at `path` lost a log that its marker needs. Never true of a store that relay has open: between two looks at
/// the log it may have been closed or opened.
pub(super) fn lost_log(path: &Path) -> bool {
    let needed = || matches!(Marker::read(path), Ok(Some(Marker { clean: false, .. })));
    !log_exists(path) && needed() && !log_exists(path)
}

fn log_exists(path: &Path) -> bool {
    PathBuf::from(format!("{}-wal", path.display())).exists()
}

/// Makes what was renamed in the folder of `path` outlast a loss of power.
pub(super) fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Forgets the number of a copy that takes a store's place.
pub(super) fn forget_number(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM meta WHERE key = ?1", [NUMBER]).map(drop)
}

/// The number in the store; `None` if it never had a marker.
fn number(conn: &Connection) -> Result<Option<u64>, BrokerError> {
    conn.query_row("SELECT value FROM meta WHERE key = ?1", [NUMBER], |row| row.get(0))
        .optional()
        .map(|number| number.map(u64::from_be_bytes))
        .map_err(|e| unavailable(e, "open store"))
}

fn place(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.marker", path.display()))
}

fn name(log: LogId) -> String {
    Uuid::from_bytes(log.0).to_string()
}

fn failed(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> BrokerError {
    let why = format!("{}: {error}", place(path).display());
    BrokerError::new(BrokerErrorKind::Unavailable, "open store", why).with_source(error)
}

pub(super) fn refused(path: &Path, why: &str) -> BrokerError {
    let folder = folder_of(path).display();
    let what_to_do = format!(
        "put the store back with its `-wal` and `.marker`, or go on with a backup or with this file by `relay store \
         restore FILE --data {folder}`, which loses what was accepted since"
    );
    BrokerError::new(BrokerErrorKind::StateConflict, "open store", format!("{} {why}: {what_to_do}", path.display()))
}
