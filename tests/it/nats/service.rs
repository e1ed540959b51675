//! The micro service as `nats micro ls`, `info`, `stats` and `ping` see it (ADR-32 of NATS).

use std::sync::Arc;
use std::time::Duration;

use relay::ingress::budget::Budget;
use relay::ingress::clients::ClientShares;
use relay::ingress::nats::{Ingress, Limits, serve};
use relay::ingress::rates::Rates;
use relay_bridge::clock::Clock;
use relay_nats::config::Credentials;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::support::{Relay, connect};

async fn ask_all(relay: &Relay, verb: &str) -> Value {
    let id = relay.ingress.id();
    let mut answers = Vec::new();
    for subject in [format!("$SRV.{verb}"), format!("$SRV.{verb}.relay"), format!("$SRV.{verb}.relay.{id}")] {
        answers.push(relay.ask(&subject, &[], "").await.json());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let answer = answers.remove(0);
    assert_eq!((answer["name"].as_str(), answer["id"].as_str()), (Some("relay"), Some(id)));
    assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(answer["metadata"], json!({ "durability": "none" }));
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn ping_info_and_stats_are_answered_for_all_services_for_relay_and_for_this_instance() {
    let relay = Relay::start().await;
    let ping = ask_all(&relay, "PING").await;
    assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
    assert_eq!(ping.as_object().unwrap().len(), 5, "{ping}");

    let info = ask_all(&relay, "INFO").await;
    assert_eq!(info["type"], "io.nats.micro.v1.info_response");
    assert!(!info["description"].as_str().unwrap().is_empty());
    let endpoints = info["endpoints"].as_array().unwrap();
    let subjects: Vec<_> = endpoints.iter().map(|endpoint| endpoint["subject"].as_str().unwrap()).collect();
    let expected = ["relay.submit.*.*", "relay.status.*", "relay.result.*", "relay.results.*", "relay.cancel.*"];
    assert_eq!(subjects, expected);
    assert!(endpoints.iter().all(|endpoint| endpoint["queue_group"] == "q" && endpoint["metadata"].is_object()));

    let stats = ask_all(&relay, "STATS").await;
    assert_eq!(stats["type"], "io.nats.micro.v1.stats_response");
    let started = stats["started"].as_str().unwrap();
    assert!(started.parse::<relay_bridge::contract::Timestamp>().is_ok(), "{started}");
    // The client library of NATS reads them as it reads every other service's.
    serde_json::from_value::<async_nats::service::Stats>(stats).unwrap();
    serde_json::from_value::<async_nats::service::Info>(info).unwrap();
    serde_json::from_value::<async_nats::service::PingResponse>(ping).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_count_requests_errors_and_time_of_each_endpoint() {
    let relay = Relay::start().await;
    relay.submit(&[], "x").await.job();
    relay.submit(&[("Relay-Delay", "soon")], "x").await.is_problem(400, "malformed-request");
    relay.ask("relay.submit.me.nowhere", &[], "x").await.is_problem(404, "not-found");
    // Counted after the answer is on its way; the next question on another subject may come first.
    let submit = loop {
        let submit = relay.stats("submit").await;
        if submit["num_requests"] == 3 {
            break submit;
        }
    };
    assert_eq!((&submit["num_errors"], &submit["last_error"]), (&json!(2), &json!("404:not-found")));
    let (total, average) =
        (submit["processing_time"].as_u64().unwrap(), submit["average_processing_time"].as_u64().unwrap());
    assert!(total > 0 && average == total / 3);
    assert_eq!(submit["data"], json!({ "slow_consumer_events": 0 }));
    assert_eq!(relay.stats("cancel").await["num_requests"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_one_answers_each_request_and_both_are_listed() {
    let relay = Relay::start().await;
    let budget = || Budget::new(1 << 20, ClientShares::undivided());
    let ingress = Ingress::new(
        relay.broker.clone(),
        Limits::default(),
        (budget(), budget()),
        Rates::new(Clock::system()),
        Clock::system(),
    );
    let connection = connect(&relay.server.url(), Credentials::None).await;
    let mut serving = JoinSet::new();
    serving.spawn(serve(connection, Arc::clone(&ingress), CancellationToken::new(), Duration::ZERO));
    while relay.client.request(format!("$SRV.PING.relay.{}", ingress.id()), "".into()).await.is_err() {}

    for n in 0..20 {
        relay.submit(&[("Nats-Msg-Id", &format!("k{n}"))], "x").await.job();
    }
    let mut counted = 0;
    for id in [relay.ingress.id(), ingress.id()] {
        let stats = relay.ask(&format!("$SRV.STATS.relay.{id}"), &[], "").await.json();
        counted += stats["endpoints"][0]["num_requests"].as_u64().unwrap();
    }
    // The last one may be counted just after its answer.
    assert!((19..=20).contains(&counted), "{counted} of 20: each was answered once");
}
