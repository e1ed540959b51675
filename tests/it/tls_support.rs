//! Authorities, certificates and a client of TLS, as a test wants them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use relay::auth::{self, Authenticator};
use relay::tls::{AuthorityFiles, TlsFiles};
use relay_bridge::clock::Clock;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An authority of a test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::until(name, 4096)
    }

    /// One whose own certificate is good until the first day of this year.
    pub(crate) fn until(name: &str, year: i32) -> Self {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(year, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate with these names; those with `://` are URIs. Its serial number is `serial`.
    pub(crate) fn signs(&self, names: &[&str], serial: u64) -> Identity {
        self.signs_for(names, serial, None)
    }

    /// The same, which expires within `left`, if that is given.
    pub(crate) fn signs_for(&self, names: &[&str], serial: u64, left: Option<Duration>) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "cn.a.example");
        let san = |name: &&str| match name.contains("://") {
            true => SanType::URI((*name).try_into().unwrap()),
            false => SanType::DnsName((*name).try_into().unwrap()),
        };
        params.subject_alt_names = names.iter().map(san).collect();
        params.serial_number = Some(SerialNumber::from(serial));
        if let Some(left) = left {
            params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(UnixTime::now().as_secs()) + left;
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A certificate with these names, which is good from the first day of one year to that of another.
    pub(crate) fn signs_between(&self, names: &[&str], from: i32, until: i32) -> Identity {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A list of revoked certificates, good until the end of `until`.
    pub(crate) fn revokes(&self, serials: &[u64], until: i32) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 12, 31),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }
}

/// The files of a server, whose own certificate is good for `localhost`.
pub(crate) struct Files {
    dir: TempDir,
    /// The authority of the server's own certificate.
    pub(crate) server: Authority,
    pub(crate) files: TlsFiles,
}

impl Files {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Authority::new("server");
        let files = TlsFiles {
            certificate: dir.path().join("tls.pem"),
            key: dir.path().join("tls.key"),
            authorities: Vec::new(),
        };
        let new = Self { dir, server, files };
        new.renew();
        new
    }

    /// The same with the authority `a`, whose `spiffe://a.example/batch` alone is the client `batch`.
    pub(crate) fn of_batch() -> (Self, Authority, Authenticator) {
        let (mut files, a) = (Self::new(), Authority::new("a"));
        files.trust(&a, &["spiffe://a.example/*"], None);
        let block = "[[client]]\nname = \"batch\"\nany = [[{ mtls = \"spiffe://a.example/batch\" }]]\n";
        let clients = Some(files.write("clients.toml", block));
        let authenticator = Authenticator::open(auth::Files { keys: None, clients }, Clock::system()).unwrap();
        (files, a, authenticator)
    }

    /// Writes a new certificate for the server.
    pub(crate) fn renew(&self) {
        let identity = self.server.signs(&["localhost"], 1);
        fs::write(&self.files.certificate, identity.certificate).unwrap();
        fs::write(&self.files.key, identity.key).unwrap();
    }

    /// Writes a file beside the others.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Trusts `authority` with `names`, and with a list of revoked certificates if there is one.
    pub(crate) fn trust(&mut self, authority: &Authority, names: &[&str], crl: Option<&str>) {
        let number = self.files.authorities.len();
        let file = self.write(&format!("ca-{number}.pem"), authority.pem());
        let crl = crl.map(|crl| self.write(&format!("crl-{number}.pem"), crl));
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        self.files.authorities.push(AuthorityFiles { file, names, crl });
    }

    /// A client that trusts the server, with these protocols and this certificate.
    pub(crate) fn client(&self, protocols: &[&str], identity: Option<&Identity>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.server.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A connection with TLS.
pub(crate) async fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    over(TcpStream::connect(address).await?, config).await
}

/// TLS on a connection that is there.
pub(crate) async fn over(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::clone(config)).connect("localhost".try_into().unwrap(), stream).await
}

/// One request on a connection that goes on, and its answer's head and body of a known length.
pub(crate) async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) -> io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut text = String::new();
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if length.is_none_or(|length| body.len() >= length.parse().unwrap()) {
                return Ok(text);
            }
        }
        let mut bytes = [0; 4 * 1024];
        match stream.read(&mut bytes).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => text.push_str(std::str::from_utf8(&bytes[..read]).unwrap()),
        }
    }
}
