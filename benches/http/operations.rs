//! The cost that watching relay adds to a submission: the admin port with its counters, and spans for a collector, each
//! beside the same server without. The collector takes everything and is in this process, beside the load.

use axum::routing::post;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{pairs, report};

/// Each pair is measured together, so that what else the machine does is in all three.
pub(crate) async fn of_a_submission() {
    let mut tasks = JoinSet::new();
    let collector = collector(&mut tasks).await;
    let (mut admin, mut traced) = (Vec::new(), Vec::new());
    for _ in 0..pairs() {
        let bare = crate::load(&["serve-relay"], false).await;
        admin.push((crate::load(&["serve-admin"], false).await, bare));
        traced.push((crate::load(&["serve-traced", &collector], false).await, bare));
    }
    report("submit with --admin / without", 0.9, &admin);
    report("submit with --admin and traces / without", 0.5, &traced);
}

/// Where it listens, as `--otlp-endpoint` with the path.
async fn collector(tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/v1/traces", post(async |_: bytes::Bytes| axum::http::StatusCode::OK));
    tasks.spawn(async { axum::serve(listener, app).await.unwrap() });
    format!("http://{address}/v1/traces")
}
