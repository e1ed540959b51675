//! Before there is a connection.

use std::time::Duration;

use relay_bridge::error::BrokerErrorKind;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::{Connection, Wait};
use tokio::net::TcpListener;

use super::{IN_VAIN, SOON, open, pretend, to};

#[tokio::test]
async fn an_older_server_is_refused_with_its_version_and_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::task::JoinSet::from_iter([pretend(listener, "2.9.10")]);

    let refused = Connection::open(NatsConfig::new([address.to_string()]), Wait::Forever).await.unwrap_err();

    assert_eq!(refused.kind(), BrokerErrorKind::Invalid);
    for part in ["`old`", "2.9.10", "2.12", "upgrade"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    drop(server);
}

#[tokio::test]
async fn a_server_that_comes_late_is_waited_for() {
    let mut server = NatsServer::start().await;
    server.kill();
    let opening = tokio::task::JoinSet::from_iter([Connection::open(to(&server), Wait::Forever)]);

    server.restart().await;

    let connection = opening.join_all().await.pop().unwrap().unwrap();
    assert!(connection.up("test").is_ok());
}

#[tokio::test]
async fn a_person_who_does_not_want_to_wait_is_told_what_the_last_attempt_said() {
    let mut server = NatsServer::start().await;
    server.kill();
    let refused = Connection::open(to(&server), IN_VAIN).await.unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::Unavailable);
    assert!(refused.to_string().contains(&server.url()), "{refused}");
    assert!(refused.to_string().contains("refused"), "{refused}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_told_from_one_that_is_not_there() {
    let server = NatsServer::builder()
        .config("accounts { A { users: [{ user: a, password: a }] } }\nno_auth_user: a")
        .start()
        .await;
    let refused = Connection::open(to(&server), IN_VAIN).await.unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::Unavailable);
    assert!(refused.to_string().contains("JetStream"), "{refused}");
}

#[tokio::test]
async fn a_configuration_that_can_not_be_is_refused_before_anything_is_tried() {
    let config = NatsConfig { ping_interval: Duration::ZERO, ..NatsConfig::new(["http://a", "ws://b"]) };
    let refused = Connection::open(config, Wait::Forever).await.unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::Invalid);
    for part in ["http://a", "ws://b", "ping_interval"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
}

#[tokio::test]
async fn a_closed_connection_says_so() {
    let server = NatsServer::start().await;
    let connection = open(to(&server)).await;
    connection.close().await;
    let refused = connection.up("enqueue").unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::Unavailable);
    assert!(Connection::open(to(&server), SOON).await.is_ok());
}
