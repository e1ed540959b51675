//! One connection after its hello: reads requests, starts a bounded number of them at a time, keeps the connection
//! alive, and drains.

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::contract::wire::{FromServer, FromWorker, HELLO_FRAME_MAX, Request, WireError};
use relay_bridge::contract::{RunId, WorkerId};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_remote::stream::{FrameReader, ReadError, write_out};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arriving::{self, Arrived};
use super::audited::SessionLine;
use super::first::{self, Refused};
use super::hello::{self, Admitted};
use super::listener::{Door, Stop};
use super::memory::{self, ConnectionMemory, Share};
use super::places::{Place, Places};
use super::writer::{self, Outgoing};
use super::{WorkerGrant, WorkerListener};
use crate::audit::record;
use crate::auth::Presented;
use crate::ingress::leaving;
use relay_bridge::support::lock;

/// The state that the tasks of one connection share.
pub(super) struct Session {
    pub(super) server: Arc<WorkerListener>,
    pub(super) stop: Stop,
    pub(super) worker: WorkerId,
    pub(super) grant: WorkerGrant,
    pub(super) memory: ConnectionMemory,
    /// Its share of the leases that wait at the broker.
    pub(super) waits: ConnectionMemory,
    pub(super) envelope: WireVersion,
    pub(super) frame_max: u32,
    /// Unanswered lease requests by id, to be cancelled.
    pub(super) leases: Mutex<HashMap<u64, CancellationToken>>,
    /// Runs that were delivered here and not settled yet, with the end of their lease. A drain waits for them.
    pub(super) held: Mutex<HashMap<RunId, Instant>>,
    /// Answers were written.
    pub(super) changed: Notify,
    /// The connection is over: waiting leases are dropped, nothing is written any more.
    pub(super) ended: CancellationToken,
}

/// Serves one connection from its beginning to its end.
pub(super) async fn serve(server: Arc<WorkerListener>, stream: TcpStream, peer: SocketAddr, door: Door, stop: Stop) {
    let Door { front, places, unknown, memory, leases } = door;
    let over = async {
        tokio::select! {
            () = unknown.evicted.cancelled() => {}
            () = stop.drain.cancelled() => {}
        }
    };
    let within = (server.limits.hello_timeout, HELLO_FRAME_MAX);
    let arrived =
        Box::pin(arriving::arrive(&front, (record::Door::Worker, &server.arrivals), stream, peer.ip(), within, over))
            .await;
    let Ok(Arrived { mut from, mut to, peer: mut of }) = arrived else { return };
    let admitted = tokio::select! {
        admitted = enter(&server, &mut from, of.presented(), places) => admitted,
        () = unknown.evicted.cancelled() => Err(Refused::Silent("a newer peer needs its place")),
        // Nothing is sent before the worker spoke.
        () = stop.drain.cancelled() => Err(Refused::Silent("the server is stopping")),
    };
    drop(unknown);
    let (admitted, place) = match admitted {
        Ok(admitted) => admitted,
        Err(Refused::Silent(why)) => return tracing::debug!(%peer, why, "a connection came to nothing"),
        Err(Refused::Http) => return linger(from, to, first::no_http(false).as_bytes()).await,
        Err(Refused::Told(error)) => {
            if let Some(count) = server.strangers.refused() {
                tracing::info!(%peer, slug = &*error.slug, detail = error.detail, count, "workers were refused: the last is named");
            }
            return close(from, to, Some(error)).await;
        }
    };
    let Admitted { hello, worker, welcome, grant, envelope, method } = admitted;
    let audited = match SessionLine::begin(&server, &of.presented(), &worker, method) {
        Ok(audited) => audited,
        Err(full) => return close(from, to, Some(overloaded(full.to_string()))).await,
    };
    tracing::info!(%peer, %worker, build = hello.build, "a worker connected");
    from.set_frame_max(welcome.frame_max);
    let requests = usize::try_from(welcome.requests_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
    let session = Arc::new(Session {
        ended: stop.now.child_token(),
        server,
        stop,
        worker,
        memory: memory.connection(grant.key.as_ref()),
        waits: leases.connection(grant.key.as_ref()),
        grant,
        envelope,
        frame_max: welcome.frame_max,
        leases: Mutex::default(),
        held: Mutex::default(),
        changed: Notify::new(),
    });
    let mut greeting = BytesMut::new();
    FromServer::Welcome(welcome).encode(&mut greeting);
    let write_timeout = session.server.limits.write_timeout;
    if !matches!(time::timeout(write_timeout, write_out(&mut to, &greeting)).await, Ok(Ok(()))) {
        return tracing::debug!(%peer, "a worker left during its hello");
    }

    let tasks = TaskTracker::new();
    let (queue, outgoing) = mpsc::channel(requests.min(QUEUE_MAX) + QUEUE_NOTICES);
    let writer = tasks.spawn(writer::write(Arc::clone(&session), outgoing, to));
    let permits = Arc::new(Semaphore::new(requests));
    let reading = Reading { session: &session, tasks: &tasks, queue: &queue, permits: &permits, requests };
    let mut withdrawn: BoxFuture<'_, ()> = match of.holder.take() {
        Some(holder) => Box::pin(holder.ended()),
        None => Box::pin(pending()),
    };
    let mut end = tokio::select! {
        end = reading.run(&mut from) => end,
        () = &mut withdrawn => End { abrupt: true, ..End::refused(certificate_ended()) },
        () = place.evicted.cancelled() => {
            let detail = "a worker of another key needs its place: too many are connected under this key".to_owned();
            End { abrupt: true, ..End::refused(overloaded(detail)) }
        }
    };
    if session.grant.credential.has_ended() {
        // Whichever was noticed first. Deliveries that were not written yet are handed back.
        end = End { abrupt: true, ..End::refused(credential_ended()) };
    }
    tracing::info!(%peer, worker = %session.worker, why = end.why, "a worker's connection ends");
    audited.end(&end.why);
    if end.abrupt {
        session.ended.cancel();
    }
    // Waiting leases are dropped; writes to the broker that are under way are finished.
    lock(&session.leases).values().for_each(CancellationToken::cancel);
    drop(queue);
    tasks.close();
    tasks.wait().await;
    session.ended.cancel();
    if let Ok(Some(to)) = writer.await {
        close(from, to, end.error).await;
    }
}

/// Reads the hello, and waits for a place among the workers.
async fn enter<R: AsyncRead + Unpin>(
    server: &WorkerListener,
    from: &mut FrameReader<R>,
    presented: Presented<'_>,
    places: Arc<Places>,
) -> Result<(Admitted, Place), Refused> {
    let admitted = hello::admit(server, from, presented).await?;
    match places.enter(admitted.grant.key.as_ref(), server.limits.hello_timeout).await {
        Some(place) => Ok((admitted, place)),
        None => {
            let most = server.limits.connections_max;
            let detail = format!("{most} workers are connected, the most that this server takes: connect again");
            Err(Refused::Told(overloaded(detail)))
        }
    }
}

/// Why reading stopped.
struct End {
    why: String,
    /// The error that the worker is told.
    error: Option<WireError>,
    /// Nobody reads any more.
    abrupt: bool,
}

impl End {
    fn gone(why: impl Into<String>) -> Self {
        Self { why: why.into(), error: None, abrupt: true }
    }

    fn refused(error: WireError) -> Self {
        Self { why: error.detail.clone(), error: Some(error), abrupt: false }
    }
}

/// How far the next frame is.
enum Coming {
    Nothing,
    /// Its length is known; its bytes are waited for until then.
    Begun {
        length: usize,
        until: Instant,
    },
    /// It has its bytes, and is read.
    Granted(Share),
}

struct Reading<'a> {
    session: &'a Arc<Session>,
    tasks: &'a TaskTracker,
    queue: &'a mpsc::Sender<Outgoing>,
    permits: &'a Arc<Semaphore>,
    requests: usize,
}

impl Reading<'_> {
    async fn run<R: AsyncRead + Unpin>(&self, from: &mut FrameReader<R>) -> End {
        let ping = self.session.server.limits.ping.max(Duration::from_millis(1));
        let mut pings = time::interval_at(Instant::now() + ping, ping);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut number, mut unheard, mut going_away) = (0, 0, false);
        let (mut old, stop) =
            (Box::pin(time::sleep(leaving::age(self.session.server.limits.max_age))), &self.session.stop);
        let mut coming = Coming::Nothing;
        loop {
            tokio::select! {
                frame = self.next(from, &mut coming) => {
                    unheard = 0;
                    let end = match frame {
                        Ok(Some((frame, share))) => self.message(&frame, share).await,
                        Ok(None) => Some(End::gone("the worker closed it")),
                        Err(end) => Some(end),
                    };
                    if let Some(end) = end {
                        return end;
                    }
                }
                _ = pings.tick() => {
                    if unheard == PINGS_UNHEARD_MAX {
                        return End::gone("nothing came for three pings");
                    }
                    unheard += 1;
                    number += 1;
                    // A full queue means that the worker does not read: the writer's timeout decides.
                    drop(self.queue.try_send(Outgoing::notice(FromServer::Ping(number))));
                }
                () = old.as_mut(), if !going_away => {
                    stop.old.cancel();
                    stop.drain.cancel();
                }
                () = stop.drain.cancelled(), if !going_away => {
                    going_away = true;
                    let reason = if stop.old.is_cancelled() { "old" } else { "draining" }.to_owned();
                    let notice = FromServer::GoAway { reason, within: stop.within };
                    if self.queue.send(Outgoing::notice(notice)).await.is_err() {
                        return End::gone("nothing can be written");
                    }
                }
                () = self.session.changed.notified(), if going_away => {}
                () = time::sleep_until(self.session.held_until()), if going_away && self.keeps() => {}
                () = self.session.grant.credential.ended() => return End::gone("its key does not stand any more"),
                () = self.session.ended.cancelled() => return End::gone("nothing can be written, or time is up"),
            }
            if going_away
                && self.permits.available_permits() == self.requests
                && matches!(coming, Coming::Nothing)
                && !self.keeps()
            {
                return End { why: "drained".to_owned(), error: None, abrupt: false };
            }
        }
    }

    /// Whether a connection that ends waits for jobs that are held. Those of an old one are settled on the worker's next one.
    fn keeps(&self) -> bool {
        !self.session.stop.old.is_cancelled() && self.session.holds()
    }

    /// The next frame, with its bytes out of the listener's memory: a small one has them at once, and of a large one no more
    /// than its beginning is read before. Dropping the future loses nothing: `coming` knows how far it is.
    async fn next<R: AsyncRead + Unpin>(
        &self,
        from: &mut FrameReader<R>,
        coming: &mut Coming,
    ) -> Result<Option<(Bytes, Share)>, End> {
        let broken = |error| match error {
            ReadError::Broken(error) => End::gone(error.to_string()),
            ReadError::Frame(error) => End::refused(WireError::new(Kind::Invalid, error.to_string())),
        };
        if let Coming::Nothing = coming {
            let Some(length) = from.begun().await.map_err(broken)? else { return Ok(None) };
            *coming = Coming::Begun { length, until: Instant::now() + memory::WAIT_MAX };
        }
        if let Coming::Begun { length, until } = *coming {
            let wait = until.saturating_duration_since(Instant::now());
            let Some(share) = self.session.memory.take(length, wait).await else {
                let detail =
                    format!("no memory was free for a frame of {length} bytes: connect again, and send it again");
                return Err(End::refused(overloaded(detail)));
            };
            *coming = Coming::Granted(share);
        }
        let frame = from.next().await.map_err(broken)?;
        match std::mem::replace(coming, Coming::Nothing) {
            Coming::Granted(share) => Ok(frame.map(|frame| (frame, share))),
            Coming::Nothing | Coming::Begun { .. } => Ok(None),
        }
    }

    /// Acts on one message, whose bytes are held until it is answered. `Some` ends the connection.
    async fn message(&self, frame: &Bytes, share: Share) -> Option<End> {
        let answer = match FromWorker::decode(frame) {
            Ok(FromWorker::Request { id, request }) => return self.request(id, request, share).await,
            Ok(FromWorker::CancelLease { id }) => {
                let leases = lock(&self.session.leases);
                leases.get(&id).into_iter().for_each(CancellationToken::cancel);
                return None;
            }
            Ok(FromWorker::Ping(number)) => FromServer::Pong(number),
            Ok(FromWorker::Pong(_)) => return None,
            Ok(FromWorker::Hello(_)) => {
                return Some(End::refused(WireError::new(Kind::Invalid, "a second hello")));
            }
            Err(error) => {
                let refusal = WireError::new(Kind::Invalid, error.to_string());
                if error.id.is_none() {
                    return Some(End::refused(refusal));
                }
                FromServer::Error { id: error.id, error: refusal }
            }
        };
        self.tell(answer).await
    }

    async fn request(&self, id: u64, request: Request, share: Share) -> Option<End> {
        let Ok(permit) = Arc::clone(self.permits).try_acquire_owned() else {
            let detail = format!("{} requests are unanswered, the most that this connection may have", self.requests);
            let kind = Kind::Overloaded { retry_after: Duration::from_secs(1) };
            return self.tell(FromServer::Error { id: Some(id), error: WireError::new(kind, detail) }).await;
        };
        let (session, queue) = (Arc::clone(self.session), self.queue.clone());
        match request {
            Request::Lease(lease) => {
                if session.stop.drain.is_cancelled() {
                    return self.tell(FromServer::Error { id: Some(id), error: draining() }).await;
                }
                // Entered here and not in the task, so that a cancellation that follows at once finds it.
                let cancel = CancellationToken::new();
                let mut leases = lock(&session.leases);
                let before = leases.insert(id, cancel.clone());
                if let Some(before) = before {
                    leases.insert(id, before);
                    drop(leases);
                    let error = WireError::new(Kind::Invalid, "an unanswered request has the same id");
                    return Some(End::refused(error));
                }
                drop(leases);
                self.tasks.spawn(async move {
                    session.lease(id, lease, cancel, queue, permit).await;
                    drop(share);
                });
            }
            other => {
                self.tasks.spawn(async move {
                    session.perform(id, other, queue, permit).await;
                    drop(share);
                });
            }
        }
        None
    }

    /// Queues an answer. While the queue is full nothing more is read from the worker.
    async fn tell(&self, message: FromServer) -> Option<End> {
        let sent = self.queue.send(Outgoing::notice(message)).await;
        sent.is_err().then(|| End::gone("nothing can be written"))
    }
}

/// Tells the peer why, if there is something to tell, and closes so that it can be read: what the peer had sent is read
/// and dropped first, or the system would answer it with a reset that overtakes the words.
async fn close<R, W>(from: FrameReader<R>, to: W, error: Option<WireError>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut last = BytesMut::new();
    if let Some(error) = error {
        FromServer::Error { id: None, error }.encode(&mut last);
    }
    linger(from, to, &last).await;
}

/// The same with these last bytes, which may be none.
pub(super) async fn linger<R, W>(mut from: FrameReader<R>, mut to: W, last: &[u8])
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let farewell = async {
        write_out(&mut to, last).await?;
        to.shutdown().await?;
        // On the heap: every connection has room for what its future may hold, from its beginning.
        let mut rest = vec![0; 4096];
        for _ in 0..LINGER_READS {
            if from.inner_mut().read(&mut rest).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    if !matches!(time::timeout(LINGER, farewell).await, Ok(Ok(()))) {
        tracing::debug!("a peer left before it was told why");
    }
}

fn credential_ended() -> WireError {
    let detail = "the worker's key was revoked, has expired or grants less than before; its leases run out: connect again \
                  with a key that stands";
    WireError::new(Kind::Unauthorized, detail).with_slug("unauthenticated")
}

fn certificate_ended() -> WireError {
    let detail = "the worker's certificate was revoked, has expired, or its authority is trusted no more; its leases run out: \
                  connect again with another one";
    WireError::new(Kind::Unauthorized, detail).with_slug("unauthenticated")
}

fn overloaded(detail: String) -> WireError {
    WireError::new(Kind::Overloaded { retry_after: Duration::from_secs(1) }, detail)
}

fn draining() -> WireError {
    WireError::new(Kind::Unavailable, "this connection ends: connect again").with_slug("draining")
}

/// The most answers that wait to be written; with fewer requests granted, as many as those.
const QUEUE_MAX: usize = 1_024;
/// Room for pings, pongs and refusals beside the answers.
const QUEUE_NOTICES: usize = 16;
/// After so many pings without any message the peer counts as gone.
const PINGS_UNHEARD_MAX: u32 = 3;
/// How long a peer that is told why has to read it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: u32 = 256;
