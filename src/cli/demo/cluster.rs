//! The demo's processes: this binary as `serve` and as several `worker`s, in one directory. They are killed for real.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::super::child::Process;
use super::super::exit::CliError;

/// The lease of the demo's queue: how long the jobs of a killed worker wait for another one.
const LEASE: &str = "2s";
/// The demo's queue.
pub(super) const QUEUE: &str = "demo";

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
