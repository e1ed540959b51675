//! Fetches the keys of an issuer over https: from the configured address only, without redirects and without a proxy, and never
//! from this machine, a link-local address or a metadata service.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use relay_workers::handler::http::address;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, Url};

use super::jwks::{KeySet, SET_BYTES_MAX};

/// The time that an issuer has for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The largest file of certificates, in bytes.
const CA_BYTES_MAX: u64 = 1024 * 1024;
const REFUSED: &str = "relay asks no address of this machine, no link-local one and no metadata service";

/// Whether keys may be fetched from `address`. Private addresses may have them: endpoints of a VPC are there.
#[must_use]
pub(super) fn may_be_asked(address: IpAddr) -> bool {
    let plain = address.to_canonical();
    !(plain.is_loopback() || plain.is_unspecified() || plain.is_multicast() || address::refused(address))
}

/// Fetches sets of keys from addresses that `allowed` allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetcher {
    pub(super) allowed: fn(IpAddr) -> bool,
}

impl Fetcher {
    /// The keys at `url`, where the certificates of `ca` are believed, or those of the system.
    ///
    /// # Errors
    /// Why there are none, in words for the operator.
    pub(super) async fn fetch(self, url: &str, ca: Option<&Path>) -> Result<KeySet, String> {
        let url: Url = url.parse().map_err(|error| format!("{url} is no address: {error}"))?;
        // A literal address is never resolved, so the resolver would not see it.
        let literal = url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        if literal.is_some_and(|address| !(self.allowed)(address)) {
            return Err(REFUSED.to_owned());
        }
        let mut client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(true)
            .referer(false)
            .timeout(ANSWER_WITHIN)
            .dns_resolver(self)
            .user_agent(concat!("relay/", env!("CARGO_PKG_VERSION")));
        if let Some(ca) = ca {
            client = client.tls_certs_only(certificates(ca)?);
        }
        let client = client.build().map_err(|error| chain(&error))?;
        let mut response = client.get(url).send().await.map_err(|error| chain(&error))?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let mut text = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(|error| chain(&error))? {
            if text.len() + bytes.len() > SET_BYTES_MAX {
                return Err(format!("the answer has more than {SET_BYTES_MAX} bytes"));
            }
            text.extend_from_slice(&bytes);
        }
        KeySet::read(&text)
    }
}

impl Resolve for Fetcher {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.allowed;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.filter(|address| allowed(address.ip())).collect();
            if found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, REFUSED).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The certificates of a file, in PEM.
pub(super) fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let size = fs::metadata(path).map_err(|error| failed(&error))?.len();
    if size > CA_BYTES_MAX {
        return Err(failed(&format!("larger than {CA_BYTES_MAX} bytes")));
    }
    let text = fs::read(path).map_err(|error| failed(&error))?;
    let found = Certificate::from_pem_bundle(&text).map_err(|error| failed(&error))?;
    if found.is_empty() { Err(failed(&"it has no certificate in PEM")) } else { Ok(found) }
}

/// The whole chain of an error in one line: reqwest alone says "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fetched_from_private_addresses_and_never_from_this_machine_or_a_metadata_service() {
        for allowed in ["10.0.0.8", "192.168.1.1", "fd00::1", "1.1.1.1"] {
            assert!(may_be_asked(allowed.parse().unwrap()), "{allowed}");
        }
        for refused in
            ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "169.254.169.254", "fd00:ec2::254", "fe80::1"]
        {
            assert!(!may_be_asked(refused.parse().unwrap()), "{refused}");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_written_or_that_a_name_leads_to_is_refused_before_anything_is_sent() {
        let fetcher = Fetcher { allowed: may_be_asked };
        for url in ["https://127.0.0.1:1/keys", "https://[::1]:1/keys", "https://localhost:1/keys"] {
            let error = fetcher.fetch(url, None).await.unwrap_err();
            assert!(error.contains("no address of this machine"), "{url}: {error}");
        }
    }
}
