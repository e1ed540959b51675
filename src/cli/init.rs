//! The duty of relay as the first process of a container (PID 1): collecting orphans, which the system makes its
//! children when their parents end. Nobody else can, and each would stay as a zombie that takes a place in the table of
//! processes.
//!
//! relay's own children must be left to the code that started them, which is told how they ended: a handler's exit
//! code, the AWS SDK's helper for credentials. Linux keeps them apart. A child belongs to the thread that started it,
//! and an orphan is given to the first thread of PID 1, so that a thread which starts nothing may collect all children
//! of its own. The first thread does nothing else here, and the command runs in another one.

use super::exit::{CliError, Exit};

/// The stack of the thread that runs the command: what a first thread usually has.
#[cfg(target_os = "linux")]
const STACK: usize = 8 * 1024 * 1024;

/// Runs the command, and collects orphans beside it if this process is PID 1.
pub(super) fn reaping_orphans(run: impl FnOnce() -> Result<Exit, CliError> + Send) -> Result<Exit, CliError> {
    #[cfg(target_os = "linux")]
    if std::process::id() == 1 {
        return beside_orphans(run);
    }
    run()
}

#[cfg(target_os = "linux")]
fn beside_orphans(run: impl FnOnce() -> Result<Exit, CliError> + Send) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))?;
    let (tell_end, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let run = move || {
            // Dropped also by a panic.
            let _tell_end = tell_end;
            run()
        };
        let thread = std::thread::Builder::new().name("command".to_owned()).stack_size(STACK).spawn_scoped(scope, run);
        let thread = thread.map_err(|error| CliError::failed(format!("cannot start a thread: {error}")))?;
        if let Err(error) = runtime.block_on(reap_until(end)) {
            tracing::warn!(%error, "orphans are not collected");
        }
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Collects the children of this thread, each when it has ended.
#[cfg(target_os = "linux")]
async fn reap_until(end: tokio::sync::oneshot::Receiver<()>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut child_ended = signal(SignalKind::child())?;
    tokio::pin!(end);
    loop {
        // Before the first wait too: some may have been here already.
        reap();
        tokio::select! {
            _ = &mut end => return Ok(()),
            _ = child_ended.recv() => {}
        }
    }
}

/// Orphans that are collected before anything else is looked at.
#[cfg(target_os = "linux")]
const AT_A_TIME_MAX: u32 = 65_536;

#[cfg(target_os = "linux")]
fn reap() {
    use nix::errno::Errno;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    // Each collects one or is the last, but a system that refuses the question would refuse it for ever.
    for _ in 0..AT_A_TIME_MAX {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(status) => tracing::debug!(pid = ?status.pid(), "orphan collected"),
            // A signal of a number that the library does not know; it is collected all the same.
            Err(Errno::EINTR | Errno::EINVAL) => {}
            Err(error) => {
                tracing::warn!(%error, "orphans are not collected");
                return;
            }
        }
    }
}
