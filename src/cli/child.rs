//! Processes of this binary that a command starts, and stops before it ends. Each logs into a file of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::exit::CliError;
use super::output;

/// How long a process may take until it is ready, or until it has drained.
const READY_MAX: Duration = Duration::from_secs(30);

/// A process of this binary.
pub(crate) struct Process {
    /// Its name.
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts this binary with `args` and reads the line of JSON that it prints when it is ready.
    ///
    /// # Errors
    /// If it does not start, or is not ready in time: with the end of its log.
    pub(crate) async fn start(name: &str, dir: &Path, args: Vec<OsString>) -> Result<(Self, Value), CliError> {
        let failed = |error: io::Error| CliError::failed(format!("cannot start {name}: {error}"));
        let log = dir.join(format!("{name}.log"));
        let stderr = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().map_err(failed)?;
        let stdout = child.stdout.take();
        let mut process = Self { name: name.to_owned(), child, log };
        let mut line = String::new();
        let ready = async {
            match stdout {
                Some(stdout) => BufReader::new(stdout).read_line(&mut line).await,
                None => Ok(0),
            }
        };
        let ready = tokio::time::timeout(READY_MAX, ready).await;
        match ready.map(|read| read.ok().and_then(|_| serde_json::from_str(&line).ok())) {
            Ok(Some(value)) => Ok((process, value)),
            _ => {
                process.kill().await;
                Err(process.blame("did not start"))
            }
        }
    }

    /// Its id, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL: no warning, no drain.
    pub(crate) async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            output::warning(format_args!("{} could not be killed: {error}", self.name));
        }
    }

    /// SIGTERM, and the end of its drain.
    ///
    /// # Errors
    /// If it does not end in time, or not well: with the end of its log.
    pub(crate) async fn stop(mut self) -> Result<(), CliError> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // Fails only if it has ended already, which the wait below will tell.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        match tokio::time::timeout(READY_MAX, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.blame(&format!("ended with {status}"))),
            Ok(Err(error)) => Err(self.blame(&format!("can't be waited for: {error}"))),
            Err(_) => {
                self.kill().await;
                Err(self.blame("did not drain in time"))
            }
        }
    }

    /// An error with the last lines that the process logged.
    fn blame(&self, what: &str) -> CliError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(8)..].join("\n  ");
        CliError::failed(format!("{} {what}; the end of its log:\n  {tail}", self.name))
    }
}
