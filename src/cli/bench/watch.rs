//! The processes behind a run, looked at when it begins to count and when it ends.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::process::{Usage, Used, stored};

/// The processes and files to look at.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) server: Option<u32>,
    pub(super) broker: Option<u32>,
    /// The directory of the broker's files.
    pub(super) store: Option<PathBuf>,
    /// The first look.
    pub(super) before: Mutex<Option<Look>>,
}

/// A moment's findings.
#[derive(Debug)]
pub(super) struct Look {
    at: Instant,
    server: Option<Usage>,
    broker: Option<Usage>,
    ours: Option<Usage>,
    stored: Option<u64>,
}

/// The findings.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Cost {
    /// The server's process; `null` if it is not known, or not of this machine.
    pub(super) server: Option<Used>,
    /// The broker's, if it is another one.
    pub(super) broker: Option<Used>,
    /// This process, also with its worker: where it keeps all cores busy, the figures are its own.
    pub(super) bench: Option<Used>,
    /// Bytes that the broker's files grew by.
    pub(super) stored_bytes: Option<u64>,
}

impl Watch {
    fn look(&self) -> Look {
        Look {
            at: Instant::now(),
            server: self.server.and_then(Usage::of),
            broker: self.broker.and_then(Usage::of),
            ours: Usage::of(std::process::id()),
            stored: self.store.as_deref().and_then(stored),
        }
    }

    /// Takes the begin.
    pub(super) fn begin(&self) {
        let look = self.look();
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
    }

    /// The cost since the begin; nothing if there was none.
    pub(super) fn end(&self) -> Cost {
        let Some(before) = self.before.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Cost::default();
        };
        let after = self.look();
        let seconds = (after.at - before.at).as_secs_f64();
        let used = |pid: Option<u32>, before: Option<Usage>, after: Option<Usage>| {
            Some(Used::between(pid?, before?, after?, seconds))
        };
        Cost {
            server: used(self.server, before.server, after.server),
            broker: used(self.broker, before.broker, after.broker),
            bench: used(Some(std::process::id()), before.ours, after.ours),
            stored_bytes: before.stored.zip(after.stored).map(|(before, after)| after.saturating_sub(before)),
        }
    }
}
