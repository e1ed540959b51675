//! The answer that a peer is reading: its bytes hold the request's place, and their share of the answers' budget, until the last
//! one left or was dropped. Hyper takes a frame and drops the body before the frame's bytes leave, so the bytes hold it, and
//! not the body.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::room::Room;
use crate::ingress::budget::Share;

/// The largest part of an answer that is given out at a time: a peer that takes one byte more than its window holds so much.
const FRAME_MAX: usize = 16 * 1024;

tokio::task_local! {
    /// The task of the HTTP/2 stream that asks: cancelled, it ends that stream and no other.
    pub(super) static STREAM: CancellationToken;
}

/// The holdings of one answer.
pub(super) struct Held {
    connection: Arc<Connection>,
    /// When a part of it was taken last, in milliseconds after the connection's start.
    pub(super) taken_at: AtomicU64,
    /// Ends the stream that it goes out on; `None` over HTTP/1.1.
    pub(super) task: Option<CancellationToken>,
    /// When the stream was ended, because nothing was taken of it.
    pub(super) ended_at: OnceLock<Instant>,
    _place: Option<Share>,
    _room: Option<Arc<Room>>,
}

impl Held {
    fn taken(&self) {
        let now = self.connection.now();
        self.taken_at.store(now, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.forget();
    }
}

/// The room that a handler reserved for its answer, on the way to where the answer is held.
#[derive(Clone)]
pub(super) struct Reserved(pub(super) Arc<Room>);

/// Marks the answer as a stream, which has a place of its own instead of its request's.
#[derive(Clone, Copy)]
pub(super) struct Streamed;

/// `response`, whose bytes hold the place of its request and the room that was reserved for it. An answer without a body holds
/// nothing.
pub(super) fn hold(mut response: Response, connection: &Arc<Connection>, place: Option<Share>) -> Response {
    let room = response.extensions_mut().remove::<Reserved>().map(|Reserved(room)| room);
    let place = place.filter(|_| response.extensions_mut().remove::<Streamed>().is_none());
    if response.body().is_end_stream() {
        return response;
    }
    let held = Arc::new(Held {
        connection: Arc::clone(connection),
        taken_at: AtomicU64::new(connection.now()),
        task: STREAM.try_with(CancellationToken::clone).ok(),
        ended_at: OnceLock::new(),
        _place: place,
        _room: room,
    });
    connection.add(&held);
    response.map(|body| Body::new(HeldBody { body, rest: Bytes::new(), begun: false, held }))
}

struct HeldBody {
    body: Body,
    /// The end of a frame that was larger than what is given out at a time.
    rest: Bytes,
    begun: bool,
    held: Arc<Held>,
}

impl HeldBody {
    fn part(&mut self) -> Frame<Bytes> {
        let part = self.rest.split_to(self.rest.len().min(FRAME_MAX));
        // The first one is taken when the answer is ready.
        if std::mem::replace(&mut self.begun, true) {
            self.held.taken();
        }
        Frame::data(Bytes::from_owner(Part { part, held: Arc::clone(&self.held) }))
    }
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        Poll::Ready(Some(Ok(self.part())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// A part of an answer, on its way out.
struct Part {
    part: Bytes,
    held: Arc<Held>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.part
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // The last one ends the answer, which is noted anyway.
        if Arc::strong_count(&self.held) > 1 {
            self.held.taken();
        }
    }
}
