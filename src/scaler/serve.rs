//! The scaler's listener: HTTP/2 in clear text or TLS, few connections with many calls each. A peer that says nothing, or no
//! longer answers, is let go.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use relay_bridge::support::lock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower::Service as _;
use tracing::{debug, warn};

use super::looks::Looks;
use super::proto::external_scaler_server::ExternalScalerServer;
use super::service::Service;
use crate::evicting::{EvictingPool, Member};
use crate::tls::Secured;

/// Connections at a time that called something, and that did not yet: KEDA has one for each of its processes and addresses.
/// One that is too many takes the place of that which has been silent longest.
const CALLERS_MAX: usize = 128;
const STRANGERS_MAX: usize = 128;
/// Calls and streams of one connection at a time: KEDA sends those of all its objects through one.
const CALLS_MAX: u32 = 4_096;
/// Those of them that are read and answered at a time, streams up to their first answer. Others wait.
const READ_MAX: usize = 512;
/// How long a connection may take for its first call, and a call for its message.
const FIRST_MAX: Duration = Duration::from_secs(10);
const CALL_MAX: Duration = Duration::from_secs(5);
/// How often a peer is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_MAX: Duration = Duration::from_secs(10);
/// The largest call in bytes: metadata of a trigger.
const CALL_BYTES_MAX: usize = 8 * 1024;
/// The largest head, in bytes.
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// The bytes of answers that a connection holds for a peer that does not read.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// How long calls may take to end once the listener stops.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// The pause after the accepting failed.
const PAUSE: Duration = Duration::from_millis(100);

type Server = ExternalScalerServer<Service>;

/// Serves KEDA on `listener` until `stop`, over TLS where `secured` is given.
///
/// # Errors
/// Never at present: what can't be accepted is logged and tried again.
pub async fn serve(
    listener: TcpListener,
    secured: Option<Secured>,
    looks: Arc<Looks>,
    stop: CancellationToken,
) -> io::Result<()> {
    let server = Server::new(Service::new(looks, stop.clone()))
        .max_decoding_message_size(CALL_BYTES_MAX)
        .max_encoding_message_size(CALL_BYTES_MAX);
    let (strangers, callers) = (EvictingPool::new(STRANGERS_MAX), EvictingPool::new(CALLERS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                stream.set_nodelay(true).ok();
                let place = Place::new(strangers.enter(), callers.clone());
                let (server, secured, stop) = (server.clone(), secured.clone(), stop.clone());
                connections.spawn(async move {
                    let evicted = place.evicted.clone();
                    if evicted.run_until_cancelled(connection(stream, secured, server, place, stop)).await.is_none() {
                        debug!("a silent connection of the scaler made room for another");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "the scaler's listener can't accept a connection; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tokio::time::timeout(CLOSE_MAX, async { while connections.join_next().await.is_some() {} }).await.ok();
    Ok(())
}

/// The place of a connection among those that called something, or did not yet.
#[derive(Clone)]
struct Place {
    member: Arc<Mutex<Member>>,
    callers: EvictingPool,
    called: Arc<AtomicBool>,
    /// Cancelled when another connection needs the place.
    evicted: CancellationToken,
}

impl Place {
    fn new(stranger: Member, callers: EvictingPool) -> Self {
        let evicted = stranger.evicted.clone();
        Self { member: Arc::new(Mutex::new(stranger)), callers, called: Arc::default(), evicted }
    }

    /// Notes a call.
    fn called(&self) {
        let mut member = lock(&self.member);
        if self.called.swap(true, Ordering::Relaxed) {
            member.renew();
        } else if !self.evicted.is_cancelled() {
            *member = self.callers.enter_as(self.evicted.clone());
        }
    }
}

async fn connection(
    stream: TcpStream,
    secured: Option<Secured>,
    server: Server,
    place: Place,
    stop: CancellationToken,
) {
    let Some(secured) = secured else { return speak(stream, server, place, stop).await };
    let (stream, holder) = match secured.accept(stream, stop.clone().cancelled_owned()).await {
        Ok(accepted) => accepted,
        Err(refused) => return debug!(why = refused.why, "a handshake with the scaler failed"),
    };
    let speaking = speak(stream, server, place, stop);
    match holder {
        // Its certificate may be revoked while it is here.
        Some(holder) => tokio::select! {
            () = speaking => {}
            () = holder.ended() => debug!("the certificate of a scaler's client is good no more"),
        },
        None => speaking.await,
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    server: Server,
    place: Place,
    stop: CancellationToken,
) {
    let called = Arc::clone(&place.called);
    let reading = Arc::new(Semaphore::new(READ_MAX));
    let service = service_fn(move |request: http::Request<Incoming>| {
        place.called();
        let (mut server, reading) = (server.clone(), Arc::clone(&reading));
        let answered = async move {
            let _read = reading.acquire_owned().await;
            server.call(request).await
        };
        async move {
            let answer: Result<Response<Body>, std::convert::Infallible> =
                match tokio::time::timeout(CALL_MAX, answered).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        Ok(Status::deadline_exceeded(format!("the call did not come within {CALL_MAX:?}")).into_http())
                    }
                };
            answer
        }
    });
    let calls = Calls::default();
    let connection = http2::Builder::new(calls.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let silent = async {
        tokio::time::sleep(FIRST_MAX).await;
        if called.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    // Also where the connection is dropped, as at the end of its client's certificate.
    let _over = calls.0.over.clone().drop_guard();
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent => return debug!("a peer of the scaler called nothing"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection of the scaler ended with an error");
    }
}

/// Runs the calls of a connection as tasks that end with it.
#[derive(Clone, Default)]
struct Calls(Arc<Running>);

#[derive(Default)]
struct Running {
    tasks: TaskTracker,
    over: CancellationToken,
}

impl<F> Executor<F> for Calls
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, call: F) {
        let over = self.0.over.clone();
        self.0.tasks.spawn(async move {
            over.run_until_cancelled(call).await;
        });
    }
}
