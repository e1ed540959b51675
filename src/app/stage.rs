//! The parts of a process that are stopped and joined one after the other.

use std::io;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::AppError;

/// A part of the process that is stopped and joined as one.
pub(super) struct Stage {
    name: &'static str,
    pub(super) tasks: JoinSet<Result<(), AppError>>,
    pub(super) stop: CancellationToken,
    /// The first failure of its tasks while they stopped.
    pub(super) failed: Option<AppError>,
}

impl Stage {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, tasks: JoinSet::new(), stop: CancellationToken::new(), failed: None }
    }

    /// The failure of a task that ended before it was told to; `None` if it has none.
    pub(super) async fn ended_early(&mut self) -> Option<AppError> {
        let ended = self.tasks.join_next().await?;
        let nobody_asked = || AppError::Listener(self.name, io::Error::other("it ended without being asked to"));
        Some(flatten(ended).err().unwrap_or_else(nobody_asked))
    }

    /// Tells its tasks to end.
    pub(super) fn tell(&self) {
        self.stop.cancel();
    }

    /// Waits for the end of its tasks. Dropped, it can be asked again.
    pub(super) async fn joined(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = flatten(ended) {
                error!(stage = self.name, %error, "a part of relay failed while stopping");
                self.failed.get_or_insert(error);
            }
        }
        debug!(stage = self.name, "drained");
    }
}

fn flatten(ended: Result<Result<(), AppError>, JoinError>) -> Result<(), AppError> {
    match ended {
        Ok(ended) => ended,
        Err(join) => Err(AppError::Panicked(join.to_string())),
    }
}
