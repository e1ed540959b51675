//! relay's HTTP API on the embedded broker, durable, beside an axum handler that does nothing.
//!
//! `cargo bench --bench http`, or with the names of some parts: `cargo bench --bench http -- submit wait`. The
//! servers are processes of their own, started from this binary; the load comes from 64 keep-alive connections, 256-byte
//! payloads, from this process on the same cores. CPU and memory are the server's alone.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod floor;
mod latency;
mod operations;
mod servers;
#[path = "../support/mod.rs"]
mod support;

use std::time::Instant;

use servers::Watch;
use support::load::{BATCH, Server, submit, submit_batches};
use support::{Sample, cpu_of, pairs, report};

const REQUESTS: u64 = 60_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match arguments[..] {
            ["serve-relay"] => servers::relay(false, Watch::Nobody).await,
            ["serve-worker"] => servers::relay(true, Watch::Nobody).await,
            ["serve-admin"] => servers::relay(false, Watch::Admin).await,
            ["serve-traced", collector] => servers::relay(false, Watch::Traces(collector)).await,
            ["serve-nothing"] => servers::nothing().await,
            ["serve-rows"] => floor::serve().await,
            ref parts => run(parts).await,
        }
    });
}

async fn run(names: &[&str]) {
    let wanted = |name: &str| names.is_empty() || names.contains(&name);
    if wanted("submit") {
        submissions().await;
    }
    if wanted("floor") {
        floor().await;
    }
    if wanted("batch") {
        batches().await;
    }
    if wanted("latency") {
        latency::at_half_of_capacity().await;
    }
    if wanted("wait") {
        latency::of_a_wait().await;
    }
    if wanted("operations") {
        operations::of_a_submission().await;
    }
}

async fn submissions() {
    for (what, keyed) in
        [("HTTP submit without keys / axum no-op", false), ("HTTP submit under keys / axum no-op", true)]
    {
        let mut measured = Vec::new();
        for _ in 0..pairs() {
            let ours = load(&["serve-relay"], keyed).await;
            measured.push((ours, load(&["serve-nothing"], keyed).await));
        }
        report(what, 0.5, &measured);
    }
}

/// The part of its speed that a no-op handler keeps when it awaits the commit of relay's rows: the most for relay.
async fn floor() {
    let mut measured = Vec::new();
    for _ in 0..pairs() {
        let rows = load(&["serve-rows"], false).await;
        measured.push((rows, load(&["serve-nothing"], false).await));
    }
    report("axum and the bare rows / axum no-op", 0.5, &measured);
}

async fn load(server: &[&str], keyed: bool) -> Sample {
    let server = Server::start(server);
    submit(server.address, keyed, REQUESTS / 10, 0).await;
    measured(&server, submit(server.address, keyed, REQUESTS, REQUESTS)).await
}

/// Jobs that come a hundred in a request, beside the same jobs one by one.
async fn batches() {
    let mut measured_pairs = Vec::new();
    for _ in 0..pairs() {
        let server = Server::start(&["serve-relay"]);
        submit_batches(server.address, REQUESTS / 10 / BATCH).await;
        let batches = measured(&server, submit_batches(server.address, REQUESTS / BATCH)).await;
        drop(server);
        measured_pairs.push((batches, load(&["serve-relay"], false).await));
    }
    report("jobs in batches of 100 / one by one", 1.0, &measured_pairs);
}

/// The cost of [`REQUESTS`] jobs for the server.
async fn measured(server: &Server, work: impl Future<Output = ()>) -> Sample {
    let (start, before) = (Instant::now(), cpu_of(server.pid()));
    work.await;
    Sample { operations: REQUESTS, wall: start.elapsed(), cpu: cpu_of(server.pid()).saturating_sub(before) }
}
