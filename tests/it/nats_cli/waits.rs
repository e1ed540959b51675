//! `Relay-Wait` at processes as they are deployed.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Request};
use nix::sys::signal::Signal;
use relay_conformance::testing::NatsServer;
use serde_json::Value;
use tokio::task::JoinSet;

use super::listen::OPEN;
use crate::cli_support::Running;

/// Where jobs are kept: a store of relay's own, or NATS.
const BROKERS: [&[&str]; 2] = [&["--memory", "--nats-listen"], &["--provision", "--nats"]];

fn serve(broker: &[&str], url: &str, more: &[&str]) -> Running {
    let serve = ["serve", "--no-auth", "--json", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut server = Running::start(serve.iter().chain(broker).chain(&[url]).chain(more));
    server.wait_for_line(OPEN);
    server
}

async fn ask(client: &Client, wait: &str) -> Message {
    let mut headers = HeaderMap::new();
    headers.insert("Relay-Wait", wait);
    let request = Request::new().headers(headers).payload("hello".into()).timeout(Some(Duration::from_secs(40)));
    client.send_request("relay.submit.me.default", request).await.unwrap()
}

#[track_caller]
fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers.as_ref().and_then(|headers| headers.get(name)).map_or("", |value| value.as_str())
}

#[track_caller]
fn is_receipt(message: &Message) {
    let receipt: Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!((header(message, "Relay-State"), receipt["state"].as_str()), ("queued", Some("queued")), "{receipt}");
}

#[tokio::test]
async fn a_client_asks_and_gets_the_result_whatever_keeps_the_jobs() {
    let nats = NatsServer::start().await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    for broker in ["--nats-listen", "--nats"] {
        let mut dev = Running::dev(&[broker, &nats.url()], "tr a-z A-Z");
        dev.wait_for_line(OPEN);
        let result = ask(&client, "30s").await;
        assert_eq!((&result.payload[..], header(&result, "Relay-Outcome")), (&b"HELLO"[..], "succeeded"), "{broker}");
        dev.stop();
    }
}

#[tokio::test]
async fn sigterm_answers_open_waits_with_their_receipts() {
    let nats = NatsServer::start().await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    for broker in BROKERS {
        let server = serve(broker, &nats.url(), &[]);
        let metrics = format!("http://{}/metrics", server.ready["listening"]["admin"].as_str().unwrap());
        let mut asked = JoinSet::new();
        let asks = client.clone();
        asked.spawn(async move { ask(&asks, "50s").await });
        let open = "relay_requests_in_flight{protocol=\"nats\"} 1\n";
        while !reqwest::get(&metrics).await.unwrap().text().await.unwrap().contains(open) {}
        server.signal(Signal::SIGTERM);
        is_receipt(&asked.join_next().await.unwrap().unwrap());
        let (code, said) = server.wait();
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("cut off"), "{said}");
    }
}

#[tokio::test]
async fn as_many_wait_as_the_operator_lets() {
    let nats = NatsServer::start().await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    for (broker, more) in [(BROKERS[0], &["--nats-waits", "0"][..]), (BROKERS[1], &["--nats-waits=0"])] {
        let server = serve(broker, &nats.url(), more);
        is_receipt(&ask(&client, "50s").await);
        server.stop();
    }
}
