//! The load balancers in front of a server, as its settings say them.

use crate::config::listeners::Listener;
use crate::ranges::AddressRange;

/// The warnings about ranges that are more than a balancer's own addresses: who could write a header that is believed.
pub(super) fn warnings(listeners: &[Listener]) -> Vec<String> {
    let ranges = listeners.iter().flat_map(|one| one.trusted.iter().map(move |range| (one, range)));
    let wide = ranges.filter(|(_, range)| range.is_wide());
    let warning = |(one, range): (&Listener, &AddressRange)| {
        let named = match one.line {
            Some(_) => format!("listener {}: trusted", one.name),
            None => "--proxy-trusted".to_owned(),
        };
        format!(
            "{named} {range}: every host from {} to {} can write a PROXY header, and so say that it is any client's \
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
    use crate::cli::configured::tests::settings;

    #[test]
    fn a_wide_range_is_warned_of_with_those_who_could_forge_a_header() {
        let with = |ranges: &[&str]| {
            let flags = format!("--memory --keys k --proxy required --proxy-trusted {}", ranges.join(","));
            warnings(&settings("serve", &flags, &[]).unwrap().listeners)
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
