//! Room for answers: of the bytes that all answers together may hold, of the caller's share in them, and of what its connection
//! may leave unread. It is reserved before a payload is read, by the largest that may come, and what is not needed goes back
//! after the read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Ingress;
use super::answer::Refusal;
use super::connection::{Peer, UNREAD_UNIT, UNREAD_UNITS};
use crate::ingress::budget::{Budget, Full, Share};
use crate::ingress::refusal::scarce;

/// How long an answer waits for its room.
const WITHIN: Duration = Duration::from_secs(2);

/// Room for one answer.
pub(super) struct Room {
    share: Share,
    unread: OwnedSemaphorePermit,
}

impl Room {
    /// Gives back what is beyond `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        self.share.shrink_to(bytes);
        let kept = usize::try_from(units(bytes as u64, UNREAD_UNITS)).unwrap_or(usize::MAX);
        if let Some(rest) = self.unread.num_permits().checked_sub(kept).filter(|rest| *rest > 0) {
            drop(self.unread.split(rest));
        }
    }

    /// The same for an answer that has `bytes`, and takes what it has beyond the room if that is free.
    pub(super) fn fitted(mut self, bytes: usize) -> Self {
        self.share.fit(bytes);
        self.shrink_to(bytes);
        self
    }
}

impl Peer {
    /// Room for `bytes` of an answer that is free now.
    pub(super) fn room_now(&self, ingress: &Ingress, bytes: u64) -> Option<Room> {
        self.free(&ingress.answers, bytes)
    }

    /// The same for events of a stream.
    pub(super) fn stream_room_now(&self, ingress: &Ingress, bytes: u64) -> Option<Room> {
        self.free(&ingress.streamed, bytes)
    }

    fn free(&self, budget: &Arc<Budget>, bytes: u64) -> Option<Room> {
        let unread = self.unread_now(bytes)?;
        let share = budget.take_now(&self.owner, bytes).ok()?;
        Some(Room { share, unread })
    }

    /// Room to read one result of any queue, within two seconds: as much as the largest may have, and no more than half of the
    /// caller's share, so that one queue with large results does not make all reads wait for each other.
    ///
    /// # Errors
    /// As [`room`](Self::room), and the broker's.
    pub(super) async fn room_to_read(&self, ingress: &Ingress) -> Result<Room, Refusal> {
        self.room_to_read_within(ingress, WITHIN).await
    }

    /// The same within another time, and two seconds at least: for a look-up that may take as long as the wait that it begins.
    ///
    /// # Errors
    /// As [`room_to_read`](Self::room_to_read).
    pub(super) async fn room_to_read_within(&self, ingress: &Ingress, within: Duration) -> Result<Room, Refusal> {
        self.room_within(ingress, self.largest(ingress).await?, within).await
    }

    /// The most that is reserved for one result.
    pub(super) async fn largest(&self, ingress: &Ingress) -> Result<u64, Refusal> {
        let half = ingress.answers.share_of(&self.owner) as u64 / 2;
        Ok(ingress.policies.result_max().await?.min(half))
    }

    /// Room for `bytes`, within two seconds.
    ///
    /// # Errors
    /// `rate-limited` if the caller has not read what it was sent; `overloaded` if all others together have not.
    pub(super) async fn room(&self, ingress: &Ingress, bytes: u64) -> Result<Room, Refusal> {
        self.room_within(ingress, bytes, WITHIN).await
    }

    /// The same within another time, and two seconds at least.
    ///
    /// # Errors
    /// As [`room`](Self::room).
    pub(super) async fn room_within(&self, ingress: &Ingress, bytes: u64, within: Duration) -> Result<Room, Refusal> {
        if let Some(room) = self.room_now(ingress, bytes) {
            return Ok(room);
        }
        let until = Instant::now() + within.max(WITHIN);
        // As a stream does: it holds neither of the two while it waits for the other.
        loop {
            let Ok(Some(unread)) = tokio::time::timeout_at(until, self.unread(bytes)).await else {
                return Err(Refusal::full(Full::Share(UNREAD_UNITS * UNREAD_UNIT), scarce::UNREAD));
            };
            if let Ok(share) = ingress.answers.take_now(&self.owner, bytes) {
                return Ok(Room { share, unread });
            }
            drop(unread);
            let left = until.saturating_duration_since(Instant::now());
            let reserved = ingress.answers.reserve(&self.owner, bytes, Some(left)).await;
            let share = reserved.map_err(|full| Refusal::full(full, scarce::ANSWERS))?;
            if let Some(unread) = self.unread_now(bytes) {
                return Ok(Room { share, unread });
            }
        }
    }

    /// Room for `bytes` of events, whenever that is. It holds nothing while it waits: neither its connection's room, which other
    /// reads of the connection need, nor bytes, which other streams do.
    pub(super) async fn stream_room(&self, ingress: &Ingress, bytes: u64) -> Option<Room> {
        loop {
            let unread = self.unread(bytes).await?;
            if let Ok(share) = ingress.streamed.take_now(&self.owner, bytes) {
                return Some(Room { share, unread });
            }
            drop(unread);
            let share = ingress.streamed.reserve(&self.owner, bytes, None).await.ok()?;
            if let Some(unread) = self.unread_now(bytes) {
                return Some(Room { share, unread });
            }
        }
    }

    fn unread_now(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connection.unread).try_acquire_many_owned(units(bytes, UNREAD_UNITS)).ok()
    }

    async fn unread(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        // Never closed, so there is always one.
        Arc::clone(&self.connection.unread).acquire_many_owned(units(bytes, UNREAD_UNITS)).await.ok()
    }
}

/// `bytes` in units, at most `most` of them: one answer that is larger than a connection may leave unread takes all of it.
fn units(bytes: u64, most: usize) -> u32 {
    let units = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(UNREAD_UNIT).clamp(1, most);
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::pin::pin;

    use futures_util::poll;
    use relay_bridge::clock::Clock;
    use relay_embedded::{Embedded, EmbeddedConfig};

    use super::super::Limits;
    use super::super::connection::Connection;
    use super::*;
    use crate::auth::Authenticator;
    use crate::ingress::clients::Owner;

    /// As much as one connection may leave unread, and more.
    const LARGE: u64 = 8 << 20;

    async fn peer() -> (Arc<Ingress>, Peer) {
        let broker = Embedded::open(EmbeddedConfig::default()).await.unwrap().broker();
        let ingress = Ingress::new(broker, Authenticator::development(), Limits::default(), Clock::system());
        let connection = Connection::new(1, IpAddr::from([127, 0, 0, 1]));
        (ingress, Peer { owner: Owner::Connection(1), connection, credential: Default::default() })
    }

    #[tokio::test]
    async fn a_stream_that_waits_for_bytes_leaves_its_connections_room_to_other_reads() {
        let (ingress, peer) = peer().await;
        let all = ingress.streamed.take(&Owner::Connection(2), ingress.streamed.max() as u64).unwrap();
        let mut waits = pin!(peer.stream_room(&ingress, LARGE));
        assert!(poll!(waits.as_mut()).is_pending());
        assert!(peer.room_now(&ingress, LARGE).is_some(), "nothing of the connection is unread");
        drop(all);
        assert!(waits.await.is_some());
    }

    #[tokio::test]
    async fn a_stream_whose_connection_does_not_read_leaves_the_bytes_to_other_streams() {
        let (ingress, peer) = peer().await;
        let all = ingress.streamed.take(&Owner::Connection(2), ingress.streamed.max() as u64).unwrap();
        let mut waits = pin!(peer.stream_room(&ingress, LARGE));
        assert!(poll!(waits.as_mut()).is_pending());
        let unread = peer.room_now(&ingress, LARGE).unwrap();
        drop(all);
        assert!(poll!(waits.as_mut()).is_pending());
        assert_eq!(ingress.streamed.taken(), 0);
        drop(unread);
        assert!(waits.await.is_some());
    }
}
