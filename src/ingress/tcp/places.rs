//! The places of workers. Where all are taken, a worker whose key has fewer takes that of the newest one under the key that has
//! most, so that the workers of one key keep out nobody else's.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::contract::ClientId;
use relay_bridge::support::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time;
use tokio_util::sync::CancellationToken;

/// The places of all listeners together.
pub(super) struct Places {
    free: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    last: u64,
    /// Those under each key, the newest last; never empty. Workers without a key are together.
    by_key: HashMap<Option<ClientId>, BTreeMap<u64, Holder>>,
}

struct Holder {
    evicted: CancellationToken,
    permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(max: u32) -> Arc<Self> {
        let permits = usize::try_from(max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Arc::new(Self { free: Arc::new(Semaphore::new(permits)), taken: Mutex::default() })
    }

    /// A place for a worker under `key`, for which it waits `wait` at most.
    pub(super) async fn enter(self: &Arc<Self>, key: Option<&ClientId>, wait: Duration) -> Option<Place> {
        let key = key.cloned();
        let free = Arc::clone(&self.free);
        let at_once = Arc::clone(&free).try_acquire_owned().ok().or_else(|| lock(&self.taken).give_up(&key));
        let permit = match at_once {
            Some(permit) => permit,
            None => time::timeout(wait, free.acquire_owned()).await.ok()?.ok()?,
        };
        let (number, evicted) = lock(&self.taken).enter(key.clone(), permit);
        Some(Place { places: Arc::clone(self), key, number, evicted })
    }
}

impl Taken {
    fn enter(&mut self, key: Option<ClientId>, permit: OwnedSemaphorePermit) -> (u64, CancellationToken) {
        self.last += 1;
        let evicted = CancellationToken::new();
        let holder = Holder { evicted: evicted.clone(), permit };
        self.by_key.entry(key).or_default().insert(self.last, holder);
        (self.last, evicted)
    }

    /// The place of the newest worker under the key that has most, if it would still have no fewer than `key` has then.
    fn give_up(&mut self, key: &Option<ClientId>) -> Option<OwnedSemaphorePermit> {
        let own = self.by_key.get(key).map_or(0, BTreeMap::len);
        let (_, most) = self.by_key.iter_mut().max_by_key(|(_, holders)| holders.len())?;
        if most.len() < own + 2 {
            return None;
        }
        let (_, Holder { evicted, permit }) = most.pop_last()?;
        evicted.cancel();
        Some(permit)
    }
}

/// The place of one worker, which is free again when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    key: Option<ClientId>,
    number: u64,
    /// Cancelled when it was given to a worker of another key.
    pub(super) evicted: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        if let Some(holders) = taken.by_key.get_mut(&self.key) {
            holders.remove(&self.number);
            if holders.is_empty() {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_key_with_fewer_workers_takes_places_of_the_one_with_most_until_they_have_as_many() {
        let places = Places::new(4);
        let keys: [ClientId; 2] = ["one".parse().unwrap(), "two".parse().unwrap()];
        let mut greedy = Vec::new();
        for _ in 0..4 {
            greedy.push(places.enter(Some(&keys[0]), WAIT).await.unwrap());
        }
        assert!(places.enter(Some(&keys[0]), WAIT).await.is_none(), "it has them all");
        let others = [places.enter(Some(&keys[1]), WAIT).await, places.enter(Some(&keys[1]), WAIT).await];
        assert!(others.iter().all(Option::is_some));
        let evicted: Vec<_> = greedy.iter().map(|place| place.evicted.is_cancelled()).collect();
        assert_eq!(evicted, [false, false, true, true], "the newest");
        for key in &keys {
            assert!(places.enter(Some(key), WAIT).await.is_none(), "each has its half");
        }
        // Those that were told to leave give nothing back.
        greedy.truncate(2);
        assert!(places.enter(None, WAIT).await.is_some_and(|place| !place.evicted.is_cancelled()));
        drop((greedy, others));
        assert_eq!((places.free.available_permits(), lock(&places.taken).by_key.len()), (4, 0));
    }
}
