//! The admin port's listener: HTTP/1.1, few connections, each with a deadline for its requests' heads.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Admin, routes};

/// Connections at a time: probes, scrapers and a few people.
const CONNECTIONS_MAX: usize = 256;
/// How long a peer may take for a request's head, and be idle between two.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// The part of a head that is read at most, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The pause after the accepting failed.
const PAUSE: Duration = Duration::from_millis(100);
/// How long answers may take to be read once the port is about to close.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Serves `listener` until `stop`; answers in progress then have a second to be read. Failures to accept are logged and
/// retried.
pub(super) async fn serve(listener: TcpListener, admin: Arc<Admin>, stop: CancellationToken) {
    let router = routes::router(&admin);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, slot)) => {
                let connection = connection(stream, router.clone(), stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
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

/// The next connection, once there is a slot for it: beyond them peers wait in the listen queue.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

async fn connection(stream: TcpStream, router: axum::Router, stop: CancellationToken) {
    stream.set_nodelay(true).ok();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
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
