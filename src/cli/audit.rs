//! The audit of a server, as its settings say it.

use std::sync::Arc;

use relay_bridge::clock::Clock;

use super::exit::CliError;
use crate::audit::{Audit, AuditConfig, Level};
use crate::config::settings::{self, AuditLevel};
use crate::private_file::warn_if_open;

impl settings::Audit {
    /// Opens the file, and begins to write; `None` if nothing is to be written.
    ///
    /// # Errors
    /// A usage error if the file can't be opened.
    pub(crate) fn start(self, clock: &Clock) -> Result<Option<Arc<Audit>>, CliError> {
        let Self { file, level, required } = self;
        let level = match level {
            AuditLevel::Off => return Ok(None),
            AuditLevel::Changes => Level::Changes,
            AuditLevel::All => Level::All,
        };
        let shown = file.as_ref().map_or_else(String::new, |file| format!("--audit {}: ", file.display()));
        let config = AuditConfig { file: file.clone(), level, required };
        let audit = Audit::start(config, clock.clone()).map_err(|error| CliError::usage(format!("{shown}{error}")))?;
        file.iter().for_each(|file| warn_if_open(file, "who did what"));
        Ok(Some(audit))
    }
}
