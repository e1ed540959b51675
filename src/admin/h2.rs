//! HTTP/2 on the admin port, for peers that agree on it in their handshake: few streams at a time, and the deadline of HTTP/1.1 for a
//! connection on which nothing is asked.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// Requests of one connection at a time.
const STREAMS_MAX: u32 = 16;
/// The largest head, in bytes.
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// The bytes of an answer that are held for a peer that does not read.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// How often a peer is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_MAX: Duration = Duration::from_secs(10);

/// Serves a connection until its end, until nothing was asked on it for `idle_max`, or until `stop`, once its answers have left.
pub(super) async fn serve<S>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: S,
    idle_max: Duration,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send + 'static>,
{
    let streams = Streams::default();
    // Also where the connection is dropped because another one needs its place.
    let _over = streams.over.clone().drop_guard();
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = streams.idle(idle_max) => {
            connection.as_mut().graceful_shutdown();
            // Its peer may not answer, either.
            tokio::time::timeout(idle_max, connection).await.unwrap_or(Ok(()))
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection of the admin port ended with an error");
    }
}

/// The requests of one connection, each a task until its answer has left.
#[derive(Clone, Default)]
struct Streams {
    tasks: TaskTracker,
    over: CancellationToken,
    begun: Arc<AtomicU64>,
}

impl Streams {
    /// Waits until no request was there for `max`.
    async fn idle(&self, max: Duration) {
        // Closed, it says when it is empty; tasks come all the same.
        self.tasks.close();
        loop {
            self.tasks.wait().await;
            let begun = self.begun.load(Ordering::Relaxed);
            tokio::time::sleep(max).await;
            if self.tasks.is_empty() && self.begun.load(Ordering::Relaxed) == begun {
                return;
            }
        }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let over = self.over.clone();
        self.tasks.spawn(async move {
            over.run_until_cancelled(stream).await;
        });
    }
}
