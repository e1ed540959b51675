//! TLS of a server, as its settings say it.

use std::sync::Arc;

use super::exit::CliError;
use crate::config::settings::{AskedCertificate, Listen, TlsEnd};
use crate::tls::{AuthorityFiles, ClientAuth, Secured, Tls, TlsFiles};

/// The certificates of a server and TLS of its listener for clients, if it speaks TLS.
///
/// # Errors
/// A usage error with everything that is wrong with the files, or if others could reach the listener in clear text.
pub(super) fn of(listen: &Listen, authorities: Vec<AuthorityFiles>) -> Result<Option<(Arc<Tls>, Secured)>, CliError> {
    let (Some(certificate), Some(key)) = (listen.tls_cert.clone(), listen.tls_key.clone()) else {
        clear_text_only_on_loopback(listen)?;
        return Ok(None);
    };
    let tls = Tls::open(TlsFiles { certificate, key, authorities })
        .map_err(|mistakes| CliError::usage(format!("TLS certificates: {mistakes}")))?;
    let clients = match listen.client_auth {
        AskedCertificate::Off => ClientAuth::Off,
        AskedCertificate::Optional => ClientAuth::Optional,
        AskedCertificate::Required => ClientAuth::Required,
    };
    Ok(Some((Arc::clone(&tls), Secured::http(tls, clients))))
}

fn clear_text_only_on_loopback(listen: &Listen) -> Result<(), CliError> {
    if listen.http.ip().is_loopback() || listen.tls == TlsEnd::TerminatedInFront {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "--listen {}: others can reach it, and keys and payloads would come in clear text",
        listen.http
    ))
    .hint(
        "give a certificate with --tls-cert and --tls-key, or add --tls terminated-in-front if a proxy or load balancer in \
         front ends TLS and the network behind it is trusted",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::configured::tests::settings;

    #[test]
    fn a_listener_in_clear_text_that_others_can_reach_is_refused_unless_tls_ends_in_front() {
        for (flags, is_taken) in [
            ("--listen 127.0.0.1:7410", true),
            ("--listen [::1]:7410", true),
            ("--listen 0.0.0.0:7410", false),
            ("--listen 10.0.0.8:7410", false),
            ("--listen [::]:7410", false),
            ("--listen 0.0.0.0:7410 --tls terminated-in-front", true),
            ("--listen 0.0.0.0:7410 --proxy required --proxy-trusted 10.0.0.1", false),
        ] {
            let listen = settings("serve", &format!("--memory --keys k {flags}"), &[]).unwrap().listen;
            let taken = of(&listen, Vec::new());
            assert_eq!(taken.is_ok(), is_taken, "{flags}");
            let said = taken.err().map(|error| error.to_string());
            assert!(said.is_none_or(|said| said.contains("clear text")), "{flags}");
        }
    }
}
