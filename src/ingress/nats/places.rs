//! The places of requests that wait for a result: so many at a time, apart from those of other requests, and so many of one
//! client while there are others. Nobody waits for a place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use relay_bridge::contract::ClientId;

use super::Limits;
use relay_bridge::support::lock;

/// For how long a client that asked for a wait keeps the others to their share.
const LATELY: Duration = Duration::from_secs(10);

/// The places of waits.
pub(super) struct Places {
    max: usize,
    per_client: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// Of all clients together.
    open: usize,
    /// Of clients that wait, how often: no more of them than there are places.
    clients: HashMap<ClientId, usize>,
    /// The two clients that asked last, the later one first, and when: enough to know whether another than a given one did.
    asked: [Option<(ClientId, Instant)>; 2],
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        let per_client = limits.waits_per_client.unwrap_or(limits.waits / 4).max(1);
        Arc::new(Self { max: limits.waits, per_client, taken: Mutex::default() })
    }

    /// A place for `client`; `None` if there is none, or if it has as many as it may.
    pub(super) fn take(self: &Arc<Self>, client: &ClientId) -> Option<Place> {
        self.take_at(client, Instant::now())
    }

    /// How many are taken.
    pub(super) fn open(&self) -> usize {
        self.taken().open
    }

    fn take_at(self: &Arc<Self>, client: &ClientId, now: Instant) -> Option<Place> {
        let mut taken = self.taken();
        taken.has_asked(client, now);
        let own = taken.clients.get(client).copied().unwrap_or(0);
        let share = if taken.has_others_than(client, now) { self.per_client } else { self.max };
        if taken.open >= self.max || own >= share {
            return None;
        }
        taken.open += 1;
        *taken.clients.entry(client.clone()).or_default() += 1;
        Some(Place { places: Arc::clone(self), client: client.clone() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        lock(&self.taken)
    }
}

impl Taken {
    fn has_asked(&mut self, client: &ClientId, now: Instant) {
        match &mut self.asked {
            [Some((last, at)), _] if last == client => *at = now,
            asked => {
                asked.swap(0, 1);
                asked[0] = Some((client.clone(), now));
            }
        }
    }

    /// Whether another client waits, or asked for it lately.
    fn has_others_than(&self, client: &ClientId, now: Instant) -> bool {
        let wait = self.clients.len() > usize::from(self.clients.contains_key(client));
        let lately = |at: Instant| now.saturating_duration_since(at) < LATELY;
        wait || self.asked.iter().flatten().any(|(asked, at)| asked != client && lately(*at))
    }
}

/// A place, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    client: ClientId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.open -= 1;
        if let Some(own) = taken.clients.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(waits: usize, waits_per_client: Option<usize>) -> Arc<Places> {
        Places::new(&Limits { waits, waits_per_client, ..Limits::default() })
    }

    /// As many places as `client` gets.
    fn all(places: &Arc<Places>, client: &str, now: Instant) -> Vec<Place> {
        let client = client.parse().unwrap();
        std::iter::from_fn(|| places.take_at(&client, now)).collect()
    }

    #[test]
    fn a_client_alone_has_all_places_and_a_quarter_beside_others() {
        let (places, now) = (places(8, None), Instant::now());
        let alone = all(&places, "a", now);
        assert_eq!((alone.len(), places.open()), (8, 8));
        assert!(all(&places, "b", now).is_empty(), "none is free");
        drop(alone);
        // The other one asked a moment ago.
        let first = all(&places, "a", now);
        assert_eq!(first.len(), 2);
        let others = [all(&places, "b", now), all(&places, "c", now), all(&places, "d", now)];
        assert!(others.iter().all(|held| held.len() == 2));
        assert!(all(&places, "e", now).is_empty());
    }

    #[test]
    fn a_client_is_alone_again_when_nobody_else_waits_or_asked_lately() {
        let (places, now) = (places(8, Some(1)), Instant::now());
        let (first, other) = (all(&places, "a", now), all(&places, "b", now));
        assert_eq!((first.len(), other.len()), (8, 0));
        drop(first);
        let later = now + LATELY;
        let held = all(&places, "b", later);
        assert_eq!(held.len(), 8, "the others asked too long ago");
        drop(held);
        let much_later = later + LATELY;
        let held = places.take_at(&"a".parse().unwrap(), later);
        assert_eq!(all(&places, "b", much_later).len(), 1, "another one waits, however long ago it asked");
        drop(held);
    }

    #[test]
    fn no_client_that_left_is_remembered_but_the_two_that_asked_last() {
        let (places, now) = (places(4, None), Instant::now());
        for n in 0..1_000 {
            drop(all(&places, &format!("c{n}"), now));
        }
        assert_eq!((places.open(), places.taken().clients.len()), (0, 0));
        let nothing = self::places(0, None);
        assert!(all(&nothing, "a", now).is_empty());
    }
}
