//! TLS of the listeners: one set of files for a process, which can be read again and is swapped as a whole.
//!
//! # Layout
//!
//! - `authorities`: the authorities that sign clients' certificates, each with the names that it may give and its own list of
//!   revoked ones.
//! - `names`: those names, and the one of a certificate that counts.
//! - `handshake`: a new connection, from its first byte to the end of its handshake.
//! - `expiry`: until when they are good. `pem`: files that can't be read, for people.
//! - `stream`: a connection with TLS or without.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use relay_bridge::support::lock;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConfig as Config};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::sync::watch;

pub(crate) mod authorities;
mod expiry;
pub(crate) mod handshake;
pub(crate) mod names;
mod pem;
pub(crate) mod stream;

use authorities::{Asking, Authorities};
pub use expiry::Expiry;
pub use handshake::{Handshake, HandshakeCounts, Secured};
pub use names::{InvalidPattern, NamePattern};
use pem::Wanted;

/// The largest file that is read, in bytes: lists of revoked certificates may be long.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How often files whose end is near are warned of.
const WARN_EVERY: Duration = Duration::from_secs(6 * 3_600);
/// The most authorities: each may be asked about a client's certificate.
pub const AUTHORITIES_MAX: usize = 64;

/// The files of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// The authorities that sign clients' certificates; at most [`AUTHORITIES_MAX`].
    pub authorities: Vec<AuthorityFiles>,
}

/// An authority that signs clients' certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// Its certificates, as PEM.
    pub file: PathBuf,
    /// The names that it may give. A certificate with another one names nobody.
    pub names: Vec<NamePattern>,
    /// The lists of certificates that it revoked, as PEM: one for each authority of a chain. Without it none are looked for.
    pub crl: Option<PathBuf>,
}

/// Whether a listener asks clients for certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    /// It does not.
    #[default]
    Off,
    /// It does, and takes clients without one.
    Optional,
    /// It does, and a handshake without one fails.
    Required,
}

/// Everything that is wrong with the files. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Mistakes {}

impl From<Mistakes> for Vec<String> {
    fn from(mistakes: Mistakes) -> Self {
        mistakes.0
    }
}

/// The certificates of a running process.
pub struct Tls {
    files: TlsFiles,
    snapshot: RwLock<Arc<Snapshot>>,
    /// Tells connections that the authorities may have changed.
    changes: watch::Sender<()>,
    handshakes: HandshakeCounts,
}

/// The content of all files at one time.
struct Snapshot {
    key: Arc<CertifiedKey>,
    authorities: Arc<Authorities>,
    expiries: Vec<Expiry>,
    /// The configuration of handshakes, by protocol and by what is asked of clients: made once, so that what it costs is not each
    /// connection's, and that sessions can be resumed where nothing is asked.
    configs: Mutex<Configs>,
}

type Configs = HashMap<(&'static [&'static [u8]], ClientAuth), Arc<ServerConfig>>;

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads `files`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn open(files: TlsFiles) -> Result<Arc<Self>, Mistakes> {
        let snapshot = RwLock::new(Arc::new(Snapshot::read(&files)?));
        Ok(Arc::new(Self { files, snapshot, changes: watch::Sender::new(()), handshakes: HandshakeCounts::default() }))
    }

    /// Reads all files again, and takes them as a whole. New handshakes have them from then on, and connections whose
    /// certificate is not good any more are asked to leave.
    ///
    /// # Errors
    /// Everything that is wrong with them; those read before stand.
    pub fn reload(&self) -> Result<(), Mistakes> {
        let snapshot = Snapshot::read(&self.files)?;
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        self.changes.send_replace(());
        Ok(())
    }

    /// How often handshakes with these certificates had which end, on all listeners together.
    #[must_use]
    pub fn handshakes(&self) -> &HandshakeCounts {
        &self.handshakes
    }

    /// Until when each file is good, as far as it says so.
    #[must_use]
    pub fn expiries(&self) -> Vec<Expiry> {
        self.snapshot().expiries.clone()
    }

    /// Warns of files whose end is near, at once, at each change and several times a day. Never ends by itself.
    pub async fn watch(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            self.snapshot().expiries.iter().for_each(Expiry::warn);
            // There is a sender as long as `self` is there.
            tokio::time::timeout(WARN_EVERY, changes.changed()).await.ok();
        }
    }

    /// Every file that it reads.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let authorities = self.files.authorities.iter().flat_map(|one| [Some(&one.file), one.crl.as_ref()]).flatten();
        [&self.files.certificate, &self.files.key].into_iter().chain(authorities).cloned().collect()
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Snapshot {
    fn read(files: &TlsFiles) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut expiries = Vec::new();
        let key = certified_key(files).map_err(|error| mistakes.push(error)).ok();
        let authorities = Authorities::read(&files.authorities, &mut expiries);
        let authorities = authorities.map_err(|mut errors| mistakes.append(&mut errors)).ok();
        match (key, authorities) {
            (Some(key), Some(authorities)) if mistakes.is_empty() => {
                expiries.extend(Expiry::of_certificates("certificate", &files.certificate, &key.cert));
                Ok(Self { key: Arc::new(key), authorities: Arc::new(authorities), expiries, configs: Mutex::default() })
            }
            _ => Err(Mistakes(mistakes)),
        }
    }

    /// For handshakes that speak `protocols`. Nothing is resumed where certificates are asked for, so that each connection's
    /// is looked at; early data is never taken, because it may be sent again by others.
    fn config(
        &self,
        protocols: &'static [&'static [u8]],
        clients: ClientAuth,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut configs = lock(&self.configs);
        let by = (protocols, clients);
        if let Some(config) = configs.get(&by) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.new_config(protocols, clients)?);
        configs.insert(by, Arc::clone(&config));
        Ok(config)
    }

    fn new_config(&self, protocols: &[&[u8]], clients: ClientAuth) -> Result<ServerConfig, rustls::Error> {
        let builder = Config::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let asks = clients != ClientAuth::Off;
        let builder = if asks {
            let mandatory = clients == ClientAuth::Required;
            builder.with_client_cert_verifier(Arc::new(Asking::new(Arc::clone(&self.authorities), mandatory)))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        if asks {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }
}

fn certified_key(files: &TlsFiles) -> Result<CertifiedKey, String> {
    let chain = certificates(&files.certificate)?;
    let wrong = |error: &dyn fmt::Display| format!("{}: {error}", files.key.display());
    let bytes = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes);
    let key = key.map_err(|error| wrong(&pem::unreadable(Wanted::Key, &bytes, &error)))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong(&format!("it is not the key of the certificate in {}", files.certificate.display()))
        }
        error => wrong(&error),
    })
}

/// The certificates of a file, one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err(format!("{}: {}", path.display(), pem::missing(Wanted::Certificate, &bytes)))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{}: {}", path.display(), pem::unreadable(Wanted::Certificate, &bytes, &error))),
    }
}

/// The lists of revoked certificates of a file, one at least.
fn lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{}: {}", path.display(), pem::missing(Wanted::List, &bytes))),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{}: {}", path.display(), pem::unreadable(Wanted::List, &bytes, &error))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let wrong = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let size = fs::metadata(path).map_err(|error| wrong(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(wrong(&format!("it has {size} bytes, and at most {FILE_BYTES_MAX} are read")));
    }
    fs::read(path).map_err(|error| wrong(&error))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
