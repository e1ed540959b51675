//! The addresses of a name, asked for at each connection, in an order that turns: connections spread over all of them.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use relay_bridge::backoff::random;
use tokio::net::lookup_host;

/// How long a connection may take to be made, TLS and the hello included.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The age at which a connection is left for a new one, within a tenth: servers close theirs after 15 min within a fifth.
const AGE_MAX: Duration = Duration::from_secs(600);

/// How old a connection may become: not the same for all of a fleet.
pub(super) fn renewed_after() -> Duration {
    AGE_MAX.mul_f64(0.9 + random() / 5.0)
}

/// The next one of the addresses of a name.
#[derive(Debug)]
pub(super) struct Addresses(AtomicUsize);

impl Default for Addresses {
    /// Clients begin anywhere.
    fn default() -> Self {
        Self(AtomicUsize::new((random() * 1_000.0) as usize))
    }
}

impl Addresses {
    /// The addresses of `host`, the next one first.
    ///
    /// # Errors
    /// Those of the resolver; it knows no such name.
    pub(super) async fn of(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let mut found: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        self.turn(&mut found);
        Ok(found)
    }

    fn turn(&self, found: &mut [SocketAddr]) {
        let turn = self.0.fetch_add(1, Ordering::Relaxed);
        if let Some(first) = turn.checked_rem(found.len()) {
            found.rotate_left(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_address_of_a_name_is_the_first_one_in_its_turn() {
        let all: Vec<SocketAddr> = (1..=3).map(|last| SocketAddr::from(([10, 0, 0, last], 1))).collect();
        let addresses = Addresses::default();
        let firsts: BTreeSet<_> = (0..3)
            .map(|_| {
                let mut found = all.clone();
                addresses.turn(&mut found);
                found[0]
            })
            .collect();
        assert_eq!(firsts, all.into_iter().collect());
        addresses.turn(&mut []);
    }

    #[test]
    fn a_connection_is_renewed_before_any_server_of_the_usual_settings_closes_it() {
        let earliest = Duration::from_secs(15 * 60).mul_f64(0.8);
        assert!((0..100).all(|_| renewed_after() < earliest && renewed_after() >= AGE_MAX.mul_f64(0.9)));
    }
}
