//! Which addresses a job may never reach: link-local ones and those where clouds hand out credentials.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The error's text when a name resolves to refused addresses only.
pub(super) const REFUSED: &str = "the service's name resolves to link-local or metadata addresses only";

/// Metadata services outside the link-local ranges: Google over IPv6, Alibaba, Oracle, Azure. AWS over IPv6 is a range.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// Whether the address is refused. IPv4 inside IPv6 (mapped, compatible, 6to4, NAT64) is judged as the IPv4 address it is.
#[must_use]
pub fn refused(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA.contains(&address),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || METADATA.contains(&address)
                // The services of EC2: metadata, time, names.
                || v6.segments()[..2] == [0xfd00, 0xec2]
                || embedded_v4(v6).into_iter().flatten().any(|v4| refused(IpAddr::V4(v4)))
        }
    }
}

/// Whether a URL's host is a literal address that is refused.
pub(super) fn refused_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().is_ok_and(refused)
}

/// The IPv4 addresses that an IPv6 one may lead to. A local NAT64 prefix (RFC 8215) does not say how long it is, so that each
/// place counts where RFC 6052 puts the IPv4 address.
fn embedded_v4(v6: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let bytes = v6.octets();
    let at = |places: [usize; 4]| Some(Ipv4Addr::from(places.map(|place| bytes[place])));
    let last = at([12, 13, 14, 15]);
    match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => [last, None, None, None],
        [0x64, 0xff9b, 1, ..] => [last, at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12])],
        [0x2002, ..] => [at([2, 3, 4, 5]), None, None, None],
        _ => [None; 4],
    }
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
            "fd00:ec2::123",
            "fd00:ec2:1::1",
            "168.63.129.16",
            "2002:a9fe:a9fe::1",
            "2002:a83f:8110::",
            "fd20:ce::254",
            "100.100.100.200",
            "192.0.0.192",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:abcd::100.100.100.200",
            // Prefixes of 48, 56 and 64 bits.
            "64:ff9b:1:a9fe:00a9:fe00::",
            "64:ff9b:1:12a9:fe:a9fe::",
            "64:ff9b:1:1234:a9:fea9:fe00::",
        ] {
            assert!(refused(address.parse().unwrap()), "{address}");
            assert!(refused_host(address), "{address}");
        }
        assert!(refused_host("[fe80::1]"));
    }

    #[test]
    fn local_and_private_services_are_allowed() {
        for address in [
            "127.0.0.1",
            "::1",
            "10.0.0.8",
            "192.168.1.1",
            "172.16.0.1",
            "fd00::1",
            "1.1.1.1",
            "2002:a00:8::1",
            "64:ff9b:1::a00:8",
        ] {
            assert!(!refused(address.parse().unwrap()), "{address}");
        }
        assert!(!refused_host("service.local"));
    }
}
