//! The accept loop: connections within a cap, each with a guard against peers that send nothing, and a drain with a
//! deadline. The PROXY header and the handshake of TLS stand between accept and HTTP, in the task of their connection.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::beside::{Beside, Handed, Stop};
use super::connection::{Asked, Connection};
use super::hyper::bare_answers::{Described, PREFACE};
use super::pools::Member;
use super::{Ingress, Limits, Served, gate, held, leaving, proxied, routes};
use crate::audit::record::Door;
use crate::ingress::front::{Bound, Front, keep_alive};
use crate::tls::stream::Stream;

/// The pause after the accepting failed for want of file descriptors or memory; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often a silent HTTP/2 peer is asked whether it is there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The bytes that are read of a head beyond the limit, so that the refusal is a problem document.
const HEAD_BYTES_MORE: usize = 4 * 1024;
/// The least that hyper reads at a time.
const HEAD_BYTES_MIN: usize = 8 * 1024;
/// The headers that hyper takes if it is not asked for more. Asked for any other number, it fills two tables of that size
/// on the heap for every request.
const HEADERS_DEFAULT: usize = 100;
const HEADERS_MAX: usize = 256;
/// The bytes that an HTTP/2 peer may send ahead of the handlers, per connection and so per stream: outside the byte budget.
/// Hyper knows no way to raise it once a caller is authenticated.
const WINDOW: u32 = 64 * 1024;
/// How long a connection without a caller that was asked to leave may take to finish what it has.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// The bytes that the system takes of answers that a peer has not read, per connection; Linux doubles it. By itself it takes as
/// much as 4 MiB, which counts for the memory of a container.
const SEND_BUFFER: usize = 128 * 1024;
/// The bytes that are kept for an HTTP/2 stream whose peer does not read.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// Serves `listeners` until `shutdown`, then drains: waits are answered early, requests in flight finish, new requests
/// are refused, idle connections are closed. Requests that are left after `drain` are cut off.
///
/// # Errors
/// None at present: failures to accept are logged and tried again.
pub async fn serve(
    listeners: Vec<Bound>,
    ingress: Arc<Ingress>,
    shutdown: CancellationToken,
    drain: Duration,
) -> io::Result<()> {
    serve_beside(listeners, ingress, None, shutdown, drain).await
}

/// The same, with another protocol for those whose handshake agrees on it.
pub(in crate::ingress) async fn serve_beside(
    listeners: Vec<Bound>,
    ingress: Arc<Ingress>,
    beside: Option<Beside>,
    shutdown: CancellationToken,
    drain: Duration,
) -> io::Result<()> {
    for Bound { listener, .. } in &listeners {
        keep_alive(listener);
        // Connections inherit it from their listener.
        if let Err(error) = SockRef::from(listener).set_send_buffer_size(SEND_BUFFER) {
            warn!(%error, "the system's buffers of connections have another size");
        }
    }
    let tasks = TaskTracker::new();
    let served = Arc::new(Served { ingress, shutdown: shutdown.clone(), tasks: tasks.clone() });
    let connections = Connections::new(served, beside, drain);
    shutdown.run_until_cancelled(join_all(listeners.iter().map(|bound| connections.accept(bound)))).await;
    drop(listeners);

    info!(tasks = tasks.len(), "the HTTP ingress drains");
    tasks.close();
    if tokio::time::timeout(drain, tasks.wait()).await.is_err() {
        warn!(tasks = tasks.len(), "the drain took too long; the rest is cut off");
        connections.kill.cancel();
        tasks.wait().await;
    }
    Ok(())
}

struct Connections {
    served: Arc<Served>,
    router: Router,
    builder: Builder<Tracked>,
    beside: Option<Beside>,
    /// Cancelled when the drain's time is over.
    kill: CancellationToken,
    /// That time.
    drain: Duration,
}

impl Connections {
    fn new(served: Arc<Served>, beside: Option<Beside>, drain: Duration) -> Self {
        let (tasks, kill) = (served.tasks.clone(), CancellationToken::new());
        Self {
            router: routes::router(Arc::clone(&served)),
            builder: builder(&served.ingress.limits, Tracked { tasks, kill: kill.clone() }),
            served,
            beside,
            kill,
            drain,
        }
    }

    /// Never ends by itself.
    async fn accept(&self, bound: &Bound) {
        let mut pause = PAUSE_MIN;
        loop {
            let (stream, peer) = match bound.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_the_peer(&error) => continue,
                Err(error) => {
                    warn!(%error, pause_ms = pause.as_millis(), "can't accept a connection; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    continue;
                }
            };
            pause = PAUSE_MIN;
            if !bound.front.lets_in(peer.ip(), &self.served.ingress.arrivals) {
                continue;
            }
            // This one waits unread, and the ones behind it in the listen queue, where they cost nothing here.
            match self.served.ingress.pools.enter(peer.ip()).await {
                Some(member) => drop(self.served.tasks.spawn(self.connection(stream, member, &bound.front))),
                None => debug!(%peer, "there are as many connections from this address as may be"),
            }
        }
    }

    /// Serves `stream`, and gives its place back at the end. Not wrapped in another future, which would take its size again.
    fn connection(
        &self,
        mut stream: TcpStream,
        member: Member,
        front: &Arc<Front>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let front = Arc::clone(front);
        let (served, router, builder) = (Arc::clone(&self.served), self.router.clone(), self.builder.clone());
        let (shutdown, kill) = (served.shutdown.clone(), self.kill.clone());
        let (beside, within) = (self.beside.clone(), self.drain);
        async move {
            let connection = Arc::clone(&member.connection);
            // Small answers must not wait for a delayed acknowledgement of the ones before.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "can't set TCP_NODELAY");
            }
            let mut guard = Guard::new(Arc::clone(&connection), &served.ingress.limits, front.is_any());
            if front.proxy.is_some() {
                let ended = over(&shutdown, &mut guard, &kill);
                // On the heap, and gone before HTTP begins.
                if !Box::pin(proxied::begins(&served.ingress, &front, &mut stream, &connection, ended)).await {
                    return;
                }
            }
            let ingress = Arc::clone(&served.ingress);
            let ended = over(&shutdown, &mut guard, &kill);
            let begun = Box::pin(proxied::secured(&ingress, (Door::Http, &front), stream, &connection, ended)).await;
            let Ok((stream, holder)) = begun else { return };
            if let Some(beside) = beside.filter(|_| stream.is_relay()) {
                let until = connection.came() + guard.first;
                drop(guard);
                let stop = Stop { shutdown, now: kill, within };
                // A task of its own: it needs nothing of what this one has for HTTP.
                served.tasks.spawn(beside(Handed { stream, holder, member, until, stop }));
                return;
            }
            let mut vouched: Pin<Box<dyn Future<Output = ()> + Send>> = match holder {
                Some(holder) => Box::pin(holder.ended()),
                None => Box::pin(pending()),
            };
            let mut withdrawn = false;
            let (mut old, mut is_old) =
                (Box::pin(tokio::time::sleep(crate::ingress::leaving::age(ingress.limits.max_age))), false);
            let is_http1 = tokio::select! {
                biased;
                is_http1 = begins_as_http1(&stream) => is_http1,
                // The loop below does the rest for it.
                () = shutdown.cancelled() => false,
                () = kill.cancelled() => false,
                _ = guard.next() => return,
            };
            let builder = if is_http1 { builder.http1_only() } else { builder };
            let described = Described::new(stream, Arc::clone(&served), Arc::clone(&connection));
            let service = {
                let connection = Arc::clone(&connection);
                service_fn(move |request| {
                    let (running, connection) = (connection.begin(), Arc::clone(&connection));
                    let (served, router) = (Arc::clone(&served), router.clone());
                    let answer = async move {
                        let (response, place) = gate::handle(served, router, request, &connection).await;
                        let response = held::hold(response, &connection, place);
                        drop(running);
                        Ok::<_, Infallible>(response)
                    };
                    // On the heap: hyper keeps room for a request's future as long as the connection lasts. Without its type, which is deep.
                    answer.boxed()
                })
            };
            let mut http = pin!(builder.serve_connection(TokioIo::new(described), service));
            let (mut stopping, mut killed) = (pin!(shutdown.cancelled()), pin!(kill.cancelled()));
            let mut leaving = false;
            let ended = loop {
                tokio::select! {
                    biased;
                    () = stopping.as_mut(), if !leaving => {
                        leaving = true;
                        // A request may be on its way, and its peer was told nothing yet: it is told with the answer.
                        if let Some(linger) = leaving::linger(&ingress, &connection) {
                            let answered = tokio::time::timeout(linger, http.as_mut()).await;
                            if let Ok(ended) = answered {
                                break ended;
                            }
                        }
                        http.as_mut().graceful_shutdown();
                    }
                    // Before its requests, so that none that is sent after a change of authorities is let in by the old ones.
                    () = vouched.as_mut(), if !withdrawn => {
                        withdrawn = true;
                        connection.withdraws();
                    }
                    ended = http.as_mut() => break ended,
                    () = old.as_mut(), if !is_old => {
                        is_old = true;
                        connection.ages();
                        if connection.is_h2() {
                            http.as_mut().graceful_shutdown();
                        }
                    }
                    event = guard.next() => match event {
                        // One that is to end at once is told so in the next turn, and cut off at its end.
                        Event::Leave => {
                            leaving = true;
                            http.as_mut().graceful_shutdown();
                        }
                        Event::End => {
                            debug!("a silent peer's connection is dropped");
                            // One turn, in which a connection that has nothing in hand tells its peer the end of TLS.
                            http.as_mut().graceful_shutdown();
                            break tokio::select! {
                                biased;
                                ended = http.as_mut() => ended,
                                () = std::future::ready(()) => Ok(()),
                            };
                        }
                    },
                    // After the drain's time, and so never before `stopping`: asking it for every request costs.
                    () = killed.as_mut(), if leaving => break Ok(()),
                }
            };
            if let Err(error) = ended {
                debug!(error, "a connection ended with an error");
            }
        }
    }
}

/// Whether the first bytes of a stream without TLS say that its peer speaks HTTP/1, once they are there. Hyper reads 24 bytes by themselves to
/// find that out, and its buffer for the rest of the head is twice as large then, for as long as the connection lasts.
async fn begins_as_http1(stream: &Stream) -> bool {
    let Stream::Plain(stream) = stream else { return false };
    let mut first = [0; PREFACE.len()];
    // Some methods of HTTP/1 begin like the preface of HTTP/2. A stream that broke is found to be so when it is read.
    stream.peek(&mut first).await.is_ok_and(|read| read > 0 && !PREFACE.starts_with(&first[..read]))
}

/// Waits for the end of what comes before HTTP: of its time, of its place, or of the process.
async fn over(shutdown: &CancellationToken, guard: &mut Guard, kill: &CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = guard.next() => {}
        () = kill.cancelled() => {}
    }
}

/// A connection's next turn, as its guard sees it.
enum Event {
    /// It is to finish what it has.
    Leave,
    /// It is to be dropped.
    End,
}

/// Ends a connection on which nothing happens, or that is asked to. One timer, which looks again when it fires, instead of one that every request
/// resets. Hyper has no timeout while it finds out which HTTP version a peer speaks, none for HTTP/2 peers that answer pings and
/// ask nothing, and none for peers that do not read their answers: <https://github.com/hyperium/hyper/issues/3756>.
struct Guard {
    connection: Arc<Connection>,
    first: Duration,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    head: u64,
    /// When a connection that was asked to leave is cut off.
    leaves: Option<Instant>,
}

impl Guard {
    /// With `more` time for a first request where something comes before it.
    fn new(connection: Arc<Connection>, limits: &Limits, more: bool) -> Self {
        let first = if more { limits.first_request * 3 / 2 } else { limits.first_request };
        let idle = limits.idle;
        Self { connection, first, idle, timer: Box::pin(tokio::time::sleep(first.min(idle))), head: 0, leaves: None }
    }

    /// The next thing to do with the connection.
    async fn next(&mut self) -> Event {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        match self.connection.asked_with(context) {
            Asked::Nothing => {}
            // A caller that is known has work on it.
            asked if self.leaves.is_none() => {
                let known = asked == Asked::Leave && self.connection.is_proven();
                self.leaves = Some(Instant::now() + if known { self.idle } else { LEAVE_WITHIN });
                self.head = u64::MAX;
                return Poll::Ready(Event::Leave);
            }
            Asked::Leave => {}
            Asked::End => return Poll::Ready(Event::End),
        }
        let head = self.connection.head();
        let mut look = self.head != head;
        loop {
            if look {
                self.head = head;
                let until = self.connection.silent_until(self.first, self.idle);
                let until = until.map(|until| self.leaves.map_or(until, |leaves| leaves.min(until)));
                let Some(until) = until.filter(|until| *until > Instant::now()) else { return Poll::Ready(Event::End) };
                self.timer.as_mut().reset(until);
            }
            ready!(self.timer.as_mut().poll(context));
            look = true;
        }
    }
}

/// Whether only the one connection failed, not the accepting.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted | Kind::ConnectionReset | Kind::ConnectionRefused | Kind::Interrupted
    )
}

fn builder(limits: &Limits, executor: Tracked) -> Builder<Tracked> {
    let mut builder = Builder::new(executor);
    let head_bytes = limits.header_bytes.saturating_add(HEAD_BYTES_MORE).max(HEAD_BYTES_MIN);
    // Half-closed connections are dropped: a client that is gone must not hold a wait until its end.
    builder
        .http1()
        .timer(TokioTimer::new())
        // `Connection` bounds the time for a head, without a timer for each request.
        .header_read_timeout(None)
        .max_buf_size(head_bytes)
        .half_close(false);
    if limits.headers > HEADERS_DEFAULT {
        builder.http1().max_headers(HEADERS_MAX);
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Runs the streams of HTTP/2 connections as tasks that the drain waits for.
#[derive(Clone)]
struct Tracked {
    tasks: TaskTracker,
    kill: CancellationToken,
}

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        // A token of its own: an answer that its peer does not take ends alone.
        let own = self.kill.child_token();
        self.tasks.spawn(held::STREAM.scope(own.clone(), async move {
            own.run_until_cancelled(task).await;
        }));
    }
}
