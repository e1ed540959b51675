//! TLS of commands that connect to a server: whom they trust, and the certificate that they show.

use std::path::PathBuf;

use clap::Args;

use super::contexts::Context;
use crate::client::tls::ClientTls;

/// Whom a command trusts, and what it shows.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TlsArgs {
    /// Trust servers whose certificate an authority of this file signed (PEM) [default: the context's, else the system's]
    #[arg(long, value_name = "FILE", env = "RELAY_CA")]
    ca: Option<PathBuf>,
    /// Show this certificate, with those between it and its authority (PEM)
    #[arg(long, value_name = "FILE", env = "RELAY_CERTIFICATE", requires = "certificate_key")]
    certificate: Option<PathBuf>,
    /// The private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "RELAY_CERTIFICATE_KEY", requires = "certificate")]
    certificate_key: Option<PathBuf>,
}

impl TlsArgs {
    /// The same, with what `context` has where nothing was given.
    pub(crate) fn over(self, context: &Context) -> ClientTls {
        let identity = self.certificate.zip(self.certificate_key);
        let stored = context.certificate.clone().zip(context.certificate_key.clone());
        ClientTls { ca: self.ca.or_else(|| context.ca.clone()), identity: identity.or(stored) }
    }
}
