//! Which addresses a job may never reach: link-local ones and those where clouds hand out credentials.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The error's text when a name resolves to refused addresses only.
pub(super) const REFUSED: &str = "the service's name resolves to link-local or metadata addresses only";

/// Metadata services outside the link-local ranges: AWS over IPv6, Google over IPv6, Alibaba, Oracle.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Whether the address is refused. IPv4 inside IPv6 (mapped, compatible, NAT64) is judged as the IPv4 address it is.
pub(super) fn refused(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA.contains(&address),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || METADATA.contains(&address)
                || embedded_v4(v6).is_some_and(|v4| refused(IpAddr::V4(v4)))
        }
    }
}

/// Whether a URL's host is a literal address that is refused.
pub(super) fn refused_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().is_ok_and(refused)
}

fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = v6.segments();
    let mapped_or_compatible = [a, b, c, d, e] == [0; 5] && (f == 0 || f == 0xffff);
    let nat64 = [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0];
    let [one, two] = high.to_be_bytes();
    let [three, four] = low.to_be_bytes();
    (mapped_or_compatible || nat64).then(|| Ipv4Addr::new(one, two, three, four))
}

/// Resolves names with the system's resolver and drops refused addresses. It runs for every connection, so a name that
/// is pointed elsewhere later gains nothing.
#[derive(Debug)]
pub(super) struct Guarded;

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| !refused(address.ip())).collect();
            if allowed.is_empty() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, REFUSED).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_and_metadata_addresses_are_refused_in_every_spelling() {
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "169.254.170.2",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "100.100.100.200",
            "192.0.0.192",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
        ] {
            assert!(refused(address.parse().unwrap()), "{address}");
            assert!(refused_host(address), "{address}");
        }
        assert!(refused_host("[fe80::1]"));
    }

    #[test]
    fn local_and_private_services_are_allowed() {
        for address in ["127.0.0.1", "::1", "10.0.0.8", "192.168.1.1", "172.16.0.1", "fd00::1", "1.1.1.1"] {
            assert!(!refused(address.parse().unwrap()), "{address}");
        }
        assert!(!refused_host("service.local"));
    }
}
