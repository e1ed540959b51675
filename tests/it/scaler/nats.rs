//! Two scalers at one NATS: they say the same, whichever of them a job came through.

use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::provision::Wanted;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings};

use super::support::{Scaler, finish, lease, next, submit};

const MAIL: &[(&str, &str)] = &[("queue", "mail"), ("leadSeconds", "0")];

/// Two processes with the queue `mail`.
async fn two(server: &NatsServer) -> [Nats; 2] {
    let open = || async { Nats::connect(NatsConfig::new([server.url()]), Wait::Forever, Settings::default()).await };
    let nats = [open().await.unwrap(), open().await.unwrap()];
    let wanted = Wanted { queue: "mail".parse().unwrap(), policy: QueuePolicy::default(), seen: None };
    nats[0].broker().provision.apply(&[wanted], false).await.unwrap();
    nats
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_job_is_told_by_every_process_whichever_it_came_through() {
    let server = NatsServer::start().await;
    let (nats, clock) = (two(&server).await, Clock::system());
    let brokers = nats.each_ref().map(Nats::broker);
    let scalers = [Scaler::start(&brokers[0], clock.clone()).await, Scaler::start(&brokers[1], clock.clone()).await];
    let kedas = [scalers[0].keda().await, scalers[1].keda().await];
    let mut streams = [kedas[0].activity(MAIL).await.unwrap(), kedas[1].activity(MAIL).await.unwrap()];
    for through in 0..2 {
        for stream in &mut streams {
            while next(stream).await {}
        }
        submit(&brokers[through], "shop", 1, &clock).await;
        for stream in &mut streams {
            assert!(next(stream).await, "through {through}");
        }
        finish(&brokers[0], &lease(&brokers[0], 1).await[0], &clock).await;
    }
    for nats in nats {
        nats.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_want_the_same_under_steady_load_and_neither_has_to_see_the_jobs() {
    let server = NatsServer::start().await;
    let (nats, clock) = (two(&server).await, Clock::system());
    let brokers = nats.each_ref().map(Nats::broker);
    let scalers = [Scaler::start(&brokers[0], clock.clone()).await, Scaler::start(&brokers[1], clock.clone()).await];
    let queue = "mail".parse().unwrap();
    let look = async |scaler: &Scaler| scaler.looks.look(&queue, Duration::ZERO, Duration::ZERO).await.unwrap();
    // Ten slots are busy all the time, and each look of one process is between two of the other.
    submit(&brokers[0], "shop", 300, &clock).await;
    let mut held = lease(&brokers[0], 10).await;
    while held.len() < 10 {
        held.extend(lease(&brokers[0], 1).await);
    }
    let mut held = std::collections::VecDeque::from(held);
    for round in 0..200 {
        let scaler = &scalers[round % 2];
        look(scaler).await;
        finish(&brokers[0], &held.pop_front().unwrap(), &clock).await;
        submit(&brokers[0], "shop", 1, &clock).await;
        held.extend(lease(&brokers[0], 1).await);
    }
    let paces = [look(&scalers[0]).await, look(&scalers[1]).await];
    let (one, other) = (paces[0].pace.service.unwrap(), paces[1].pace.service.unwrap());
    assert!((one / other - 1.0).abs() <= 0.1, "{one} {other}");
    let kedas = [scalers[0].keda().await, scalers[1].keda().await];
    let wanted = [kedas[0].wanted(MAIL).await, kedas[1].wanted(MAIL).await];
    assert!((wanted[0] / wanted[1] - 1.0).abs() <= 0.1, "{wanted:?}");
    for nats in nats {
        nats.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_is_unavailable_and_never_0() {
    let mut server = NatsServer::start().await;
    let (nats, clock) = (two(&server).await, Clock::system());
    let broker = nats[0].broker();
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let keda = scaler.keda().await;
    submit(&broker, "shop", 1, &clock).await;
    assert!(keda.wanted(MAIL).await >= 1.0);
    server.kill();
    // A look that was just taken may be the answer for a second.
    let refused = loop {
        match keda.metrics(MAIL).await {
            Ok(value) => assert!(value.metric_value_float >= 1.0),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    for nats in nats {
        nats.close().await;
    }
}
