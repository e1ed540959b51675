//! The workers of a process that goes: each is told so at a moment of its own, settles what it holds, and connects again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::support::lock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ingress::leaving;

/// The connections of one listener.
#[derive(Debug, Default)]
pub struct Leaving(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    /// When each came, and what tells it to go.
    all: HashMap<u64, (Instant, CancellationToken)>,
}

/// A connection's place among the others, until it is dropped.
pub(super) struct Member {
    of: Arc<Leaving>,
    number: u64,
}

impl Leaving {
    /// A new connection, which goes when the token is cancelled.
    pub(super) fn enter(self: &Arc<Self>, go: CancellationToken) -> Member {
        let mut connections = lock(&self.0);
        connections.next += 1;
        let number = connections.next;
        connections.all.insert(number, (Instant::now(), go));
        Member { of: Arc::clone(self), number }
    }

    /// Has workers connect elsewhere for as long as `delay`, in which everything else goes on; ends with it.
    pub async fn leave(&self, delay: Duration) {
        let present = self.tokens(|_| true);
        let tell_late = |from, until| {
            self.tokens(|came| from < came && came <= until).iter().for_each(CancellationToken::cancel);
        };
        leaving::tell(delay, present, |go| go.cancel(), tell_late).await;
    }

    fn tokens(&self, came: impl Fn(Instant) -> bool) -> Vec<CancellationToken> {
        lock(&self.0).all.values().filter(|(at, _)| came(*at)).map(|(_, go)| go.clone()).collect()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        lock(&self.of.0).all.remove(&self.number);
    }
}
