//! The stop signals of a process that serves: the first SIGTERM or SIGINT drains, the second one forces.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::Stop;

/// Watches SIGTERM and SIGINT until it is dropped.
pub(crate) struct Signals {
    /// What the signals cancel.
    pub(crate) stop: Stop,
    watch: tokio::task::JoinSet<()>,
}

impl Signals {
    /// Starts watching; from here on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// If the system has no room for another signal handler.
    pub(crate) fn watch() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = Stop { drain: CancellationToken::new(), force: CancellationToken::new() };
        let tokens = stop.clone();
        let mut watch = tokio::task::JoinSet::new();
        watch.spawn(async move {
            for (token, say) in [
                (tokens.drain, "stopping: work in hand is finished or handed back (a second signal forces)"),
                (tokens.force, "forced: work in hand is left to its lease"),
            ] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("{say}");
                token.cancel();
            }
        });
        Ok(Self { stop, watch })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.watch.abort_all();
    }
}

/// Resolves at SIGINT or SIGTERM: for commands that have nothing to drain.
pub(crate) async fn interrupted() {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
