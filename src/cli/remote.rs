//! Which server a client command talks to, and how its refusals are told to people.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use relay_bridge::contract::{ClientId, QueueName};
use relay_bridge::support::lock;

use super::configured::variable;
use super::context::read_secret;
use super::contexts::{Context, Contexts};
use super::exit::{CliError, Exit};
use super::tls::TlsArgs;
use super::{output, values};
use crate::api::{Slug, header};
use crate::client::retry::Patience;
use crate::client::{Client, ClientError, ClientTls, Operator};

/// Where a server listens that was told nothing else.
const SERVER_DEFAULT: &str = "http://127.0.0.1:7410";

/// Where an admin port listens that was told nothing else.
const ADMIN_DEFAULT: &str = "http://127.0.0.1:7412";

/// The server and the caller's key.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// The server and its key, as `relay context add` stored them [default: the one that `relay context use` chose]
    #[arg(long, value_name = "NAME", env = "RELAY_CONTEXT", conflicts_with = "server")]
    context: Option<String>,
    /// The server's address, over HTTP, or over TCP as relay://HOST:PORT or relays://HOST:PORT [default: the current context's, else http://127.0.0.1:7410]
    #[arg(long, value_name = "URL", env = "RELAY_SERVER")]
    server: Option<String>,
    /// The API key; a server without authentication needs none
    #[arg(long, value_name = "KEY", env = "RELAY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// The client's name, for a server without authentication [default: dev]
    #[arg(long, value_name = "NAME", env = "RELAY_CLIENT", conflicts_with = "api_key")]
    client: Option<ClientId>,
    #[command(flatten)]
    tls: TlsArgs,
}

impl ServerArgs {
    /// A client for that server which asks for something that is there: a server that takes no connection is an error at once.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub(crate) fn reader(self) -> Result<Client, CliError> {
        Ok(self.client()?.patient(Patience::reading()))
    }

    /// A client for that server, which waits for one that is away.
    ///
    /// # Errors
    /// A usage error if the address can't be one, or there is no such context.
    pub(crate) fn client(self) -> Result<Client, CliError> {
        self.patient_client(Patience::default())
    }

    /// The same, which tries for so long, and says once that it does.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub(crate) fn patient_client(self, patience: Patience) -> Result<Client, CliError> {
        self.resolve()?.client(patience)
    }

    /// The options that were given, with those of the context where none was.
    ///
    /// # Errors
    /// A usage error if there is no such context.
    pub(crate) fn resolve(self) -> Result<Known, CliError> {
        // A context's key is for the context's server alone.
        let context = match &self.server {
            Some(_) => None,
            None => Contexts::read()?.pick(self.context.as_deref())?.cloned(),
        };
        let context = context.unwrap_or_default();
        let tls = self.tls.over(&context);
        let stored = Some(context.server).filter(|server| !server.is_empty());
        let server = self.server.or(stored).unwrap_or_else(|| SERVER_DEFAULT.to_owned());
        let (key, name) = match (self.api_key, self.client) {
            (None, None) => (context.api_key, context.client),
            // A variable that is filled from a file has the line end of the file, as from a Secret of Kubernetes.
            (key, name) => (key.map(|key| key.trim().to_owned()), name),
        };
        Ok(Known { server, key, name, tls })
    }
}

/// A server and who calls it, from flags, variables and the context.
pub(crate) struct Known {
    server: String,
    key: Option<String>,
    name: Option<ClientId>,
    pub(crate) tls: ClientTls,
}

impl Known {
    /// A client, which tries for so long, and says once that it does.
    ///
    /// # Errors
    /// A usage error if the address can't be one, or a file of TLS is not good.
    pub(crate) fn client(&self, patience: Patience) -> Result<Client, CliError> {
        let told = Mutex::new(away(patience));
        let client = Client::with_tls(&self.server, self.key.clone(), &self.tls)?;
        let client = client.patient(patience).telling(move |error| lock(&told)(error));
        Ok(match &self.name {
            Some(name) => client.named(name.clone()),
            None => client,
        })
    }

    /// The lines of a request's head that say who calls.
    pub(crate) fn headers(&self) -> String {
        let key = self.key.iter().map(|key| format!("authorization: Bearer {key}\r\n"));
        let name = self.name.iter().map(|name| format!("{}: {name}\r\n", header::CLIENT));
        key.chain(name).collect()
    }
}

/// The admin port and its token.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Admin port")]
pub(crate) struct OperatorArgs {
    /// The context that has the admin port [default: the one that `relay context use` chose]
    #[arg(long, value_name = "NAME", env = "RELAY_CONTEXT", conflicts_with = "admin_server")]
    context: Option<String>,
    /// The admin port's address [default: the current context's, else http://127.0.0.1:7412]
    #[arg(long, value_name = "URL", env = "RELAY_ADMIN_SERVER")]
    admin_server: Option<String>,
    /// A file with its token; or set RELAY_ADMIN_TOKEN. A port on loopback may need none
    #[arg(long, value_name = "FILE", env = "RELAY_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
}

impl OperatorArgs {
    /// An operator of that relay.
    ///
    /// # Errors
    /// A usage error if the address can't be one, the token can't be read, or there is no such context.
    pub(crate) fn operator(self) -> Result<Operator, CliError> {
        // A context's token is for the context's relay alone.
        let context = match &self.admin_server {
            Some(_) => None,
            None => Contexts::read()?.pick(self.context.as_deref())?.cloned(),
        };
        let context = context.unwrap_or_default();
        let tls = self.tls.over(&context);
        let Context { admin, admin_token, .. } = context;
        let server = self.admin_server.or(admin).unwrap_or_else(|| ADMIN_DEFAULT.to_owned());
        let token = match self.admin_token_file {
            Some(file) => Some(read_secret(&file)?),
            None => variable(super::admin::TOKEN).map(|token| token.trim().to_owned()).or(admin_token),
        };
        Ok(Operator::with_tls(&server, token, &tls)?)
    }
}

/// Refuses a queue that this caller may not use or that is not there, where nothing was found in it: a slip in its name would
/// look like a queue without anything.
///
/// # Errors
/// There is no such queue, or the server does not say.
pub(crate) async fn known(client: &Client, queue: &QueueName) -> Result<(), CliError> {
    let who = client.whoami().await?;
    if who.queue_limits.iter().any(|limits| limits.queue == *queue) {
        return Ok(());
    }
    Err(CliError::failed(format!("there is no queue {queue} that this caller may use"))
        .hint("check its name: `relay whoami` shows those that are there"))
}

/// How long a command waits before it says what for.
const SAID_AFTER: Duration = Duration::from_secs(1);

/// Calls an admin port for as long as `patience` lasts.
pub(crate) async fn operate<T, F: Future<Output = Result<T, ClientError>>>(
    patience: Patience,
    call: impl FnMut() -> F,
) -> Result<T, CliError> {
    patience.repeat(true, call, away(patience)).await.map_err(|error| match error {
        ClientError::Unreachable { ref detail, .. } => {
            const NOBODY: &str = "this is about the admin port: start the server with --admin 127.0.0.1:7412, or name its port \
                 with --admin-server, RELAY_ADMIN_SERVER or a context";
            CliError::unavailable(error.to_string()).hint(of_tls(detail).unwrap_or(NOBODY))
        }
        error => error.into(),
    })
}

/// The way out where somebody is at the address, and TLS with them does not come about.
pub(crate) fn of_tls(detail: &str) -> Option<&'static str> {
    // As rustls says it.
    let detail = detail.to_ascii_lowercase();
    if detail.contains("invalidcontenttype") {
        return Some("this port speaks no TLS: write http:// in place of https://");
    }
    (detail.contains("certificate") || detail.contains("issuer")).then_some(
        "the server's certificate is not good for this name, or its CA is not known here: name the CA's file with --ca, and \
         use a name that is in the certificate",
    )
}

/// Says once, after a second, that the server is away and for how long it is tried.
pub(crate) fn away(patience: Patience) -> impl FnMut(&ClientError) + Send {
    let (since, mut said) = (Instant::now(), false);
    move |error| {
        if !said && since.elapsed() >= SAID_AFTER {
            said = true;
            let limit = values::show_duration(patience.give_up_after);
            output::note(format_args!("{error}; trying again, for up to {limit}"));
        }
    }
}

/// Says what is waited for, and for how long, if it takes more than a second.
pub(crate) async fn noted<T>(what: &str, limit: Option<Duration>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = tokio::time::sleep(SAID_AFTER) => {}
    }
    match limit {
        Some(limit) => output::note(format_args!("Waiting for {what}, for up to {}.", values::show_duration(limit))),
        None => output::note(format_args!("Waiting for {what}, as long as it takes.")),
    }
    work.await
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Invalid(_) | ClientError::Unsupported { .. } => Exit::Usage,
            ClientError::Refused { problem, .. } if matches!(problem.slug, Slug::Unauthenticated | Slug::Forbidden) => {
                Exit::Usage
            }
            error if error.is_unavailable() => Exit::Unavailable,
            _ => Exit::Failed,
        };
        let told = Self::new(exit, error.to_string());
        match &error {
            ClientError::Unreachable { detail, .. } => {
                const NOBODY: &str =
                    "start a server with `relay dev -- COMMAND`, or name one with --server, RELAY_SERVER or a context";
                told.hint(of_tls(detail).unwrap_or(NOBODY))
            }
            ClientError::Refused { problem, .. } if problem.slug == Slug::Unauthenticated => told.hint(
                "give a key with --api-key, RELAY_API_KEY or a context; operators a token with --admin-token-file",
            ),
            ClientError::Unsupported { .. } => told.hint("name the server by its address for HTTP, https://HOST:PORT"),
            ClientError::NotRelay { .. } => told.hint(
                "what is at this address is not relay, or stands in front of it: name relay's own address with --server, RELAY_SERVER \
                 or a context, an admin port's with --admin-server; `relay doctor` examines the way",
            ),
            ClientError::Garbled(_) => {
                told.hint("name the listener for clients (`protocol = \"relay\"`), not another one")
            }
            _ => told,
        }
    }
}
