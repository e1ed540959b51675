//! `GET /v1/results` as server-sent events: all of a client's results from a cursor on, and what comes after them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use relay_bridge::contract::{ClientId, Cursor};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::{Page, Reset, ResultFilter, Start};
use serde::Serialize;
use tokio_util::task::AbortOnDropHandle;

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
    /// Where it begins.
    start: Start,
    /// Behind what was read and is on its way, or was left out; `None` until something was read.
    at: Option<Cursor>,
    /// Where the peer knows that it is.
    told: Option<Cursor>,
    ready: VecDeque<Bytes>,
    /// Results that the next read asks for: about as many as there is room for.
    asks_for: u32,
    /// The read that waits: a task, because nobody polls a stream whose peer has no room, and a read that is not polled keeps
    /// its place at the broker.
    reading: Option<AbortOnDropHandle<Read>>,
    ended: bool,
}

/// Results, and room for their events; or none of them for as long as the stream lasts.
type Read = Result<(Page, Option<Room>), BrokerError>;

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
    let ready = VecDeque::from([pulse.opening(None)]);
    let (at, told, asks_for, reading, ended) = (None, None, READ_MAX, None, false);
    let mut follower =
        Follower { served, peer, client, filter, pulse, start, at, told, ready, asks_for, reading, ended };
    follower.begin().await?;
    Ok(sse::answer(stream::unfold(follower, |mut follower| async move {
        let chunk = follower.next().await?;
        Some((chunk, follower))
    })))
}

impl Follower {
    /// Reads what there is, if there is room for it: so that a broker that refuses is told of with a status. Without room, the
    /// stream begins by waiting for it.
    async fn begin(&mut self) -> Result<(), Refusal> {
        let (ingress, results) = (&self.served.ingress, &self.served.ingress.broker.results);
        let largest = ingress.policies.result_max().await?.min(ingress.streamed.share_of(&self.peer.owner) as u64 / 2);
        let room = self.peer.stream_room_now(ingress, largest);
        // The end of the log has no results, and must not move while one waits.
        if room.is_none() && self.start != Start::Now {
            return Ok(());
        }
        let page = results.page(&self.client, &self.start, &self.filter, READ_MAX, Duration::ZERO).await?;
        if page.entries.is_empty() {
            // With nothing to tell, the peer learns where it stands: else it would not find its way back.
            self.ready = VecDeque::from([self.pulse.opening(Some(&page.next.to_string()))]);
            self.told = Some(page.next.clone());
        }
        match room {
            Some(room) => self.take(page, room),
            None => self.at = Some(page.next),
        }
        Ok(())
    }

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
            let mut reading = self.reading.take().unwrap_or_else(|| self.read());
            tokio::select! {
                read = &mut reading => match read {
                    // One that moved on passed over what nobody asked for.
                    Ok(Ok((page, _)))
                        if page.entries.is_empty() && page.reset.is_none() && Some(&page.next) == self.at.as_ref() => self.end(),
                    Ok(Ok((page, Some(room)))) => self.take(page, room),
                    Ok(Err(error)) => {
                        self.ready.push_back(sse::problem(&error.into()));
                        self.end();
                    }
                    // Relay is being closed.
                    Ok(Ok((_, None))) | Err(_) => self.end(),
                },
                beat = self.pulse.beat() => {
                    self.reading = Some(reading);
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

    /// Reads on, and waits for as long as the stream lasts if there is nothing yet. What was read and finds no room is dropped,
    /// and read again once there is.
    fn read(&self) -> AbortOnDropHandle<Read> {
        let (peer, served) = (self.peer.clone(), Arc::clone(&self.served));
        let start = self.at.clone().map_or_else(|| self.start.clone(), Start::After);
        let (client, filter) = (self.client.clone(), self.filter.clone());
        let limit = self.asks_for;
        AbortOnDropHandle::new(self.served.tasks.spawn(async move {
            let (ingress, results) = (&served.ingress, &served.ingress.broker.results);
            // The stream ends before this wait does: a read at the end of the wait finds nothing.
            let page = results.page(&client, &start, &filter, limit, ingress.limits.follow_for * 2).await?;
            if let Some(room) = peer.stream_room_now(ingress, size(&page)) {
                return Ok((page, Some(room)));
            }
            let most = size(&page);
            drop(page);
            // On the heap: most that wait never come here.
            let room = Box::pin(peer.stream_room(ingress, most)).await;
            let page = results.page(&client, &start, &filter, limit, Duration::ZERO).await?;
            let bytes = usize::try_from(size(&page)).unwrap_or(usize::MAX);
            Ok((page, room.map(|room| room.fitted(bytes))))
        }))
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
            self.at = Some(finished.cursor.clone());
            self.told = Some(finished.cursor);
        }
        if is_all {
            self.at = Some(page.next);
        }
        let room = Arc::new(room.fitted(bytes));
        self.ready
            .extend(events.into_iter().map(|event| Bytes::from_owner(Roomed { event, _room: Arc::clone(&room) })));
    }

    fn ping(&mut self) {
        // Results that it did not ask for were passed over: a reader that comes back need not pass them again.
        let moved = self.told != self.at;
        let id = self.at.as_ref().filter(|_| moved).map(Cursor::to_string);
        self.told.clone_from(&self.at);
        self.ready.push_back(sse::ping(id.as_deref()));
    }

    fn end(&mut self) {
        self.ready.push_back(self.pulse.closing());
        self.ended = true;
    }
}

/// The bytes of a page's payloads, or of the events that are made of them.
fn size(page: &Page) -> u64 {
    let payloads = page.entries.iter().map(|finished| finished.result.payload.len() as u64).sum::<u64>();
    payloads.max(ROOM_BYTES)
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
