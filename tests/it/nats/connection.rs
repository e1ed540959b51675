//! The connection to NATS comes and goes, and relay is there whenever it is.

use std::sync::Arc;
use std::time::Duration;

use relay::ingress::budget::Budget;
use relay::ingress::clients::ClientShares;
use relay::ingress::nats::{Ingress, Limits, serve};
use relay::ingress::rates::Rates;
use relay_bridge::clock::Clock;
use relay_conformance::testing::NatsServer;
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_nats::config::Credentials;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::support::{Relay, connect};

#[tokio::test(flavor = "multi_thread")]
async fn relay_answers_again_when_the_server_is_back() {
    let mut relay = Relay::start().await;
    let id = relay.submit(&[], "before").await.job();
    for _ in 0..2 {
        relay.server.kill();
        relay.server.restart().await;
        relay.answers().await;
        assert_eq!(relay.ask("relay.status.me", &[], id.clone()).await.field("state"), "queued");
    }
    relay.shutdown.cancel();
    relay.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_while_the_server_is_away() {
    let mut relay = Relay::start().await;
    relay.server.kill();
    relay.shutdown.cancel();
    relay.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_may_start_before_the_server() {
    let mut server = NatsServer::start().await;
    server.kill();
    let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
    let budget = || Budget::new(1_000, ClientShares::undivided());
    let ingress = Ingress::new(
        store.broker(),
        Limits::default(),
        (budget(), budget()),
        Rates::new(Clock::system()),
        Clock::system(),
    );
    let url = server.url();
    let shutdown = CancellationToken::new();
    let mut serving = JoinSet::new();
    let (opened, stopped) = (Arc::clone(&ingress), shutdown.clone());
    serving.spawn(async move {
        let connection = connect(&url, Credentials::None).await;
        serve(connection, opened, stopped, Duration::from_secs(30)).await
    });
    server.restart().await;
    let asking = async_nats::connect(server.url()).await.unwrap();
    let subject = format!("$SRV.PING.relay.{}", ingress.id());
    let answers = async { while asking.request(subject.clone(), "".into()).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), answers).await.unwrap();
    shutdown.cancel();
    serving.join_next().await.unwrap().unwrap().unwrap();
}
