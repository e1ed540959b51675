//! The identity of callers, and their rights. No broker and no HTTP crate: a transport passes the values that it saw as
//! text.
//!
//! # Layout
//!
//! - [`credential`]: the handle that ends with what let a caller in.
//! - [`keys`]: API keys, hashed at rest in `keys.toml`; create, list, revoke.
//! - [`rights`]: the calls that a client's key may make.
//! - [`live`]: the keys of a running process, read again when the file changes.

use std::path::PathBuf;

use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName, WorkerId};

pub mod credential;
pub mod keys;
pub mod live;
pub mod presented;
pub mod rights;

#[cfg(test)]
mod tests;

use credential::Credential;
use keys::{Key, KeysError, Role};
use live::{LiveKey, LiveKeys};
pub use presented::Presented;
use rights::{Right, Rights};

/// The client of a development relay that names none.
const DEVELOPMENT_CLIENT: &str = "dev";

/// Decides who a caller is.
#[derive(Debug)]
pub struct Authenticator(Mode);

#[derive(Debug)]
enum Mode {
    Keys(LiveKeys),
    Development,
}

/// A client that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The client's name.
    pub client: ClientId,
    /// How relay knows.
    pub authenticated: Authenticated,
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
    /// Not at all: a development relay takes the caller's word.
    Development,
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
}

impl Authenticator {
    /// Lets in whoever has a key of `file`. The file is read again when it changes.
    ///
    /// # Errors
    /// If the file is not there or can't be read.
    pub fn keys(file: PathBuf, clock: Clock) -> Result<Self, KeysError> {
        LiveKeys::open(file, clock).map(Mode::Keys).map(Self)
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

    /// Whether no two clients can be told apart: there are keys of one at most, or nobody is asked for any.
    #[must_use]
    pub fn is_one_client(&self) -> bool {
        match &self.0 {
            Mode::Keys(keys) => keys.clients() <= 1,
            Mode::Development => true,
        }
    }

    /// Sees to it that credentials end within about a second of the change that ends them. Never ends by itself.
    pub async fn watch(&self) {
        match &self.0 {
            Mode::Keys(keys) => keys.watch().await,
            Mode::Development => std::future::pending().await,
        }
    }

    /// The client behind a request that came with `presented`.
    ///
    /// # Errors
    /// [`Refused`]: a worker's key is `Forbidden` here.
    // Tokens of issuers may have to wait for the issuer's keys.
    #[expect(clippy::unused_async, reason = "an issuer of tokens is asked for its keys")]
    pub async fn authenticate(&self, presented: Presented<'_>) -> Result<Caller, Refused> {
        let Presented { authorization, named, .. } = presented;
        let keys = match &self.0 {
            Mode::Keys(keys) => keys,
            Mode::Development => {
                let client = named.unwrap_or(DEVELOPMENT_CLIENT).parse();
                let client = client.map_err(|error| Refused::Malformed(format!("header Relay-Client: {error}")))?;
                return Ok(Caller {
                    client,
                    authenticated: Authenticated::Development,
                    queues: None,
                    rights: Rights::ALL,
                    credential: Credential::default(),
                });
            }
        };
        let header = authorization.ok_or_else(|| {
            Refused::Unauthenticated("no credentials: send `Authorization: Bearer <key id>.<secret>`".to_owned())
        })?;
        let bearer = header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, text) = bearer.ok_or_else(|| {
            Refused::Unauthenticated("other credentials than `Authorization: Bearer <key id>.<secret>`".to_owned())
        })?;
        let LiveKey { entry, credential } = Self::live(keys, text.trim()).map_err(Refused::Unauthenticated)?;
        if entry.role != Role::Client {
            return Err(Refused::Forbidden(format!(
                "key {} is a worker's: it may lease jobs, and neither submit nor read; use a client's key",
                entry.id
            )));
        }
        let authenticated = Authenticated::ApiKey(entry.id);
        Ok(Caller { client: entry.name, authenticated, queues: entry.queues, rights: entry.rights, credential })
    }

    /// The rights of `worker`, which came with `key` and the rest of `presented`. A development relay lets every worker in, and asks
    /// for no key.
    ///
    /// # Errors
    /// The text to tell the worker: no key, an unknown one, or a client's.
    #[expect(clippy::unused_async, reason = "an issuer of tokens is asked for its keys")]
    pub async fn authorize_worker(
        &self,
        worker: &WorkerId,
        key: Option<&str>,
        _presented: Presented<'_>,
    ) -> Result<WorkerRights, String> {
        let Mode::Keys(keys) = &self.0 else {
            return Ok(WorkerRights::default());
        };
        let text = key.ok_or_else(|| format!("worker {worker} has no key: give it one of role worker"))?;
        let LiveKey { entry, credential } = Self::live(keys, text)?;
        if entry.role != Role::Worker {
            return Err(format!("key {} is a client's: a worker needs one of role worker", entry.id));
        }
        Ok(WorkerRights { key: Some(entry.name), queues: entry.queues, credential })
    }

    fn live(keys: &LiveKeys, text: &str) -> Result<LiveKey, String> {
        let key: Key = text.parse().map_err(|_| "the key has not the form `<key id>.<secret>`".to_owned())?;
        keys.find(&key).ok_or_else(|| "relay does not know this key, or it was revoked".to_owned())
    }
}
