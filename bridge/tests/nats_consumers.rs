//! What others do to the consumers of a queue, and what relay makes of it.

use std::num::NonZeroU32;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{QueueName, Submission};
use relay_bridge::leasing::LeaseRequest;
use relay_bridge::nats::config::NatsConfig;
use relay_bridge::nats::connection::Wait;
use relay_bridge::nats::{Nats, Settings, names};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::testing::NatsServer;

#[tokio::test]
async fn a_consumer_that_somebody_else_made_stops_no_queue_and_counts_nothing() {
    let server = NatsServer::start().await;
    let wait = Wait::AtMost(Duration::from_secs(30));
    let nats = Nats::connect(NatsConfig::new([server.url()]), wait, Settings::default()).await.unwrap();
    let (broker, queue): (_, QueueName) = (nats.broker(), "work".parse().unwrap());
    let policy = QueuePolicy::default();
    broker.policies.put_policy(&queue, &policy).await.unwrap();
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(names::jobs_stream(&queue)).await.unwrap();
    let inspector = pull::Config {
        durable_name: Some("inspector".to_owned()),
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    stream.create_consumer(inspector).await.unwrap();
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
    let job = submission.accept(&policy, Clock::system().now());
    broker.jobs.enqueue(job.clone()).await.unwrap();
    assert_eq!(broker.jobs.depth(&queue).await.unwrap().waiting, 1, "not once more for the inspector");
    let request = LeaseRequest {
        worker: "worker-1".parse().unwrap(),
        queues: vec![queue],
        max: NonZeroU32::MIN,
        wait: Duration::from_secs(20),
    };
    let leased = broker.leasing.lease(&request).await.unwrap();
    assert_eq!(leased.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [job.id]);
}
