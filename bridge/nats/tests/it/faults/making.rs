//! A queue that was made this moment, on a cluster whose servers learn of it one after the other.

use std::time::Duration;

use relay_bridge::contract::{QueueName, Submission};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::policy::QueuePolicy;
use relay_conformance::testing::NatsCluster;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings, StreamSettings};

use super::support::{CLUSTERS, PATIENCE};

/// So many queues, because it is a matter of milliseconds.
const QUEUES: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_takes_jobs_as_soon_as_it_is_made_whichever_server_relay_is_connected_to() {
    let _alone = CLUSTERS.lock().await;
    let cluster = NatsCluster::start(3).await;
    let mut replicas = Vec::new();
    for url in cluster.urls() {
        let streams = StreamSettings { replicas: 3.try_into().unwrap(), ..StreamSettings::default() };
        let config = NatsConfig { ignore_discovered_servers: true, ..NatsConfig::new([url]) };
        let settings = Settings { streams, ..Settings::default() };
        replicas.push(Nats::connect(config, Wait::AtMost(PATIENCE), settings).await.unwrap());
    }
    let policy = QueuePolicy::default();
    for number in 0..QUEUES {
        let queue: QueueName = format!("queue-{number}").parse().unwrap();
        replicas[number % 3].broker().policies.put_policy(&queue, &policy, None).await.unwrap();
        let submissions = replicas.iter().enumerate().map(|(replica, nats)| {
            let submission = Submission {
                client: format!("client-{replica}").parse().unwrap(),
                queue: queue.clone(),
                key: None,
                content_type: String::new(),
                content_encoding: None,
                headers: Default::default(),
                payload: "payload".into(),
                delay: Duration::ZERO,
                expires_in: None,
            };
            let job = submission.accept(&policy, relay_bridge::clock::Clock::system().now());
            let jobs = nats.broker().jobs;
            async move { jobs.enqueue(job).await }
        });
        for taken in futures_util::future::join_all(submissions).await {
            assert!(matches!(taken.unwrap(), Enqueued::Created(_)), "{queue}");
        }
    }
}
