//! The admin port as flags.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::exit::CliError;
use crate::admin::Token;

/// Holds the token itself. It has no flag: every process could read it.
pub(super) const TOKEN: &str = "RELAY_ADMIN_TOKEN";

/// Where operators connect, and what they have to know.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Admin port")]
pub(crate) struct AdminArgs {
    /// Serve /livez, /readyz, /metrics, what `relay queues` and `relay dead` ask, and on servers a dashboard there; port 0 takes a free one. Off unless given. Never let clients reach it
    #[arg(long, value_name = "ADDR", env = "RELAY_ADMIN", num_args = 0..=1, default_missing_value = "127.0.0.1:7412")]
    admin: Option<SocketAddr>,
    /// File with the token that callers send as `Authorization: Bearer TOKEN`; or set RELAY_ADMIN_TOKEN. Addresses other
    /// than loopback need one; /livez and /readyz are answered without it
    #[arg(long, value_name = "FILE", env = "RELAY_ADMIN_TOKEN_FILE", requires = "admin")]
    admin_token_file: Option<PathBuf>,
}

impl AdminArgs {
    /// The address and the token, if there is to be an admin port.
    ///
    /// # Errors
    /// A usage error: an address that others can reach without a token, a token that can't be read or guessed.
    pub(crate) fn resolve(self) -> Result<Option<(SocketAddr, Option<Token>)>, CliError> {
        let Some(address) = self.admin else { return Ok(None) };
        let variable = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
        let (from, text) = match (self.admin_token_file, variable) {
            (Some(_), Some(_)) => {
                return Err(CliError::usage(format!("both --admin-token-file and {TOKEN} are set: leave one out")));
            }
            (Some(file), None) => {
                let text = std::fs::read_to_string(&file)
                    .map_err(|error| CliError::usage(format!("--admin-token-file {}: {error}", file.display())))?;
                (format!("--admin-token-file {}", file.display()), text)
            }
            (None, Some(text)) => (TOKEN.to_owned(), text),
            (None, None) if address.ip().is_loopback() => return Ok(Some((address, None))),
            (None, None) => {
                return Err(CliError::usage(format!("--admin {address}: others can reach it, so it needs a token"))
                    .hint("give one with --admin-token-file or RELAY_ADMIN_TOKEN, or listen on 127.0.0.1"));
            }
        };
        let token = Token::new(&text).map_err(|error| CliError::usage(format!("{from}: {error}")))?;
        Ok(Some((address, Some(token))))
    }
}
