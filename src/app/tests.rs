//! An app is started, and ends as it is told.

use std::path::PathBuf;

use relay_bridge::error::BrokerErrorKind;
use relay_bridge::policy::QueuePolicy;
use tokio::net::TcpListener;

use super::*;
use crate::broker::BrokerConfig;

fn config(store: Option<PathBuf>) -> Config {
    Config {
        broker: BrokerConfig::Embedded { path: store, disk_reserve: 0 },
        queues: QueueSetup {
            queues: vec!["orders".parse().unwrap()],
            are_named: true,
            policy: Box::new(|_, stored| QueuePolicy { max_attempts: 4, ..stored }),
            sizes: Vec::new(),
            force: false,
        },
        authenticator: Arc::new(Authenticator::development()),
        limits: http::Limits::default(),
        nats: None,
        worker_limits: tcp::WorkerLimits::default(),
        worker: None,
        traces: None,
        admin_tokens: None,
        audit: None,
        tls: None,
        reload: Arc::default(),
        drain_delay: Duration::ZERO,
        drain: Duration::from_secs(5),
        clock: Clock::system(),
    }
}

async fn listeners() -> Listeners {
    let bind = async || vec![TcpListener::bind("127.0.0.1:0").await.unwrap().into()];
    Listeners { http: bind().await, workers: bind().await, tcp: Vec::new(), admin: Default::default(), scaler: None }
}

#[tokio::test]
async fn an_app_that_is_asked_to_stop_drains_and_lets_go_of_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("relay.db");
    // The second round opens the same file: the first one has let go of it.
    for _ in 0..2 {
        let app = App::build(config(Some(file.clone())), listeners().await).await.unwrap();
        assert_ne!(app.http_address().unwrap().port(), 0);
        assert_ne!(app.workers_address(), app.http_address());
        let stop = Stop::default();
        stop.drain.cancel();
        assert_eq!(app.run(stop).await.unwrap(), Ended::Drained);
    }
}

#[tokio::test]
async fn an_app_that_is_forced_does_not_wait() {
    let app = App::build(config(None), listeners().await).await.unwrap();
    let stop = Stop::default();
    stop.force.cancel();
    assert_eq!(app.run(stop).await.unwrap(), Ended::Forced);
}

#[tokio::test]
async fn queues_are_there_before_anything_is_served() {
    let app = App::build(config(None), listeners().await).await.unwrap();
    let policy = app.broker.policies.policy(&"orders".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(policy, QueuePolicy { max_attempts: 4, ..QueuePolicy::default() });
}

#[tokio::test]
async fn a_store_that_another_app_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("relay.db");
    let _holder = App::build(config(Some(file.clone())), listeners().await).await.unwrap();
    let refused = App::build(config(Some(file)), listeners().await).await;
    assert!(matches!(refused, Err(AppError::Store(error)) if error.kind() == BrokerErrorKind::Unavailable));
}
