//! The certificates of a server, as its settings say them.

use std::path::PathBuf;
use std::sync::Arc;

use super::exit::CliError;
use crate::config::settings::{Listen, Scaler, ScalerTls, Settings, TlsOf};
use crate::tls::{AuthorityFiles, ClientAuth, Secured, Tls, TlsFiles};

/// The certificates of a server, if it has any.
///
/// # Errors
/// A usage error with everything that is wrong with the files.
pub(super) fn of(listen: &Listen, authorities: Vec<AuthorityFiles>) -> Result<Option<Arc<Tls>>, CliError> {
    let (Some(certificate), Some(key)) = (listen.tls_cert.clone(), listen.tls_key.clone()) else { return Ok(None) };
    let tls = Tls::open(TlsFiles { certificate, key, authorities })
        .map_err(|mistakes| CliError::usage(format!("TLS certificates: {mistakes}")))?;
    Ok(Some(tls))
}

/// The certificates of a process that shows them at its admin port alone, if it does.
///
/// # Errors
/// A usage error with everything that is wrong with the files.
pub(super) fn of_admin(settings: &Settings) -> Result<Option<Arc<Tls>>, CliError> {
    if settings.admin.listen.is_none() || settings.admin.tls != TlsOf::On {
        return Ok(None);
    }
    of(&settings.listen, Vec::new())
}

/// TLS of the scaler's listener, if it speaks TLS: with the server's certificate, and with authorities of its own, so that a
/// certificate of a client of jobs is none there.
///
/// # Errors
/// A usage error with everything that is wrong with the files, or if others could reach the listener in clear text.
pub(super) fn of_scaler(listen: &Listen, scaler: &Scaler) -> Result<Option<(Arc<Tls>, Secured)>, CliError> {
    let Some(address) = scaler.listen else { return Ok(None) };
    let (Some(certificate), Some(key), ScalerTls::Here) = (&listen.tls_cert, &listen.tls_key, scaler.tls) else {
        if address.ip().is_loopback() || scaler.tls == ScalerTls::Off {
            return Ok(None);
        }
        return Err(CliError::usage(format!(
            "--scaler {address}: others can reach it, and KEDA would come in clear text"
        ))
        .hint(
            "give a certificate with --tls-cert and --tls-key, or add --scaler-tls off if the network is trusted and \
                 lets nobody but KEDA reach it",
        ));
    };
    let (certificate, key) = (certificate.clone(), key.clone());
    let authority = |file: &PathBuf| AuthorityFiles { file: file.clone(), names: Vec::new(), crl: None };
    let authorities: Vec<_> = scaler.client_ca.iter().map(authority).collect();
    let clients = if authorities.is_empty() { ClientAuth::Off } else { ClientAuth::Required };
    let tls = Tls::open(TlsFiles { certificate, key, authorities })
        .map_err(|mistakes| CliError::usage(format!("TLS certificates of the scaler: {mistakes}")))?;
    Ok(Some((Arc::clone(&tls), Secured::scaler(tls, clients))))
}
