//! The clients that read all of their results, and those that wait to: so many at a time, and so many of one client,
//! which could otherwise have all places that requests have.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use relay_bridge::contract::ClientId;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::Limits;
use crate::api::{Problem, Slug};
use crate::ingress::refusal::Refusal;
use relay_bridge::support::lock;

/// The places of readers.
pub(super) struct Readers {
    places: Semaphore,
    per_client: usize,
    /// Of clients that read or wait, how often: no more than there are requests in hand.
    clients: Mutex<HashMap<ClientId, usize>>,
}

impl Readers {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            places: Semaphore::new(limits.readers.clamp(1, Semaphore::MAX_PERMITS)),
            per_client: limits.readers_per_client.max(1),
            clients: Mutex::default(),
        }
    }

    /// A place for `client`, as soon as there is one.
    ///
    /// # Errors
    /// `rate-limited` if it has as many as it may, those included that wait; `overloaded` if there is none within
    /// `patience`.
    pub(super) async fn enter(&self, client: &ClientId, patience: Duration) -> Result<Reading<'_>, Refusal> {
        let turn = self.turn(client)?;
        match timeout(patience, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(Reading { _place: place, _turn: turn }),
            _ => {
                let detail = "as many read results as relay lets; nothing was done: send it again after Retry-After";
                Err(Refusal::new(Slug::Overloaded, detail))
            }
        }
    }

    fn turn(&self, client: &ClientId) -> Result<Turn<'_>, Refusal> {
        let mut clients = self.clients();
        let taken = clients.entry(client.clone()).or_default();
        if *taken >= self.per_client {
            let detail = format!(
                "{} requests of this client for its results are being answered or wait already: send it again when one \
                 of them has ended",
                self.per_client
            );
            let mut problem = Problem::new(Slug::RateLimited, detail);
            problem.limit = Some(self.per_client as u64);
            return Err(problem.into());
        }
        *taken += 1;
        Ok(Turn { readers: self, client: client.clone() })
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<ClientId, usize>> {
        lock(&self.clients)
    }
}

/// A place, until it is dropped.
pub(super) struct Reading<'a> {
    _place: SemaphorePermit<'a>,
    _turn: Turn<'a>,
}

/// One of those that a client may have.
struct Turn<'a> {
    readers: &'a Readers,
    client: ClientId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut clients = self.readers.clients();
        if let Some(taken) = clients.get_mut(&self.client) {
            *taken -= 1;
            if *taken == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: Duration = Duration::ZERO;

    #[tokio::test]
    async fn a_client_that_left_has_its_turns_again_and_no_entry() {
        let readers = Readers::new(&Limits { readers: 1, readers_per_client: 2, ..Limits::default() });
        let me: ClientId = "me".parse().unwrap();
        let first = readers.enter(&me, NO_TIME).await.unwrap();
        {
            let waiting = readers.enter(&me, Duration::from_secs(60));
            let mut waiting = std::pin::pin!(waiting);
            assert!(futures_util::poll!(&mut waiting).is_pending());
            let refused = readers.enter(&me, NO_TIME).await.err().unwrap();
            assert_eq!((refused.0.slug, refused.0.limit), (Slug::RateLimited, Some(2)));
        }
        // The one that waited was dropped.
        assert_eq!(readers.enter(&me, NO_TIME).await.err().unwrap().0.slug, Slug::Overloaded);
        drop(first);
        assert!(readers.clients().is_empty());
        readers.enter(&me, NO_TIME).await.unwrap();
    }
}
