//! The work of a worker on each job: a command, or a call of a local service.

use std::ffi::OsString;
use std::sync::Arc;

use relay_workers::Handler;
use relay_workers::handler::exec::guard::Guard;
use relay_workers::handler::exec::{Exec, ExecConfig};
use relay_workers::handler::http::{Http, HttpConfig};

use super::exit::CliError;
use crate::config::settings::Worker;

impl Worker {
    /// The handler: the command or the URL. `uses_aws`: the process itself does, so that `AWS_*` are its own credentials. The log
    /// names the variables that a command does not inherit, beside `RELAY_*`.
    ///
    /// # Errors
    /// A usage error if the URL can't be used, or the command's program is not there: no job could be started.
    pub(crate) fn handler(&self, uses_aws: bool) -> Result<Arc<dyn Handler>, CliError> {
        let timeout = self.timeout.map(|timeout| timeout.0);
        if let Some(url) = self.http.clone() {
            let mut config = HttpConfig { url, ..HttpConfig::default() };
            config.timeout = timeout.unwrap_or(config.timeout);
            let http = Http::new(config);
            return Ok(Arc::new(http.map_err(|error| CliError::usage(error.to_string()))?));
        }
        let command = self.command.iter().map(OsString::from).collect();
        let exec = Exec::new(ExecConfig {
            command,
            timeout,
            uses_aws,
            pass_env: self.pass_env.clone(),
            ..ExecConfig::default()
        });
        let exec = exec.map_err(|error| CliError::usage(error.to_string()))?;
        exec.check().map_err(|error| CliError::usage(error.to_string()).hint(error.hint()))?;
        let withheld = exec.withheld().into_iter().map(|name| name.to_string_lossy().into_owned());
        let withheld: Vec<_> = withheld.filter(|name| !name.starts_with("RELAY_")).collect();
        if !withheld.is_empty() {
            let names = withheld.join(", ");
            tracing::info!("handlers do not inherit {names}: --pass-env passes them on");
        }
        let guard = Guard::of_this_program([super::GUARD]);
        Ok(Arc::new(exec.guarded(Arc::new(guard))))
    }
}
