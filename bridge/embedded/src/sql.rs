//! SQLite's errors, in words for people, and the log id, which all code that opens a store asks for.

use rusqlite::Connection;

use relay_bridge::contract::LogId;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// The id of the store's log, which is the store's own.
pub(super) fn log_id(connection: &Connection, shown: &str) -> Result<LogId, BrokerError> {
    let sql = |e| explain(e, shown);
    let log: Vec<u8> =
        connection.query_row("SELECT value FROM meta WHERE key = 'log_id'", [], |row| row.get(0)).map_err(sql)?;
    let log = log.try_into().map_err(|_| {
        BrokerError::new(BrokerErrorKind::Corrupt, "open store", format!("{shown}: the log id is damaged"))
    })?;
    Ok(LogId(log))
}

/// The meaning of an SQLite error for the user that opens a store.
pub(super) fn explain(error: rusqlite::Error, shown: &str) -> BrokerError {
    use rusqlite::ErrorCode as Code;
    let (kind, detail) = match error.sqlite_error_code() {
        Some(Code::NotADatabase | Code::DatabaseCorrupt) => (
            BrokerErrorKind::Corrupt,
            format!(
                "{shown} is damaged or not a relay store: run `relay store check`, restore a backup, or move it away"
            ),
        ),
        Some(Code::CannotOpen | Code::PermissionDenied | Code::ReadOnly) => (
            BrokerErrorKind::Unavailable,
            format!("can't open {shown} for writing: check that the folder exists and is yours"),
        ),
        Some(Code::DiskFull) => (BrokerErrorKind::Unavailable, format!("no space left for {shown}")),
        _ => (BrokerErrorKind::Unavailable, format!("can't open {shown}: {error}")),
    };
    BrokerError::new(kind, "open store", detail).with_source(error)
}

/// SQLite found pages that can't be: it does not say of which job, and no check mends them.
const DAMAGED: &str = "the store is damaged: stop relay and put a backup in its place, `relay store restore FILE --data FOLDER`, which keeps the \
     damaged file beside it";

/// An SQLite error of a running store: nothing of the transaction took effect.
pub(super) fn unavailable(error: rusqlite::Error, operation: &'static str) -> BrokerError {
    use rusqlite::ErrorCode as Code;
    let (code, full) = (error.sqlite_error_code(), is_full(&error));
    let (kind, detail) = match code {
        Some(Code::NotADatabase | Code::DatabaseCorrupt) => (BrokerErrorKind::Corrupt, DAMAGED),
        _ if full => (BrokerErrorKind::Unavailable, "the store has no space left"),
        Some(Code::ReadOnly | Code::PermissionDenied) => (BrokerErrorKind::Unavailable, "the store can't be written"),
        _ => (BrokerErrorKind::Unavailable, "the store did not do it"),
    };
    let failure = BrokerError::new(kind, operation, detail).with_source(error);
    match code {
        Some(Code::ReadOnly | Code::PermissionDenied) => failure.of_storage(),
        _ if full => failure.of_storage(),
        _ => failure,
    }
}

/// Whether there was no room for a write, on the disk or below the limit of this process's file sizes. Right after the
/// call that failed: the system's own error tells the latter.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    let too_large = || std::io::Error::last_os_error().kind() == std::io::ErrorKind::FileTooLarge;
    error.sqlite_error().is_some_and(|sqlite| {
        sqlite.code == rusqlite::ErrorCode::DiskFull
            || (sqlite.extended_code == rusqlite::ffi::SQLITE_IOERR_WRITE && too_large())
    })
}
