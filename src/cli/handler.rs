//! The work of a worker on each job, as arguments: a command behind `--`, or a local service with `--http`.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use relay_workers::Handler;
use relay_workers::handler::exec::guard::Guard;
use relay_workers::handler::exec::{Exec, ExecConfig};
use relay_workers::handler::http::{Http, HttpConfig};

use super::exit::CliError;
use super::values;

/// One handler: a command or a URL.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Handler")]
pub(crate) struct HandlerArgs {
    /// Send each job to this local service with POST; its answer is the result
    #[arg(long, value_name = "URL", env = "RELAY_WORKER_HTTP", conflicts_with = "command")]
    http: Option<String>,
    /// Stop a handler that takes longer; the attempt counts as failed and is retried
    #[arg(long, value_name = "DURATION", env = "RELAY_WORKER_TIMEOUT", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// Run this command for each job: payload on stdin, `RELAY_JOB_ID` and the like in its environment, result from
    /// its stdout. Exit code 0 is success, 64 to 66 reject the job for good, others are tried again; the end of stderr
    /// explains a failure
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "http")]
    command: Vec<OsString>,
}

impl HandlerArgs {
    /// The handler that was typed.
    ///
    /// # Errors
    /// A usage error if the URL can't be used, or the command's program is not there: no job could be started.
    pub(crate) fn resolve(self) -> Result<Arc<dyn Handler>, CliError> {
        if let Some(url) = self.http {
            let mut config = HttpConfig { url, ..HttpConfig::default() };
            config.timeout = self.timeout.unwrap_or(config.timeout);
            let http = Http::new(config);
            return Ok(Arc::new(http.map_err(|error| CliError::usage(error.to_string()))?));
        }
        let exec = Exec::new(ExecConfig { command: self.command, timeout: self.timeout, ..ExecConfig::default() });
        let exec = exec.map_err(|error| CliError::usage(error.to_string()))?;
        exec.check().map_err(|error| CliError::usage(error.to_string()).hint(error.hint()))?;
        let guard = Guard::of_this_program([super::GUARD]);
        Ok(Arc::new(exec.guarded(Arc::new(guard))))
    }
}
