//! An account that may have few consumers.

use std::collections::BTreeSet;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::Stream;
use futures_util::TryStreamExt as _;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::provision::Wanted;
use relay_conformance::testing::{NatsServer, NatsServerBuilder};
use relay_nats::config::{Credentials, NatsConfig, Secret};
use relay_nats::names::{self, Lane, SHARED_LANES};

use super::support::Stage;

/// A server whose only account may have so many consumers a stream.
fn server(consumers: usize) -> NatsServerBuilder {
    let user = "{ user: relay, password: x }";
    let limits = format!("{{ max_mem: 512MB, max_file: 8GB, max_streams: 100, max_consumers: {consumers} }}");
    NatsServer::builder().config(&format!("accounts {{ A: {{ users: [{user}], jetstream: {limits} }} }}"))
}

async fn open(server: &NatsServer) -> Stage {
    let credentials = Credentials::User { name: "relay".to_owned(), password: Secret::Value("x".to_owned()) };
    let config = NatsConfig { credentials, ..NatsConfig::new([server.url()]) };
    Stage::open_as(config, 1, QueuePolicy::default()).await
}

async fn jobs_stream(server: &NatsServer, stage: &Stage) -> Stream {
    let options = async_nats::ConnectOptions::with_user_and_password("relay".to_owned(), "x".to_owned());
    let jetstream = async_nats::jetstream::new(options.connect(server.url()).await.unwrap());
    jetstream.get_stream(names::jobs_stream(&stage.queue)).await.unwrap()
}

async fn lanes(server: &NatsServer, stage: &Stage) -> Vec<Lane> {
    let names: Vec<String> = jobs_stream(server, stage).await.consumer_names().try_collect().await.unwrap();
    names.iter().map(|name| name.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_an_account_may_have_few_consumers_clients_share_lanes_and_all_are_served() {
    const OWN: usize = 8;
    const CLIENTS: usize = 80;
    let server = server(OWN + usize::from(SHARED_LANES)).start().await;
    let stage = open(&server).await;
    let mut jobs = BTreeSet::new();
    for number in 0..CLIENTS {
        jobs.insert(stage.submit(&format!("client-{number}"), "key").await.status().job_id);
    }
    let own = lanes(&server, &stage).await.into_iter().filter(|lane| matches!(lane, Lane::Own(_))).count();
    assert_eq!(own, OWN);
    assert_eq!(stage.run(CLIENTS).await.into_iter().collect::<BTreeSet<_>>(), jobs);
    // The queue is as it is needed: there is nothing to change.
    let wanted = [Wanted { queue: stage.queue.clone(), policy: stage.policy.clone(), seen: None }];
    assert_eq!(stage.broker.provision.apply(&wanted, false).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_shares_a_lane_that_is_there_once_its_account_may_have_no_more_consumers() {
    let mut server = server(20_000).start().await;
    let before = open(&server).await;
    before.submit("first", "key").await;
    let shared = Lane::shared_by(&"late".parse().unwrap());
    let consumer = pull::Config {
        durable_name: Some(shared.to_string()),
        filter_subject: shared.filter(&before.queue),
        ..Default::default()
    };
    jobs_stream(&server, &before).await.create_consumer(consumer).await.unwrap();

    server.configure(self::server(2));
    server.restart().await;
    let stage = open(&server).await;
    let late = stage.broker.jobs.enqueue(stage.job("late", "key")).await.unwrap().status().job_id;
    let there = lanes(&server, &stage).await;
    assert_eq!(BTreeSet::from_iter(there), BTreeSet::from([Lane::Own("first".parse().unwrap()), shared]));
    assert!(stage.run(2).await.contains(&late));
}
