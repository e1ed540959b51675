//! TLS to a worker listener: whom the worker trusts, and the certificate that it shows. The files are read at each connection, so
//! that they may be replaced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, Error, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use relay_bridge::error::BrokerErrorKind as Kind;

/// The protocol by which a listener of workers is told from others (ALPN).
const PROTOCOL: &[u8] = b"relay/1";
/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Whom a worker or a client trusts, and what it shows. The default trusts the authorities of the platform and shows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteTls {
    /// The authorities that may sign the listener's certificate, as PEM. Without it those of the platform, or of `SSL_CERT_FILE`.
    pub ca: Option<PathBuf>,
    /// One's own certificate, with those between it and its authority, and its private key, both as PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why there is no TLS: the kind of the error, and the reason in words.
pub type NoTls = (Kind, String);

impl RemoteTls {
    /// Does the handshake with the listener at `address` on `stream`.
    ///
    /// # Errors
    /// `Unavailable`: the connection broke, or a file is not good now, as while somebody replaces it: [`check`](Self::check) found it
    /// good at the start. `Invalid`: the listener is not trusted, or speaks no TLS.
    /// `Unauthorized`: it does not take the worker's certificate.
    pub async fn connect(&self, address: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, NoTls> {
        let name = host(address).to_owned();
        let name = ServerName::try_from(name).map_err(|error| (Kind::Invalid, format!("{address}: {error}")))?;
        let files = self.clone();
        let read = tokio::task::spawn_blocking(move || files.usual()).await;
        let read = read.map_err(|error| (Kind::Unavailable, error.to_string()))?;
        let config = read.map_err(|error| (Kind::Unavailable, error))?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
            let kind = kind(&error);
            (kind, format!("TLS with {address}: {error}{}", hint(&error)))
        })
    }

    /// Finds that the files can be read.
    ///
    /// # Errors
    /// The first that is not good, in words.
    pub fn check(&self) -> Result<(), String> {
        self.usual().map(drop)
    }

    fn usual(&self) -> Result<ClientConfig, String> {
        self.config(self.verifier()?, &[PROTOCOL])
    }

    /// The judge of a server's certificate: it trusts what these files say.
    ///
    /// # Errors
    /// A file that is not good, or a platform without authorities, in words.
    pub fn verifier(&self) -> Result<Arc<WebPkiServerVerifier>, String> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(file) => {
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(
                        "this machine trusts no authorities of its own: name the listener's with --ca".to_owned()
                    );
                }
            }
        }
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        builder.build().map_err(|error| error.to_string())
    }

    /// The settings of a handshake in which `verifier` judges the server and `protocols` are offered (ALPN).
    ///
    /// # Errors
    /// A file that is not good, in words.
    pub fn config(&self, verifier: Arc<dyn ServerCertVerifier>, protocols: &[&[u8]]) -> Result<ClientConfig, String> {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", key.display());
                let chain = certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| wrong(&error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| wrong(&error))?
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The kind of a failure of a connection over TLS.
pub(super) fn kind(error: &io::Error) -> Kind {
    use AlertDescription as Alert;
    match cause(error) {
        Some(Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::UnknownCA
            | Alert::AccessDenied,
        )) => Kind::Unauthorized,
        Some(Error::InvalidCertificate(_) | Error::InvalidMessage(_) | Error::NoApplicationProtocol) => Kind::Invalid,
        Some(Error::AlertReceived(Alert::NoApplicationProtocol)) => Kind::Invalid,
        _ => Kind::Unavailable,
    }
}

/// The way out, for people.
fn hint(error: &io::Error) -> &'static str {
    match cause(error) {
        Some(Error::InvalidCertificate(_)) => ": is its authority the one of --ca?",
        Some(Error::InvalidMessage(_)) => ": it does not speak TLS",
        Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => ": it does not speak relay's protocol",
        _ => "",
    }
}

fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|error| error.downcast_ref())
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{}: there is no certificate in it", file.display())),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let size = fs::metadata(file).map_err(|error| wrong(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(wrong(&format!("it has {size} bytes, and at most {FILE_BYTES_MAX} are read")));
    }
    fs::read(file).map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_address_is_the_name_that_a_certificate_has() {
        for (address, expected) in
            [("relay.example:7411", "relay.example"), ("10.0.0.1:7411", "10.0.0.1"), ("[::1]:7411", "::1")]
        {
            assert_eq!(host(address), expected);
            assert!(ServerName::try_from(expected).is_ok());
        }
    }
}
