//! The certificates of a server, as its settings say them.

use std::sync::Arc;

use super::exit::CliError;
use crate::config::settings::Listen;
use crate::tls::{AuthorityFiles, Tls, TlsFiles};

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
