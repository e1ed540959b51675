//! One connection after its hello: its state, its begin and its end.

use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use relay_bridge::contract::wire::client::ToClient;
use relay_bridge::contract::wire::{CLIENT_HELLO_FRAME_MAX, WireError};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_remote::stream::{FrameReader, write_out};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::hello::{self, Admitted};
use super::open::OpenRequests;
use super::reading::{End, Reading};
use super::writer::{self, Outgoing};
use super::{Clients, Counted};
use crate::auth::Caller;
use crate::ingress::budget::Share;
use crate::ingress::clients::Owner;
use crate::ingress::grants;
use crate::ingress::http::beside::{Handed, Stop};
use crate::ingress::http::connection::Connection;
use crate::ingress::refusal::Refusal;
use crate::ingress::tcp::first::{self, Refused};
use crate::ingress::tcp::session::linger;

/// The state that the tasks of one connection share.
pub(super) struct Session {
    pub(super) clients: Arc<Clients>,
    pub(super) caller: Caller,
    /// The owner of the share that it takes of each budget.
    pub(super) owner: Owner,
    /// Where it comes from, as a balancer in front says it, else its socket.
    pub(super) peer: IpAddr,
    /// The VPC endpoint that it came through.
    pub(super) endpoint: Option<String>,
    pub(super) frame_max: u32,
    pub(super) requests_max: usize,
    pub(super) connection: Arc<Connection>,
    pub(super) stop: Stop,
    /// The client is to connect elsewhere.
    pub(super) go: CancellationToken,
    pub(super) open: OpenRequests,
    /// It has lasted long enough: nothing new is begun.
    pub(super) old: AtomicBool,
    /// A request was answered while nothing new is begun.
    pub(super) answered: Notify,
    /// The connection is over: nothing is waited for and nothing is written any more.
    pub(super) ended: CancellationToken,
}

impl Session {
    /// Whether nothing new is begun.
    pub(super) fn takes_no_more(&self) -> bool {
        self.stop.shutdown.is_cancelled() || self.is_old()
    }

    /// Whether it has lasted long enough.
    pub(super) fn is_old(&self) -> bool {
        self.old.load(Ordering::Relaxed)
    }

    /// Refuses what was begun with a credential that does not stand any more.
    ///
    /// # Errors
    /// `unauthenticated`
    pub(super) fn still_stands(&self) -> Result<(), Refusal> {
        if self.caller.credential.has_ended() { Err(grants::credential_ended()) } else { Ok(()) }
    }
}

/// Where answers leave.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) session: Arc<Session>,
    /// Of boxes: a queue has slots for many messages from its beginning, and most of them never come.
    queue: mpsc::Sender<Box<Outgoing>>,
}

impl Desk {
    /// Queues a message; waits while the queue is full. Whether anything can still be written.
    pub(super) async fn send(&self, outgoing: Outgoing) -> bool {
        self.queue.send(Box::new(outgoing)).await.is_ok()
    }

    /// Queues a message if there is room for it.
    pub(super) fn try_send(&self, outgoing: Outgoing) {
        // A full queue means that the client does not read: the writer's timeout decides.
        drop(self.queue.try_send(Box::new(outgoing)));
    }

    /// Queues the last message about the request `id`. Its id and its `place` among its client's requests are free from then
    /// on: the client may send the next one as soon as it has read the answer.
    pub(super) async fn answer(&self, id: u64, place: Share, outgoing: Outgoing) {
        let slot = self.queue.reserve().await;
        self.session.open.end(id);
        drop(place);
        if let Ok(slot) = slot {
            slot.send(Box::new(outgoing));
        }
        if self.session.takes_no_more() {
            self.session.answered.notify_one();
        }
    }
}

/// Serves one connection from its hello to its end.
pub(super) async fn serve(clients: Arc<Clients>, Handed { stream, holder, member, until, stop }: Handed) {
    let connection = Arc::clone(&member.connection);
    let agreed = stream.is_relay();
    let (from, mut to) = tokio::io::split(stream);
    let mut from = FrameReader::new(from, CLIENT_HELLO_FRAME_MAX);
    let admitted = tokio::select! {
        // Boxed: it is over soon, and the connection may last.
        admitted = Box::pin(hello::admit(&clients, &mut from, &connection, until)) => admitted,
        () = connection.is_to_end() => Err(Refused::Silent("a newer peer needs its place")),
        // Nothing is sent before the client spoke.
        () = stop.shutdown.cancelled() => Err(Refused::Silent("the server is stopping")),
    };
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => {
            tokio::select! {
                () = turn_away(&clients, (refused, agreed), from, to) => {}
                () = connection.is_to_end() => {}
            }
            return;
        }
    };
    let Admitted { caller, owner, welcome, build, place } = admitted;
    if connection.prove(|| Some(place)) {
        clients.ingress.pools.proven(&connection);
    }
    let presented = connection.presented();
    let (peer, endpoint) = (presented.address.unwrap_or(connection.peer), presented.endpoint.map(str::to_owned));
    tracing::debug!(%peer, client = %caller.client, build, "a client connected");
    let _counted = Counted::new(&clients.connections);
    from.set_frame_max(welcome.frame_max);
    let (queue, outgoing) = mpsc::channel(QUEUE_MAX);
    let session = Arc::new(Session {
        caller,
        owner,
        peer,
        endpoint,
        frame_max: welcome.frame_max,
        requests_max: usize::try_from(welcome.requests_max).unwrap_or(usize::MAX),
        ended: stop.now.child_token(),
        stop,
        go: connection.parts(),
        connection,
        old: AtomicBool::new(false),
        open: OpenRequests::default(),
        answered: Notify::new(),
        clients: Arc::clone(&clients),
    });
    let mut greeting = BytesMut::new();
    ToClient::Welcome(Box::new(welcome)).encode(&mut greeting);
    let write_timeout = clients.limits.write_timeout;
    if !matches!(time::timeout(write_timeout, write_out(&mut to, &greeting)).await, Ok(Ok(()))) {
        return tracing::debug!(%peer, "a client left during its hello");
    }
    drop(greeting);

    let (tasks, writes) = (TaskTracker::new(), TaskTracker::new());
    let writer = writes.spawn(writer::write(Arc::clone(&session), outgoing, to));
    let desk = Desk { session: Arc::clone(&session), queue };
    let mut withdrawn: BoxFuture<'_, ()> = match holder {
        Some(holder) => Box::pin(holder.ended()),
        None => Box::pin(pending()),
    };
    let reading = Reading { desk: &desk, tasks: &tasks };
    let mut end = tokio::select! {
        end = reading.run(&mut from) => end,
        () = &mut withdrawn => End { abrupt: true, ..End::refused(certificate_ended()) },
    };
    if session.caller.credential.has_ended() {
        // Whichever was noticed first.
        end = End { abrupt: true, ..End::refused(credential_ended()) };
    }
    tracing::debug!(%peer, client = %session.caller.client, why = end.why, "a client's connection ends");
    if end.abrupt {
        session.ended.cancel();
    }
    // Waits end; writes to the broker that are under way are finished.
    session.open.stop_all();
    tasks.close();
    let is_over = tokio::select! {
        () = tasks.wait() => true,
        () = time::sleep(write_timeout) => false,
        () = session.stop.now.cancelled() => false,
    };
    if !is_over {
        // The broker holds up an answer; the writer ends when it has come.
        if let Some(error) = end.error {
            desk.try_send(Outgoing::notice(ToClient::Error(Box::new(error))));
        }
        return;
    }
    // The writer ends behind the last answers.
    drop(desk);
    let written = writer.await;
    session.ended.cancel();
    session.connection.gives_its_place_back();
    if let Ok(Some(to)) = written {
        let mut last = BytesMut::new();
        if let Some(error) = end.error {
            ToClient::Error(Box::new(error)).encode(&mut last);
        }
        linger(from, to, &last).await;
    }
}

/// Tells a peer why its connection ends; whether its handshake `agreed` on this protocol is a part of the reason.
async fn turn_away<R, W>(clients: &Clients, (refused, agreed): (Refused, bool), from: FrameReader<R>, to: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut last = BytesMut::new();
    match refused {
        Refused::Silent(why) => return tracing::debug!(why, "a connection came to nothing"),
        Refused::Http => last.extend_from_slice(first::no_http(agreed).as_bytes()),
        Refused::Told(error) => {
            if let Some(count) = clients.strangers.refused() {
                let (slug, detail) = (&*error.slug, &error.detail);
                tracing::info!(slug, detail, count, "clients were refused over TCP: the last is named");
            }
            ToClient::Error(Box::new(error)).encode(&mut last);
        }
    }
    linger(from, to, &last).await;
}

fn certificate_ended() -> WireError {
    let detail = "the client certificate of this connection was revoked, has expired, or its authority is trusted no more: \
                  connect again with one that stands";
    WireError::new(Kind::Unauthorized, detail).with_slug("unauthenticated")
}

fn credential_ended() -> WireError {
    let detail = "the key that this session began with was revoked, has expired or grants less than before: connect again \
                  with a key that stands";
    WireError::new(Kind::Unauthorized, detail).with_slug("unauthenticated")
}

/// The messages that wait to be written.
const QUEUE_MAX: usize = 128;
