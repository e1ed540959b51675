//! The identity of callers, and their rights. No broker and no HTTP crate: a transport passes the values that it saw as
//! text.
//!
//! # Layout
//!
//! - [`presented`]: the things that a caller shows at a door.
//! - [`credential`]: the handle that ends with what let a caller in.
//! - [`keys`]: API keys, hashed at rest in `keys.toml`; create, list, revoke. `key`: a key as its owner has it.
//! - [`rights`]: the calls that a client may make.
//! - `identity`: the file that lists which factors let whom in; `mistake`: a mistake in it.
//! - `token`, `tokens`: tokens of issuers; `jwks`, `issuers`, `fetch`: the keys of issuers, from files and over https.
//! - `files`, `live`: all of these in a running process, read again when a file changes.
//! - `admit`: a caller at a door; `judge`, `standing`: its name by the things that it has shown, and everything that was begun with them.
//! - `bounds`: what strangers may cost.
//! - [`operators`]: the rights of tokens at the admin port.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName, WorkerId};

mod admit;
pub(crate) mod bounds;
pub mod credential;
mod fetch;
mod files;
mod identity;
mod issuers;
mod judge;
mod jwks;
mod key;
pub mod keys;
mod live;
mod mistake;
pub mod operators;
pub mod presented;
pub mod rights;
mod standing;
mod token;
mod tokens;

#[cfg(test)]
mod tests;

use admit::{Admitted, Known};
use bounds::Lines;
use credential::Credential;
pub use files::Files;
use keys::{KeysError, Role};
use live::Live;
pub use mistake::{Mistake, Mistakes};
pub use presented::Presented;
use rights::{Right, Rights};
use standing::Grant;

/// The client of a development relay that names none.
const DEVELOPMENT_CLIENT: &str = "dev";

/// Decides who a caller is.
#[derive(Debug)]
pub struct Authenticator(Mode);

#[derive(Debug)]
enum Mode {
    Files(Box<Known>),
    Development,
}

/// A client that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The client's name.
    pub client: ClientId,
    /// How relay knows: each factor that was shown and holds, keys and tokens first.
    pub authenticated: Vec<Authenticated>,
    /// The queues it may use; `None` means all.
    pub queues: Option<Vec<QueueName>>,
    /// The calls it may make.
    pub rights: Rights,
    /// Ends with what let it in, and with it everything that it began.
    pub credential: Credential,
}

impl Caller {
    /// Whether the caller may use `queue`.
    #[must_use]
    pub fn may_use(&self, queue: &QueueName) -> bool {
        self.queues.as_ref().is_none_or(|queues| queues.contains(queue))
    }

    /// The word for how it was let in, for metrics and logs: `key`, `jwt`, `mtls`, `several` of these, or `none`. The endpoint
    /// that a connection came through is not counted.
    #[must_use]
    pub fn method(&self) -> &'static str {
        let mut words = self.authenticated.iter().filter_map(|factor| match factor {
            Authenticated::ApiKey(_) => Some("key"),
            Authenticated::Token { .. } => Some("jwt"),
            Authenticated::Certificate(_) => Some("mtls"),
            Authenticated::Endpoint(_) | Authenticated::Development => None,
        });
        match (words.next(), words.next()) {
            (None, _) => "none",
            (Some(word), None) => word,
            (Some(_), Some(_)) => "several",
        }
    }

    /// The public part of all that it has shown, for logs: ids and names, and no secret.
    #[must_use]
    pub fn credential_names(&self) -> Option<String> {
        let names: Vec<_> = self.authenticated.iter().filter_map(Authenticated::credential).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Whether the caller has `right`.
    #[must_use]
    pub fn may(&self, right: Right) -> bool {
        self.rights.has(right)
    }
}

/// The rights of a worker that was let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerRights {
    /// The name of its key, if it has one.
    pub key: Option<ClientId>,
    /// The queues it may lease from; `None` means all.
    pub queues: Option<Vec<QueueName>>,
    /// Ends with what let it in, and with it the worker's session.
    pub credential: Credential,
}

/// How relay knows who the caller is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Authenticated {
    /// By an API key with this id.
    ApiKey(String),
    /// By a token.
    Token {
        /// The issuer that signed it.
        issuer: String,
        /// The one that it is about.
        subject: String,
    },
    /// By a client certificate of this name.
    Certificate(String),
    /// By the VPC endpoint that the connection came through; never by it alone.
    Endpoint(String),
    /// Not at all: a development relay takes the caller's word.
    Development,
}

impl Authenticated {
    /// The method, for people and programs: `api-key`, `token`, `certificate`, `vpc-endpoint`, `development`.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self {
            Self::ApiKey(_) => "api-key",
            Self::Token { .. } => "token",
            Self::Certificate(_) => "certificate",
            Self::Endpoint(_) => "vpc-endpoint",
            Self::Development => "development",
        }
    }

    /// The thing that was shown, without its secret: a key's id, issuer and subject of a token, a certificate's name, an
    /// endpoint's id. `None` if nothing was.
    #[must_use]
    pub fn credential(&self) -> Option<String> {
        match self {
            Self::ApiKey(id) => Some(id.clone()),
            Self::Token { issuer, subject } => Some(format!("{issuer} {subject}")),
            Self::Certificate(name) | Self::Endpoint(name) => Some(name.clone()),
            Self::Development => None,
        }
    }
}

/// Why a caller was not let in. The text says what to do and holds nothing of the credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Relay does not know the caller.
    #[error("{0}")]
    Unauthenticated(String),
    /// Relay knows the caller and does not let it in here.
    #[error("{0}")]
    Forbidden(String),
    /// The caller's claims about itself can't be read.
    #[error("{0}")]
    Malformed(String),
    /// Too much of the kind came from this source; the credentials were not looked at.
    #[error("{detail}")]
    TooMany {
        /// The problem, and what to do.
        detail: String,
        /// After how long it is looked at again.
        after: Duration,
    },
    /// Relay can't tell now: the keys of an issuer are not there.
    #[error("{0}")]
    Unavailable(String),
}

impl Authenticator {
    /// Lets in whoever has a key of `file`. The file is read again when it changes.
    ///
    /// # Errors
    /// If the file is not there or can't be read.
    pub fn keys(file: PathBuf, clock: Clock) -> Result<Self, KeysError> {
        // For its own words about the file.
        keys::KeyFile::new(&file).list()?;
        let files = Files { keys: Some(file), clients: None };
        Self::open(files, clock).map_err(|mistakes| KeysError::from(mistakes.to_string()))
    }

    /// Lets in whoever `files` say. They are read again when one of them changes, all of them or none.
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub fn open(files: Files, clock: Clock) -> Result<Self, Mistakes> {
        let lines = Lines::new(clock.clone());
        let live = Live::open(files, clock)?;
        Ok(Self(Mode::Files(Box::new(Known { live, lines }))))
    }

    /// The same, where the keys of issuers may be fetched from every address that `allowed` is true for. Without it they are
    /// fetched from no address of this machine, no link-local one and no metadata service.
    #[must_use]
    pub fn fetching_from(self, allowed: fn(IpAddr) -> bool) -> Self {
        if let Mode::Files(known) = &self.0 {
            known.live.tokens.issuers.allow(allowed);
        }
        self
    }

    /// Lets in everybody: the client is `dev`, or what it says it is. Only for a listener on loopback.
    #[must_use]
    pub fn development() -> Self {
        Self(Mode::Development)
    }

    /// Whether nobody is asked for credentials.
    #[must_use]
    pub fn is_development(&self) -> bool {
        matches!(self.0, Mode::Development)
    }

    /// Whether no two clients can be told apart: there is one at most, or nobody is asked for credentials.
    #[must_use]
    pub fn is_one_client(&self) -> bool {
        self.clients().is_none_or(|clients| clients <= 1)
    }

    /// How many clients the files let in, those of expired keys included; `None` if everybody is let in.
    #[must_use]
    pub fn clients(&self) -> Option<usize> {
        match &self.0 {
            Mode::Files(known) => Some(known.live.clients()),
            Mode::Development => None,
        }
    }

    /// The share of what there is that the identity file gives to `client`, in percent, as it was read last; `None` if it says
    /// nothing about it.
    #[must_use]
    pub fn share_of(&self, client: &ClientId) -> Option<u8> {
        match &self.0 {
            Mode::Files(known) => known.live.share_of(client),
            Mode::Development => None,
        }
    }

    /// Whether `client` may come over NATS, which says who it is: one with a block of the identity file only if a list of its is
    /// `["nats"]`.
    #[must_use]
    pub fn lets_in_over_nats(&self, client: &ClientId) -> bool {
        let Mode::Files(known) = &self.0 else { return true };
        let snapshot = known.live.snapshot();
        let listed = snapshot.identity.as_ref().and_then(|identity| identity.clients.named(client));
        listed.is_none_or(|client| client.any.iter().any(|list| list.as_slice() == [identity::Factor::Nats]))
    }

    /// Reads the files now, and makes what they say hold: all of it or nothing. Credentials that would let in no more, or for
    /// less, end. Nothing is done where nobody is asked for credentials.
    ///
    /// # Errors
    /// Everything that is wrong in them; what held before still holds.
    pub fn reload(&self) -> Result<(), Vec<Mistake>> {
        match &self.0 {
            Mode::Files(known) => known.live.reload(),
            Mode::Development => Ok(()),
        }
    }

    /// Whether the files, when they were looked at last, could be taken as they were.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        match &self.0 {
            Mode::Files(known) => known.live.is_taken(),
            Mode::Development => true,
        }
    }

    /// How long ago each issuer that is asked over https gave its keys, by its URL; without those that never did.
    #[must_use]
    pub fn issuer_ages(&self) -> Vec<(String, Duration)> {
        match &self.0 {
            Mode::Files(known) => known.live.tokens.issuers.ages(),
            Mode::Development => Vec::new(),
        }
    }

    /// Sees to it that credentials end within about a second of the change that ends them, and that issuers are asked for their
    /// keys. Never ends by itself.
    pub async fn watch(&self) {
        match &self.0 {
            Mode::Files(known) => known.live.watch().await,
            Mode::Development => std::future::pending().await,
        }
    }

    /// The client behind a request that came with `presented`. May wait some seconds for the keys of an issuer.
    ///
    /// # Errors
    /// [`Refused`]: a worker's key is `Forbidden` here.
    pub async fn authenticate(&self, presented: Presented<'_>) -> Result<Caller, Refused> {
        if let Some(Err(why)) = presented.certificate.map(|certificate| &certificate.name) {
            return Err(Refused::Forbidden(format!("the client certificate of this connection names nobody: {why}")));
        }
        let known = match &self.0 {
            Mode::Files(known) => known,
            Mode::Development => {
                let client = presented.named.unwrap_or(DEVELOPMENT_CLIENT).parse();
                let client = client.map_err(|error| Refused::Malformed(format!("header Relay-Client: {error}")))?;
                return Ok(Caller {
                    client,
                    authenticated: vec![Authenticated::Development],
                    queues: None,
                    rights: Rights::ALL,
                    credential: Credential::default(),
                });
            }
        };
        let bearer = match presented.authorization {
            Some(header) => {
                let parts = header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
                let (_, text) = parts.ok_or_else(|| {
                    Refused::Unauthenticated("other credentials than `Authorization: Bearer <key or token>`".to_owned())
                })?;
                Some(text.trim())
            }
            None => None,
        };
        let Admitted { grant, authenticated, credential } = known.admit(Role::Client, bearer, presented).await?;
        let Grant { name, queues, rights } = grant;
        Ok(Caller { client: name, authenticated, queues, rights, credential })
    }

    /// The rights of `worker`, which came with `key` (a key or a token) and the rest of `presented`. A development relay lets every
    /// worker in, and asks for nothing.
    ///
    /// # Errors
    /// [`Refused`]: no credentials, unknown ones, or a client's; or relay can't tell now.
    pub async fn authorize_worker(
        &self,
        worker: &WorkerId,
        key: Option<&str>,
        presented: Presented<'_>,
    ) -> Result<WorkerRights, Refused> {
        let Mode::Files(known) = &self.0 else {
            return Ok(WorkerRights::default());
        };
        if key.is_none() && presented.certificate.is_none() {
            let detail = format!("worker {worker} has no key: give it one of role worker");
            return Err(Refused::Unauthenticated(detail));
        }
        let Admitted { grant, credential, .. } = known.admit(Role::Worker, key, presented).await?;
        Ok(WorkerRights { key: Some(grant.name), queues: grant.queues, credential })
    }
}
