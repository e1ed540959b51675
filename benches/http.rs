//! HTTP submit, durable, beside an axum handler that does nothing.
//!
//! `cargo bench --bench http`. Both servers are processes of their own, started from this binary; the load comes from 64
//! keep-alive connections, 256-byte payloads, one request at a time each, from this process on the same cores. CPU is
//! the server's alone.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use relay::auth::Authenticator;
use relay::ingress::http::{Ingress, Limits, serve};
use relay_bridge::clock::Clock;
use relay_bridge::embedded::{Embedded, EmbeddedConfig};
use relay_bridge::policy::QueuePolicy;
use support::load::{Server, listen, submit};
use support::{Sample, cpu_of, pairs, report};
use tokio_util::sync::CancellationToken;

const REQUESTS: u64 = 60_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match arguments.next().as_deref() {
        Some("serve-relay") => runtime.block_on(serve_relay()),
        Some("serve-nothing") => runtime.block_on(serve_nothing()),
        _ => runtime.block_on(compare()),
    }
}

async fn compare() {
    for (what, keyed) in
        [("HTTP submit without keys / axum no-op", false), ("HTTP submit under keys / axum no-op", true)]
    {
        let mut measured = Vec::new();
        for _ in 0..pairs() {
            let ours = load("serve-relay", keyed).await;
            measured.push((ours, load("serve-nothing", keyed).await));
        }
        report(what, 0.5, &measured);
    }
}

async fn load(server: &str, keyed: bool) -> Sample {
    let server = Server::start(&[server]);
    submit(server.address, keyed, REQUESTS / 10, 0).await;
    let (start, before) = (Instant::now(), cpu_of(server.pid()));
    submit(server.address, keyed, REQUESTS, REQUESTS).await;
    Sample { operations: REQUESTS, wall: start.elapsed(), cpu: cpu_of(server.pid()).saturating_sub(before) }
}

async fn serve_relay() {
    // The process is killed, so nothing is tidied up at its end: the next one begins by that. Not in the folder for
    // temporary files, which may be in memory, where a flush costs nothing.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-http");
    std::fs::remove_dir_all(&folder).ok();
    let config = EmbeddedConfig { path: Some(folder.join("relay.db")), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default()).await.unwrap();
    let listener = listen().await;
    let ingress = Ingress::new(store.broker(), Authenticator::development(), Limits::default(), Clock::system());
    serve(listener, ingress, CancellationToken::new(), Duration::ZERO).await.unwrap();
}

async fn serve_nothing() {
    use axum::routing::post;
    let app = axum::Router::new()
        .route("/v1/queues/{queue}/jobs", post(async |_: bytes::Bytes| axum::http::StatusCode::ACCEPTED));
    axum::serve(listen().await, app).await.unwrap();
}
