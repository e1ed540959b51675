//! `[[listener]]` tables: addresses where clients and workers connect, each with a way in of its own, beside those of `[listen]`.

use std::net::SocketAddr;
use std::ops::Range;

use relay_bridge::contract::ClientId;
use toml::Spanned;
use toml::de::DeValue;

use super::file::File;
use super::kind::{Kind, Value};
use super::mistake::meant;
use super::reader::{Reader, Table};
use super::settings::{AskedCertificate, Listen, PROXY_HEADER, ProxyHeader, TlsEnd, TlsOf};
use crate::ranges::AddressRange;

/// The list of listeners.
pub(super) const LISTENER: &str = "listener";
/// The most listeners of one file.
pub(crate) const LISTENERS_MAX: usize = 16;

/// The keys of a table, each with the kind of its value.
const KEYS: [(&str, Kind); 7] = [
    ("name", Kind::Text),
    ("address", Kind::Address),
    ("protocol", Kind::Choice(PROTOCOLS)),
    ("proxy", PROXY_HEADER),
    ("trusted", Kind::AddressRanges),
    ("tls", Kind::Choice(TLS)),
    ("client_auth", Kind::Choice(CLIENT_AUTH)),
];
const PROTOCOLS: &[(&str, &str)] = &[
    ("http", "Clients, over HTTP and with TLS over relay's TCP protocol as well"),
    ("relay", "Clients, over relay's TCP protocol"),
    ("worker", "Workers of other processes"),
];
/// Where TLS of a listener ends.
pub(super) const TLS: &[(&str, &str)] = &[
    ("off", "Nowhere: in clear text, on loopback addresses only"),
    ("on", "In relay, with --tls-cert"),
    ("terminated-in-front", "In a proxy or load balancer, and the network behind it is trusted with keys and payloads"),
];
/// Whether peers are asked for a certificate.
pub(super) const CLIENT_AUTH: &[(&str, &str)] = &[
    ("off", "They are not"),
    ("optional", "They are, and those without one are let in by their key"),
    ("required", "They are, and there is no connection without one"),
];

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP, for clients.
    Http,
    /// Relay's own, for clients.
    Relay,
    /// Relay's own, for workers.
    Worker,
}

impl Protocol {
    /// Its name in a file and in the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Relay => "relay",
            Self::Worker => "worker",
        }
    }
}

/// Where and how clients or workers connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Its name in the log: that of its table, or `http`, `tcp` and `workers` for those of `[listen]` and of flags.
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) proxy: ProxyHeader,
    /// The balancers whose header is believed.
    pub(crate) trusted: Vec<AddressRange>,
    pub(crate) tls: TlsOf,
    pub(crate) client_auth: AskedCertificate,
    /// Where its table begins, from 1; `None` for those of `[listen]` and of flags.
    pub(crate) line: Option<usize>,
}

impl Listener {
    /// Its name in a mistake.
    pub(crate) fn called(&self) -> String {
        match (self.line, self.protocol) {
            (Some(_), _) => format!("listener {}", self.name),
            (None, Protocol::Http) => format!("--listen {}", self.address),
            (None, Protocol::Relay) => format!("--tcp {}", self.address),
            (None, Protocol::Worker) => format!("--worker-listen {}", self.address),
        }
    }
}

/// All listeners of a server: those of `[listen]` and of flags first. The address for clients that holds where nobody gives one
/// makes none where `file` has one for them.
pub(crate) fn all(listen: &Listen, http_is_given: bool, file: Option<&File>) -> Vec<Listener> {
    let of_file = file.map_or(&[][..], |file| &file.listeners);
    let mut listeners = Vec::new();
    if http_is_given || of_file.iter().all(|one| one.protocol != Protocol::Http) {
        listeners.push(Listener {
            name: "http".to_owned(),
            address: listen.http,
            protocol: Protocol::Http,
            proxy: listen.proxy,
            trusted: listen.proxy_trusted.clone(),
            tls: match (listen.tls, &listen.tls_cert) {
                (TlsEnd::TerminatedInFront, _) => TlsOf::TerminatedInFront,
                (TlsEnd::Here, Some(_)) => TlsOf::On,
                (TlsEnd::Here, None) => TlsOf::Off,
            },
            client_auth: listen.client_auth,
            line: None,
        });
    }
    if let Some(address) = listen.tcp {
        listeners.push(Listener {
            name: "tcp".to_owned(),
            address,
            protocol: Protocol::Relay,
            proxy: ProxyHeader::Off,
            trusted: Vec::new(),
            tls: TlsOf::Off,
            client_auth: AskedCertificate::Off,
            line: None,
        });
    }
    if let Some(address) = listen.workers {
        listeners.push(Listener {
            name: "workers".to_owned(),
            address,
            protocol: Protocol::Worker,
            proxy: ProxyHeader::Off,
            trusted: Vec::new(),
            tls: listen.worker_tls,
            client_auth: listen.worker_client_auth,
            line: None,
        });
    }
    listeners.extend_from_slice(of_file);
    listeners
}

impl Reader<'_> {
    pub(super) fn listeners(&mut self, span: Range<usize>, value: &Spanned<DeValue<'_>>, into: &mut File) {
        for (table, span) in self.entries(LISTENER, span, value) {
            let Some(listener) = self.listener(&span, table, into) else { continue };
            let full = format!("{LISTENER}.{}", listener.name);
            if let Some(first) = into.listeners.iter().find(|known| known.name == listener.name) {
                let what = format!("this listener is on line {} already", first.line.unwrap_or_default());
                self.mistake(span, &full, what, "give one another name");
            } else if into.listeners.len() == LISTENERS_MAX {
                self.mistake(span, &full, format!("there are more than {LISTENERS_MAX}"), "leave some of them out");
            } else {
                into.listeners.push(listener);
            }
        }
    }

    /// One listener. `None` if something is wrong with it, which is noted then.
    fn listener(&mut self, span: &Range<usize>, table: &Table<'_>, into: &mut File) -> Option<Listener> {
        let name = self.name(LISTENER, Kind::Text, span.clone(), table)?;
        if name.parse::<ClientId>().is_err() {
            let what = format!("\"{name}\" is no name of a listener");
            self.mistake(span.clone(), "listener.name", what, "write small letters, digits and `-`, such as \"nlb\"");
            return None;
        }
        let before = self.mistakes.len();
        let mut address = None;
        let mut listener = Listener {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            protocol: Protocol::Http,
            proxy: ProxyHeader::Off,
            trusted: Vec::new(),
            tls: TlsOf::Off,
            client_auth: AskedCertificate::Off,
            line: Some(self.line(span)),
            name,
        };
        for (key, value) in table {
            let full = format!("{LISTENER}.{}.{}", listener.name, key.get_ref());
            let Some((known, kind)) = KEYS.iter().find(|(known, _)| known == key.get_ref()) else {
                let known = KEYS.iter().map(|(known, _)| *known);
                let fix = match meant(key.get_ref(), known.clone()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
                };
                self.mistake(key.span(), &full, "there is no such setting", fix);
                continue;
            };
            let Some(read) = self.value(&full, *kind, value) else { continue };
            match (*known, &read) {
                ("address", Value::Text(text)) => address = text.parse().ok(),
                ("protocol", Value::Text(word)) if word == "relay" => listener.protocol = Protocol::Relay,
                ("protocol", Value::Text(word)) if word == "worker" => listener.protocol = Protocol::Worker,
                ("proxy", Value::Text(word)) if word == "required" => listener.proxy = ProxyHeader::Required,
                ("trusted", Value::List(texts)) => {
                    listener.trusted = texts.iter().filter_map(|text| text.parse().ok()).collect();
                }
                ("tls", Value::Text(word)) => listener.tls = TlsOf::named(word),
                ("client_auth", Value::Text(word)) => listener.client_auth = AskedCertificate::named(word),
                _ => {}
            }
            let line = self.line(&key.span());
            into.bridge_values.push((full, read, line));
        }
        if !table.contains_key("address") {
            let fix = "write address = \"0.0.0.0:7410\", or another one with its port";
            self.mistake(span.clone(), &format!("{LISTENER}.{}.address", listener.name), "it is missing", fix);
        }
        let address = address.filter(|_| self.mistakes.len() == before)?;
        Some(Listener { address, ..listener })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file::read;

    #[test]
    fn a_listener_has_an_address_and_a_way_in_and_is_for_clients_over_http_unless_it_says_otherwise() {
        let text = "[[listener]]\nname = \"nlb\"\naddress = \"0.0.0.0:7410\"\nproxy = \"required\"\n\
                    trusted = [\"10.0.1.7\"]\ntls = \"on\"\nclient_auth = \"optional\"\n\
                    [[listener]]\nname = \"gpus\"\naddress = \"[::]:7411\"\nprotocol = \"worker\"\n";
        let (file, mistakes) = read(Path::new("relay.toml"), text);
        assert_eq!(mistakes, []);
        let nlb = Listener {
            name: "nlb".to_owned(),
            address: "0.0.0.0:7410".parse().unwrap(),
            protocol: Protocol::Http,
            proxy: ProxyHeader::Required,
            trusted: vec!["10.0.1.7".parse().unwrap()],
            tls: TlsOf::On,
            client_auth: AskedCertificate::Optional,
            line: Some(1),
        };
        let gpus = Listener {
            name: "gpus".to_owned(),
            address: "[::]:7411".parse().unwrap(),
            protocol: Protocol::Worker,
            proxy: ProxyHeader::Off,
            trusted: Vec::new(),
            tls: TlsOf::Off,
            client_auth: AskedCertificate::Off,
            line: Some(8),
        };
        assert_eq!(file.listeners, [nlb, gpus]);
    }

    #[test]
    fn every_mistake_in_listeners_is_found_with_its_line() {
        let text = "[[listener]]\nname = \"a\"\naddress = \"localhost\"\nprotocol = \"htp\"\ntsl = \"on\"\n\
                    [[listener]]\nname = \"B c\"\naddress = \"127.0.0.1:1\"\n\
                    [[listener]]\nname = \"d\"\nproxy = \"optional\"\ntrusted = [\"10.0.0.0/99\"]\n\
                    [[listener]]\nname = \"e\"\naddress = \"127.0.0.1:1\"\n\
                    [[listener]]\nname = \"e\"\naddress = \"127.0.0.1:2\"\n";
        let (_, mistakes) = read(Path::new("relay.toml"), text);
        let found: Vec<_> = mistakes.iter().map(|mistake| (mistake.line, mistake.key.as_str())).collect();
        let mut expected = [
            (3, "listener.a.address"),
            (4, "listener.a.protocol"),
            (5, "listener.a.tsl"),
            (6, "listener.name"),
            (9, "listener.d.address"),
            (11, "listener.d.proxy"),
            (12, "listener.d.trusted"),
            (16, "listener.e"),
        ];
        let mut found = found;
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}
