//! Streams whose settings somebody changed.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use async_nats::jetstream::{self, Context};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::provision::Wanted;
use relay_conformance::testing::{Log, NatsServer};
use relay_nats::names::{self, RESULTS_STREAM};
use tracing::Level;

use super::support::Stage;

async fn change(jetstream: &Context, stream: &str, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = jetstream.get_stream(stream).await.unwrap().cached_info().config.clone();
    change(&mut config);
    jetstream.update_stream(&config).await.unwrap();
    config
}

async fn provision(stage: &Stage) {
    let wanted = Wanted { queue: stage.queue.clone(), policy: stage.policy.clone(), seen: Some(stage.policy.clone()) };
    stage.broker.provision.apply(&[wanted], false).await.unwrap();
}

#[tokio::test]
async fn markers_and_limits_by_subject_are_taken_away_again() {
    let server = NatsServer::start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let queue = names::jobs_stream(&stage.queue);
    change(&jetstream, &queue, |config| {
        (config.allow_rollup, config.subject_delete_marker_ttl) = (true, Some(Duration::from_secs(60)));
    })
    .await;
    change(&jetstream, RESULTS_STREAM, |config| {
        (config.discard, config.discard_new_per_subject) = (DiscardPolicy::New, true);
    })
    .await;
    provision(&stage).await;
    let jobs = jetstream.get_stream(&queue).await.unwrap().cached_info().config.clone();
    assert_eq!(jobs.subject_delete_marker_ttl.unwrap_or_default(), Duration::ZERO);
    let results = jetstream.get_stream(RESULTS_STREAM).await.unwrap().cached_info().config.clone();
    assert_eq!((results.discard, results.discard_new_per_subject), (DiscardPolicy::Old, false));
}

#[tokio::test]
async fn a_limit_that_somebody_sets_while_relay_runs_is_said_once_and_so_is_its_end() {
    let (log, _listening) = Log::listen();
    let server = NatsServer::start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    change(&jetstream, &names::jobs_stream(&stage.queue), |config| config.max_messages = 10).await;
    change(&jetstream, RESULTS_STREAM, |config| config.max_bytes = 1_000_000).await;
    for _ in 0..2 {
        stage.broker.policies.policy(&stage.queue).await.unwrap();
        stage.broker.jobs.sweep(100).await.unwrap();
    }
    assert_eq!(log.count(Level::ERROR, "max_msgs: 10 -> none"), 1, "{log:?}");
    assert_eq!(log.count(Level::ERROR, "max_bytes: 1000000 -> none"), 1, "{log:?}");
    provision(&stage).await;
    stage.broker.policies.policy(&stage.queue).await.unwrap();
    stage.broker.jobs.sweep(100).await.unwrap();
    assert_eq!(log.count(Level::INFO, "as relay needs it again"), 2, "{log:?}");
    assert_eq!(log.count(Level::ERROR, "somebody changed"), 2, "{log:?}");
}

#[tokio::test]
async fn a_stream_that_takes_no_message_any_more_is_no_mistake_of_a_client_or_a_result() {
    let server = NatsServer::start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let queue = names::jobs_stream(&stage.queue);
    stage.submit("acme", "before").await;
    let deliveries = stage.lease(1, Duration::from_secs(10)).await;
    for size in [100, -1] {
        change(&jetstream, &queue, |config| config.max_message_size = size).await;
        change(&jetstream, RESULTS_STREAM, |config| config.max_message_size = size).await;
        if size == -1 {
            change(&jetstream, &queue, |config| config.sealed = true).await;
            change(&jetstream, RESULTS_STREAM, |config| config.sealed = true).await;
        }
        let submitted = stage.broker.jobs.enqueue(stage.job("acme", "after")).await.unwrap_err();
        let recorded = stage.broker.leasing.record(&stage.success(&deliveries[0], "done")).await.unwrap_err();
        for error in [submitted, recorded] {
            assert_eq!(error.kind(), BrokerErrorKind::Unavailable, "{error}");
            assert!(error.detail().contains("`relay provision`"), "{error}");
        }
    }
}
