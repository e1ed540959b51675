//! The places of a listener's connections. Those of which no request was let in yet share a pool in which a newcomer takes the
//! place of the oldest: peers that hold places for nothing keep no operator and no scrape waiting.

use std::mem::replace;
use std::sync::{Arc, Mutex};

use relay_bridge::support::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::evicting::{EvictingPool, Member};

/// The places of one listener.
pub(super) struct Places {
    strangers: EvictingPool,
    callers: Arc<Semaphore>,
}

impl Places {
    /// `most` places, half of them for connections that were let in.
    pub(super) fn of_operators(most: usize) -> Self {
        let strangers = most.div_ceil(2);
        let callers = Arc::new(Semaphore::new((most - strangers).min(Semaphore::MAX_PERMITS)));
        Self { strangers: EvictingPool::new(strangers), callers }
    }

    /// `most` places of peers that nobody asks who they are.
    pub(super) fn of_probes(most: usize) -> Self {
        Self { strangers: EvictingPool::new(most), callers: Arc::new(Semaphore::new(0)) }
    }

    /// A place for a newcomer, at once.
    pub(super) fn enter(&self) -> Place {
        Place { callers: Arc::clone(&self.callers), held: Arc::new(Mutex::new(Held::Stranger(self.strangers.enter()))) }
    }
}

/// The place of a connection, which is free again when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Place {
    callers: Arc<Semaphore>,
    held: Arc<Mutex<Held>>,
}

enum Held {
    Stranger(Member),
    Caller { _permit: OwnedSemaphorePermit },
}

impl Place {
    /// Cancelled when another connection needs the place.
    pub(super) fn evicted(&self) -> CancellationToken {
        match &*lock(&self.held) {
            Held::Stranger(member) => member.evicted.clone(),
            Held::Caller { .. } => CancellationToken::new(),
        }
    }

    /// Notes that a request of the connection was let in. It then makes room for nobody, if not too many others do not either.
    pub(super) fn let_in(&self) {
        let mut held = lock(&self.held);
        if let Held::Stranger(_) = &*held
            && let Ok(permit) = Arc::clone(&self.callers).try_acquire_owned()
        {
            drop(replace(&mut *held, Held::Caller { _permit: permit }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_let_in_makes_room_for_nobody_while_half_of_the_places_are_free_of_such() {
        let places = Places::of_operators(4);
        let enter = || {
            let place = places.enter();
            let evicted = place.evicted();
            (place, evicted)
        };
        let callers: Vec<_> = (0..3).map(|_| enter()).inspect(|(place, _)| place.let_in()).collect();
        let strangers = [enter(), enter(), enter()];
        let gone = |entered: &(Place, CancellationToken)| entered.1.is_cancelled();
        assert_eq!(callers.iter().map(gone).collect::<Vec<_>>(), [false, false, true], "the third is one too many");
        assert_eq!(strangers.iter().map(gone).collect::<Vec<_>>(), [true, false, false]);
        drop(callers);
        let late = enter();
        late.0.let_in();
        drop((enter(), enter(), enter()));
        assert!(!gone(&late), "places of callers that left are free again");
    }
}
