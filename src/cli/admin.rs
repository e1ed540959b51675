//! The admin port, and the port for health checks.

use std::net::SocketAddr;

use tracing::info;

use super::exit::CliError;
use super::serve::bind;
use crate::admin::{Listeners, Token};
use crate::config::settings;
use crate::private_file::warn_if_open;

/// Holds the token itself. It has no flag: every process could read it.
pub(super) const TOKEN: &str = "RELAY_ADMIN_TOKEN";

/// Where the admin port and health checks are to be.
pub(crate) struct Addresses {
    admin: Option<(SocketAddr, Option<Token>)>,
    health: Option<SocketAddr>,
}

impl Addresses {
    /// Whether anything is to be there.
    pub(crate) fn are_any(&self) -> bool {
        self.admin.is_some() || self.health.is_some()
    }

    /// Binds, and says where at once: these ports are there before the broker is.
    pub(crate) async fn bind(self) -> Result<(Listeners, Option<Token>), CliError> {
        let (mut listeners, mut token) = (Listeners::default(), None);
        if let Some((address, asked)) = self.admin {
            let listener = bind("--admin", address).await?;
            if let Ok(address) = listener.local_addr() {
                info!("operators ask http://{address}");
            }
            (listeners.admin, token) = (Some(listener), asked);
        }
        if let Some(address) = self.health {
            let listener = bind("--health", address).await?;
            if let Ok(address) = listener.local_addr() {
                info!("health checks ask http://{address}/livez and /readyz");
            }
            listeners.health = Some(listener);
        }
        Ok((listeners, token))
    }
}

impl settings::Admin {
    /// Where they are to be.
    ///
    /// # Errors
    /// As [`operators`](Self::operators).
    pub(crate) fn resolve(&self) -> Result<Addresses, CliError> {
        Ok(Addresses { admin: self.operators()?, health: self.health })
    }

    /// The address and the token, if there is to be an admin port.
    ///
    /// # Errors
    /// A usage error: an address that others can reach without a token, a token that can't be read or guessed.
    fn operators(&self) -> Result<Option<(SocketAddr, Option<Token>)>, CliError> {
        let Some(address) = self.listen else { return Ok(None) };
        let variable = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
        let (from, text) = match (&self.token_file, variable) {
            (Some(_), Some(_)) => {
                return Err(CliError::usage(format!("both --admin-token-file and {TOKEN} are set: leave one out")));
            }
            (Some(file), None) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| CliError::usage(format!("--admin-token-file {}: {error}", file.display())))?;
                warn_if_open(file, "the token of the admin port");
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
