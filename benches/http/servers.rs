//! The servers that are measured, each in a process of its own.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use relay::admin::Port;
use relay::admin::sampler::Watched;
use relay::auth::Authenticator;
use relay::ingress::http::{Ingress, Limits, serve};
use relay::telemetry::{Telemetry, Traces};
use relay_bridge::clock::Clock;
use relay_bridge::contract::Job;
use relay_bridge::policy::QueuePolicy;
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Context, Output, QueueOrder, Worker, WorkerConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::load::listen;

/// The watchers of relay's work.
#[derive(Clone, Copy)]
pub(crate) enum Watch<'a> {
    /// Nobody: nothing is counted.
    Nobody,
    /// Operators, at an admin port.
    Admin,
    /// They, and a collector at this address, which is sent spans of every job.
    Traces(&'a str),
}

/// relay on a store on disk, with a worker in the same process if `works`.
pub(crate) async fn relay(works: bool, watch: Watch<'_>) {
    // The process is killed, so nothing is tidied up at its end: the next one begins by that. Not in the folder for
    // temporary files, which may be in memory, where a flush costs nothing.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-http");
    std::fs::remove_dir_all(&folder).ok();
    let config = EmbeddedConfig { path: Some(folder.join("relay.db")), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    let queue = "work".parse().unwrap();
    store.broker().policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let listener = listen().await;
    let (mut broker, mut port) = (store.broker(), None);
    if !matches!(watch, Watch::Nobody) {
        let traces = match watch {
            Watch::Traces(collector) => Some(Traces::start(collector).unwrap()),
            _ => None,
        };
        let telemetry = Telemetry::new(Clock::system(), traces);
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        broker = telemetry.broker(broker);
        port.insert(Port::open(admin, None, telemetry)).watch(Watched::Broker {
            broker: broker.clone(),
            queues: Vec::new(),
            check: None,
        });
    }
    let ingress = Ingress::new(broker, Authenticator::development(), Limits::default(), Clock::system());
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
    tokio::join!(working, async {
        serve(vec![listener.into()], ingress, CancellationToken::new(), Duration::ZERO).await.unwrap()
    });
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
