//! The activity on a connection, so that one on which nothing happens can be dropped.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use relay_bridge::support::lock;
use tokio::time::Instant;

/// When something happened last on one connection.
pub(super) struct Activity {
    start: Instant,
    begun: AtomicU64,
    running: AtomicU64,
    /// When the last answer was ready, or a part of one was taken, in milliseconds after `start`.
    answered_at: AtomicU64,
    /// The same for each answer that is a stream. Over HTTP/2 a peer may read one of them and not another.
    streams: Mutex<Vec<Arc<AtomicU64>>>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            begun: AtomicU64::new(0),
            running: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            streams: Mutex::default(),
        }
    }

    /// Counts a request as running until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    /// `body` as it is, or, if its length is open, so that each part that the peer has room for counts as activity: a
    /// stream lasts for as long as it is read.
    pub(super) fn attend(self: &Arc<Self>, body: Body) -> Body {
        if body.size_hint().exact().is_some() {
            return body;
        }
        let taken_at = Arc::new(AtomicU64::new(self.now()));
        self.streams().push(Arc::clone(&taken_at));
        Body::new(Attended { body, activity: Arc::clone(self), taken_at })
    }

    /// Ends if no request came within `first`, or later none within `idle` after the last answer; or if nothing was taken of
    /// a stream for as long as that.
    ///
    /// One timer for the connection, which looks again when it fires, instead of one that every request resets. Hyper has
    /// no timeout while it finds out which HTTP version a peer speaks, none for HTTP/2 peers that answer pings and ask
    /// nothing, and none for peers that do not read their answers: <https://github.com/hyperium/hyper/issues/3756>.
    pub(super) async fn silence(&self, first: Duration, idle: Duration) {
        tokio::time::sleep(first).await;
        if self.begun.load(Ordering::Relaxed) == 0 {
            return;
        }
        loop {
            let now = Instant::now();
            let quiet_since = match self.running.load(Ordering::Acquire) {
                0 => self.start + Duration::from_millis(self.answered_at.load(Ordering::Relaxed)),
                _ => now,
            };
            let stalled = self.streams().iter().map(|taken_at| taken_at.load(Ordering::Relaxed)).min();
            let stalled = stalled.map_or(now, |taken_at| self.start + Duration::from_millis(taken_at));
            let until = quiet_since.min(stalled) + idle;
            if until <= now {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    fn answered(&self) {
        self.answered_at.store(self.now(), Ordering::Relaxed);
    }

    /// Milliseconds after `start`.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn streams(&self) -> MutexGuard<'_, Vec<Arc<AtomicU64>>> {
        lock(&self.streams)
    }
}

/// A request that is being answered.
pub(super) struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.answered();
        self.0.running.fetch_sub(1, Ordering::Release);
    }
}

struct Attended {
    body: Body,
    activity: Arc<Activity>,
    taken_at: Arc<AtomicU64>,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.activity.streams().retain(|taken_at| !Arc::ptr_eq(taken_at, &self.taken_at));
    }
}

impl HttpBody for Attended {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.activity.answered();
            self.taken_at.store(self.activity.now(), Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
