//! Many who wait for the same result, on a real server.

use std::time::Duration;

use futures_util::future::join_all;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Job, JobResult, Submission};
use relay_bridge::leasing::{LeaseRequest, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::Lookup;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings};

/// Far longer than a test runs.
const WAIT: Duration = Duration::from_secs(60);
/// How many wait for one job.
const WAITS: usize = 50;

async fn open(server: &NatsServer) -> Nats {
    let nats = Nats::connect(NatsConfig::new([server.url()]), Wait::AtMost(WAIT), Settings::default()).await.unwrap();
    let policies = nats.broker().policies;
    policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    nats
}

async fn submit(broker: &Broker) -> Job {
    let submission = Submission {
        client: "acme".parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: None,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: "x".into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    let job = submission.accept(&QueuePolicy::default(), Clock::system().now());
    broker.jobs.enqueue(job.clone()).await.unwrap();
    job
}

/// Leases one job and records its success.
async fn succeed(broker: &Broker) {
    let request = LeaseRequest {
        worker: "worker-1".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: 1.try_into().unwrap(),
        wait: WAIT,
    };
    let delivery = broker.leasing.lease(&request).await.unwrap().remove(0);
    let end = End { attempt: 1, started_at: Some(delivery.leased_at), finished_at: Clock::system().now() };
    let result = JobResult::succeeded(&delivery.job, end, "text/plain", "done".into());
    assert_eq!(broker.leasing.record(&result).await.unwrap(), Recorded::First);
}

/// The subscriptions to announcements that the server has.
async fn announced(server: &NatsServer) -> Vec<String> {
    let seen = server.monitor("/connz?subs=1").await.unwrap();
    let connections = seen["connections"].as_array().unwrap().iter();
    let lists = connections.filter_map(|connection| connection["subscriptions_list"].as_array());
    let subjects = lists.flatten().filter_map(|subject| subject.as_str());
    subjects.filter(|subject| subject.starts_with("relay.reply.")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_result_is_sent_once_to_a_process_and_only_while_somebody_waits_for_it() {
    let server = NatsServer::start().await;
    let broker = open(&server).await.broker();
    let (job, other) = (submit(&broker).await, submit(&broker).await);
    assert!(announced(&server).await.is_empty(), "nobody waits");
    let mut waits = Box::pin(join_all((0..WAITS).map(|_| broker.results.wait(&job.client, job.id, WAIT))));
    assert!(futures_util::poll!(&mut waits).is_pending());
    // Answered behind what they sent.
    assert!(matches!(broker.results.lookup(&job.client, other.id).await.unwrap(), Lookup::Open(_)));
    assert_eq!(announced(&server).await, [format!("relay.reply.acme.{}", job.id)]);

    let ahead = broker.results.wait_ahead(&job.client, job.id, job.run_id, WAIT);
    let (found, heard, ()) = tokio::join!(biased; waits, ahead, succeed(&broker));
    assert!(found.into_iter().all(|found| matches!(found.unwrap(), Lookup::Finished(_))));
    assert_eq!(heard.unwrap().unwrap().result.payload, "done");
    while !announced(&server).await.is_empty() {}
}

#[tokio::test]
async fn one_that_is_not_polled_and_one_that_left_hold_up_no_other_that_waits() {
    let server = NatsServer::start().await;
    let broker = open(&server).await.broker();
    let job = submit(&broker).await;
    let mut waits: Vec<_> = (0..3).map(|_| broker.results.wait(&job.client, job.id, WAIT)).collect();
    // The first one is polled until it listens, and never again before the others have ended.
    for wait in &mut waits {
        assert!(futures_util::poll!(wait).is_pending());
    }
    let (last, left) = (waits.pop().unwrap(), waits.pop().unwrap());
    drop(left);
    let (found, ()) = tokio::join!(last, succeed(&broker));
    assert!(matches!(found.unwrap(), Lookup::Finished(_)));
    assert!(matches!(waits.pop().unwrap().await.unwrap(), Lookup::Finished(_)));
    while !announced(&server).await.is_empty() {}
}
