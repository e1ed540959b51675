//! One connection: the table of unanswered requests, and the two loops that write and read.
//!
//! The table and the frames to write stand behind one lock that is never held across an await, so that dropping a call can take its
//! request back. The server's grant bounds both.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use relay_bridge::contract::wire::client::{Follow, FromClient, Request, ToClient, Welcome};
use relay_bridge::contract::wire::frame::LENGTH_BYTES;
use relay_bridge::contract::wire::{DecodeError, Problem};
use relay_bridge::support::lock;
use relay_remote::stream::{FrameReader, ReadError, write_out};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::super::error::ClientError;
use super::super::retry::ANSWER_MAX;
use super::answers::{refused, too_large};
use super::credit::Credit;

/// A message for one who asked, or why none comes.
pub(super) type Answer = Result<ToClient, ClientError>;

/// Why a request was not begun: no byte of it was sent.
pub(super) enum Unbegun {
    /// The connection is left for another one, on which it may be begun.
    Left,
    /// The connection ended, or takes no such request.
    Failed(ClientError),
}

impl From<ClientError> for Unbegun {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

pub(super) struct Connection {
    state: Mutex<State>,
    /// Something is to be written.
    wake: Notify,
    next_id: AtomicU64,
    requests: Arc<Semaphore>,
    requests_all: usize,
    bytes: Arc<Semaphore>,
    bytes_all: u32,
    frame_max: u64,
    ping: Duration,
    renewed_at: Instant,
    ended: CancellationToken,
}

struct State {
    table: HashMap<u64, Entry>,
    outgoing: VecDeque<Outgoing>,
    /// The newest ping of the server that is not answered yet.
    pong: Option<u64>,
    /// It takes no new requests, and ends with the last answer.
    is_leaving: bool,
    ended: Option<ClientError>,
    heard: Instant,
}

struct Entry {
    is_sent: bool,
    /// When it was given up, if a byte of it may have been sent: the server answers it all the same, if it answers at all.
    given_up: Option<Instant>,
    waiter: Waiter,
    /// Of the server's requests and bytes, until it has answered.
    _granted: Vec<OwnedSemaphorePermit>,
}

enum Waiter {
    One(oneshot::Sender<Answer>),
    Follower { sender: mpsc::Sender<Answer>, credit: Credit },
}

struct Outgoing {
    frame: BytesMut,
    /// The request that the frame begins.
    begins: Option<u64>,
}

impl Connection {
    /// One that is left for another after `renewed_after`.
    pub(super) fn new(welcome: &Welcome, renewed_after: Duration) -> Self {
        let requests = usize::try_from(welcome.requests_max.clamp(1, REQUESTS_MAX)).unwrap_or(1);
        let bytes_all = u32::try_from((welcome.bytes_max / BYTES_UNIT).clamp(1, BYTES_UNITS_MAX)).unwrap_or(1);
        let (table, outgoing) = (HashMap::new(), VecDeque::new());
        Self {
            state: Mutex::new(State {
                table,
                outgoing,
                pong: None,
                is_leaving: false,
                ended: None,
                heard: Instant::now(),
            }),
            wake: Notify::new(),
            next_id: AtomicU64::new(1),
            requests: Arc::new(Semaphore::new(requests)),
            requests_all: requests,
            bytes: Arc::new(Semaphore::new(usize::try_from(bytes_all).unwrap_or(1))),
            bytes_all,
            frame_max: u64::from(welcome.frame_max),
            ping: welcome.ping.clamp(PING_LEAST, PING_MAX),
            renewed_at: Instant::now() + renewed_after,
            ended: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether requests may be begun. One that is old takes none from now on.
    pub(super) fn takes(&self) -> bool {
        if Instant::now() >= self.renewed_at {
            self.leave();
        }
        let state = self.state();
        state.ended.is_none() && !state.is_leaving
    }

    fn leave(&self) {
        self.state().is_leaving = true;
        // Those that wait for their turn begin elsewhere.
        self.requests.close();
        self.bytes.close();
        self.end_if_left();
    }

    fn end_if_left(&self) {
        let state = self.state();
        let is_over = state.is_leaving && state.table.is_empty() && state.ended.is_none();
        drop(state);
        if is_over {
            self.end(&ClientError::Interrupted("the connection was left for another one".to_owned()));
        }
    }

    /// Sends a request and waits for its one answer, at most `wait` and the time that an answer may take.
    ///
    /// # Errors
    /// The request: no byte of it was sent, because the connection is left for another one.
    pub(super) async fn ask(&self, request: Request, wait: Duration) -> Result<Answer, Box<Request>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let stops = match &request {
            Request::Wait { .. } => true,
            Request::Submit(submit) => submit.wait.is_some(),
            _ => false,
        };
        let counts = matches!(request, Request::Submit(_));
        let message = FromClient::Request { id, request };
        let (sender, receiver) = oneshot::channel();
        match self.begin(id, &message, counts, sender).await {
            Ok(()) => drop(message),
            Err(Unbegun::Failed(error)) => return Ok(Err(error)),
            Err(Unbegun::Left) => match message {
                FromClient::Request { request, .. } => return Err(Box::new(request)),
                _ => return Ok(Err(self.why())),
            },
        }
        let begun = Instant::now();
        let asked = Asked { connection: self, id, stops };
        let answer = time::timeout(ANSWER_MAX.saturating_add(wait), receiver).await;
        match answer {
            Ok(answer) => {
                std::mem::forget(asked);
                Ok(answer.unwrap_or_else(|_| Err(self.why())))
            }
            Err(_) => {
                drop(asked);
                let late = ClientError::Interrupted(format!("the server did not answer in {ANSWER_MAX:?}"));
                if self.state().heard < begun {
                    self.end(&late);
                }
                Ok(Err(late))
            }
        }
    }

    /// Has a request with one answer sent once it is its turn.
    async fn begin(
        &self,
        id: u64,
        message: &FromClient,
        counts: bool,
        sender: oneshot::Sender<Answer>,
    ) -> Result<(), Unbegun> {
        let frame = self.frame(message)?;
        let mut granted = vec![self.granted(&self.requests, 1).await?];
        if counts {
            let units = u64::try_from(frame.len()).unwrap_or(u64::MAX) / BYTES_UNIT + 1;
            let units = u32::try_from(units).unwrap_or(u32::MAX).min(self.bytes_all);
            granted.push(self.granted(&self.bytes, units).await?);
        }
        self.enter(id, frame, Waiter::One(sender), granted)
    }

    /// Begins to follow once it is its turn: the id of the request, and its messages, at most as many at a time as the credit says.
    pub(super) async fn follow(&self, follow: Follow) -> Result<(u64, mpsc::Receiver<Answer>), Unbegun> {
        let mut granted = Vec::new();
        // The last of the grant is for requests that end. Without it the server refuses, and says why.
        if self.follows() + 1 < self.requests_all {
            granted.push(self.granted(&self.requests, 1).await?);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let credit = Credit::new(follow.results, follow.bytes);
        let most = usize::try_from(follow.results).unwrap_or(usize::MAX);
        let frame = self.frame(&FromClient::Request { id, request: Request::Follow(follow) })?;
        let (sender, receiver) = mpsc::channel(most + NOTICES_MAX);
        let waiter = Waiter::Follower { sender, credit };
        self.enter(id, frame, waiter, granted)?;
        Ok((id, receiver))
    }

    fn follows(&self) -> usize {
        self.state().table.values().filter(|entry| matches!(entry.waiter, Waiter::Follower { .. })).count()
    }

    /// Tells the server that `results` of the follow request `id` were taken: it may push as much again as they took.
    pub(super) fn credits(&self, id: u64, results: u32) {
        let bytes = match self.state().table.get_mut(&id) {
            Some(Entry { waiter: Waiter::Follower { credit, .. }, .. }) => credit.give_back(results),
            _ => return,
        };
        self.add(id, &FromClient::Credit { id, results, bytes });
    }

    fn frame(&self, message: &FromClient) -> Result<BytesMut, ClientError> {
        let mut frame = BytesMut::new();
        message.encode(&mut frame);
        let actual = u64::try_from(frame.len() - LENGTH_BYTES).unwrap_or(u64::MAX);
        if actual > self.frame_max { Err(too_large(actual, self.frame_max)) } else { Ok(frame) }
    }

    /// A part of what the server granted, once there is one. A connection whose whole grant is held by requests that were given up,
    /// and that the server does not answer, ends: else all who come would wait for it.
    async fn granted(&self, of: &Arc<Semaphore>, count: u32) -> Result<OwnedSemaphorePermit, Unbegun> {
        let mut acquired = std::pin::pin!(Arc::clone(of).acquire_many_owned(count));
        loop {
            match time::timeout(UNANSWERED_MAX, &mut acquired).await {
                Ok(permit) => return permit.map_err(|_| self.unbegun()),
                Err(_) if self.is_held_up() => {
                    self.end(&ClientError::Interrupted("the server answered none of its requests".to_owned()));
                }
                Err(_) => {}
            }
        }
    }

    fn is_held_up(&self) -> bool {
        let state = self.state();
        let mut asked = state.table.values().filter(|entry| matches!(entry.waiter, Waiter::One(_))).peekable();
        asked.peek().is_some() && asked.all(|entry| entry.given_up.is_some_and(|at| at.elapsed() >= UNANSWERED_MAX))
    }

    /// Why nothing is begun any more.
    fn unbegun(&self) -> Unbegun {
        if self.state().is_leaving { Unbegun::Left } else { Unbegun::Failed(self.why()) }
    }

    /// Why it ended.
    pub(super) fn why(&self) -> ClientError {
        let ended = self.state().ended.clone();
        ended.unwrap_or_else(|| ClientError::Interrupted("the connection was lost".to_owned()))
    }

    fn enter(
        &self,
        id: u64,
        frame: BytesMut,
        waiter: Waiter,
        granted: Vec<OwnedSemaphorePermit>,
    ) -> Result<(), Unbegun> {
        let mut state = self.state();
        if state.is_leaving || state.ended.is_some() {
            drop(state);
            return Err(self.unbegun());
        }
        state.table.insert(id, Entry { is_sent: false, given_up: None, waiter, _granted: granted });
        state.outgoing.push_back(Outgoing { frame, begins: Some(id) });
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Sends what belongs to request `id`, unless it is answered.
    pub(super) fn add(&self, id: u64, message: &FromClient) {
        let mut frame = BytesMut::new();
        message.encode(&mut frame);
        let mut state = self.state();
        if state.table.contains_key(&id) {
            state.outgoing.push_back(Outgoing { frame, begins: None });
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Nobody waits for request `id` any more. One of which no byte was sent is taken back; else its answer is dropped when it comes.
    pub(super) fn give_up(&self, id: u64, stops: bool) {
        let mut state = self.state();
        if state.table.get(&id).is_some_and(|entry| !entry.is_sent) {
            state.outgoing.retain(|outgoing| outgoing.begins != Some(id));
            state.table.remove(&id);
            drop(state);
            return self.end_if_left();
        }
        if let Some(entry) = state.table.get_mut(&id) {
            entry.given_up = Some(Instant::now());
        }
        drop(state);
        if stops {
            self.add(id, &FromClient::Stop { id });
        }
    }

    /// Ends it: every unanswered request gets `error`.
    pub(super) fn end(&self, error: &ClientError) {
        let mut state = self.state();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(error.clone());
        state.outgoing.clear();
        let table = std::mem::take(&mut state.table);
        drop(state);
        self.requests.close();
        self.bytes.close();
        self.ended.cancel();
        for entry in table.into_values() {
            match entry.waiter {
                Waiter::One(sender) => drop(sender.send(Err(error.clone()))),
                // A follower whose channel is full finds that it is closed.
                Waiter::Follower { sender, .. } => drop(sender.try_send(Err(error.clone()))),
            }
        }
    }

    /// Reads and answers until the stream ends, the server breaks the protocol, or `close` is cancelled.
    pub(super) async fn read<R: AsyncRead + Unpin>(&self, mut from: FrameReader<R>, close: CancellationToken) {
        let mut seen = 0;
        let error = loop {
            let read = tokio::select! {
                read = time::timeout(self.ping.saturating_mul(3), from.next()) => read,
                () = close.cancelled() => break ClientError::Interrupted("the client was dropped".to_owned()),
                () = self.ended.cancelled() => return,
            };
            let frame = match read {
                // Also a part of a large message is a word of the server.
                Err(_) if from.here() != seen => {
                    seen = from.here();
                    continue;
                }
                Err(_) => break ClientError::Interrupted("no message came for three pings".to_owned()),
                Ok(Err(ReadError::Broken(error))) => break ClientError::Interrupted(error.to_string()),
                Ok(Err(ReadError::Frame(error))) => break ClientError::Garbled(error.to_string()),
                Ok(Ok(None)) => break ClientError::Interrupted("the server closed the connection".to_owned()),
                Ok(Ok(Some(frame))) => frame,
            };
            seen = from.here();
            self.state().heard = Instant::now();
            let taken = match ToClient::decode(&frame) {
                Ok(message) => self.take(message),
                // A notice that a newer server sends.
                Err(DecodeError { id: None, problem: Problem::UnknownType(_) }) => Ok(()),
                Err(error) => {
                    let garbled = ClientError::Garbled(error.to_string());
                    error.id.map_or(Err(garbled.clone()), |id| self.give(id, Err(garbled), true))
                }
            };
            if let Err(error) = taken {
                break error;
            }
        };
        self.end(&error);
    }

    fn take(&self, message: ToClient) -> Result<(), ClientError> {
        match message {
            ToClient::Ping(number) => {
                self.state().pong = Some(number);
                self.wake.notify_one();
            }
            ToClient::Pong(_) => {}
            ToClient::GoAway { reason, within } => {
                tracing::debug!(reason, within_ms = within.as_millis(), "the server wants the client elsewhere");
                self.leave();
            }
            ToClient::Error(error) => return Err(refused(*error)),
            ToClient::Welcome(_) => return Err(ClientError::Garbled("a second welcome came".to_owned())),
            ToClient::Position { id, .. } | ToClient::Reset { id, .. } => return self.give(id, Ok(message), false),
            ToClient::Result { id, .. } => {
                let follows =
                    self.state().table.get(&id).is_some_and(|entry| matches!(entry.waiter, Waiter::Follower { .. }));
                return self.give(id, Ok(message), !follows);
            }
            ToClient::Receipt { id, .. }
            | ToClient::Job { id, .. }
            | ToClient::Whoami { id, .. }
            | ToClient::Followed { id, .. }
            | ToClient::Problem { id, .. } => return self.give(id, Ok(message), true),
        }
        Ok(())
    }

    /// Gives an answer to whoever asked; `is_last` ends the request.
    fn give(&self, id: u64, answer: Answer, is_last: bool) -> Result<(), ClientError> {
        let mut state = self.state();
        let unasked = || ClientError::Garbled(format!("an answer came for request {id}, which was not asked"));
        if is_last {
            let entry = state.table.remove(&id);
            drop(state);
            match entry.ok_or_else(unasked)?.waiter {
                // One who gave up wants no answer either.
                Waiter::One(sender) => drop(sender.send(answer)),
                Waiter::Follower { sender, .. } => drop(sender.try_send(answer)),
            }
            self.end_if_left();
            return Ok(());
        }
        match &mut state.table.get_mut(&id).ok_or_else(unasked)?.waiter {
            Waiter::One(_) => Err(ClientError::Garbled(format!("request {id} follows nothing, and was told a place"))),
            Waiter::Follower { sender, credit } => {
                // A place that is not told is told later. Results that there is credit for find room beside those that are.
                if matches!(answer, Ok(ToClient::Position { .. }))
                    && sender.capacity() < credit.results() + NOTICES_MAX / 2
                {
                    return Ok(());
                }
                let overrun = || ClientError::Garbled("more results came than there was credit for".to_owned());
                if let Ok(ToClient::Result { result, .. }) = &answer
                    && !credit.spend(result)
                {
                    return Err(overrun());
                }
                match sender.try_send(answer) {
                    Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
                    Err(mpsc::error::TrySendError::Full(_)) => Err(overrun()),
                }
            }
        }
    }

    /// Writes what is queued, many frames at a time, and a ping where there is nothing for long, until it ends.
    pub(super) async fn write<W: AsyncWrite + Unpin>(&self, mut to: W) {
        let mut pings = time::interval_at(Instant::now() + self.ping, self.ping);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut number, mut batch) = (0, BytesMut::new());
        loop {
            self.fill(&mut batch);
            if batch.is_empty() {
                tokio::select! {
                    () = self.wake.notified() => continue,
                    () = self.ended.cancelled() => break,
                    _ = pings.tick() => {
                        number += 1;
                        FromClient::Ping(number).encode(&mut batch);
                    }
                }
            }
            let written = tokio::select! {
                written = time::timeout(ANSWER_MAX, write_out(&mut to, &batch)) => written,
                () = self.ended.cancelled() => break,
            };
            let why = match written {
                Ok(Ok(())) => {
                    batch.clear();
                    pings.reset();
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the server takes no more bytes".to_owned(),
            };
            self.end(&ClientError::Interrupted(why));
            break;
        }
        // The peer may be gone already; there is nobody to tell.
        drop(time::timeout(CLOSE_MAX, to.shutdown()).await);
    }

    fn fill(&self, batch: &mut BytesMut) {
        let mut state = self.state();
        if let Some(number) = state.pong.take() {
            FromClient::Pong(number).encode(batch);
        }
        while batch.len() < BATCH_BYTES {
            let Some(Outgoing { frame, begins }) = state.outgoing.pop_front() else { return };
            if let Some(entry) = begins.and_then(|id| state.table.get_mut(&id)) {
                entry.is_sent = true;
            }
            if batch.is_empty() {
                *batch = frame;
            } else {
                batch.extend_from_slice(&frame);
            }
        }
    }
}

/// A request that is waited for; dropped, it is given up.
struct Asked<'a> {
    connection: &'a Connection,
    id: u64,
    stops: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.connection.give_up(self.id, self.stops);
    }
}

/// Notices that a follower may be behind with, beside its results.
const NOTICES_MAX: usize = 16;
/// How long requests that were given up may hold the whole grant.
const UNANSWERED_MAX: Duration = Duration::from_millis(250);
/// More requests than that are never unanswered, whatever the server grants.
const REQUESTS_MAX: u32 = 4_096;
/// Bytes are counted in so many, and no more of them than a semaphore holds.
const BYTES_UNIT: u64 = 1_024;
const BYTES_UNITS_MAX: u64 = 1 << 28;
/// Well below the 350 s after which a network load balancer forgets a silent connection.
const PING_MAX: Duration = Duration::from_secs(60);
const PING_LEAST: Duration = Duration::from_millis(10);
/// How much is written at a time.
pub(super) const BATCH_BYTES: usize = 64 * 1024;
/// How long the end of a connection may take to be said.
const CLOSE_MAX: Duration = Duration::from_secs(1);
