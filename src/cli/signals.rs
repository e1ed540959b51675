//! The signals of a process that serves: the first SIGTERM or SIGINT drains, a later one forces. SIGHUP has files read again.
//!
//! Many a process is sent its signal twice at a time: a terminal sends it to a whole group, whose leader passes it on;
//! a supervisor signals a process by its id and by its group. So what comes within half a second of the first signal
//! is the first one again.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::app::Stop;
use crate::reload::Reload;

/// Watches SIGTERM, SIGINT and SIGHUP until it is dropped.
pub(crate) struct Signals {
    hangup: Arc<OnceLock<Hangup>>,
    /// The tokens that the signals cancel.
    pub(crate) stop: Stop,
    watch: tokio::task::JoinSet<()>,
}

impl Signals {
    /// Starts watching; from here on these signals no longer end the process by themselves, and neither does SIGXFSZ: a
    /// write beyond the limit of file sizes fails, as on a full disk.
    ///
    /// # Errors
    /// If the system has no room for another signal handler.
    pub(crate) fn watch() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        // The handler stays when this is dropped.
        drop(signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGXFSZ as i32))?);
        let stop = Stop { drain: CancellationToken::new(), force: CancellationToken::new() };
        let (tokens, hangup) = (stop.clone(), Arc::new(OnceLock::new()));
        let at_hangup = Arc::clone(&hangup);
        let mut watch = tokio::task::JoinSet::new();
        watch.spawn(async move {
            let mut first = None;
            while !tokens.force.is_cancelled() {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hung_up.recv() => match at_hangup.get() {
                        Some(Hangup::Drain) => {}
                        Some(Hangup::Reload(reload)) => {
                            read_again(Arc::clone(reload)).await;
                            continue;
                        }
                        None => {
                            tracing::info!("SIGHUP: this process has no files that it could read again: restart it");
                            continue;
                        }
                    },
                }
                match meaning(&mut first, Instant::now()) {
                    Meaning::Drain => {
                        // The line is true when it is read: from then on `/readyz` says so too.
                        tokens.drain.cancel();
                        tracing::info!("stopping: work in hand is finished or handed back (another signal forces)");
                    }
                    Meaning::Again => tracing::debug!("the same signal again"),
                    Meaning::Force => {
                        tokens.force.cancel();
                        tracing::info!("forced: work in hand is left to its lease");
                    }
                }
            }
        });
        Ok(Self { hangup, stop, watch })
    }

    /// From now on SIGHUP does this; before, nothing.
    pub(crate) fn at_hangup(&self, hangup: Hangup) {
        // A second call would be about the same process.
        self.hangup.set(hangup).ok();
    }
}

/// The effect of SIGHUP.
pub(crate) enum Hangup {
    /// These parts read their files again.
    Reload(Arc<Reload>),
    /// The process drains: its terminal is gone.
    Drain,
}

async fn read_again(reload: Arc<Reload>) {
    tracing::info!("SIGHUP: files are read again; flags, variables and relay.toml hold from the next start on");
    // It may take as long as a disk takes, and stop signals must be heard meanwhile.
    tokio::task::spawn_blocking(move || reload.all()).await.ok();
}

/// How long after the first signal another one is the same.
const AGAIN_MAX: Duration = Duration::from_millis(500);

/// The request of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Drain,
    /// Nothing that was not asked for: it was sent twice.
    Again,
    Force,
}

/// The meaning of the signal that came `now`. `first` is when the first one came.
fn meaning(first: &mut Option<Instant>, now: Instant) -> Meaning {
    match *first {
        None => {
            *first = Some(now);
            Meaning::Drain
        }
        Some(first) if now < first + AGAIN_MAX => Meaning::Again,
        Some(_) => Meaning::Force,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_within_half_a_second_of_the_first_is_the_first_one_again_and_a_later_one_forces() {
        let (mut first, begin) = (None, Instant::now());
        let mut after = |millis| meaning(&mut first, begin + Duration::from_millis(millis));
        assert_eq!(after(0), Meaning::Drain);
        assert_eq!(after(0), Meaning::Again);
        assert_eq!(after(499), Meaning::Again);
        // Counted from the first one, or somebody who insists would never be heard.
        assert_eq!(after(500), Meaning::Force);
        assert_eq!(after(3_600_000), Meaning::Force);
    }
}
