//! The address of a server: what is spoken there, and that it is this machine unless somebody says that it is theirs.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::Url;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::cli::exit::CliError;

/// How long a name may take to be resolved.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses of a name at most.
const ADDRESSES_MAX: usize = 16;

/// The protocol of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Tcp,
    Nats,
}

impl Protocol {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Nats => "nats",
        }
    }
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) protocol: Protocol,
    pub(super) tls: bool,
    /// As it was given, without a password.
    pub(super) url: Url,
    /// The host as it stands in the address, which a certificate has to name.
    pub(super) host: String,
    /// Its addresses, of which there is one at least.
    pub(super) addresses: Vec<SocketAddr>,
}

impl Target {
    /// Reads an address such as `http://127.0.0.1:7410`, `relay://127.0.0.1:7413` or `nats://127.0.0.1:4222`, and resolves it.
    /// `owned`: somebody says that it is theirs.
    ///
    /// # Errors
    /// A usage error if it is no such address, or is not all of this machine and nobody said that it is theirs; `unavailable` if its
    /// name can't be resolved.
    pub(super) async fn find(text: &str, owned: bool) -> Result<Self, CliError> {
        let wrong = |why: &str| {
            CliError::usage(format!("`{text}` is not an address to bench: {why}")).hint(
                "write http://HOST:PORT or https://HOST, relay://HOST:PORT or relays://HOST:PORT, or nats://HOST:PORT",
            )
        };
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        let (protocol, tls, port) = match url.scheme() {
            "http" => (Protocol::Http, false, Some(80)),
            "https" => (Protocol::Http, true, Some(443)),
            "relay" => (Protocol::Tcp, false, None),
            "relays" => (Protocol::Tcp, true, None),
            "nats" => (Protocol::Nats, false, Some(4222)),
            "tls" => (Protocol::Nats, true, Some(4222)),
            _ => return Err(wrong("nothing that relay speaks")),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it has no host"))?.to_owned();
        if url.password().is_some() || !url.username().is_empty() {
            return Err(wrong("it has a user or a password in it, which belong into a flag or a file"));
        }
        let port = url.port().or(port).ok_or_else(|| wrong("it has no port"))?;
        let addresses = resolve(&host, port).await?;
        if let Some(foreign) = addresses.iter().find(|address| !is_loopback(address.ip())).filter(|_| !owned) {
            return Err(CliError::usage(format!(
                "{host} is {}, which is not this machine: a benchmark loads a server as much as it can, also with the jobs of others",
                foreign.ip()
            ))
            .hint("add --i-own-this if the server, its broker and the way there are yours to load"));
        }
        Ok(Self { protocol, tls, url, host, addresses })
    }

    /// Whether all of it is this machine.
    pub(super) fn is_here(&self) -> bool {
        self.addresses.iter().all(|address| is_loopback(address.ip()))
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, CliError> {
    let away = |why: &str| {
        CliError::unavailable(format!("{host} can't be resolved: {why}")).hint("look at the name, or give an address")
    };
    let bare = host.trim_matches(['[', ']']);
    let found = timeout(PATIENCE, lookup_host((bare, port))).await.map_err(|_| away("no answer in 5 s"))?;
    let found: Vec<_> = found.map_err(|error| away(&error.to_string()))?.take(ADDRESSES_MAX).collect();
    if found.is_empty() { Err(away("it has no address")) } else { Ok(found) }
}

/// Whether an address is this machine, also one of IPv4 within IPv6.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Exit;

    async fn found(text: &str, owned: bool) -> Result<Target, CliError> {
        Target::find(text, owned).await
    }

    #[tokio::test]
    async fn an_address_says_what_is_spoken_there() {
        for (text, protocol, tls, port) in [
            ("http://127.0.0.1", Protocol::Http, false, 80),
            ("https://[::1]:8443", Protocol::Http, true, 8_443),
            ("relay://127.0.0.1:7413", Protocol::Tcp, false, 7_413),
            ("relays://127.0.0.1:7413", Protocol::Tcp, true, 7_413),
            ("nats://127.8.8.8", Protocol::Nats, false, 4_222),
        ] {
            let target = found(text, false).await.unwrap();
            assert_eq!((target.protocol, target.tls, target.addresses[0].port()), (protocol, tls, port), "{text}");
            assert!(target.is_here());
        }
        for text in ["", "127.0.0.1:7410", "ftp://127.0.0.1", "relay://127.0.0.1", "http://me:secret@127.0.0.1"] {
            assert_eq!(found(text, true).await.unwrap_err().exit(), Exit::Usage, "{text}");
        }
    }

    #[tokio::test]
    async fn another_machine_is_refused_until_somebody_owns_it() {
        for text in ["http://192.0.2.7:7410", "relay://[2001:db8::1]:7413", "nats://0.0.0.0:4222"] {
            let refused = found(text, false).await.unwrap_err();
            assert_eq!(refused.exit(), Exit::Usage, "{text}");
            assert!(refused.to_string().contains("not this machine"), "{refused}");
            assert!(!found(text, true).await.unwrap().is_here());
        }
        assert!(is_loopback("::ffff:127.0.0.1".parse().unwrap()));
    }
}
