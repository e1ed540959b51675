//! `GET /v1/results` as server-sent events: all of a client's results from a cursor on, and what comes after them.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use relay_bridge::contract::{ClientId, Cursor};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::{PAGE_BYTES_MAX, Page, Reset, ResultFilter, Start};
use serde::Serialize;

use super::Served;
use super::answer::Refusal;
use super::connection::Peer;
use super::room::Room;
use super::sse::{self, Beat, Pulse};
use crate::api::ResultView;

/// Results that are read at a time, at most.
const READ_MAX: u32 = 32;
/// Bytes of events that wait for the peer: results that were read beyond it are read again when there is room.
const READY_BYTES_MAX: usize = 16 * 1024;
/// The bytes of events that are ready at most: the last one goes beyond [`READY_BYTES_MAX`] by a payload of 16 KiB in base64, a
/// key and meta.
const ROOM_BYTES: u64 = 48 * 1024;

/// A reader of the results of one client.
struct Follower {
    served: Arc<Served>,
    peer: Peer,
    client: ClientId,
    filter: ResultFilter,
    pulse: Pulse,
    /// Behind what was read and is on its way, or was left out.
    at: Cursor,
    /// Where the peer knows that it is.
    told: Option<Cursor>,
    ready: VecDeque<Bytes>,
    /// Results that the next read asks for: about as many as there is room for.
    asks_for: u32,
    step: Option<BoxFuture<'static, Step>>,
    /// Room for the next events, where it had to be waited for.
    room: Option<Room>,
    ended: bool,
}

/// The outcome of what a follower waits for.
enum Step {
    /// Results were read, or there were none for as long as the stream lasts.
    Read(Result<Page, BrokerError>),
    /// There is room for results that were read before, and left for want of it.
    Room(Option<Room>),
}

/// An event, which holds room until it has left.
struct Roomed {
    event: Bytes,
    _room: Arc<Room>,
}

impl AsRef<[u8]> for Roomed {
    fn as_ref(&self) -> &[u8] {
        &self.event
    }
}

/// The data of a `reset` event.
#[derive(Serialize)]
struct ResetView {
    reason: Reset,
}

/// The results of `client` from `start` on that `filter` wants, for as long as the peer's credential stands.
///
/// # Errors
/// `overloaded` if there are too many streams or unread answers, `rate-limited` if they are the caller's own; what the broker
/// refuses at the first read.
pub(super) async fn follow(
    served: Arc<Served>,
    peer: Peer,
    client: ClientId,
    filter: ResultFilter,
    start: Start,
) -> Result<Response, Refusal> {
    let pulse = Pulse::start(&served, &peer)?;
    let most = (PAGE_BYTES_MAX as u64).max(served.ingress.policies.result_max().await?);
    let room = peer.room(&served.ingress, most).await?;
    let results = &served.ingress.broker.results;
    let page = results.page(&client, &start, &filter, READ_MAX, std::time::Duration::ZERO).await?;
    // With nothing to tell, the peer learns where it stands: else it would not find its way back.
    let told = page.entries.is_empty().then(|| page.next.clone());
    let opening = pulse.opening(told.as_ref().map(Cursor::to_string).as_deref());
    let at = page.next.clone();
    let ready = VecDeque::from([opening]);
    let mut follower = Follower {
        served,
        peer,
        client,
        filter,
        pulse,
        at,
        told,
        ready,
        asks_for: READ_MAX,
        step: None,
        room: None,
        ended: false,
    };
    follower.take(page, room);
    Ok(sse::answer(stream::unfold(follower, |mut follower| async move {
        let chunk = follower.next().await?;
        Some((chunk, follower))
    })))
}

impl Follower {
    /// The next chunk to send.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(problem) = self.pulse.refused().filter(|_| !self.ended) {
                self.ready = VecDeque::from([problem]);
                self.ended = true;
            }
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            let mut step = self.step.take().unwrap_or_else(|| self.read());
            tokio::select! {
                done = &mut step => match done {
                    // One that moved on passed over what nobody asked for.
                    Step::Read(Ok(page)) if page.entries.is_empty() && page.reset.is_none() && page.next == self.at => {
                        self.end();
                    }
                    Step::Read(Ok(page)) => match self.room_now() {
                        Some(room) => self.take(page, room),
                        None => self.step = Some(self.make_room()),
                    },
                    Step::Read(Err(error)) => {
                        self.ready.push_back(sse::problem(&error.into()));
                        self.end();
                    }
                    Step::Room(room) => self.room = room,
                },
                beat = self.pulse.beat() => {
                    self.step = Some(step);
                    match beat {
                        Beat::Ping => self.ping(),
                        Beat::End => self.end(),
                        // It is looked at first.
                        Beat::Refused => {}
                    }
                }
            }
        }
    }

    /// Reads on, and waits for as long as the stream lasts if there is nothing yet.
    fn read(&self) -> BoxFuture<'static, Step> {
        let results = Arc::clone(&self.served.ingress.broker.results);
        let (client, filter, start) = (self.client.clone(), self.filter.clone(), Start::After(self.at.clone()));
        // The stream ends before this wait does: a read at the end of the wait finds nothing.
        let wait = self.served.ingress.limits.follow_for * 2;
        let limit = self.asks_for;
        Box::pin(async move { Step::Read(results.page(&client, &start, &filter, limit, wait).await) })
    }

    /// Waits for room, for as long as the stream lasts: what was read and has none is read again.
    fn make_room(&self) -> BoxFuture<'static, Step> {
        let (peer, served) = (self.peer.clone(), Arc::clone(&self.served));
        Box::pin(async move { Step::Room(peer.room_whenever(&served.ingress, ROOM_BYTES).await) })
    }

    fn room_now(&mut self) -> Option<Room> {
        self.room.take().or_else(|| self.peer.room_now(&self.served.ingress, ROOM_BYTES))
    }

    /// Makes events of what was read, as far as there is room.
    fn take(&mut self, page: Page, room: Room) {
        if let Some(reason) = page.reset {
            // Its place is known with the first result that follows: without one, it is the end of the log.
            let id = page.entries.is_empty().then(|| page.next.to_string());
            self.ready.push_back(sse::event("reset", id.as_deref(), &ResetView { reason }));
        }
        let (mut bytes, mut events, mut is_all) = (0, Vec::new(), true);
        for finished in page.entries {
            if bytes > READY_BYTES_MAX {
                is_all = false;
                break;
            }
            let view = ResultView::new(&finished);
            let event = sse::event("result", Some(&view.cursor), &view);
            bytes += event.len();
            // A reader's results are much alike, and what is read and has no room is read again.
            self.asks_for = room_for(event.len());
            events.push(event);
            self.at = finished.cursor.clone();
            self.told = Some(finished.cursor);
        }
        if is_all {
            self.at = page.next;
        }
        let room = Arc::new(room.fitted(bytes));
        self.ready
            .extend(events.into_iter().map(|event| Bytes::from_owner(Roomed { event, _room: Arc::clone(&room) })));
    }

    fn ping(&mut self) {
        // Results that it did not ask for were passed over: a reader that comes back need not pass them again.
        let moved = self.told.as_ref() != Some(&self.at);
        let id = moved.then(|| self.at.to_string());
        if moved {
            self.told = Some(self.at.clone());
        }
        self.ready.push_back(sse::ping(id.as_deref()));
    }

    fn end(&mut self) {
        self.ready.push_back(self.pulse.closing());
        self.ended = true;
    }
}

/// How many events of this size are taken before there is no room.
fn room_for(event_bytes: usize) -> u32 {
    u32::try_from(READY_BYTES_MAX / event_bytes.max(1) + 1).map_or(READ_MAX, |events| events.min(READ_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_read_than_there_is_room_for() {
        let asked = [1, 100, 1_000, 1_024, 16_384, 16_385, 50_000].map(room_for);
        assert_eq!(asked, [READ_MAX, READ_MAX, 17, 17, 2, 1, 1]);
    }
}
