//! Raises the number by which a store is known to be the newest of its copies: about once a minute while something is
//! written, in a commit that is made anyway. The marker is written after that commit, on another thread: no job waits for it.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use tokio::task::JoinHandle;

use super::marker::Marker;
use super::sql::unavailable;
use relay_bridge::error::BrokerError;

/// How long a number stands at least. An older copy is not noticed if nothing was written later than this after it was made.
const STANDS: Duration = Duration::from_secs(60);

/// The number of an open store, in its marker and in the store.
pub(super) struct Numbers {
    /// `None` in memory, and where no marker could be written.
    beside: Option<(PathBuf, Marker)>,
    /// When it is raised again.
    due: Duration,
    /// The marker of the transaction that is open.
    raised: Option<Marker>,
    /// Whether something was committed since it was raised.
    behind: bool,
    writing: Option<JoinHandle<()>>,
}

impl Numbers {
    /// Of a store that was opened at `now`, on the monotonic clock.
    pub(super) fn new(path: Option<PathBuf>, marker: Option<Marker>, now: Duration) -> Self {
        Self { beside: path.zip(marker), due: now + STANDS, raised: None, behind: false, writing: None }
    }

    pub(super) fn marker(&self) -> Option<&Marker> {
        self.beside.as_ref().map(|(_, marker)| marker)
    }

    /// Raises it in the open transaction if it is time. On a disk that is slow to write a marker it is not time yet.
    pub(super) fn raise_if_due(&mut self, conn: &Connection, now: Duration) -> Result<(), BrokerError> {
        let written = self.writing.as_ref().is_none_or(JoinHandle::is_finished);
        let due = self.marker().filter(|_| now >= self.due && written);
        self.raised = due.map(|marker| marker.raised(conn)).transpose()?;
        Ok(())
    }

    /// The transaction was committed.
    pub(super) fn committed(&mut self, now: Duration) {
        self.behind = self.raised.is_none();
        let (Some(raised), Some((path, marker))) = (self.raised.take(), &mut self.beside) else { return };
        self.due = now + STANDS;
        marker.clone_from(&raised);
        let path = path.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(failure) = raised.write(&path) {
                tracing::warn!(error = %failure, "marker not written: an older copy of the store may not be noticed");
            }
        }));
    }

    /// Ready when no marker is being written.
    pub(super) async fn written(&mut self) {
        if let Some(writing) = self.writing.take()
            && writing.await.is_err()
        {
            tracing::error!("writing the marker panicked");
        }
    }

    /// Raises it for what was written since, at the end.
    pub(super) fn raise_last(&mut self, conn: &Connection) -> Result<(), BrokerError> {
        let Some((_, marker)) = self.beside.as_mut().filter(|_| self.behind) else { return Ok(()) };
        let sql = |e| unavailable(e, "close store");
        let transaction = conn.unchecked_transaction().map_err(sql)?;
        let raised = marker.raised(&transaction)?;
        transaction.commit().map_err(sql)?;
        *marker = raised;
        Ok(())
    }
}
