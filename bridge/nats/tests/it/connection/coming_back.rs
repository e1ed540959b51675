//! After the connection was lost.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::LeaseRequest;
use relay_bridge::policy::QueuePolicy;
use relay_conformance::testing::{NatsCluster, NatsServer};
use relay_nats::config::NatsConfig;
use relay_nats::{Nats, Settings};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{open, pretend, to, until};

/// Leads connections to whatever `to` says, one at a time, and cuts them when it says something else.
async fn lead(listener: TcpListener, mut to: watch::Receiver<SocketAddr>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let address = *to.borrow_and_update();
        let Ok(mut far) = TcpStream::connect(address).await else { continue };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            _ = to.changed() => {}
        }
    }
}

#[tokio::test]
async fn a_kill_is_noticed_at_once_and_the_connection_comes_back_by_itself() {
    let mut server = NatsServer::start().await;
    let connection = open(to(&server)).await;
    let before = until(&connection, |link| link.is_up()).await;

    server.kill();
    until(&connection, |link| !link.is_up()).await;
    let refused = connection.up("enqueue").unwrap_err();
    assert_eq!((refused.kind(), refused.operation()), (BrokerErrorKind::Unavailable, "enqueue"));

    server.restart().await;
    let after = until(&connection, |link| link.is_up()).await;
    assert!(after.epoch > before.epoch);
    assert_eq!(connection.counts().losses, 1);
    assert!(connection.up("enqueue").is_ok());
    connection.jetstream().query_account().await.unwrap();
}

#[tokio::test]
async fn a_subscription_lives_on_over_a_restart() {
    use futures_util::StreamExt as _;

    let mut server = NatsServer::start().await;
    let connection = open(to(&server)).await;
    let mut heard = connection.client().subscribe("news").await.unwrap();
    server.restart().await;
    until(&connection, |link| link.is_up() && link.epoch > 1).await;
    let mut refused = true;
    while refused {
        refused = connection.up("publish").is_err() || connection.client().publish("news", "1".into()).await.is_err();
    }
    assert_eq!(&heard.next().await.unwrap().payload[..], b"1");
}

#[tokio::test]
async fn a_server_that_is_about_to_stop_is_left_before_it_does() {
    let cluster = NatsCluster::start(3).await;
    let connection = open(NatsConfig::new(cluster.urls())).await;
    let first = connection.client().server_info().server_name;
    let before = until(&connection, |link| link.is_up()).await;

    cluster.nodes()[cluster.position(&first).unwrap()].lame_duck();

    let mut link = connection.link();
    while connection.client().server_info().server_name == first {
        link.changed().await.unwrap();
    }
    let after = until(&connection, |link| link.is_up() && link.epoch > before.epoch).await;
    assert_eq!(connection.counts().lame_ducks, 1);
    assert!(after.is_up());
}

#[tokio::test]
async fn a_server_that_was_replaced_by_an_older_one_is_of_no_use_until_it_is_new_again() {
    let server = NatsServer::start().await;
    let (front, old) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (front_address, old_address) = (front.local_addr().unwrap(), old.local_addr().unwrap());
    let (lead_to, leads_to) = watch::channel(server.address());
    let mut others = JoinSet::new();
    others.spawn(lead(front, leads_to));
    others.spawn(pretend(old, "2.9.10"));
    let config = NatsConfig { ignore_discovered_servers: true, ..NatsConfig::new([front_address.to_string()]) };
    let connection = open(config).await;

    lead_to.send(old_address).unwrap();
    until(&connection, |link| link.down.as_ref().is_some_and(|why| why.contains("2.9.10"))).await;
    assert!(connection.up("enqueue").unwrap_err().to_string().contains("2.12"));

    lead_to.send(server.address()).unwrap();
    until(&connection, |link| link.is_up()).await;
    connection.jetstream().query_account().await.unwrap();
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_after_two_pings() {
    let server = NatsServer::start().await;
    let connection = open(NatsConfig { ping_interval: Duration::from_secs(1), ..to(&server) }).await;
    server.pause();
    until(&connection, |link| !link.is_up()).await;
    server.resume();
    until(&connection, |link| link.is_up()).await;
}

#[tokio::test]
async fn messages_that_nobody_fetched_make_everybody_look_for_themselves() {
    let server = NatsServer::start().await;
    let connection = open(to(&server)).await;
    let _slow = connection.client().subscribe("news").await.unwrap();
    let mut missed = connection.missed();
    missed.mark_unchanged();
    // One more than the client keeps for a subscriber; the rest is dropped.
    for _ in 0..=64 * 1024 {
        connection.client().publish("news", "".into()).await.unwrap();
    }
    missed.wait_for(|_| connection.counts().slow_consumers > 0).await.unwrap();
    assert!(connection.link().borrow().is_up());
}

#[tokio::test]
async fn what_relays_user_may_not_do_is_counted_and_named() {
    let server = NatsServer::builder()
        .config("authorization { users: [{ user: u, password: p, permissions: { publish: { deny: \"relay.jobs.>\" } } }] }\nno_auth_user: u")
        .start()
        .await;
    let connection = open(to(&server)).await;
    connection.client().request("relay.jobs.q.c.j", "".into()).await.unwrap_err();
    // The refusal comes as an event of its own, beside a call without an answer.
    while connection.counts().refusals == 0 {
        tokio::task::yield_now().await;
    }
    let doubt = connection.unanswered("enqueue");
    assert_eq!(doubt.kind(), BrokerErrorKind::Ambiguous);
    assert!(doubt.to_string().contains("relay.jobs.q.c.j"), "{doubt}");
}

#[tokio::test]
async fn an_adapter_that_is_dropped_unclosed_leaves_no_connection() {
    let server = NatsServer::start().await;
    let nats = Nats::open(open(to(&server)).await, Settings::default()).await.unwrap();
    let queue = "work".parse().unwrap();
    nats.broker().policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let request =
        LeaseRequest { worker: "w".parse().unwrap(), queues: vec![queue], max: NonZeroU32::MIN, wait: Duration::ZERO };
    assert!(nats.broker().leasing.lease(&request).await.unwrap().is_empty());
    let connections = async || server.monitor("/connz").await.unwrap()["num_connections"].as_u64().unwrap();
    assert_eq!(connections().await, 1);
    drop(nats);
    let gone = async { while connections().await > 0 {} };
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
}
