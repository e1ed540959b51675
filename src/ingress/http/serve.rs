//! The accept loop: connections within a cap, each with a guard against peers that send nothing, and a drain with a
//! deadline. TLS and the PROXY header will stand between accept and HTTP.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::activity::Activity;
use super::hyper::bare_answers::Described;
use super::{Ingress, Limits, Served, gate, routes};

/// The pause after the accepting failed for want of file descriptors or memory; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often a silent HTTP/2 peer is asked whether it is there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The bytes that hyper itself reads of a head: more than [`Limits`] allow, so that the refusal is a problem document.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The headers that hyper takes if it is not asked for more. Asked for any other number, it fills two tables of that size
/// on the heap for every request.
const HEADERS_DEFAULT: usize = 100;
const HEADERS_MAX: usize = 256;
/// The bytes that an HTTP/2 peer may send ahead of the handlers, per connection and per stream: outside the byte
/// budget.
const CONNECTION_WINDOW: u32 = 512 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;
/// The bytes that are kept for an HTTP/2 stream whose peer does not read.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// Serves `listener` until `shutdown`, then drains: waits are answered early, requests in flight finish, new requests
/// are refused, idle connections are closed. Requests that are left after `drain` are cut off.
///
/// # Errors
/// None at present: failures to accept are logged and tried again.
pub async fn serve(
    listener: TcpListener,
    ingress: Arc<Ingress>,
    shutdown: CancellationToken,
    drain: Duration,
) -> io::Result<()> {
    let tasks = TaskTracker::new();
    let connections = Connections::new(Arc::new(Served { ingress, shutdown: shutdown.clone(), tasks: tasks.clone() }));
    shutdown.run_until_cancelled(connections.accept(&listener)).await;
    drop(listener);

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
    slots: Arc<Semaphore>,
    /// Cancelled when the drain's time is over.
    kill: CancellationToken,
}

impl Connections {
    fn new(served: Arc<Served>) -> Self {
        let (tasks, kill) = (served.tasks.clone(), CancellationToken::new());
        let limits = &served.ingress.limits;
        Self {
            router: routes::router(Arc::clone(&served)),
            builder: builder(limits, Tracked { tasks, kill: kill.clone() }),
            slots: Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS))),
            served,
            kill,
        }
    }

    /// Never ends by itself.
    async fn accept(&self, listener: &TcpListener) {
        let mut pause = PAUSE_MIN;
        loop {
            // Before the accept: beyond the cap, peers wait in the listen queue and cost nothing here.
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) if is_of_the_peer(&error) => continue,
                Err(error) => {
                    warn!(%error, pause_ms = pause.as_millis(), "can't accept a connection; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    continue;
                }
            };
            pause = PAUSE_MIN;
            self.served.tasks.spawn(self.connection(stream, slot));
        }
    }

    /// Serves `stream`, and gives its `slot` back at the end. Not wrapped in another future, which would take its size again.
    fn connection(&self, stream: TcpStream, slot: OwnedSemaphorePermit) -> impl Future<Output = ()> + Send + 'static {
        let (served, router, builder) = (Arc::clone(&self.served), self.router.clone(), self.builder.clone());
        let (shutdown, kill) = (served.shutdown.clone(), self.kill.clone());
        async move {
            let _slot = slot;
            // Small answers must not wait for a delayed acknowledgement of the ones before.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "can't set TCP_NODELAY");
            }
            let Limits { first_request, idle, .. } = served.ingress.limits;
            let activity = Arc::new(Activity::new());
            let described = Arc::clone(&served);
            let service = {
                let activity = Arc::clone(&activity);
                service_fn(move |request| {
                    let (running, activity) = (activity.begin(), Arc::clone(&activity));
                    let (served, router) = (Arc::clone(&served), router.clone());
                    async move {
                        let response = gate::handle(served, router, request).await;
                        drop(running);
                        Ok::<_, Infallible>(response.map(|body| activity.attend(body)))
                    }
                })
            };
            let stream = TokioIo::new(Described::new(stream, described));
            let mut connection = pin!(builder.serve_connection(stream, service));
            let mut ends = pin!(async {
                let silent = kill.run_until_cancelled(activity.silence(first_request, idle)).await;
                if silent.is_some() {
                    debug!("a silent peer's connection is dropped");
                }
            });
            let mut draining = false;
            let ended = loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled(), if !draining => {
                        draining = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    ended = connection.as_mut() => break ended,
                    () = &mut ends => break Ok(()),
                }
            };
            if let Err(error) = ended {
                debug!(error, "a connection ended with an error");
            }
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
    // Half-closed connections are dropped: a client that is gone must not hold a wait until its end.
    builder
        .http1()
        .timer(TokioTimer::new())
        // `Activity` bounds the time for a head, without a timer for each request.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(false);
    if limits.headers > HEADERS_DEFAULT {
        builder.http1().max_headers(HEADERS_MAX);
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_send_buf_size(SEND_BYTES_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
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
        let kill = self.kill.clone();
        self.tasks.spawn(async move {
            kill.run_until_cancelled(task).await;
        });
    }
}
