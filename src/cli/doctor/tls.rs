//! TLS with a server: who signed its certificate, the names in it, and how long it is good. Also of one that is not trusted.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::Timestamp;
use relay_bridge::support::lock;
use relay_remote::RemoteTls;
use reqwest::Url;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::step::Failure;

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A certificate with less than this left is to be renewed: relay warns from then on as well.
const SOON_DAYS: i64 = 7;
/// The names of a certificate that are told.
const NAMES_MAX: usize = 8;
const DAY_SECS: i64 = 24 * 3_600;

/// The protocols that are offered to `server`; none where its address is one without TLS.
pub(super) fn protocols(server: &Url) -> Option<&'static [&'static [u8]]> {
    match server.scheme() {
        "https" => Some(&[b"h2", b"http/1.1"]),
        "relays" => Some(&[b"relay/1"]),
        _ => None,
    }
}

/// Does a handshake on `stream`, and tells what the server showed.
///
/// # Errors
/// There is no TLS, or the certificate is not good for `server`.
pub(super) async fn examine(
    server: &Url,
    stream: TcpStream,
    files: &RemoteTls,
    protocols: &[&[u8]],
) -> Result<((), String), Failure> {
    let seen = Arc::new(Mutex::default());
    let ended = connect(server, stream, files, protocols, &seen).await;
    let seen = std::mem::take(&mut *lock(&seen));
    let shown = seen.first().and_then(|leaf: &CertificateDer<'_>| Shown::of(leaf, seen.len()));
    let shown_text = shown.as_ref().map(|shown| format!("; {shown}")).unwrap_or_default();
    match ended {
        Ok(stream) => {
            let session = stream.get_ref().1;
            let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
            let spoken = session.alpn_protocol().map(String::from_utf8_lossy).unwrap_or("no protocol named".into());
            Ok(((), format!("{}, {spoken}{shown_text}", version.replace("TLSv", "TLS ").replace('_', "."))))
        }
        Err(NoTls { detail, hint }) => Err(Failure::new(format!("{detail}{shown_text}"), hint)),
    }
}

/// Why there is no TLS, and the way out.
pub(super) struct NoTls {
    pub(super) detail: String,
    pub(super) hint: &'static str,
}

/// The handshake with `server` on `stream`; its chain of certificates is put into `seen`, whatever comes of it.
///
/// # Errors
/// A file is not good, or the handshake fails.
pub(super) async fn connect(
    server: &Url,
    stream: TcpStream,
    files: &RemoteTls,
    protocols: &[&[u8]],
    seen: &Arc<Mutex<Vec<CertificateDer<'static>>>>,
) -> Result<TlsStream<TcpStream>, NoTls> {
    let of_files = |detail: String| NoTls {
        detail,
        hint: "name files that are there and are PEM: --ca, --certificate, --certificate-key",
    };
    let name = server.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name)
        .map_err(|error| NoTls { detail: error.to_string(), hint: "name the server by a name or an address" })?;
    let trusted = files.verifier().map_err(of_files)?;
    let watched = Arc::new(Watched { trusted, seen: Arc::clone(seen) });
    let config = files.config(watched, protocols).map_err(of_files)?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match timeout(PATIENCE, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let known = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
            Err(NoTls { detail: error.to_string(), hint: known.map_or(CUT, hint) })
        }
        Err(_) => Err(NoTls {
            detail: format!("the handshake has no end within {} s", PATIENCE.as_secs()),
            hint: "the first packets of TLS are large, and are lost on the way: let ICMP type 3 code 4 through (security groups, \
                   firewalls), or lower the interface's MTU",
        }),
    }
}

/// The way out where the connection ends in the handshake.
const CUT: &str = "the connection is made and ends before TLS comes about: a balancer without a healthy target does that, and so does \
                   a listener with `proxy = \"required\"` that is reached past its balancer";

fn hint(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "renew the server's certificate (tls_cert; relay reads it again when it changes), if this machine's clock is right"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "set this machine's clock (NTP), or wait until the certificate is good"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "use a name that is in the certificate, or have this one added to it"
            }
            CertificateError::UnknownIssuer => {
                "its authority is not known here: name the file with that authority's certificate with --ca"
            }
            _ => "have the server's certificate made anew: this machine does not take it",
        },
        Error::InvalidMessage(_) => {
            "another protocol is spoken there: look at the port, at TLS of relay's listener (tls_cert), and write http:// or relay:// \
             where there is to be none"
        }
        Error::AlertReceived(_) => {
            "the server ends the handshake: show a certificate that it takes (--certificate, --certificate-key), and look at relay's \
             log, which has the reason"
        }
        _ => CUT,
    }
}

/// Notes the certificates that a server shows, and trusts those that `trusted` does.
#[derive(Debug)]
struct Watched {
    trusted: Arc<WebPkiServerVerifier>,
    seen: Arc<Mutex<Vec<CertificateDer<'static>>>>,
}

impl ServerCertVerifier for Watched {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        *lock(&self.seen) = chain.map(|certificate| certificate.clone().into_owned()).collect();
        self.trusted.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trusted.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trusted.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trusted.supported_verify_schemes()
    }
}

/// A certificate for people.
struct Shown {
    names: Vec<String>,
    issuer: String,
    /// The certificates that came with it, itself included.
    chain: usize,
    /// Seconds since 1970.
    ends: i64,
    days: i64,
}

impl Shown {
    /// `None` if it can't be read.
    fn of(certificate: &CertificateDer<'_>, chain: usize) -> Option<Self> {
        let (_, read) = X509Certificate::from_der(certificate).ok()?;
        let alternative = read.subject_alternative_name().ok().flatten();
        let names = alternative.iter().flat_map(|names| &names.value.general_names);
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(octets) => match <[u8; 4]>::try_from(*octets) {
                Ok(v4) => Some(IpAddr::from(v4).to_string()),
                Err(_) => <[u8; 16]>::try_from(*octets).ok().map(|v6| IpAddr::from(v6).to_string()),
            },
            _ => None,
        });
        let ends = read.validity().not_after.timestamp();
        let days = (ends - Clock::system().now().as_millis() / 1_000).div_euclid(DAY_SECS);
        Some(Self { names: names.take(NAMES_MAX).collect(), issuer: read.issuer().to_string(), chain, ends, days })
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { names, issuer, chain, ends, days } = self;
        let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
        let until = Timestamp::from_millis(ends.saturating_mul(1_000));
        write!(f, "its certificate is for {names}, signed by {issuer} (a chain of {chain}), good until {until}")?;
        match *days {
            ..0 => write!(f, ", which is over"),
            days if days < SOON_DAYS => write!(f, ", {days} days left: renew it soon"),
            days => write!(f, ", {days} days left"),
        }
    }
}
