//! Addresses that can't be: one port for two listeners, and servers that nobody could connect to. Only the latter of a file: commands
//! look at those of flags, which name them.

use std::net::{IpAddr, SocketAddr};

use relay_nats::config::NatsConfig;
use relay_sqs::config::SqsConfig;

use super::Finder;
use crate::config::listeners::Protocol;
use crate::config::settings::TLS_SCHEME;
use crate::telemetry;

const OWN_PORT: &str = "give each a port of its own";

/// Whether one process can't listen on both.
pub(super) fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |all: IpAddr, other: IpAddr| match all {
        // The system takes those of IPv4 there as well.
        IpAddr::V6(all) => all.is_unspecified(),
        IpAddr::V4(all) => all.is_unspecified() && other.is_ipv4(),
    };
    let is_same = one.ip() == other.ip() || takes(one.ip(), other.ip()) || takes(other.ip(), one.ip());
    one.port() != 0 && one.port() == other.port() && is_same
}

impl Finder<'_> {
    /// One port for two listeners of a process; those of tables are found with their table.
    pub(super) fn ports(&mut self, serves: bool) {
        let settings = self.settings;
        // A file of a worker says nothing of the addresses of a server.
        let is_of_worker = ["worker.command", "worker.http", "worker.connect"].iter().any(|key| self.is(key));
        let listeners = settings.listeners.iter().filter(|one| {
            serves && (one.line.is_some() || one.protocol != Protocol::Http || self.is("listen.http") || !is_of_worker)
        });
        let mut all: Vec<(Option<&str>, String, SocketAddr)> = Vec::new();
        for one in listeners {
            let key = match (one.line, one.protocol) {
                (Some(_), _) => None,
                (None, Protocol::Http) => Some("listen.http"),
                (None, Protocol::Relay) => Some("listen.tcp"),
                (None, Protocol::Worker) => Some("listen.workers"),
            };
            all.push((key, format!("listener {}", one.name), one.address));
        }
        for (key, address) in [
            ("admin.listen", settings.admin.listen),
            ("admin.health", settings.admin.health),
            ("scaler.listen", settings.scaler.listen),
        ] {
            all.extend(address.map(|address| (Some(key), String::new(), address)));
        }
        for (at, (key, _, address)) in all.iter().enumerate() {
            let taken = all[..at].iter().find(|(_, _, other)| meet(*address, *other));
            if let (Some(key), Some((other, table, taken))) = (key, taken) {
                let other = other.map_or(table.clone(), |other| self.called(other, key));
                self.add(key, format!("{address}: {other} listens on {taken} already"), OWN_PORT);
            }
        }
    }

    /// Servers of others that are none.
    pub(super) fn servers(&mut self) {
        let settings = self.settings;
        for (key, servers) in [("nats.servers", &settings.nats.servers), ("listen.nats", &settings.listen.nats)] {
            // `relay config show` masks a password that is there; the start refuses it.
            let servers: Vec<_> = servers.iter().filter(|server| !server.contains('@')).cloned().collect();
            if self.line(key).is_some()
                && !servers.is_empty()
                && let Err(invalid) = (NatsConfig { servers, ..NatsConfig::default() }).check()
            {
                for problem in invalid.problems() {
                    let what = problem.strip_prefix("servers: ").unwrap_or(problem);
                    self.add(key, what, "write [\"nats://HOST:PORT\"], or tls:// in front");
                }
            }
        }
        let connect = &settings.worker.connect;
        if self.line("worker.connect").is_some()
            && !is_host_and_port(connect.strip_prefix(TLS_SCHEME).unwrap_or(connect))
        {
            let fix =
                "write \"HOST:PORT\", or \"tls://HOST:PORT\": the address that `relay serve --worker-listen` printed";
            self.add("worker.connect", format!("`{connect}` is no address of a server's worker port"), fix);
        }
        if let Some(endpoint) = settings.telemetry.otlp_endpoint.as_deref().filter(|_| self.line(OTLP).is_some())
            && let Err(why) = telemetry::check_endpoint(endpoint)
        {
            let fix = "name the collector's address for OTLP over HTTP, such as \"http://127.0.0.1:4318\"";
            self.add(OTLP, format!("`{endpoint}`: {why}"), fix);
        }
        if self.is("sqs.enabled") {
            self.sqs();
        }
    }

    fn sqs(&mut self) {
        let sqs = &self.settings.sqs;
        let (mut forward, mut shares) = (Vec::new(), Vec::new());
        for text in &sqs.forward {
            match text.parse() {
                Ok(read) => forward.push(read),
                Err(why) => self.of_sqs("forward", format!("`{text}`: {why}")),
            }
        }
        for text in &sqs.share {
            match text.parse() {
                Ok(read) => shares.push(read),
                Err(why) => self.of_sqs("share", format!("`{text}`: {why}")),
            }
        }
        let config = SqsConfig {
            region: sqs.region.clone(),
            endpoint: sqs.endpoint.clone(),
            table: sqs.table.clone(),
            queue_prefix: sqs.prefix.clone(),
            forward,
            shares,
            ..SqsConfig::default()
        };
        if let Err(invalid) = config.check() {
            for problem in invalid.problems() {
                let (key, what) = problem.split_once(": ").unwrap_or(("table", problem));
                self.of_sqs(if key == "queue_prefix" { "prefix" } else { key }, what.to_owned());
            }
        }
    }

    fn of_sqs(&mut self, key: &str, what: String) {
        let key = format!("sqs.{key}");
        if self.line(&key).is_some() {
            self.add(&key, what, "correct it, or leave it out");
        }
    }
}

const OTLP: &str = "telemetry.otlp_endpoint";

/// Whether a text is a host and a port, as far as it tells.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map_or_else(
        || !host.is_empty() && !host.contains([':', '/', '@', ' ']),
        |address| address.parse::<std::net::Ipv6Addr>().is_ok(),
    );
    host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_all_interfaces_meets_each_of_its_port() {
        for (one, other, is_one) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "0.0.0.0:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::]:1", "[::1]:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "[::1]:1", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            let [first, second] = [one, other].map(|text| text.parse().unwrap());
            assert_eq!((meet(first, second), meet(second, first)), (is_one, is_one), "{one} {other}");
        }
    }

    #[test]
    fn a_host_with_its_port_is_a_servers_address() {
        for (text, fits) in [
            ("server:7411", true),
            ("10.0.0.1:7411", true),
            ("[::1]:7411", true),
            ("server", false),
            (":7411", false),
            ("server:0", false),
            ("server:99999", false),
            ("::1:7411", false),
            ("http://server:7411", false),
            ("user@server:7411", false),
        ] {
            assert_eq!(is_host_and_port(text), fits, "{text}");
        }
    }
}
