//! The listeners of the admin port and of health checks: HTTP/1.1, and HTTP/2 over TLS; few connections, each with a deadline for its requests'
//! heads and for reading the answers. Health checks have places of their own, and peers without a right to anything make room.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service as _;
use tracing::{debug, warn};

use super::places::{Place, Places};
use super::routes::Peer;
use super::unread::Unread;
use super::{Admin, h2, routes};
use crate::audit::record;
use crate::ingress::front::{Arrivals, Front};
use crate::ingress::proxy::receive;
use crate::tls::Secured;
use crate::tls::stream::Stream;

/// How long a peer may take for a request's head, and be idle between two.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// The same of a health check.
const PROBE_HEAD_MAX: Duration = Duration::from_secs(5);
/// The part of a head that is read at most, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The pause after the accepting failed.
const PAUSE: Duration = Duration::from_millis(100);
/// How long answers may take to be read once the port is about to close.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Serves the admin port until `stop`, `most` connections at a time; answers in progress then have a second to be read. Failures to accept are logged and
/// retried.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Secured>,
    most: usize,
    admin: Arc<Admin>,
    stop: CancellationToken,
) {
    let places = Places::of_operators(most);
    let front = Arc::new(Front { tls, ..Front::default() });
    let arrivals = Arrivals::new(admin.telemetry.clock());
    let (router, head_max) = (routes::router(&admin), HEAD_MAX);
    Door { router, front, arrivals, places, head_max, accepts_header: false, stop }.serve(listener).await;
}

/// Serves health checks in the same way. With `accepts_header` a PROXY header may be in front of each connection, and means nothing.
pub(super) async fn serve_health(
    listener: TcpListener,
    most: usize,
    accepts_header: bool,
    admin: Arc<Admin>,
    stop: CancellationToken,
) {
    let places = Places::of_probes(most);
    let (front, arrivals) = (Arc::default(), Arrivals::new(admin.telemetry.clock()));
    let (router, head_max) = (routes::health(&admin), PROBE_HEAD_MAX);
    Door { router, front, arrivals, places, head_max, accepts_header, stop }.serve(listener).await;
}

/// A listener with its answers and its bounds.
struct Door {
    router: Router,
    front: Arc<Front>,
    arrivals: Arc<Arrivals>,
    places: Places,
    head_max: Duration,
    accepts_header: bool,
    stop: CancellationToken,
}

impl Door {
    async fn serve(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let place = self.places.enter();
                    let evicted = place.evicted();
                    let (router, head_max, stop) = (self.router.clone(), self.head_max, self.stop.clone());
                    let accepts_header = self.accepts_header;
                    let (front, arrivals) = (Arc::clone(&self.front), Arc::clone(&self.arrivals));
                    let connection = async move {
                        let mut stream = stream;
                        stream.set_nodelay(true).ok();
                        if accepts_header && !passes_header(&mut stream, head_max).await {
                            return;
                        }
                        let ended = stop.clone().cancelled_owned();
                        if let Ok((stream, _)) =
                            front.handshake(stream, peer.ip(), None, (record::Door::Admin, &arrivals), ended).await
                        {
                            connection((stream, peer), place, router, head_max, stop).await;
                        }
                    };
                    connections.spawn(async move {
                        evicted.run_until_cancelled(connection).await;
                    });
                }
                Err(error) => {
                    warn!(%error, "the admin port can't accept a connection; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tokio::time::timeout(CLOSE_MAX, async { while connections.join_next().await.is_some() {} }).await.ok();
    }
}

/// Reads the PROXY header of `stream`, if it begins with one; `false` if it is to be closed. No request begins with its first byte.
async fn passes_header(stream: &mut TcpStream, within: Duration) -> bool {
    let mut first = [0];
    let came = tokio::time::timeout(within, stream.peek(&mut first)).await;
    match (came, first) {
        (Ok(Ok(1..)), [b'\r']) => receive::header(stream, within, pending()).await.is_ok(),
        (Ok(Ok(1..)), _) => true,
        _ => false,
    }
}

async fn connection(
    (stream, peer): (Stream, SocketAddr),
    place: Place,
    router: Router,
    head_max: Duration,
    stop: CancellationToken,
) {
    let is_h2 = stream.is_h2();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        request.extensions_mut().insert(place.clone());
        router.clone().call(request)
    });
    if is_h2 {
        return h2::serve(Unread::new(stream), service, head_max, stop).await;
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_max)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(Unread::new(stream)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection of the admin port ended with an error");
    }
}
