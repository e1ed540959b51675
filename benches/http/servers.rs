//! The servers that are measured, each in a process of its own.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use relay::auth::Authenticator;
use relay::ingress::http::{Ingress, Limits, serve};
use relay_bridge::clock::Clock;
use relay_bridge::contract::Job;
use relay_bridge::embedded::{Embedded, EmbeddedConfig};
use relay_bridge::policy::QueuePolicy;
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Context, Output, QueueOrder, Worker, WorkerConfig};
use tokio_util::sync::CancellationToken;

use crate::support::load::listen;

/// relay on a store on disk, with a worker in the same process if `works`.
pub(crate) async fn relay(works: bool) {
    // The process is killed, so nothing is tidied up at its end: the next one begins by that. Not in the folder for
    // temporary files, which may be in memory, where a flush costs nothing.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-http");
    std::fs::remove_dir_all(&folder).ok();
    let config = EmbeddedConfig { path: Some(folder.join("relay.db")), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    let queue = "work".parse().unwrap();
    store.broker().policies.put_policy(&queue, &QueuePolicy::default()).await.unwrap();
    let listener = listen().await;
    let ingress = Ingress::new(store.broker(), Authenticator::development(), Limits::default(), Clock::system());
    let config = WorkerConfig {
        id: "bench".parse().unwrap(),
        queues: vec![(queue, 1)],
        order: QueueOrder::Strict,
        slots: NonZeroU32::MIN.saturating_add(15),
        drain: Duration::ZERO,
    };
    let worker = Worker::new(store.broker().leasing, Arc::new(function(echo)), Clock::system(), config);
    let working = async {
        if works {
            worker.run(CancellationToken::new()).await;
        }
    };
    tokio::join!(working, async { serve(listener, ingress, CancellationToken::new(), Duration::ZERO).await.unwrap() });
}

async fn echo(job: Job, _: Context) -> Result<Output, HandlerError> {
    Ok(Output::new(job.content_type, job.payload))
}

/// An axum handler that does nothing.
pub(crate) async fn nothing() {
    use axum::routing::post;
    let app = axum::Router::new()
        .route("/v1/queues/{queue}/jobs", post(async |_: bytes::Bytes| axum::http::StatusCode::ACCEPTED));
    axum::serve(listen().await, app).await.unwrap();
}
