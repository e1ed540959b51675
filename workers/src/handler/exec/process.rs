//! One command's life: started as the leader of a process group of its own, fed, read, and stopped as a whole.
//!
//! The group is killed on every way out, also when the future is dropped. `tokio` alone would kill the leader only,
//! and its children would go on.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::environment::is_private;
use super::streams::{Capped, Overflow, Tail};
use super::{Context, ExecConfig};

/// How long the output of a command that has exited is read on, if something it left behind holds it open; and how
/// long one that was sent SIGKILL may take to be gone.
pub(super) const COLLECT_MAX: Duration = Duration::from_millis(500);

/// What a command did.
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
pub(super) async fn run(
    config: &ExecConfig,
    environment: Vec<(OsString, OsString)>,
    payload: &[u8],
    stdout_max: usize,
    context: &Context,
) -> Ran {
    let mut stdout = Capped::new(stdout_max);
    let mut stderr = Tail::new(config.stderr_max);
    let end = match start(config, environment) {
        Ok(child) => {
            context.started();
            follow(config, child, payload, &mut stdout, &mut stderr, &context.cancelled()).await
        }
        Err(error) => End::NotStarted(error),
    };
    Ran { end, stdout: stdout.bytes, stderr }
}

fn start(config: &ExecConfig, environment: Vec<(OsString, OsString)>) -> io::Result<Child> {
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
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_private(name)) {
        command.env_remove(name);
    }
    command.envs(environment).spawn()
}

async fn follow(
    config: &ExecConfig,
    mut child: Child,
    payload: &[u8],
    stdout: &mut Capped,
    stderr: &mut Tail,
    cancelled: &CancellationToken,
) -> End {
    let mut group = Group::of(&child);
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
            // Its last words may still be in the pipe; whoever else holds the pipe open ends first.
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

/// The command's process group. Dropping it kills what is left of it.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        // Nobody left in it is the usual case.
        if let Some(Err(error)) = self.0.map(|group| killpg(group, signal))
            && error != nix::errno::Errno::ESRCH
        {
            tracing::debug!(%error, ?signal, "signal not sent to a command's group");
        }
    }

    /// Kills it, once: later its number may be someone else's.
    fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
