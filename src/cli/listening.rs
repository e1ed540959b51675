//! The listeners of a server, as its settings say them: judged, bound, and said.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tracing::info;

use super::exit::CliError;
use super::serve::{bind, no_auth_only_on_loopback};
use crate::api::ListenerView;
use crate::config::listeners::{Listener, Protocol};
use crate::config::settings::{AskedCertificate, ProxyHeader, TlsOf};
use crate::ingress::front::{Bound, Front};
use crate::ingress::proxy::Proxy;
use crate::tls::stream::{HTTP, RELAY};
use crate::tls::{ClientAuth, Secured, Tls};

/// The sockets of a server, by their protocol.
#[derive(Default)]
pub(super) struct Sockets {
    pub(super) http: Vec<Bound>,
    pub(super) tcp: Vec<Bound>,
    pub(super) workers: Vec<Bound>,
    /// The facts that are said of each, by its name.
    said: Map<String, Value>,
}

/// Finds that nobody can reach a listener who must not, or in clear text.
///
/// # Errors
/// A usage error about the first one that is open.
pub(super) fn judge(listeners: &[Listener], no_auth: bool) -> Result<(), CliError> {
    for one in listeners {
        if no_auth {
            no_auth_only_on_loopback(&one.called(), one.address)?;
        }
        if one.tls == TlsOf::Off && !one.address.ip().is_loopback() {
            return Err(CliError::usage(format!(
                "{}: others can reach it, and keys and payloads would come in clear text",
                one.called()
            ))
            .hint(match one.protocol {
                Protocol::Http => {
                    "give a certificate with --tls-cert and --tls-key, or add --tls terminated-in-front if a proxy or load \
                     balancer in front ends TLS and the network behind it is trusted"
                }
                Protocol::Relay => {
                    "write a [[listener]] with protocol = \"relay\" and tls = \"on\", or \"terminated-in-front\" if something in \
                     front ends TLS and the network behind it is trusted"
                }
                Protocol::Worker => {
                    "give a certificate with --tls-cert and --tls-key, and add --worker-tls on; or --worker-tls \
                     terminated-in-front if something in front ends TLS and the network behind it is trusted"
                }
            }));
        }
    }
    Ok(())
}

impl Sockets {
    /// Binds all of them; those with TLS show the certificates of `tls`.
    ///
    /// # Errors
    /// A usage error about the first one that can't be bound, or that has no certificate.
    pub(super) async fn bind(listeners: &[Listener], tls: Option<&Arc<Tls>>) -> Result<Self, CliError> {
        let mut sockets = Self::default();
        for one in listeners {
            let listener = bind(one.flag(), one.address).await?;
            let front = Arc::new(Front {
                proxy: (one.proxy == ProxyHeader::Required).then(|| Proxy::new(one.trusted.clone())),
                tls: match (one.tls, tls) {
                    (TlsOf::On, Some(tls)) => Some(one.secured(tls)),
                    (TlsOf::On, None) => {
                        return Err(CliError::usage(format!("{}: there is no certificate", one.called()))
                            .hint("give one with --tls-cert and --tls-key"));
                    }
                    (TlsOf::Off | TlsOf::TerminatedInFront, _) => None,
                },
            });
            let bound = Bound { listener, front };
            let (of_protocol, plain): (_, &'static [&'static [u8]]) = match one.protocol {
                Protocol::Http => (&mut sockets.http, HTTP),
                Protocol::Relay => (&mut sockets.tcp, &[RELAY]),
                Protocol::Worker => (&mut sockets.workers, &[RELAY]),
            };
            if let Some(ListenerView { address, protocols, tls }) = bound.view(plain) {
                let protocol = one.protocol.as_str();
                let said = json!({ "address": address, "protocol": protocol, "protocols": protocols, "tls": tls });
                sockets.said.insert(one.name.clone(), said);
            }
            of_protocol.push(bound);
        }
        Ok(sockets)
    }

    /// Says of each which address speaks what. Gives it back for programs.
    pub(super) fn say(&mut self, listeners: &[Listener]) -> Value {
        for one in listeners {
            let address = self.said.get(&one.name).and_then(|said| said["address"].as_str()).unwrap_or_default();
            let header = if one.proxy == ProxyHeader::Required { ", behind a PROXY header" } else { "" };
            let certificates = match one.client_auth {
                AskedCertificate::Off => "",
                AskedCertificate::Optional => ", with a certificate or without",
                AskedCertificate::Required => ", with a certificate",
            };
            match (one.protocol, one.tls) {
                (Protocol::Http, TlsOf::On) => {
                    info!("relay listens on https://{address}{header}{certificates}");
                    info!("clients connect to relays://{address} as well{header}{certificates}");
                }
                (Protocol::Http, _) => info!("relay listens on http://{address}{header}"),
                (Protocol::Relay, TlsOf::On) => info!("clients connect to relays://{address}{header}{certificates}"),
                (Protocol::Relay, _) => info!("clients connect to relay://{address}{header}"),
                (Protocol::Worker, TlsOf::On) => info!("workers connect to tls://{address}{header}{certificates}"),
                (Protocol::Worker, _) => info!("workers connect to {address}{header}"),
            }
        }
        Value::Object(std::mem::take(&mut self.said))
    }
}

impl Listener {
    /// The flag of its address, or its name.
    fn flag(&self) -> &str {
        match (self.line, self.protocol) {
            (Some(_), _) => &self.name,
            (None, Protocol::Http) => "--listen",
            (None, Protocol::Relay) => "--tcp",
            (None, Protocol::Worker) => "--worker-listen",
        }
    }

    fn secured(&self, tls: &Arc<Tls>) -> Secured {
        let clients = match self.client_auth {
            AskedCertificate::Off => ClientAuth::Off,
            AskedCertificate::Optional => ClientAuth::Optional,
            AskedCertificate::Required => ClientAuth::Required,
        };
        match self.protocol {
            Protocol::Http => Secured::clients(Arc::clone(tls), clients),
            Protocol::Relay | Protocol::Worker => Secured::relay(Arc::clone(tls), clients),
        }
    }
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
            ("--listen 0.0.0.0:7410 --tls-cert c --tls-key k", true),
            ("--listen 0.0.0.0:7410 --proxy required --proxy-trusted 10.0.0.1", false),
            ("--tcp 127.0.0.1:7413", true),
            ("--tcp 0.0.0.0:7413", false),
            ("--tcp 0.0.0.0:7413 --tls-cert c --tls-key k", false),
            ("--worker-listen 127.0.0.1:7411", true),
            ("--worker-listen 0.0.0.0:7411", false),
            ("--worker-listen 0.0.0.0:7411 --tls-cert c --tls-key k", false),
            ("--worker-listen 0.0.0.0:7411 --tls-cert c --tls-key k --worker-tls on", true),
            ("--worker-listen 0.0.0.0:7411 --worker-tls terminated-in-front", true),
        ] {
            let settings = settings("serve", &format!("--memory --keys k {flags}"), &[]).unwrap();
            let taken = judge(&settings.listeners, false);
            assert_eq!(taken.is_ok(), is_taken, "{flags}");
            let said = taken.err().map(|error| error.to_string());
            assert!(said.is_none_or(|said| said.contains("clear text")), "{flags}");
        }
    }
}
