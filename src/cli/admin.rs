//! The admin port, its tokens, and the port for health checks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::info;

use super::exit::CliError;
use super::serve::bind;
use crate::admin::{Holder, Listeners, Token, Tokens};
use crate::auth::operators::AdminRight;
use crate::config::admin_tokens::AdminToken;
use crate::config::settings::{HealthProxy, Settings, TlsOf};
use crate::private_file::warn_if_open;
use crate::reload::Reload;
use crate::tls::{ClientAuth, Secured, Tls};

/// Holds the token itself. It has no flag: every process could read it.
pub(super) const TOKEN: &str = "RELAY_ADMIN_TOKEN";
/// The holder of the token that has no name of its own.
const HOLDER: &str = "admin";

/// Where the admin port and health checks are to be.
pub(crate) struct Addresses {
    admin: Option<(SocketAddr, Sources)>,
    tls: TlsOf,
    health: Option<SocketAddr>,
    health_proxy: HealthProxy,
}

/// Where the admin port's tokens come from.
#[derive(Clone)]
pub(crate) struct Sources {
    /// The one with all rights.
    all: Option<Source>,
    named: Vec<AdminToken>,
}

#[derive(Clone)]
enum Source {
    File(PathBuf),
    /// The text of a variable, which stays.
    Variable(String),
}

/// The admin port's tokens, and where they come from.
pub(crate) struct Access {
    pub(crate) tokens: Arc<Tokens>,
    sources: Sources,
}

impl Access {
    /// The tokens that let in.
    pub(crate) fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens)
    }

    /// Has the tokens read again with the rest.
    pub(crate) fn register(&self, reload: &Reload) {
        let (tokens, sources) = (Arc::clone(&self.tokens), self.sources.clone());
        reload.register("admin", self.sources.files(), move || sources.read().map(|read| tokens.replace(read)));
    }
}

/// The files of an admin port whose process has no others: its certificates and its tokens, if it has any of them.
pub(crate) fn files(tls: Option<Arc<Tls>>, access: Option<Access>) -> Option<Arc<Reload>> {
    if tls.is_none() && access.is_none() {
        return None;
    }
    let reload: Arc<Reload> = Arc::default();
    if let Some(tls) = tls {
        reload.register("certificates", tls.paths(), move || tls.reload().map_err(Into::into));
    }
    access.iter().for_each(|access| access.register(&reload));
    Some(reload)
}

impl Sources {
    fn are_any(&self) -> bool {
        self.all.is_some() || !self.named.is_empty()
    }

    fn files(&self) -> Vec<PathBuf> {
        let all = match &self.all {
            Some(Source::File(file)) => Some(file),
            _ => None,
        };
        all.into_iter().chain(self.named.iter().map(|token| &token.token_file)).cloned().collect()
    }

    /// Reads every token.
    ///
    /// # Errors
    /// Every one that can't be read, can be guessed, or is another one as well.
    fn read(&self) -> Result<Vec<Holder>, Vec<String>> {
        let (mut holders, mut wrong): (Vec<Holder>, Vec<String>) = (Vec::new(), Vec::new());
        let all = self.all.as_ref().map(|source| (HOLDER, AdminRight::ALL.to_vec(), source.clone()));
        let named = self.named.iter();
        let named = named.map(|of| (of.name.as_str(), of.rights.clone(), Source::File(of.token_file.clone())));
        for (name, rights, source) in all.into_iter().chain(named) {
            let (from, text) = match &source {
                Source::File(file) => (of_file(name, file), std::fs::read_to_string(file)),
                Source::Variable(text) => (TOKEN.to_owned(), Ok(text.clone())),
            };
            let token = text.map_err(|error| error.to_string());
            let token = token.and_then(|text| Token::new(&text).map_err(|error| error.to_string()));
            match token {
                Ok(token) if holders.iter().any(|known| known.token == token) => {
                    wrong.push(format!("{from}: this is the token of another one as well: make one for each"));
                }
                Ok(token) => holders.push(Holder { name: name.to_owned(), rights, token }),
                Err(error) => wrong.push(format!("{from}: {error}")),
            }
        }
        if wrong.is_empty() { Ok(holders) } else { Err(wrong) }
    }
}

fn of_file(name: &str, file: &Path) -> String {
    if name == HOLDER {
        return format!("--admin-token-file {}", file.display());
    }
    format!("{}: the token of {name}", file.display())
}

impl Addresses {
    /// Whether anything is to be there.
    pub(crate) fn are_any(&self) -> bool {
        self.admin.is_some() || self.health.is_some()
    }

    /// Binds, and says where at once: these ports are there before the broker is. With TLS the certificates of `tls` are shown.
    pub(crate) async fn bind(self, tls: Option<&Arc<Tls>>) -> Result<(Listeners, Option<Access>), CliError> {
        let (mut listeners, mut access) = (Listeners::default(), None);
        if let Some((address, sources)) = self.admin {
            if sources.are_any() {
                let read = sources.read().map_err(|wrong| CliError::usage(wrong.join("\n")))?;
                access = Some(Access { tokens: Tokens::new(read), sources });
            }
            let listener = bind("--admin", address).await?;
            if self.tls == TlsOf::On {
                let tls = tls.ok_or_else(|| {
                    CliError::usage("--admin-tls on: there is no certificate")
                        .hint("give one with --tls-cert and --tls-key")
                })?;
                // Operators say by their tokens who they are.
                listeners.tls = Some(Secured::http(Arc::clone(tls), ClientAuth::Off));
            }
            if let Ok(address) = listener.local_addr() {
                let scheme = if listeners.tls.is_some() { "https" } else { "http" };
                info!("operators ask {scheme}://{address}");
            }
            listeners.admin = Some(listener);
        }
        if let Some(address) = self.health {
            let listener = bind("--health", address).await?;
            if let Ok(address) = listener.local_addr() {
                info!("health checks ask http://{address}/livez and /readyz");
            }
            listeners.health = Some(listener);
            listeners.accepts_header = self.health_proxy == HealthProxy::Accept;
        }
        Ok((listeners, access))
    }
}

impl Settings {
    /// Where the admin port and health checks are to be.
    ///
    /// # Errors
    /// A usage error: an address that others can reach without a token or in clear text, a token that can't be read or guessed.
    pub(crate) fn admin_addresses(&self) -> Result<Addresses, CliError> {
        let admin = match self.admin.listen {
            Some(address) => {
                let sources = self.token_sources()?;
                if !sources.are_any() && !address.ip().is_loopback() {
                    return Err(CliError::usage(format!(
                        "--admin {address}: others can reach it, so it needs a token"
                    ))
                    .hint("give one with --admin-token-file or RELAY_ADMIN_TOKEN, or listen on 127.0.0.1"));
                }
                if self.admin.tls == TlsOf::Off && !address.ip().is_loopback() {
                    return Err(CliError::usage(format!(
                        "--admin {address}: others can reach it, and tokens would come in clear text"
                    ))
                    .hint(
                        "give a certificate with --tls-cert and --tls-key, and add --admin-tls on; or --admin-tls \
                         terminated-in-front if something in front ends TLS and the network behind it is trusted",
                    ));
                }
                sources.read().map_err(|wrong| CliError::usage(wrong.join("\n")))?;
                Some((address, sources))
            }
            None => None,
        };
        Ok(Addresses { admin, tls: self.admin.tls, health: self.admin.health, health_proxy: self.admin.health_proxy })
    }

    fn token_sources(&self) -> Result<Sources, CliError> {
        let variable = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
        let all = match (&self.admin.token_file, variable) {
            (Some(_), Some(_)) => {
                return Err(CliError::usage(format!("both --admin-token-file and {TOKEN} are set: leave one out")));
            }
            (Some(file), None) => Some(Source::File(file.clone())),
            (None, Some(text)) => Some(Source::Variable(text)),
            (None, None) => None,
        };
        let sources = Sources { all, named: self.admin_tokens.clone() };
        sources.files().iter().for_each(|file| warn_if_open(file, "a token of the admin port"));
        Ok(sources)
    }
}
