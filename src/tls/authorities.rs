//! The authorities that sign clients' certificates. Each is asked alone, so that it is known which one vouches for a certificate:
//! the name in it counts only if that one may give it.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

use super::{AuthorityFiles, Expiry, NamePattern, certificates, lists, names, provider};
use crate::auth::presented::Certificate;

/// The bytes of a fingerprint that are shown.
const FINGERPRINT_BYTES: usize = 8;

/// All authorities of a process.
pub(crate) struct Authorities(Vec<Authority>);

struct Authority {
    names: Vec<NamePattern>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Authorities {
    /// Reads their files, and adds until when each is good.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(super) fn read(files: &[AuthorityFiles], expiries: &mut Vec<Expiry>) -> Result<Self, Vec<String>> {
        let (mut authorities, mut mistakes) = (Vec::new(), Vec::new());
        for one in files {
            match verifier(one, expiries) {
                Ok(verifier) => authorities.push(Authority { names: one.names.clone(), verifier }),
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
            match authority.verifier.verify_client_cert(certificate, between, now) {
                Ok(_) => vouching.push(authority),
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
                // Its own authority knows the reason.
                Err(error) => refused = error,
            }
        }
        if vouching.is_empty() { Err(refused) } else { Ok(vouching) }
    }
}

fn verifier(files: &AuthorityFiles, expiries: &mut Vec<Expiry>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    let certificates = certificates(&files.file)?;
    expiries.extend(Expiry::of_certificates("authority", &files.file, &certificates));
    for certificate in certificates {
        roots.add(certificate).map_err(|error| format!("{}: {error}", files.file.display()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = match &files.crl {
        // Of the whole chain, and one whose next list is due vouches for nobody.
        Some(crl) => {
            let lists = lists(crl)?;
            expiries.extend(Expiry::of_lists(crl, &lists));
            builder.with_crls(lists).enforce_revocation_expiration()
        }
        None => builder,
    };
    builder.build().map_err(|error| format!("{}: {error}", files.file.display()))
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
        let hints = authorities.0.iter().flat_map(|one| one.verifier.root_hint_subjects()).cloned().collect();
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
