//! One connection: the table of unanswered requests, and the two loops that write and read.
//!
//! The table and the queue of frames stand behind one lock that is never held across an await, so that dropping a
//! `lease` future can cancel its request from where it stands. Both are bounded by the permits that the server granted.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::stream::{FrameReader, write_out};
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::contract::wire::frame::LENGTH_BYTES;
use relay_bridge::contract::wire::{FromServer, FromWorker, Request, Response, Welcome, WireDelivery};
use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};
use relay_bridge::support::lock;

/// The connection as requests see it.
pub(super) struct Connection {
    state: Mutex<State>,
    /// Something is to be written, or the connection ended.
    wake: Notify,
    next_id: AtomicU64,
    /// One per request that the server lets be unanswered.
    pub(super) permits: Arc<Semaphore>,
    /// The connection has ended; nothing more is sent or answered.
    pub(super) ended: CancellationToken,
    /// The envelope version that the server reads.
    pub(super) envelope: WireVersion,
    requests: u32,
    frame_max: u32,
    ping: Duration,
}

#[derive(Default)]
struct State {
    table: HashMap<u64, Entry>,
    outgoing: VecDeque<Outgoing>,
    /// The newest ping of the server that is not answered yet.
    pong: Option<u64>,
    going_away: bool,
    ended: bool,
}

struct Entry {
    operation: &'static str,
    /// Whether the frame may have reached the server.
    sent: bool,
    waiter: Waiter,
    permit: Option<OwnedSemaphorePermit>,
}

enum Waiter {
    One(oneshot::Sender<Result<Response, BrokerError>>),
    Lease { sender: oneshot::Sender<Result<Leased, BrokerError>>, gathered: Vec<WireDelivery>, max: usize },
}

struct Outgoing {
    frame: Bytes,
    /// The request that the frame begins.
    begins: Option<u64>,
}

/// Deliveries, with the permit of the request that brought them: code that drops them hands them back under it.
pub(super) struct Leased {
    pub(super) deliveries: Vec<WireDelivery>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// The server broke the protocol, or the stream ended; in words for the log.
pub(super) type Ended = String;

impl Connection {
    pub(super) fn new(welcome: &Welcome, requests_max: u32, frame_max: u32, envelope: WireVersion) -> Self {
        let requests = welcome.requests_max.clamp(1, requests_max.clamp(1, REQUESTS_MAX));
        Self {
            state: Mutex::default(),
            wake: Notify::new(),
            next_id: AtomicU64::new(1),
            permits: Arc::new(Semaphore::new(usize::try_from(requests).unwrap_or(1))),
            requests,
            ended: CancellationToken::new(),
            envelope,
            frame_max: welcome.frame_max.min(frame_max),
            ping: welcome.ping.clamp(Duration::from_millis(1), PING_MAX),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether requests may be begun; leases not after a notice that the server stops.
    pub(super) fn takes(&self, lease: bool) -> bool {
        let state = self.state();
        let refused = state.ended || (lease && state.going_away);
        !refused
    }

    /// Waits until no request is unanswered, or the connection ended.
    pub(super) async fn idle(&self) {
        // All permits at once, which are then given back; an error means that the connection ended.
        drop(self.permits.acquire_many(self.requests).await);
    }

    /// Begins a request other than a lease. `None`: the connection ended before.
    pub(super) fn begin(
        &self,
        request: Request,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Option<Call>, BrokerError> {
        let (sender, reply) = oneshot::channel();
        let id = self.enter(request, Waiter::One(sender), permit)?;
        Ok(id.map(|id| Call { id, reply }))
    }

    /// Begins a lease request. `None`: the connection ended before.
    pub(super) fn begin_lease(
        &self,
        request: Request,
        max: u32,
        permit: OwnedSemaphorePermit,
    ) -> Result<Option<LeaseCall>, BrokerError> {
        let (sender, reply) = oneshot::channel();
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let waiter = Waiter::Lease { sender, gathered: Vec::new(), max };
        let id = self.enter(request, waiter, Some(permit))?;
        Ok(id.map(|id| LeaseCall { id, reply }))
    }

    fn enter(
        &self,
        request: Request,
        waiter: Waiter,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Option<u64>, BrokerError> {
        let operation = request.operation();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = encode(&FromWorker::Request { id, request });
        let (actual, limit) =
            (u64::try_from(frame.len() - LENGTH_BYTES).unwrap_or(u64::MAX), u64::from(self.frame_max));
        if actual > limit {
            let detail = format!("the message has {actual} bytes, the server takes {limit}");
            return Err(BrokerError::new(Kind::TooLarge { actual, limit }, operation, detail));
        }
        let mut state = self.state();
        if state.ended {
            return Ok(None);
        }
        state.table.insert(id, Entry { operation, sent: false, waiter, permit });
        state.outgoing.push_back(Outgoing { frame, begins: Some(id) });
        drop(state);
        self.wake.notify_one();
        Ok(Some(id))
    }

    /// Nobody waits for request `id` any more because its time is over. Its answer, if one comes, is dropped.
    pub(super) fn give_up(&self, id: u64, operation: &'static str) -> BrokerError {
        if self.withdraw(id) {
            return BrokerError::new(Kind::Unavailable, operation, "the request could not be sent in time");
        }
        BrokerError::new(Kind::Ambiguous, operation, "the server did not answer in time")
    }

    /// The lease request `id` is not waited for any more. The reader hands back the deliveries that still come for it.
    pub(super) fn cancel_lease(&self, id: u64) {
        if self.withdraw(id) {
            return;
        }
        let mut state = self.state();
        if state.table.contains_key(&id) {
            let frame = encode(&FromWorker::CancelLease { id });
            state.outgoing.push_back(Outgoing { frame, begins: None });
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Takes a request back that no byte was sent of. `false` if it is too late.
    fn withdraw(&self, id: u64) -> bool {
        let mut state = self.state();
        if state.table.get(&id).is_none_or(|entry| entry.sent) {
            return false;
        }
        state.outgoing.retain(|outgoing| outgoing.begins != Some(id));
        state.table.remove(&id);
        true
    }

    /// Fails every unanswered request. Those of which no byte was sent had no effect.
    pub(super) fn end(&self, why: &str, orphans: impl Fn(Leased)) {
        let mut state = self.state();
        state.ended = true;
        state.outgoing.clear();
        let table = std::mem::take(&mut state.table);
        drop(state);
        self.permits.close();
        self.ended.cancel();
        for entry in table.into_values() {
            let kind = if entry.sent { Kind::Ambiguous } else { Kind::Unavailable };
            let detail = format!("the connection to relay was lost: {why}");
            entry.fail(|operation| BrokerError::new(kind, operation, detail), &orphans);
        }
    }

    /// Reads and answers until the stream ends or the server breaks the protocol. Deliveries that nobody waits for go
    /// to `orphans`.
    pub(super) async fn read<R: AsyncRead + Unpin>(
        &self,
        from: &mut FrameReader<R>,
        orphans: impl Fn(Leased),
    ) -> Ended {
        loop {
            let frame = match time::timeout(self.ping.saturating_mul(3), from.next()).await {
                Err(_) => return "nothing came for three pings".to_owned(),
                Ok(Err(error)) => return error.to_string(),
                Ok(Ok(None)) => return "the server closed it".to_owned(),
                Ok(Ok(Some(frame))) => frame,
            };
            let message = match FromServer::decode(&frame) {
                Ok(message) => message,
                Err(error) => {
                    // Without an id it is a notice that a newer server sends and this build does not know.
                    if let Some(entry) = error.id.and_then(|id| self.leave(id)) {
                        let detail = format!("the answer can't be read: {error}");
                        entry.fail(|operation| BrokerError::new(Kind::Ambiguous, operation, detail), &orphans);
                    }
                    continue;
                }
            };
            match message {
                FromServer::Response { id, response } => self.response(id, response, &orphans),
                FromServer::Error { id: Some(id), error } => {
                    if let Some(entry) = self.leave(id) {
                        entry.fail(|operation| error.into_broker_error(operation), &orphans);
                    }
                }
                FromServer::Error { id: None, error } => return error.detail,
                FromServer::GoAway { reason, within } => {
                    tracing::info!(reason, within_ms = within.as_millis(), "the server stops soon");
                    self.state().going_away = true;
                }
                FromServer::Ping(number) => {
                    self.state().pong = Some(number);
                    self.wake.notify_one();
                }
                FromServer::Pong(_) | FromServer::Welcome(_) => {}
            }
        }
    }

    fn leave(&self, id: u64) -> Option<Entry> {
        self.state().table.remove(&id)
    }

    fn response(&self, id: u64, response: Response, orphans: &impl Fn(Leased)) {
        let (mut deliveries, more) = match response {
            Response::Deliveries { deliveries, more } => (deliveries, more),
            other => match self.leave(id) {
                // A caller that gave up waiting wants no answer either.
                Some(Entry { waiter: Waiter::One(sender), .. }) => return drop(sender.send(Ok(other))),
                Some(entry) => return entry.fail(unexpected, orphans),
                None => return,
            },
        };
        let mut state = self.state();
        if let Some(Entry { waiter: Waiter::Lease { gathered, max, .. }, .. }) = state.table.get_mut(&id)
            && more
            && gathered.len() + deliveries.len() < *max
        {
            return gathered.append(&mut deliveries);
        }
        let entry = state.table.remove(&id);
        drop(state);
        match entry {
            Some(Entry { waiter: Waiter::Lease { sender, mut gathered, .. }, permit, .. }) => {
                gathered.append(&mut deliveries);
                give(sender, Leased { deliveries: gathered, permit }, orphans);
            }
            other => {
                orphans(Leased { deliveries, permit: None });
                if let Some(entry) = other {
                    entry.fail(unexpected, orphans);
                }
            }
        }
    }

    /// Writes what is queued, many frames at a time, and a ping now and then, until the connection ends or `close` is
    /// cancelled; then what is left, and the end of the stream.
    pub(super) async fn write<W: AsyncWrite + Unpin>(&self, mut to: W, close: CancellationToken) -> Ended {
        let mut pings = time::interval_at(time::Instant::now() + self.ping, self.ping);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0;
        let mut batch = BytesMut::new();
        loop {
            self.fill(&mut batch);
            if batch.is_empty() {
                if close.is_cancelled() {
                    // The peer may be gone already; there is nobody to tell.
                    drop(to.shutdown().await);
                    return "closed".to_owned();
                }
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = close.cancelled() => {}
                    () = self.ended.cancelled() => return "ended".to_owned(),
                    _ = pings.tick() => {
                        number += 1;
                        FromWorker::Ping(number).encode(&mut batch);
                    }
                }
                if batch.is_empty() {
                    continue;
                }
            }
            let written = tokio::select! {
                written = time::timeout(WRITE_TIMEOUT, write_out(&mut to, &batch)) => written,
                () = self.ended.cancelled() => return "ended".to_owned(),
            };
            match written {
                Err(_) => return "the server takes no more bytes".to_owned(),
                Ok(Err(error)) => return error.to_string(),
                Ok(Ok(())) => {}
            }
            batch.clear();
            if batch.capacity() > BATCH_KEPT_BYTES {
                batch = BytesMut::new();
            }
        }
    }

    fn fill(&self, batch: &mut BytesMut) {
        let mut state = self.state();
        if let Some(number) = state.pong.take() {
            FromWorker::Pong(number).encode(batch);
        }
        while batch.len() < BATCH_BYTES {
            let Some(outgoing) = state.outgoing.pop_front() else {
                return;
            };
            if let Some(entry) = outgoing.begins.and_then(|id| state.table.get_mut(&id)) {
                entry.sent = true;
            }
            batch.extend_from_slice(&outgoing.frame);
        }
    }
}

/// A request that is under way.
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) reply: oneshot::Receiver<Result<Response, BrokerError>>,
}

/// A lease request that is under way.
pub(super) struct LeaseCall {
    pub(super) id: u64,
    pub(super) reply: oneshot::Receiver<Result<Leased, BrokerError>>,
}

impl Entry {
    /// Ends the request with an error; jobs that a lease had gathered before are leased all the same.
    fn fail(self, error: impl FnOnce(&'static str) -> BrokerError, orphans: &impl Fn(Leased)) {
        match self.waiter {
            Waiter::Lease { sender, gathered, .. } if !gathered.is_empty() => {
                give(sender, Leased { deliveries: gathered, permit: self.permit }, orphans);
            }
            // A caller that gave up waiting wants no error either.
            Waiter::One(sender) => drop(sender.send(Err(error(self.operation)))),
            Waiter::Lease { sender, .. } => drop(sender.send(Err(error(self.operation)))),
        }
    }
}

fn give(sender: oneshot::Sender<Result<Leased, BrokerError>>, leased: Leased, orphans: &impl Fn(Leased)) {
    if let Err(Ok(leased)) = sender.send(Ok(leased)) {
        orphans(leased);
    }
}

pub(super) fn unexpected(operation: &'static str) -> BrokerError {
    BrokerError::new(Kind::Ambiguous, operation, "the server answered something else")
}

fn encode(message: &FromWorker) -> Bytes {
    let mut frame = BytesMut::new();
    message.encode(&mut frame);
    frame.freeze()
}

/// An NLB forgets a silent connection after 350 s; a server that asks for fewer pings is not followed.
const PING_MAX: Duration = Duration::from_secs(60);
/// The most unanswered requests, whatever the server grants and the configuration asks for.
const REQUESTS_MAX: u32 = 4_096;
/// How long the server may take no bytes before the connection counts as lost.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Frames are collected into one write until they have this many bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// A buffer that a large payload made larger than this is not kept.
const BATCH_KEPT_BYTES: usize = 1024 * 1024;
