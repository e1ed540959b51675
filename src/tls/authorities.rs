//! The authorities that sign clients' certificates. Each is asked alone, so that it is known which one vouches for a certificate:
//! the name in it counts only if that one may give it.

use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use sha2::{Digest as _, Sha256};

use super::{AuthorityFiles, Expiry, NamePattern, certificates, expiry, lists, names, provider};
use crate::auth::presented::Certificate;

/// The bytes of a fingerprint that are shown.
const FINGERPRINT_BYTES: usize = 8;
/// The most certificates of one authority: each may be asked about a client's.
const ANCHORS_MAX: usize = 16;

/// The characters of a name that are shown of a certificate that is refused.
const NAME_SHOWN_MAX: usize = 256;

/// All authorities of a process.
pub(crate) struct Authorities(Vec<Authority>);

struct Authority {
    names: Vec<NamePattern>,
    /// One for each of its certificates: the old one and the new one of an authority that changes its own are in one file.
    anchors: Vec<Anchor>,
}

struct Anchor {
    verifier: Arc<dyn ClientCertVerifier>,
    /// When it expires, in seconds since 1970: webpki looks at that of every certificate but this one.
    ends: i64,
    file: PathBuf,
}

/// The certificate of an authority has expired; beside its file the name in the certificate that it signed, as far as it is shown.
#[derive(Debug, thiserror::Error)]
#[error("the certificate of its authority in {} has expired, and it is for {name}", .file.display())]
struct AuthorityExpired {
    file: PathBuf,
    name: String,
}

impl Authorities {
    /// Reads their files, and adds until when each is good.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(super) fn read(files: &[AuthorityFiles], expiries: &mut Vec<Expiry>) -> Result<Self, Vec<String>> {
        let (mut authorities, mut mistakes) = (Vec::new(), Vec::new());
        for one in files {
            match anchors(one, expiries) {
                Ok(anchors) => authorities.push(Authority { names: one.names.clone(), anchors }),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(Self(authorities)) } else { Err(mistakes) }
    }

    /// The holder of a chain of certificates, whose key was proven in the handshake.
    ///
    /// # Errors
    /// If no authority vouches for it.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Certificate, Error> {
        let (certificate, between) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let vouching = self.vouching(certificate, between, now)?;
        let name = names::of(certificate).and_then(|name| {
            let may = vouching.iter().any(|authority| authority.names.iter().any(|names| names.matches(&name)));
            if may { Ok(name) } else { Err(format!("its authority may not give the name {name}")) }
        });
        let mut fingerprint = String::with_capacity(2 * FINGERPRINT_BYTES);
        for byte in Sha256::digest(certificate).iter().take(FINGERPRINT_BYTES) {
            write!(fingerprint, "{byte:02x}").ok();
        }
        Ok(Certificate { name, fingerprint })
    }

    /// The authorities that vouch for `certificate`, one at least.
    fn vouching(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<&Authority>, Error> {
        let (mut vouching, mut refused) = (Vec::new(), Error::InvalidCertificate(CertificateError::UnknownIssuer));
        for authority in &self.0 {
            match authority.vouches(certificate, between, now) {
                Ok(()) => vouching.push(authority),
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
                // Its own authority knows the reason.
                Err(error) => refused = error,
            }
        }
        if vouching.is_empty() { Err(refused) } else { Ok(vouching) }
    }
}

impl Authority {
    /// Finds that one of its certificates that has not expired vouches for `certificate`.
    fn vouches(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut refused = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for anchor in &self.anchors {
            match anchor.verifier.verify_client_cert(certificate, between, now) {
                Ok(_) if i64::try_from(now.as_secs()).is_ok_and(|now| now <= anchor.ends) => return Ok(()),
                Ok(_) => {
                    let expired = AuthorityExpired { file: anchor.file.clone(), name: shown(certificate) };
                    refused = Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(expired))));
                }
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

/// The name in a certificate that its authority signed, for people.
fn shown(certificate: &CertificateDer<'_>) -> String {
    let name = names::of(certificate).map_or_else(|_| "nobody in particular".to_owned(), |name| name.to_string());
    name.escape_debug().take(NAME_SHOWN_MAX).collect()
}

/// The reason for which a certificate is refused, in relay's own words where it is a usual one.
pub(super) fn reason(error: &Error) -> String {
    let words = match error {
        Error::NoCertificatesPresented => "it shows no certificate, and this listener requires one",
        Error::InvalidCertificate(error) => match error {
            CertificateError::Other(other) => return other.to_string(),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
            CertificateError::Revoked => "its certificate is revoked",
            CertificateError::UnknownIssuer => "no authority of this relay signed its certificate",
            CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
                "the list of revoked certificates of its authority is overdue"
            }
            _ => "its certificate is not good",
        },
        _ => "it does not prove that its certificate is its own",
    };
    words.to_owned()
}

fn anchors(files: &AuthorityFiles, expiries: &mut Vec<Expiry>) -> Result<Vec<Anchor>, String> {
    let certificates = certificates(&files.file)?;
    if certificates.len() > ANCHORS_MAX {
        return Err(format!("{}: it has more than {ANCHORS_MAX} certificates", files.file.display()));
    }
    expiries.extend(Expiry::of_certificates("authority", &files.file, &certificates));
    let lists = files.crl.as_ref().map(|crl| lists(crl).map(|lists| (crl, lists))).transpose()?;
    if let Some((crl, lists)) = &lists {
        expiries.extend(Expiry::of_lists(crl, lists));
    }
    let wrong = |error: &dyn fmt::Display| format!("{}: {error}", files.file.display());
    let anchor = |certificate: CertificateDer<'static>| {
        let ends = expiry::end(&certificate).ok_or_else(|| wrong(&"a certificate in it can't be read"))?;
        let mut root = RootCertStore::empty();
        root.add(certificate).map_err(|error| wrong(&error))?;
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(root), provider());
        let builder = match &lists {
            // Of the whole chain, and one whose next list is due vouches for nobody.
            Some((_, lists)) => builder.with_crls(lists.clone()).enforce_revocation_expiration(),
            None => builder,
        };
        let verifier = builder.build().map_err(|error| wrong(&error))?;
        Ok(Anchor { verifier, ends, file: files.file.clone() })
    };
    certificates.into_iter().map(anchor).collect()
}

/// Asks clients for a certificate of any authority.
pub(super) struct Asking {
    authorities: Arc<Authorities>,
    mandatory: bool,
    hints: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

impl Asking {
    pub(super) fn new(authorities: Arc<Authorities>, mandatory: bool) -> Self {
        let anchors = authorities.0.iter().flat_map(|one| &one.anchors);
        let hints = anchors.flat_map(|one| one.verifier.root_hint_subjects()).cloned().collect();
        Self { authorities, mandatory, hints, provider: provider() }
    }
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking").field("mandatory", &self.mandatory).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.authorities.vouching(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
