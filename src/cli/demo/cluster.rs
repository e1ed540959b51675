//! The demo's processes: this binary as `serve` and as several `worker`s, in one directory. They are killed for real.

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

use super::super::exit::CliError;
use super::super::output;

/// How long a process may take until it is ready, or until it has drained.
const READY_MAX: Duration = Duration::from_secs(30);
/// The lease of the demo's queue: how long the jobs of a killed worker wait for another one.
const LEASE: &str = "2s";
/// The demo's queue.
pub(super) const QUEUE: &str = "demo";

/// One process of the demo.
pub(super) struct Process {
    /// Its name.
    pub(super) name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts this binary with `args` and reads the line of JSON that it prints when it is ready.
    async fn start(name: &str, dir: &Path, args: Vec<OsString>) -> Result<(Self, Value), CliError> {
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

    /// SIGKILL: no warning, no drain.
    pub(super) async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            output::warning(format_args!("{} could not be killed: {error}", self.name));
        }
    }

    /// SIGTERM, and the end of its drain.
    ///
    /// # Errors
    /// If it does not end in time, or not well: with the end of its log.
    pub(super) async fn stop(mut self) -> Result<(), CliError> {
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

/// The server, and where to reach it. A restart takes the same addresses.
pub(super) struct Server {
    process: Process,
    dir: PathBuf,
    /// Where clients connect.
    pub(super) http: String,
    /// Where workers connect.
    pub(super) workers: String,
}

impl Server {
    /// Starts a server with its store in `dir` on free ports.
    pub(super) async fn start(dir: &Path) -> Result<Self, CliError> {
        let (process, http, workers) = Self::spawn(dir, "127.0.0.1:0", "127.0.0.1:0").await?;
        Ok(Self { process, dir: dir.to_owned(), http, workers })
    }

    /// SIGKILL, and a new process on the same store and addresses.
    pub(super) async fn kill_and_restart(&mut self) -> Result<(), CliError> {
        self.process.kill().await;
        let (process, _, _) = Self::spawn(&self.dir, &self.http, &self.workers).await?;
        self.process = process;
        Ok(())
    }

    /// Drains it and closes the store.
    pub(super) async fn stop(self) -> Result<(), CliError> {
        self.process.stop().await
    }

    /// The directory of its store.
    pub(super) fn data(dir: &Path) -> PathBuf {
        dir.join("data")
    }

    async fn spawn(dir: &Path, http: &str, workers: &str) -> Result<(Process, String, String), CliError> {
        let mut args: Vec<OsString> =
            vec!["serve".into(), "--drain-delay".into(), "0s".into(), "--data".into(), Self::data(dir).into()];
        let rest = [
            "--listen",
            http,
            "--worker-listen",
            workers,
            "--no-auth",
            "--queue",
            QUEUE,
            "--lease",
            LEASE,
            "--retry-base",
            "100ms",
            "--max-attempts",
            "5",
            "--payload-max",
            "1MiB",
            "--result-max",
            "1MiB",
            "--drain",
            "10s",
            "--json",
        ];
        args.extend(rest.iter().map(OsString::from));
        let (process, ready) = Process::start("serve", dir, args).await?;
        let address = |which: &str| ready["listening"][which].as_str().unwrap_or_default().to_owned();
        let (http, workers) = (address("http"), address("workers"));
        Ok((process, http, workers))
    }
}

/// Starts a worker of `server` that runs `handler`.
pub(super) async fn start_worker(
    dir: &Path,
    server: &str,
    name: &str,
    slots: usize,
    handler: Vec<OsString>,
) -> Result<Process, CliError> {
    let slots = slots.to_string();
    let args = [
        "worker",
        "--connect",
        server,
        "--queue",
        QUEUE,
        "--slots",
        &slots,
        "--id",
        name,
        "--drain",
        "10s",
        "--json",
        "--",
    ];
    let args = args.iter().map(OsString::from).chain(handler).collect();
    let (process, _) = Process::start(name, dir, args).await?;
    Ok(process)
}
