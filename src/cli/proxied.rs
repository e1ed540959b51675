//! The load balancer in front of a server, as its settings say it.

use crate::config::settings::{Bounds, Listen, ProxyHeader};
use crate::ingress::proxy::Proxy;
use crate::ranges::AddressRange;

/// The balancer whose PROXY header is read, if one is required.
pub(super) fn of(listen: &Listen, bounds: &Bounds) -> Option<Proxy> {
    let number = |of: u32| usize::try_from(of).unwrap_or(usize::MAX);
    (listen.proxy == ProxyHeader::Required).then(|| Proxy {
        source_unproven: number(bounds.source_unproven),
        endpoint_connections: number(bounds.endpoint_connections),
        ..Proxy::new(listen.proxy_trusted.clone())
    })
}

/// The warnings about ranges that are more than a balancer's own addresses: who could write a header that is believed.
pub(super) fn warnings(trusted: &[AddressRange]) -> Vec<String> {
    let wide = trusted.iter().filter(|range| range.is_wide());
    let warning = |range: &AddressRange| {
        format!(
            "--proxy-trusted {range}: every host from {} to {} can write a PROXY header, and so say that it is any client's \
             VPC endpoint; a subnet of the load balancer may have other hosts and pods: name its own addresses alone",
            range.first(),
            range.last()
        )
    };
    wide.map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_range_is_warned_of_with_those_who_could_forge_a_header() {
        let with = |ranges: &[&str]| {
            let ranges: Vec<_> = ranges.iter().map(|range| range.parse().unwrap()).collect();
            warnings(&ranges)
        };
        assert_eq!(with(&["10.0.1.7", "10.0.2.0/28", "fd00::/124"]), [""; 0]);
        let warned = with(&["10.0.1.7", "10.0.2.0/24", "fd00::/64"]);
        assert_eq!(warned.len(), 2);
        assert!(
            warned[0].starts_with("--proxy-trusted 10.0.2.0/24: every host from 10.0.2.0 to 10.0.2.255"),
            "{warned:?}"
        );
        assert!(warned[1].contains("from fd00:: to fd00::ffff:ffff:ffff:ffff"), "{warned:?}");
    }
}
