//! The way to a server below HTTP: its name, its addresses, and the packets that pass.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::step::Failure;
use super::zones::{self, ZoneId};

/// How long a name may take to be resolved, and an address to take a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses that are tried at most. An interface endpoint has one for each zone.
const ADDRESSES_MAX: usize = 16;

/// The addresses of a server, for a host in the zone `here`.
///
/// # Errors
/// There are none, one of them is public, or the name is that of an endpoint in another region.
pub(super) async fn resolve(
    host: &str,
    port: u16,
    here: Option<&ZoneId>,
) -> Result<(Vec<SocketAddr>, String), Failure> {
    let bare = host.trim_matches(['[', ']']);
    let found = match timeout(PATIENCE, lookup_host((bare, port))).await {
        Ok(Ok(found)) => Ok(found.take(ADDRESSES_MAX).collect::<Vec<_>>()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    };
    let addresses = found.and_then(|found| if found.is_empty() { Err("no address".to_owned()) } else { Ok(found) });
    let addresses = addresses.map_err(|why| {
        Failure::new(
            format!("{host} can't be resolved: {why}"),
            "ask the resolver of the VPC that has the interface endpoint: turn private DNS of the endpoint on, or use a \
             name that the endpoint has by itself (vpce-…)",
        )
    })?;
    let list = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
    if let Some(public) = addresses.iter().find(|address| !is_private(address.ip())) {
        return Err(Failure::new(
            format!("{host} is {list}, and {} is a public address", public.ip()),
            "relay is reached by private addresses alone: this host asks a public resolver, or private DNS of the endpoint \
             is off",
        ));
    }
    let zones = zones::told(host, here)?;
    let detail =
        if bare.parse::<IpAddr>().is_ok() { format!("{bare} is an address") } else { format!("{host} is {list}") };
    Ok((addresses, format!("{detail}{zones}")))
}

/// Connections to every address.
///
/// # Errors
/// One of them takes none.
pub(super) async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, String), Failure> {
    let mut tries = JoinSet::new();
    for address in addresses.iter().copied() {
        tries.spawn(async move {
            let begun = Instant::now();
            let connected = timeout(PATIENCE, TcpStream::connect(address)).await;
            (address, connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())), begun.elapsed())
        });
    }
    let (mut open, mut failed, mut slowest) = (None, Vec::new(), Duration::ZERO);
    while let Some(Ok((address, connected, took))) = tries.join_next().await {
        match connected {
            Ok(stream) => {
                slowest = slowest.max(took);
                open.get_or_insert(stream);
            }
            Err(error) => failed.push((address, error)),
        }
    }
    match (open, failed.first()) {
        (Some(stream), None) => {
            let packets =
                packets(&stream).map_or_else(String::new, |bytes| format!(", packets of {bytes} bytes of data"));
            let count = addresses.len();
            let each = if count == 1 { "it takes".to_owned() } else { format!("all {count} addresses take") };
            Ok((stream, format!("{each} connections, within {:.1} ms{packets}", slowest.as_secs_f64() * 1_000.0)))
        }
        (open, Some((address, error))) => {
            let others = match open {
                Some(_) => " (other addresses do: an endpoint in one zone, or its way to the balancer, is broken)",
                None => "",
            };
            Err(Failure::new(format!("{address} takes no connection: {error}{others}"), refused_hint(error)))
        }
        (None, None) => Err(Failure::new("no address could be tried", "run it again")),
    }
}

fn refused_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
            "something is there and does not listen: look at the port, the balancer's listener, and whether its target group \
             has a healthy target"
        }
        io::ErrorKind::TimedOut => {
            "packets are dropped: the security group of the interface endpoint needs an *inbound* rule for this client and \
             port, this client's group an outbound one; network ACLs both ways; then the groups of balancer and nodes"
        }
        _ => "there is no way to that address from here: look at routes, and at the VPC that the endpoint is in",
    }
}

/// The bytes of data that a packet of the connection carries, as the system has found.
fn packets(stream: &TcpStream) -> Option<u32> {
    SockRef::from(stream).tcp_mss().ok()
}

/// Addresses that no packet from the internet has: RFC 1918, RFC 6598, RFC 4193, loopback and link-local.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_the_internet_does_not_route_are_private() {
        for address in ["10.0.1.2", "172.31.0.1", "192.168.0.1", "100.64.0.1", "127.0.0.1", "fd00::1", "::1"] {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        for address in ["172.32.0.1", "100.128.0.1", "8.8.8.8", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }

    #[tokio::test]
    async fn a_public_address_is_a_failure_with_a_way_out() {
        let failure = resolve("192.0.2.7", 443, None).await.unwrap_err();
        assert!(failure.detail.contains("192.0.2.7 is a public address"), "{failure:?}");
        assert!(failure.hint.contains("private DNS"), "{failure:?}");
    }
}
