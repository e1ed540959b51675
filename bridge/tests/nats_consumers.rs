//! What others do to the consumers of a queue, and what relay makes of it.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::num::NonZeroU32;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, QueueName, Submission};
use relay_bridge::leasing::{Held, LeaseRequest};
use relay_bridge::nats::config::NatsConfig;
use relay_bridge::nats::connection::Wait;
use relay_bridge::nats::{Nats, Settings, names};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::testing::NatsServer;

async fn open(server: &NatsServer) -> Nats {
    let wait = Wait::AtMost(Duration::from_secs(30));
    Nats::connect(NatsConfig::new([server.url()]), wait, Settings::default()).await.unwrap()
}

fn job(queue: &QueueName) -> Job {
    let submission = Submission {
        client: "acme".parse().unwrap(),
        queue: queue.clone(),
        key: None,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: "payload".into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(&QueuePolicy::default(), Clock::system().now())
}

fn request(queue: &QueueName, max: u32) -> LeaseRequest {
    LeaseRequest {
        worker: "worker-1".parse().unwrap(),
        queues: vec![queue.clone()],
        max: NonZeroU32::new(max).unwrap(),
        wait: Duration::from_secs(20),
    }
}

#[tokio::test]
async fn jobs_whose_consumer_was_lost_while_nobody_was_there_are_counted_and_given_out() {
    let server = NatsServer::start().await;
    let (before, queue): (_, QueueName) = (open(&server).await, "work".parse().unwrap());
    before.broker().policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let mut submitted = Vec::new();
    for _ in 0..3 {
        let job = job(&queue);
        before.broker().jobs.enqueue(job.clone()).await.unwrap();
        submitted.push(job.id);
    }
    before.close().await;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(names::jobs_stream(&queue)).await.unwrap();
    stream.delete_consumer("acme").await.unwrap();

    let broker = open(&server).await.broker();
    broker.jobs.sweep(100).await.unwrap();
    assert_eq!(broker.jobs.depth(&queue).await.unwrap().waiting, 3);
    let mut leased = Vec::new();
    while leased.len() < 3 {
        let more = broker.leasing.lease(&request(&queue, 3)).await.unwrap();
        assert!(!more.is_empty(), "{} of three came", leased.len());
        leased.extend(more.into_iter().map(|delivery| delivery.job.id));
    }
    leased.sort();
    submitted.sort();
    assert_eq!(leased, submitted);
}

#[tokio::test]
async fn a_consumer_that_somebody_else_made_stops_no_queue_and_counts_nothing() {
    let server = NatsServer::start().await;
    let (broker, queue): (_, QueueName) = (open(&server).await.broker(), "work".parse().unwrap());
    broker.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(names::jobs_stream(&queue)).await.unwrap();
    let inspector = pull::Config {
        durable_name: Some("inspector".to_owned()),
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    stream.create_consumer(inspector).await.unwrap();
    let job = job(&queue);
    broker.jobs.enqueue(job.clone()).await.unwrap();
    // A consumer counts a job a moment after the stream confirmed it.
    for consumer in ["inspector", "acme"] {
        while stream.consumer_info(consumer).await.unwrap().num_pending == 0 {}
    }
    assert_eq!(broker.jobs.depth(&queue).await.unwrap().waiting, 1, "not once more for the inspector");
    let leased = broker.leasing.lease(&request(&queue, 1)).await.unwrap();
    assert_eq!(leased.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [job.id]);
}

#[tokio::test]
async fn a_lease_that_is_made_shorter_is_shorter_for_the_next_holder_and_not_for_who_holds_a_job() {
    let server = NatsServer::start().await;
    let (first, second) = (open(&server).await.broker(), open(&server).await.broker());
    let queue: QueueName = "work".parse().unwrap();
    let with_lease = |secs| QueuePolicy { lease: Duration::from_secs(secs), ..QueuePolicy::default() };
    first.policies.put_policy(&queue, &with_lease(60), None).await.unwrap();
    first.jobs.enqueue(job(&queue)).await.unwrap();
    let held = first.leasing.lease(&request(&queue, 1)).await.unwrap().remove(0);
    assert_eq!(held.lease, Duration::from_secs(60));
    first.policies.put_policy(&queue, &with_lease(1), Some(&with_lease(60))).await.unwrap();
    // Long enough for a round, and for the shorter lease to pass without a heartbeat.
    let meanwhile = LeaseRequest { wait: Duration::from_millis(7_500), ..request(&queue, 1) };
    let taken = second.leasing.lease(&meanwhile).await.unwrap();
    assert!(taken.is_empty(), "two hold the job");
    assert!(matches!(first.leasing.extend(&held.receipt).await.unwrap(), Held::Until(_)));
    second.jobs.enqueue(job(&queue)).await.unwrap();
    let next = second.leasing.lease(&request(&queue, 1)).await.unwrap().remove(0);
    assert_eq!(next.lease, Duration::from_secs(1));
}
