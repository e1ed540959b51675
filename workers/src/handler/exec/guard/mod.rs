//! Kills the commands of a worker that was killed.
//!
//! A process that gets SIGKILL can't stop what it started, and its commands would go on beside the next attempt of the
//! same jobs. So a second process, the guard, reads a pipe whose other end the worker holds: when the worker is gone, in
//! whichever way, the pipe ends, and the guard kills the process groups that it was told of. There is one guard for a
//! worker and not one for each command, so that a start costs three short writes and no further process.
//!
//! # How nothing falls between
//!
//! - **A start** is announced before it is made, and its group is told right after. Of a start that was announced and has
//!   no group yet, the command is found by [`MARK`] in its environment. The pipe ends only when no process holds its
//!   writing end any more, and a child holds it until its program is about to run: so what is there to be found is found, at
//!   once or a moment later (Linux; on systems without `/proc` a worker that is killed within these microseconds leaves one
//!   command).
//! - **A number that is used again.** The guard remembers when the leader of a group was started, and kills no group whose
//!   leader was started at another time. The number of a group with members is not given to anybody else by the system.
//! - **Signals** for the worker are not for the guard: it is in a group of its own, and SIGTERM, SIGINT, SIGQUIT and SIGHUP
//!   do nothing to it. It ends when the worker has, right away.
//! - **A guard that was killed** is started again, and told of all that runs, with the next start. A command is never
//!   started without one: if there can be none, the start has failed.
//!
//! A child that leaves its group (`setsid`) escapes.
//!
//! # In a program of your own
//!
//! The guard is a process, so it needs a program. `relay` is its own; another program can be as well, if it calls
//! [`serve`] when it is started as the guard, before anything else:
//!
//! ```no_run
//! use std::sync::Arc;
//! use relay_workers::handler::exec::{Exec, ExecConfig, guard};
//!
//! if std::env::args().nth(1).as_deref() == Some("guard") {
//!     return guard::serve();
//! }
//! let guard = Arc::new(guard::Guard::of_this_program(["guard"]));
//! let exec = Exec::new(ExecConfig { command: vec!["./handle".into()], ..ExecConfig::default() }).unwrap();
//! let handler = exec.guarded(guard);
//! ```

mod watch;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::Pid;

use self::watch::Found;
pub(super) use self::watch::LOOK_AGAIN_AFTER;
pub use self::watch::serve;
use super::environment::Private;
use relay_bridge::support::lock;

/// The variable by which a command is found whose group the guard was not told of. A command gets it with a value of its
/// own.
pub const MARK: &str = "RELAY_GUARD";
/// How often a worker looks for the command of a start that failed: for a second, with [`LOOK_AGAIN_AFTER`] in between.
const LOOKS_MAX: u32 = 20;

/// The guard, from the worker's side. Its process is started with the first command, and ends with this value or this
/// process.
#[derive(Debug)]
pub struct Guard {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// The prefix of the marks of this worker.
    token: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    process: Option<Process>,
    last: u64,
    /// The starts that have not ended, with their groups as far as they are known.
    starts: BTreeMap<u64, Option<Pid>>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// `None` only while it is dropped.
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// A guard whose process is `program`, which must call [`serve`] when it is started with `arguments`.
    pub fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let token = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { program: program.into(), arguments, token, state: Mutex::default() }
    }

    /// A guard whose process is this program, also if its file was replaced or removed since it was started.
    pub fn of_this_program(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let running = PathBuf::from("/proc/self/exe");
        let program = if running.exists() { Some(running) } else { std::env::current_exe().ok() };
        let typed = || std::env::args_os().next().unwrap_or_default();
        Self::new(program.unwrap_or_else(|| typed().into()), arguments)
    }

    /// A command is about to be started.
    ///
    /// # Errors
    /// There is no guard, and none could be started: the command must not be either.
    pub(super) fn announce(self: &Arc<Self>) -> io::Result<Guarded> {
        let mut state = self.lock();
        state.last += 1;
        let start = state.last;
        state.starts.insert(start, None);
        let told = self.tell(&mut state, &Said::Announced(start));
        drop(state);
        let guarded = Guarded { guard: Arc::clone(self), start };
        told.map_err(|error| io::Error::new(error.kind(), format!("the guard can't be started: {error}")))?;
        Ok(guarded)
    }

    /// Tells the guard's process; one that is not there is started, and told of all that is known.
    fn tell(&self, state: &mut State, said: &Said) -> io::Result<()> {
        if let Some(process) = &mut state.process {
            match process.write(&said.to_string()) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error, "the guard of this worker's commands is gone, starting another"),
            }
            state.process = None;
        }
        let mut process = self.start()?;
        let mut all = Said::Token(&self.token).to_string();
        for (start, group) in &state.starts {
            let said = group.map_or(Said::Announced(*start), |group| Said::Started(*start, group));
            write!(all, "{said}").map_err(io::Error::other)?;
        }
        process.write(&all)?;
        process.never_wait()?;
        state.process = Some(process);
        Ok(())
    }

    fn start(&self) -> io::Result<Process> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).process_group(0);
        // The worker's credentials are none of its business.
        for name in Private::ALL.names() {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let pipe = child.stdin.take();
        Ok(Process { child, pipe })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Process {
    fn write(&mut self, text: &str) -> io::Result<()> {
        match &mut self.pipe {
            Some(pipe) => pipe.write_all(text.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// From here on a guard that does not read is as good as none: the worker must not hang on it. The text of a
    /// write is short, so that it is written whole or not at all.
    fn never_wait(&self) -> io::Result<()> {
        if let Some(pipe) = &self.pipe {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A command that runs is told to the next guard, or was killed before. Collected, so that no zombie stays.
        self.child.kill().ok();
        self.pipe = None;
        self.child.wait().ok();
    }
}

/// A command that the guard knows of, until this is dropped.
#[derive(Debug)]
pub(super) struct Guarded {
    guard: Arc<Guard>,
    start: u64,
}

impl Guarded {
    /// The variable that the command must have in its environment.
    pub(super) fn mark(&self) -> (OsString, OsString) {
        (MARK.into(), mark(&self.guard.token, self.start).into())
    }

    /// Kills the command of a start that failed, if it runs all the same; whether it did. Without `/proc` nothing is found.
    /// While a child of this process shows no environment yet, it looks again after `pause`, at most [`LOOKS_MAX`] times.
    pub(super) async fn kill(&self, pause: impl AsyncFn()) -> bool {
        let mark = [watch::variable(&self.guard.token, self.start)];
        for _ in 0..LOOKS_MAX {
            match watch::kill_marked(&mark) {
                Found { killed: true, .. } => return true,
                Found { unclear: false, .. } => return false,
                Found { .. } => pause().await,
            }
        }
        false
    }

    /// The command was started, as the leader of this group.
    pub(super) fn started(&mut self, group: Pid) {
        let mut state = self.guard.lock();
        state.starts.insert(self.start, Some(group));
        if let Err(error) = self.guard.tell(&mut state, &Said::Started(self.start, group)) {
            tracing::warn!(%error, "a command runs without a guard: it would go on if this worker were killed");
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut state = self.guard.lock();
        state.starts.remove(&self.start);
        // No guard is started for this: the next start does it.
        let ended = Said::Ended(self.start).to_string();
        if state.process.as_mut().is_some_and(|process| process.write(&ended).is_err()) {
            state.process = None;
        }
    }
}

fn mark(token: &str, start: u64) -> String {
    format!("{token}-{start}")
}

/// The worker's words to the guard, a line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said<'a> {
    /// The first line: the start of the marks.
    Token(&'a str),
    /// A command is about to be started.
    Announced(u64),
    /// It is the leader of this group.
    Started(u64, Pid),
    /// It has ended, and so has its group; or it was not started.
    Ended(u64),
}

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(token) => writeln!(f, "token {token}"),
            Self::Announced(start) => writeln!(f, "? {start}"),
            Self::Started(start, group) => writeln!(f, "+ {start} {group}"),
            Self::Ended(start) => writeln!(f, "- {start}"),
        }
    }
}

impl<'a> Said<'a> {
    /// A line as it was written; `None` for anything else.
    fn read(line: &'a str) -> Option<Self> {
        let mut words = line.split(' ');
        let (word, argument) = (words.next()?, words.next()?);
        let said = match word {
            "token" => Self::Token(argument),
            "?" => Self::Announced(argument.parse().ok()?),
            "+" => Self::Started(argument.parse().ok()?, Pid::from_raw(words.next()?.parse().ok()?)),
            "-" => Self::Ended(argument.parse().ok()?),
            _ => return None,
        };
        Some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_worker_says_is_what_the_guard_hears() {
        for said in
            [Said::Token("00ff"), Said::Announced(1), Said::Started(u64::MAX, Pid::from_raw(i32::MAX)), Said::Ended(7)]
        {
            assert_eq!(Said::read(said.to_string().trim_end()), Some(said));
        }
        for line in ["", "?", "+ 1", "+ 1 x", "- -1", "! 1", "? one"] {
            assert_eq!(Said::read(line), None, "{line:?}");
        }
    }
}
