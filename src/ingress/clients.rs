//! Whose share of a budget a request takes, and how large the shares are.

use std::fmt;
use std::sync::Arc;

use relay_bridge::contract::ClientId;

/// The share of a client among several, in percent, unless a setting says otherwise.
pub const SHARE_DEFAULT: u8 = 25;

/// Whose share of a budget is taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A client that was authenticated.
    Client(ClientId),
    /// One connection, where anybody may take any client's name.
    Connection(u64),
    /// All callers together, where a connection may carry any client's name and is not the client's own: NATS without
    /// permissions.
    Anybody,
    /// All callers together that have not said yet who they are.
    Unproven,
}

/// The share of a client that has one of its own, in percent.
type ShareOf = Box<dyn Fn(&ClientId) -> Option<u8> + Send + Sync>;

/// How much of a budget one client may hold.
pub struct ClientShares {
    /// For all clients, in percent; `None`: [`SHARE_DEFAULT`], or everything where there is but one.
    percent: Option<u8>,
    /// For single clients, in percent, as it is now.
    of: ShareOf,
    is_alone: Box<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for ClientShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientShares").field("percent", &self.percent).finish_non_exhaustive()
    }
}

impl ClientShares {
    /// Shares in percent (1 to 100): `percent` for each client but those that `of` knows, which is asked each time. Without a
    /// percentage a client has a quarter, or everything while `is_alone` says that there is no other.
    #[must_use]
    pub fn new(
        percent: Option<u8>,
        of: impl Fn(&ClientId) -> Option<u8> + Send + Sync + 'static,
        is_alone: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { percent, of: Box::new(of), is_alone: Box::new(is_alone) })
    }

    /// A quarter for each client.
    #[must_use]
    pub fn quarters() -> Arc<Self> {
        Self::new(Some(SHARE_DEFAULT), |_| None, || false)
    }

    /// Everything for whoever comes.
    #[must_use]
    pub fn undivided() -> Arc<Self> {
        Self::new(Some(100), |_| None, || true)
    }

    /// The share of `owner` in `max`, one at least.
    #[must_use]
    pub fn of(&self, owner: &Owner, max: usize) -> usize {
        let usual = || self.percent.unwrap_or(if (self.is_alone)() { 100 } else { SHARE_DEFAULT });
        let percent = match owner {
            Owner::Client(client) => (self.of)(client).unwrap_or_else(usual),
            Owner::Anybody => usual(),
            Owner::Connection(_) => self.percent.unwrap_or(100),
            // Never everything: who has a key must get in beside those who have none.
            Owner::Unproven => usual().min(SHARE_DEFAULT),
        };
        let of = |part: usize| part / 100 * usize::from(percent) + part % 100 * usize::from(percent) / 100;
        of(max).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_client_has_a_quarter_beside_others_and_everything_alone_unless_a_setting_says_otherwise() {
        let alone = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&alone);
        let named = |client: &ClientId| (client.as_str() == "big").then_some(60);
        let shares = ClientShares::new(None, named, move || seen.load(Ordering::Relaxed));
        let [shop, big] = ["shop", "big"].map(|name| Owner::Client(name.parse().unwrap()));
        assert_eq!([&shop, &big].map(|owner| shares.of(owner, 1_000)), [1_000, 600]);
        alone.store(false, Ordering::Relaxed);
        assert_eq!([&shop, &big].map(|owner| shares.of(owner, 1_000)), [250, 600]);
        let shares = ClientShares::new(Some(10), named, || true);
        let owners = [shop, big, Owner::Connection(7), Owner::Unproven];
        assert_eq!(owners.each_ref().map(|owner| shares.of(owner, 1_000)), [100, 600, 100, 100]);
        assert_eq!(owners.map(|owner| shares.of(&owner, 3)), [1, 1, 1, 1]);
        assert_eq!(ClientShares::undivided().of(&Owner::Unproven, 1_000), 250);
        assert_eq!(ClientShares::undivided().of(&Owner::Connection(1), usize::MAX), usize::MAX);
    }
}
