//! `kill -9` of two bridges, of the foreign nats-server and of the target's in turn, while messages of a stream that knows
//! nothing of relay become jobs: every message has exactly one result on the reply subject, and none is lost.
//!
//! `RELAY_KILL_JOBS` sets the number of messages (2,000 here, 20,000 where there is time); `RELAY_KILL_SEED` replays a run.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::cli_support::Running;
use crate::support::rounds::{Replicas, moment};
use crate::support::{Random, Starts, jobs_and_seed};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::Context;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use futures_util::StreamExt as _;
use relay_conformance::testing::NatsServer;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Messages in the suite; enough that every kill hits some in hand.
const MESSAGES: usize = 2_000;
/// Kills, spread over the results: of a bridge, of the other one, of one of the two sides, and again.
const KILLS: usize = 9;
/// Every so many messages one is sent twice.
const TWICE: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_of_a_foreign_stream_has_one_result_whatever_is_killed() {
    let _alone = crate::support::alone().await;
    let (messages, seed) = jobs_and_seed(MESSAGES);
    let dir = tempfile::tempdir().unwrap();
    let (shop, inner) = (NatsServer::start().await, NatsServer::start().await);
    let client = async_nats::connect(shop.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());
    for (name, subject, retention) in [
        ("ORDERS", "orders.>", RetentionPolicy::WorkQueue),
        ("REFUSED", "refused", RetentionPolicy::Limits),
        ("RESULTS", "results", RetentionPolicy::Limits),
    ] {
        let config =
            Config { name: name.to_owned(), subjects: vec![subject.to_owned()], retention, ..Config::default() };
        jetstream.create_stream(config).await.unwrap();
    }
    // As a bridge would make it, but what a killed one held comes again soon.
    let consumer = pull::Config {
        durable_name: Some("relay".to_owned()),
        ack_wait: Duration::from_secs(2),
        filter_subjects: vec!["orders.>".to_owned()],
        ..pull::Config::default()
    };
    jetstream.create_consumer_on_stream(consumer, "ORDERS").await.unwrap();
    let provisioned =
        crate::cli_support::run(["provision", "--nats", &inner.url(), "--lease", "2s", "--retry-base", "50ms"]);
    assert_eq!(crate::cli_support::code(&provisioned), 0, "{provisioned:?}");
    let config = dir.path().join("bridges.toml");
    fs::write(&config, configured(&shop, &inner)).unwrap();
    let (starts, url) = (Starts::new(dir.path()), inner.url());
    let workers: Vec<_> = (0..2).map(|_| Running::start_command(starts.worker(&["--nats", &url]))).collect();
    let mut bridges = Replicas::start(2, || {
        crate::cli_support::relay(["bridge", "--json", "--log", "error", "--config", config.to_str().unwrap()])
    });
    let mut servers = [inner, shop];

    let (seen, progress) = watch::channel(0);
    let (mut counting, mut producing) = (JoinSet::new(), JoinSet::new());
    counting.spawn(count(client, jetstream.clone(), messages, seen));
    producing.spawn(produce(jetstream.clone(), messages));
    let (mut progress, mut random, mut killed) = (progress, Random::new(seed), [0; 2]);
    for kill in 0..KILLS {
        moment(&mut progress, messages, KILLS, kill).await;
        if kill % 3 < 2 {
            bridges.kill_one(&mut random);
        } else {
            servers[kill % 2].restart().await;
            killed[kill % 2] += 1;
        }
    }
    producing.join_next().await.unwrap().unwrap();
    counting.join_next().await.unwrap().unwrap();
    emptied(&jetstream).await;
    stored(&jetstream, messages).await;
    let bridges_killed = bridges.killed;
    // A drain settles what is in hand, so nothing can come after it.
    bridges.stop();
    workers.into_iter().for_each(Running::stop);

    let results = jetstream.get_stream("RESULTS").await.unwrap();
    let last = results.get_info().await.unwrap().state.last_sequence;
    let mut by_key = BTreeMap::<String, u64>::new();
    for sequence in 1..=last {
        let result = results.get_raw_message(sequence).await.unwrap();
        let header = |name: &str| result.headers.get(name).map(ToString::to_string).unwrap_or_default();
        let key = header("Relay-Key");
        assert_eq!(header("Relay-Outcome"), "succeeded", "{key}");
        assert_eq!(result.payload, format!("payload of {key}"));
        *by_key.entry(key).or_default() += 1;
    }
    let at_target = starts.jobs();
    let left = jetstream.get_stream("ORDERS").await.unwrap().get_info().await.unwrap().state.messages;
    let aside = jetstream.get_stream("REFUSED").await.unwrap().get_info().await.unwrap().state.messages;
    let second: u64 = by_key.values().map(|times| times - 1).sum();
    println!(
        "sent {messages} and {} of them twice, jobs {}, handler starts {}, results {last}, second results {second}, lost {}, \
         left {left}, put aside {aside}; kills of bridges {bridges_killed}, of target and shop {killed:?}",
        messages / TWICE,
        at_target.len(),
        starts.count(),
        messages - by_key.len(),
    );
    assert_eq!((by_key.len(), second), (messages, 0), "one result per message");
    assert_eq!((at_target.len(), left, aside), (messages, 0, 0), "one job per message, and nothing is left");
}

fn configured(shop: &NatsServer, inner: &NatsServer) -> String {
    format!(
        r#"
[[bridge]]
name = "shop"
slots = 32
reply = "results"
from.nats = {{ servers = ["{}"] }}
from.stream = {{ name = "ORDERS", consumer = "relay", subjects = ["orders.>"], put_aside = "refused" }}
to.nats = {{ servers = ["{}"] }}
job = {{ client = "shop", queue = "default", key = "{{header.Order-Id}}", content_type = "text/plain" }}
"#,
        shop.url(),
        inner.url()
    )
}

/// Sends every message until the server has confirmed it, some of them twice.
async fn produce(jetstream: Context, messages: usize) {
    for n in 0..messages {
        for _ in 0..if n % TWICE == 0 { 2 } else { 1 } {
            let mut headers = HeaderMap::new();
            headers.insert("Order-Id", format!("order-{n}"));
            loop {
                let body = format!("payload of order-{n}");
                let sent = jetstream.publish_with_headers("orders.new", headers.clone(), body.into()).await;
                // In doubt it is sent again: it is the same order.
                if let Ok(sent) = sent
                    && sent.await.is_ok()
                {
                    break;
                }
            }
        }
    }
}

/// Counts results as they come, and looks at the stream when none comes for a while: a restart may hide some. Those that the stream
/// refuses, because another bridge was first, come as well: the count says when to kill, and not that all results are there.
async fn count(client: async_nats::Client, jetstream: Context, messages: usize, seen: watch::Sender<usize>) {
    let mut results = client.subscribe("results").await.unwrap();
    let mut count = 0;
    while count < messages {
        match tokio::time::timeout(Duration::from_secs(1), results.next()).await {
            Ok(_) => count += 1,
            Err(_) => {
                if let Ok(stream) = jetstream.get_stream("RESULTS").await {
                    count = usize::try_from(stream.cached_info().state.messages).unwrap();
                }
            }
        }
        seen.send_replace(count);
    }
}

/// Waits until as many results are stored as there are messages. With fewer at the end of a minute, the test says how many are lost.
async fn stored(jetstream: &Context, messages: usize) {
    let wanted = u64::try_from(messages).unwrap();
    let stored = async {
        while jetstream.get_stream("RESULTS").await.unwrap().cached_info().state.messages < wanted {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), stored).await.ok();
}

/// Waits until every message was ended, also those that came twice.
async fn emptied(jetstream: &Context) {
    let emptied = async {
        while jetstream.get_stream("ORDERS").await.unwrap().cached_info().state.messages > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), emptied).await.unwrap();
}
