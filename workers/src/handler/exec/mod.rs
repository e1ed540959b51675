//! Runs a command on each job: the payload on stdin, metadata in the environment, the result from stdout.
//!
//! # Environment
//!
//! The command has the worker's environment without its own settings and credentials (`RELAY_*`, `OTEL_*HEADERS`, and `AWS_*` where
//! they are the worker's, unless [`ExecConfig::pass_env`] names them), and: `RELAY_JOB_ID`, `RELAY_RUN_ID`,
//! `RELAY_GENERATION`, `RELAY_CLIENT`, `RELAY_QUEUE`, `RELAY_ATTEMPT`, `RELAY_MAX_ATTEMPTS`, `RELAY_CONTENT_TYPE`,
//! `RELAY_ACCEPTED_AT`, `RELAY_EXPIRES_AT`, `RELAY_DEADLINE` (times in RFC 3339); where the job has them also
//! `RELAY_CONTENT_ENCODING`, `RELAY_IDEMPOTENCY_KEY`, `RELAY_META_<NAME>`, `TRACEPARENT` and `TRACESTATE`.
//! With a [`Guard`] also `RELAY_GUARD`, which is of no use to the command.
//!
//! # How it ends
//!
//! | the command | attempt | reason |
//! | --- | --- | --- |
//! | exits with 0 | done, stdout is the result | |
//! | exits with 64, 65 or 66 (`EX_USAGE`, `EX_DATAERR`, `EX_NOINPUT`) | rejected for good | `exit-code` |
//! | exits with 75 (`EX_TEMPFAIL`) or any other code | retry | `exit-code` |
//! | exits with 126 or 127 (a shell's "cannot run", "not found") | retry | `spawn-failed` |
//! | can't be started with the metadata of this job: `E2BIG` | retry | `spawn-failed` |
//! | can't be started on this host: any other error | handed back, [`Attempt::NotStarted`] | `spawn-failed` |
//! | fails to start after it had begun, and is killed by its [`Guard`] | retry | `exit-code` |
//! | is killed by a signal | retry | `signal` |
//! | runs longer than `timeout` | stopped, retry | `timeout` |
//! | writes more than `stdout_max` or the queue's `result_max` | killed, rejected for good | `result-too-large` |
//! | is still running when the attempt is cancelled | stopped, retry | `cancelled` |
//!
//! The failure's detail ends with the end of stderr. To stop is SIGTERM to the whole process group, `grace`, SIGKILL.
//! When the command itself has exited, the processes that it left behind in its group are killed. A command that
//! ignores its stdin is fine.
//!
//! # When the worker is killed
//!
//! A worker that is killed can't stop its commands. With a [`Guard`] they are killed for it, with all that
//! is in their groups.

mod environment;
mod exit;
pub mod guard;
mod process;
pub mod program;
mod streams;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::contract::Job;
use relay_bridge::contract::job::DEFAULT_CONTENT_TYPE;

use self::environment::Private;
use self::guard::Guard;
use self::process::Start;
use self::program::CannotStart;
use super::{Attempt, Context, Handler};

/// The configuration of the command handler.
#[derive(Clone, Debug)]
pub struct ExecConfig {
    /// The program and its arguments; no shell reads them. The program is looked for in `PATH`.
    pub command: Vec<OsString>,
    /// Where it runs; `None` is the worker's own directory.
    pub directory: Option<PathBuf>,
    /// More environment, after all others.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether the worker itself uses AWS, so that `AWS_*` are its own credentials and the command does not inherit them.
    /// Default: no.
    pub uses_aws: bool,
    /// Variables of the worker that the command inherits although they may hold the worker's credentials: names, in which `*`
    /// stands for any text. `RELAY_*` are never inherited.
    pub pass_env: Vec<String>,
    /// The longest one attempt may take; `None` leaves it to the queue's `lease_max`.
    pub timeout: Option<Duration>,
    /// How long the command may take to end after SIGTERM, before SIGKILL. Default 5 s.
    pub grace: Duration,
    /// The most bytes of stdout kept in memory, beside the queue's `result_max`. Default 64 MiB, as much as any broker
    /// takes.
    pub stdout_max: usize,
    /// How many bytes of the end of stderr are kept for the failure. Default 4 KiB.
    pub stderr_max: usize,
    /// The content type of results. Default `application/octet-stream`.
    pub content_type: String,
}

impl Default for ExecConfig {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            directory: None,
            environment: Vec::new(),
            uses_aws: false,
            pass_env: Vec::new(),
            timeout: None,
            grace: Duration::from_secs(5),
            stdout_max: 64 * 1024 * 1024,
            stderr_max: 4 * 1024,
            content_type: DEFAULT_CONTENT_TYPE.to_owned(),
        }
    }
}

impl ExecConfig {
    fn private(&self) -> Private<'_> {
        Private { uses_aws: self.uses_aws, passed: &self.pass_env }
    }
}

/// The configuration names no program.
#[derive(Debug, thiserror::Error)]
#[error("the command is empty: name a program and its arguments")]
pub struct EmptyCommand;

/// The command handler.
#[derive(Debug)]
pub struct Exec {
    config: ExecConfig,
    guard: Option<Arc<Guard>>,
}

impl Exec {
    /// A handler that runs `config.command`. Whether the program exists is for [`check`](Self::check) to say, or shows at
    /// the first job.
    ///
    /// # Errors
    /// [`EmptyCommand`].
    pub fn new(config: ExecConfig) -> Result<Self, EmptyCommand> {
        if config.command.is_empty() {
            return Err(EmptyCommand);
        }
        Ok(Self { config, guard: None })
    }

    /// With a guard, so that its commands do not outlive this process. Without one they do if it is killed.
    #[must_use]
    pub fn guarded(self, guard: Arc<Guard>) -> Self {
        Self { guard: Some(guard), ..self }
    }

    /// The names of this process' variables that the command does not inherit, in their order: for the log of a start.
    #[must_use]
    pub fn withheld(&self) -> Vec<OsString> {
        self.config.private().names()
    }

    /// Finds the program as the system will look for it, and the directory it is to run in. For the start of a process:
    /// a mistake in the command shows at once, and not at the first job.
    ///
    /// # Errors
    /// [`CannotStart`], if no job could be started as things are.
    pub fn check(&self) -> Result<PathBuf, CannotStart> {
        program::find(&self.config)
    }
}

#[async_trait]
impl Handler for Exec {
    async fn handle(&self, job: &Job, context: &Context) -> Attempt {
        let environment = environment::of(job, context, &self.config.environment);
        let stdout_max = usize::try_from(context.result_max).unwrap_or(usize::MAX).min(self.config.stdout_max);
        let start = Start { config: &self.config, guard: self.guard.as_ref(), environment };
        let ran = process::run(start, &job.payload, stdout_max, context).await;
        exit::attempt(ran, &self.config, stdout_max)
    }

    fn grace(&self) -> Duration {
        // SIGTERM, the grace, SIGKILL, and a moment to collect what is left.
        self.config.grace.saturating_add(process::COLLECT_MAX * 2)
    }
}
