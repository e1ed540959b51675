//! The scenarios of `tests/clients/scenarios.json`, run with the Rust client. Their format is in `tests/clients/README.md`.
//!
//! # Layout
//!
//! - `scenario`: the file as types.
//! - `script`: what a scripted server does next, and what reached it.
//! - `http1`, `http2`, `tcp`: the scripted server over each protocol; what the first two have in common is `http`.
//! - `calls`: what the library is asked for, and what it has to report.
//! - `run`: one scenario.

mod calls;
mod http;
mod http1;
mod http2;
mod run;
mod scenario;
mod script;
mod tcp;

use futures_util::{StreamExt as _, stream};
use scenario::{File, Protocol};

/// Scenarios that run at a time: most of them wait.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_over_http_ends_as_its_data_say() {
    all_over(Protocol::Http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_over_h2_ends_as_its_data_say() {
    all_over(Protocol::H2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_over_tcp_ends_as_its_data_say() {
    all_over(Protocol::Tcp).await;
}

async fn all_over(protocol: Protocol) {
    let file = File::read();
    let over: Vec<_> = file.scenarios.iter().filter(|scenario| scenario.protocols.contains(&protocol)).collect();
    let runs = stream::iter(&over).map(|scenario| async move {
        run::scenario(scenario, protocol).await.err().map(|why| format!("{}: {why}", scenario.name))
    });
    let (ran, failed) = (over.len(), runs.buffered(AT_ONCE).filter_map(std::future::ready).collect::<Vec<_>>().await);
    assert!(failed.is_empty(), "over {protocol:?}, {} of {ran} scenarios:\n{}", failed.len(), failed.join("\n"));
}
