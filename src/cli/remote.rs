//! Which server a client command talks to, and how its refusals are told to people.

use clap::Args;
use relay_bridge::contract::ClientId;

use super::exit::{CliError, Exit};
use crate::api::Slug;
use crate::client::{Client, ClientError};

/// The server and the caller's key.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// The server's address
    #[arg(long, value_name = "URL", env = "RELAY_SERVER", default_value = "http://127.0.0.1:7410")]
    server: String,
    /// The API key; a server without authentication needs none
    #[arg(long, value_name = "KEY", env = "RELAY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Who this is, for a server without authentication [default: dev]
    #[arg(long, value_name = "NAME", env = "RELAY_CLIENT", conflicts_with = "api_key")]
    client: Option<ClientId>,
}

impl ServerArgs {
    /// A client for that server.
    ///
    /// # Errors
    /// A usage error if the address can't be one.
    pub(crate) fn client(self) -> Result<Client, CliError> {
        let client = Client::new(&self.server, self.api_key)?;
        Ok(match self.client {
            Some(name) => client.named(name),
            None => client,
        })
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Invalid(_) => Exit::Usage,
            ClientError::Refused { problem, .. } if matches!(problem.slug, Slug::Unauthenticated | Slug::Forbidden) => {
                Exit::Usage
            }
            error if error.is_unavailable() => Exit::Unavailable,
            _ => Exit::Failed,
        };
        let told = Self::new(exit, error.to_string());
        match &error {
            ClientError::Unreachable { .. } => {
                told.hint("start a server with `relay dev -- COMMAND`, or name one with --server or RELAY_SERVER")
            }
            ClientError::Refused { problem, .. } if problem.slug == Slug::Unauthenticated => {
                told.hint("give a key with --api-key or RELAY_API_KEY; `relay keys new` makes one")
            }
            _ => told,
        }
    }
}
