//! The bytes that connections of workers may hold: frames that come in, requests that the broker has not answered, and
//! deliveries that wait to be written.
//!
//! Each connection has [`OWN_BYTES`] of its own, so that heartbeats and small jobs wait for nobody. What is more comes out of
//! one budget of the listener, of which the connections under one key have a half at most. Leases that wait at the broker are
//! shared out in the same way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use relay_bridge::contract::ClientId;
use relay_bridge::support::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time;

/// The bytes that each connection has of its own.
pub(super) const OWN_BYTES: usize = 64 * 1024;
/// The leases of each connection that may wait beside those of the budget: relay's own workers have one.
const OWN_LEASES: usize = 4;
/// The budget of leases that wait. With those of 1,024 connections it is less than a broker takes, and each costs all others a look.
const LEASES: usize = 2_048;
/// How long a frame waits for its bytes at most. Meanwhile nothing is read from its connection.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);

/// The budget of one listener.
#[derive(Clone)]
pub(super) struct Memory {
    own: usize,
    shared: Arc<Semaphore>,
    half: usize,
    by_key: Arc<Mutex<HashMap<ClientId, Weak<Semaphore>>>>,
}

impl Memory {
    /// `bytes` for all connections, in which each frame of `frame_max` has to find room, beside others.
    pub(super) fn new(bytes: u64, frame_max: u32) -> Self {
        let least = usize::try_from(frame_max).unwrap_or(usize::MAX).saturating_add(OWN_BYTES);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).clamp(least, Semaphore::MAX_PERMITS);
        Self::of(OWN_BYTES, bytes, (bytes / 2).max(least))
    }

    /// The leases that may wait at once, counted one by one.
    pub(super) fn of_leases() -> Self {
        Self::of(OWN_LEASES, LEASES, LEASES / 2)
    }

    fn of(own: usize, all: usize, half: usize) -> Self {
        Self { own, shared: Arc::new(Semaphore::new(all)), half, by_key: Arc::default() }
    }

    /// The memory of a connection under the key of this name; without one it shares with all others.
    pub(super) fn connection(&self, key: Option<&ClientId>) -> ConnectionMemory {
        let of_key = key.map(|key| {
            let mut by_key = lock(&self.by_key);
            by_key.retain(|_, half| half.strong_count() > 0);
            by_key.get(key).and_then(Weak::upgrade).unwrap_or_else(|| {
                let half = Arc::new(Semaphore::new(self.half));
                by_key.insert(key.clone(), Arc::downgrade(&half));
                half
            })
        });
        ConnectionMemory { own: Arc::new(Semaphore::new(self.own)), of_key, shared: Arc::clone(&self.shared) }
    }
}

/// The memory of one connection.
pub(super) struct ConnectionMemory {
    own: Arc<Semaphore>,
    of_key: Option<Arc<Semaphore>>,
    shared: Arc<Semaphore>,
}

impl ConnectionMemory {
    /// Takes `bytes` if there are so many now.
    pub(super) fn try_take(&self, bytes: usize) -> Option<Share> {
        let bytes = u32::try_from(bytes).ok()?;
        let take = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_many_owned(bytes).ok();
        if let Some(own) = take(&self.own) {
            return Some(Share { _taken: [Some(own), None] });
        }
        let of_key = match &self.of_key {
            Some(of_key) => Some(take(of_key)?),
            None => None,
        };
        Some(Share { _taken: [of_key, Some(take(&self.shared)?)] })
    }

    /// Takes `bytes`, for which it waits `wait` at most, in the order of those that wait.
    pub(super) async fn take(&self, bytes: usize, wait: Duration) -> Option<Share> {
        if let Some(share) = self.try_take(bytes) {
            return Some(share);
        }
        let bytes = u32::try_from(bytes).ok()?;
        let waiting = async {
            let of_key = match &self.of_key {
                Some(of_key) => Some(Arc::clone(of_key).acquire_many_owned(bytes).await.ok()?),
                None => None,
            };
            let shared = Arc::clone(&self.shared).acquire_many_owned(bytes).await.ok()?;
            Some(Share { _taken: [of_key, Some(shared)] })
        };
        time::timeout(wait, waiting).await.ok().flatten()
    }
}

/// Bytes that are in use until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    _taken: [Option<OwnedSemaphorePermit>; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[tokio::test(start_paused = true)]
    async fn the_connections_of_one_key_leave_half_to_others_and_small_things_wait_for_nobody() {
        let memory = Memory::new(1024 * KIB as u64, 64 * 1024);
        let (one, two): (ClientId, ClientId) = ("one".parse().unwrap(), "two".parse().unwrap());
        let greedy = memory.connection(Some(&one));
        let half = greedy.try_take(512 * KIB).unwrap();
        assert!(greedy.try_take(65 * KIB).is_none(), "its half is taken");
        let beside = memory.connection(Some(&one));
        assert!(beside.take(65 * KIB, WAIT_MAX).await.is_none(), "also by its other connections");
        let heartbeat = beside.try_take(KIB).unwrap();
        let other = memory.connection(Some(&two));
        let rest = other.try_take(512 * KIB).unwrap();
        let nobody = memory.connection(None);
        assert!(nobody.try_take(65 * KIB).is_none() && nobody.try_take(64 * KIB).is_some());
        let (waited, ()) = tokio::join!(beside.take(65 * KIB, WAIT_MAX), async { drop(half) });
        assert!(waited.is_some());
        drop((heartbeat, rest));
    }
}
