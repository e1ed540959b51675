//! Listeners that contradict each other, themselves, or what holds for all.

use super::Finder;
use super::addresses::meet;
use crate::config::listeners::{Listener, Protocol};
use crate::config::settings::{AskedCertificate, ProxyHeader, TlsOf};

impl Finder<'_> {
    /// The tables of the file, certificates of nobody, and settings of a listener that is not there.
    pub(super) fn listeners(&mut self) {
        let listeners = self.settings.listeners.clone();
        for (at, one) in listeners.iter().enumerate() {
            if let Some(line) = one.line {
                for (key, what, fix) in self.of_table(one, &listeners[..at]) {
                    self.at(line, &format!("listener.{}{key}", one.name), what, fix);
                }
            }
        }
        self.certificates(&listeners);
        if listeners.iter().any(|one| one.line.is_none() && one.protocol == Protocol::Http) {
            return;
        }
        for key in ["listen.proxy", "listen.proxy_trusted", "listen.tls", "listen.client_auth"] {
            if self.is(key) {
                let what = "it is about the listener of `listen.http`, and there are only those of [[listener]]";
                self.add(key, what, "write it below the [[listener]] that is meant, or set `listen.http`");
            }
        }
    }

    /// The mistakes in one table, each with its key. `before` are the listeners before it.
    fn of_table(&self, one: &Listener, before: &[Listener]) -> Vec<(&'static str, String, &'static str)> {
        let mut found = Vec::new();
        if let Some(same) = before.iter().find(|known| known.name == one.name) {
            let what = format!("{} has this name", same.called());
            found.push(("", what, "give it another name"));
        }
        if let Some(same) = before.iter().find(|known| meet(known.address, one.address)) {
            let what = format!("{} listens on {} already", same.called(), same.address);
            found.push((".address", what, "give each a port of its own"));
        }
        match (one.proxy, one.trusted.is_empty()) {
            (ProxyHeader::Required, true) => found.push((
                ".proxy",
                "without `trusted` no header would be believed".to_owned(),
                "add trusted = [\"10.0.1.7\"] with your load balancer's own addresses",
            )),
            (ProxyHeader::Off, false) => found.push((
                ".trusted",
                "without `proxy` as `required` it says nothing".to_owned(),
                "leave it out, or add proxy = \"required\"",
            )),
            _ => {}
        }
        let is_open = !one.address.ip().is_loopback();
        if one.tls == TlsOf::Off && is_open && !self.is("access.no_auth") {
            found.push((
                ".tls",
                format!("others can reach {}, and keys and payloads would come in clear text", one.address),
                "write tls = \"on\", or \"terminated-in-front\" if something in front ends TLS",
            ));
        }
        if one.tls == TlsOf::On && self.settings.listen.tls_cert.is_none() {
            let what = "there is no certificate".to_owned();
            found.push((".tls", what, "set `listen.tls_cert` and `listen.tls_key`: one for all listeners"));
        }
        if one.client_auth != AskedCertificate::Off && one.tls != TlsOf::On {
            let what = "certificates are shown in the handshake of TLS".to_owned();
            found.push((".client_auth", what, "add tls = \"on\", or leave it out"));
        }
        if is_open && self.is("access.no_auth") {
            found.push((
                ".address",
                format!("others can reach {}, and `access.no_auth` lets everybody in", one.address),
                "write one of 127.0.0.1, or set `access.keys` instead",
            ));
        }
        found
    }

    /// Certificates that nobody signs, authorities that nobody asks for, and a certificate that nobody is shown.
    fn certificates(&mut self, listeners: &[Listener]) {
        let authorities = self.file.map_or(&[][..], |file| &file.authorities);
        let asks = |one: &&Listener| one.client_auth != AskedCertificate::Off;
        if let Some((_, line)) = authorities.first()
            && !listeners.iter().any(|one| asks(&one))
        {
            let fix = "leave it out, or set listen.client_auth = \"optional\" or \"required\"";
            self.at(*line, "client_ca", "without `listen.client_auth` no client is asked for a certificate", fix);
        }
        let what = "there is no [[client_ca]] that could sign a certificate";
        let fix = "add a [[client_ca]] with `file` and `names` to the file, or leave it out";
        for one in listeners.iter().filter(asks).filter(|_| authorities.is_empty()) {
            match (one.line, one.protocol) {
                (Some(line), _) => self.at(line, &format!("listener.{}.client_auth", one.name), what, fix),
                (None, Protocol::Http) => self.add("listen.client_auth", what, fix),
                (None, Protocol::Worker) => self.add("listen.worker_client_auth", what, fix),
                // It asks for none.
                (None, Protocol::Relay) => {}
            }
        }
        if !self.is("listen.workers") {
            return;
        }
        if self.is("listen.worker_tls") && self.settings.listen.worker_tls == TlsOf::On && !self.is("listen.tls_cert") {
            let cert = self.called("listen.tls_cert", "listen.worker_tls");
            self.add(
                "listen.worker_tls",
                format!("there is no certificate: {cert} is not set"),
                "add it, with its key",
            );
        }
        if self.is("listen.worker_client_auth") && self.settings.listen.worker_tls != TlsOf::On {
            let tls = self.called("listen.worker_tls", "listen.worker_client_auth");
            let what = format!("certificates are shown in the handshake of TLS, and {tls} is not `on`");
            self.add("listen.worker_client_auth", what, "leave it out, or add that");
        }
    }
}
