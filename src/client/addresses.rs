//! The addresses of a name, asked for at each connection, in an order that turns: connections spread over all of them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use relay_bridge::backoff::random;
use tokio::net::lookup_host;

/// How long a connection may take to be made, TLS and the hello included.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The age at which a connection is left for a new one, within a tenth: servers close theirs after 15 min within a fifth.
const AGE_MAX: Duration = Duration::from_secs(600);
/// None is asked to become older: clocks can add so much.
const AGE_MOST: Duration = Duration::from_secs(365 * 24 * 3_600);

/// How connections are made, and when they are left. New work moves to addresses that are new, and away from those that are gone,
/// within the time that a connection is used.
#[derive(Clone, Debug)]
pub struct Connecting {
    /// Knows the addresses of the server's name; by default the system does.
    pub resolver: Arc<dyn Resolver>,
    /// The age at which a connection is left for a new one, within a tenth; requests in flight end on the old one. By default 10 min,
    /// which is less than servers of the usual settings allow. Zero is a connection for each call.
    pub renewed_after: Duration,
}

impl Default for Connecting {
    fn default() -> Self {
        Self { resolver: Arc::new(System), renewed_after: AGE_MAX }
    }
}

/// The addresses of names. A server's address that is an IP address needs none.
pub trait Resolver: fmt::Debug + Send + Sync {
    /// The addresses of `host` now, each with `port`, in any order: asked before each connection, which tries them one after another.
    /// For relay's own protocol they may have ports of their own; over HTTP those are not looked at, and the URL's port stands.
    ///
    /// # Errors
    /// Any, told as [`Unreachable`](super::ClientError::Unreachable); so is a name without addresses.
    fn addresses<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver.
#[derive(Debug)]
struct System;

impl Resolver for System {
    fn addresses<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { lookup_host((host, port)).await.map(Iterator::collect) })
    }
}

/// The next one of the addresses of a name.
#[derive(Debug)]
pub(super) struct Addresses {
    connecting: Connecting,
    turn: AtomicUsize,
}

impl Addresses {
    pub(super) fn new(connecting: Connecting) -> Self {
        // Clients begin anywhere.
        Self { connecting, turn: AtomicUsize::new((random() * 1_000.0) as usize) }
    }

    /// The same for other connections.
    pub(super) fn again(&self) -> Self {
        Self::new(self.connecting.clone())
    }

    /// How old the next connection may become: not the same for all of a fleet.
    pub(super) fn renewed_after(&self) -> Duration {
        Duration::try_from_secs_f64(self.connecting.renewed_after.as_secs_f64() * (0.9 + random() / 5.0))
            .map_or(AGE_MOST, |age| age.min(AGE_MOST))
    }

    /// The addresses of `host`, the next one first.
    ///
    /// # Errors
    /// Those of the resolver; it knows no such name.
    pub(super) async fn of(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let mut found = self.connecting.resolver.addresses(host, port).await?;
        self.turn(&mut found);
        Ok(found)
    }

    fn turn(&self, found: &mut [SocketAddr]) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
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
        let addresses = Addresses::new(Connecting::default());
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
        let addresses = Addresses::new(Connecting::default());
        let ages = (0..100).map(|_| addresses.renewed_after());
        assert!(ages.into_iter().all(|age| age < earliest && age >= AGE_MAX.mul_f64(0.9)));
        let never = Connecting { renewed_after: Duration::MAX, ..Connecting::default() };
        assert_eq!(Addresses::new(never).renewed_after(), AGE_MOST);
    }
}
