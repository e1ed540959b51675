//! One command's life: started as the leader of a process group of its own, fed, read, and stopped as a whole.
//!
//! The group is killed on every way out, also when the future is dropped. `tokio` alone would kill the leader only,
//! and its children would go on.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::guard::{Guard, Guarded, LOOK_AGAIN_AFTER};
use super::streams::{Capped, Overflow, Tail};
use super::{Context, ExecConfig};

/// How long the output of a command that has exited is read on, if something it left behind holds it open; and how
/// long one that was sent SIGKILL may take to be gone.
pub(super) const COLLECT_MAX: Duration = Duration::from_millis(500);

/// The configuration, guard and environment that a command is started with.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) config: &'a ExecConfig,
    pub(super) guard: Option<&'a Arc<Guard>>,
    pub(super) environment: Vec<(OsString, OsString)>,
}

/// How a command ended, and its output.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) end: End,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Tail,
}

/// How a command ended.
#[derive(Debug)]
pub(super) enum End {
    Exited(ExitStatus),
    NotStarted(io::Error),
    /// It could not be waited for: the operating system's fault.
    Unknown(io::Error),
    TooMuchOutput,
    TimedOut,
    Cancelled,
}

/// Runs the command to its end, or stops it.
pub(super) async fn run(start: Start<'_>, payload: &[u8], stdout_max: usize, context: &Context) -> Ran {
    let config = start.config;
    let mut stdout = Capped::new(stdout_max);
    let mut stderr = Tail::new(config.stderr_max);
    let end = match start_guarded(start).await {
        Ok((child, group)) => {
            context.started();
            let running = (child, group);
            follow(config, running, payload, &mut stdout, &mut stderr, &context.cancelled()).await
        }
        Err(end) => end,
    };
    Ran { end, stdout: stdout.bytes, stderr }
}

/// The guard hears of the start before it is made, and of the group right after: a worker that is killed in between
/// leaves nothing behind either.
async fn start_guarded(start: Start<'_>) -> Result<(Child, Group), End> {
    let Start { config, guard, mut environment } = start;
    let mut guarded = guard.map(|guard| guard.announce()).transpose().map_err(End::NotStarted)?;
    if let Some(guarded) = &guarded {
        environment.push(guarded.mark());
    }
    let child = match spawn(config, environment) {
        Ok(child) => child,
        Err(error) => return Err(failed(error, guarded.as_ref(), pause_a_moment).await),
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    if let Some((guarded, group)) = guarded.as_mut().zip(group) {
        guarded.started(group);
    }
    Ok((child, Group { group, _guarded: guarded }))
}

/// A start that failed. It may have failed after the command had begun, when its pipes could not be watched: then the command
/// is killed, and has had its attempt. `pause` passes the time between two looks for it.
async fn failed(error: io::Error, guarded: Option<&Guarded>, pause: impl AsyncFn()) -> End {
    let begun = match guarded {
        Some(guarded) => guarded.kill(pause).await,
        None => false,
    };
    if begun { End::Unknown(error) } else { End::NotStarted(error) }
}

async fn pause_a_moment() {
    sleep(LOOK_AGAIN_AFTER).await;
}

fn spawn(config: &ExecConfig, variables: Vec<(OsString, OsString)>) -> io::Result<Child> {
    let [program, arguments @ ..] = config.command.as_slice() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Zero makes the child the leader of a new group.
    command.process_group(0).kill_on_drop(true);
    if let Some(directory) = &config.directory {
        command.current_dir(directory);
    }
    for name in config.private().names() {
        command.env_remove(name);
    }
    command.envs(variables).spawn()
}

async fn follow(
    config: &ExecConfig,
    (mut child, mut group): (Child, Group),
    payload: &[u8],
    stdout: &mut Capped,
    stderr: &mut Tail,
    cancelled: &CancellationToken,
) -> End {
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command that does not read its input closes it: that is its right. Dropping it says "no more".
            stdin.write_all(payload).await.unwrap_or_default();
        }
        std::future::pending::<()>().await;
    };
    let read = async {
        tokio::try_join!(stdout.fill(out), async {
            stderr.fill(err).await;
            Ok(())
        })
        .map(|_| ())
    };
    let time_over = async {
        match config.timeout {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(feed, read, time_over);

    let mut all_read = false;
    let stopped = loop {
        tokio::select! {
            // Output comes last: a flood of it must not hide that the time is over.
            biased;
            status = child.wait() => break status.map_or_else(End::Unknown, End::Exited),
            () = cancelled.cancelled() => break End::Cancelled,
            () = &mut time_over => break End::TimedOut,
            () = &mut feed => {}
            filled = &mut read, if !all_read => match filled {
                Ok(()) => all_read = true,
                Err(Overflow) => break End::TooMuchOutput,
            }
        }
    };
    let end = match stopped {
        End::Exited(_) if !all_read => match timeout(COLLECT_MAX, &mut read).await {
            Ok(Err(Overflow)) => End::TooMuchOutput,
            // All is read, or something that the command left behind holds the stream open.
            Ok(Ok(())) | Err(_) => stopped,
        },
        End::Cancelled | End::TimedOut => {
            group.signal(Signal::SIGTERM);
            // Read on, or a command that says goodbye at length could not end.
            let goodbye = async {
                loop {
                    tokio::select! {
                        biased;
                        _ = child.wait() => return,
                        _ = &mut read, if !all_read => all_read = true,
                    }
                }
            };
            if timeout(config.grace, goodbye).await.is_err() {
                tracing::debug!(grace = ?config.grace, "command did not end in its grace");
            }
            // Its last words may still be in the pipe; any other process that holds the pipe open ends first.
            group.kill();
            if !all_read && timeout(COLLECT_MAX, &mut read).await.is_err() {
                tracing::debug!("output was still open after SIGKILL");
            }
            stopped
        }
        _ => stopped,
    };
    group.kill();
    // Collected, so that no zombie stays; one that is stuck in the kernel is left to the runtime.
    if timeout(COLLECT_MAX, child.wait()).await.is_err() {
        tracing::warn!("command is still there after SIGKILL");
    }
    end
}

/// The command's process group. Dropping it kills what is left of it, and then tells the guard that it is gone.
struct Group {
    group: Option<Pid>,
    _guarded: Option<Guarded>,
}

impl Group {
    fn signal(&self, signal: Signal) {
        // Nobody left in it is the usual case.
        if let Some(Err(error)) = self.group.map(|group| killpg(group, signal))
            && error != nix::errno::Errno::ESRCH
        {
            tracing::debug!(%error, ?signal, "signal not sent to a command's group");
        }
    }

    /// Kills it, once: later its number may be someone else's.
    fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.group = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};

    use super::*;

    fn error() -> io::Error {
        io::Error::from(io::ErrorKind::StorageFull)
    }

    #[tokio::test]
    async fn a_command_whose_start_failed_after_it_began_is_killed_and_has_had_its_attempt() {
        let guard = Arc::new(Guard::new("cat", [""; 0]));
        let guarded = guard.announce().unwrap();
        let (name, value) = guarded.mark();
        let mut command = std::process::Command::new("sleep");
        let mut begun = command.arg("600").env(name, value).process_group(0).spawn().unwrap();
        assert!(matches!(failed(error(), Some(&guarded), pause_a_moment).await, End::Unknown(_)));
        assert_eq!(begun.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));

        let other = guard.announce().unwrap();
        assert!(matches!(failed(error(), Some(&other), pause_a_moment).await, End::NotStarted(_)), "nothing had begun");
        assert!(matches!(failed(error(), None, pause_a_moment).await, End::NotStarted(_)));
    }

    /// The shell has an empty environment until it is told to become the command, as a command has for a moment after its
    /// start.
    #[tokio::test]
    async fn a_command_that_shows_its_environment_late_is_found_after_a_start_that_failed() {
        let guard = Arc::new(Guard::new("cat", [""; 0]));
        let guarded = guard.announce().unwrap();
        let (name, value) = guarded.mark();
        let becomes = format!("read _; export {}={}; exec sleep 600", name.display(), value.display());
        let mut shell = std::process::Command::new("/bin/sh");
        let mut begun =
            shell.args(["-c", &becomes]).env_clear().stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        let environment = format!("/proc/{}/environ", begun.id());
        let go = std::cell::RefCell::new(begun.stdin.take());
        let shown = async || {
            drop(go.take());
            while std::fs::read(&environment).unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let end = failed(error(), Some(&guarded), shown).await;
        begun.kill().unwrap();
        assert!(matches!(end, End::Unknown(_)), "{end:?}");
        begun.wait().unwrap();
    }
}
