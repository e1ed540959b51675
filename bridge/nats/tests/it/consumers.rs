//! Changes that others make to the consumers of a queue, and how relay deals with them.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Job, JobId, JobResult, QueueName, Submission};
use relay_bridge::leasing::{Held, LeaseRequest};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{Log, NatsServer};
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings, names};
use tokio::task::JoinSet;
use tracing::Level;

async fn open(server: &NatsServer) -> Nats {
    let wait = Wait::AtMost(Duration::from_secs(30));
    Nats::connect(NatsConfig::new([server.url()]), wait, Settings::default()).await.unwrap()
}

fn submission(queue: &QueueName) -> Submission {
    Submission {
        client: "acme".parse().unwrap(),
        queue: queue.clone(),
        key: None,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: "payload".into(),
        delay: Duration::ZERO,
        expires_in: None,
    }
}

fn job(queue: &QueueName) -> Job {
    submission(queue).accept(&QueuePolicy::default(), Clock::system().now())
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
    assert!(next.lease <= Duration::from_secs(1), "{:?}", next.lease);
}

/// The consumer with the client's jobs, as somebody else sees it.
async fn consumer(server: &NatsServer, queue: &QueueName) -> (jetstream::Context, pull::Config) {
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(names::jobs_stream(queue)).await.unwrap();
    let config = stream.consumer_info("acme").await.unwrap().config;
    let config = pull::Config {
        durable_name: config.durable_name,
        filter_subject: config.filter_subject,
        ack_policy: config.ack_policy,
        ack_wait: config.ack_wait,
        max_deliver: config.max_deliver,
        max_ack_pending: config.max_ack_pending,
        ..pull::Config::default()
    };
    (jetstream, config)
}

/// A worker of its own process: notes the jobs that it was given, and records a result of each.
async fn work(broker: Broker, queue: QueueName, ran: Arc<Mutex<Vec<JobId>>>) {
    loop {
        for delivery in broker.leasing.lease(&request(&queue, 16)).await.unwrap() {
            ran.lock().unwrap().push(delivery.job.id);
            let end = End { attempt: delivery.attempt, started_at: None, finished_at: Clock::system().now() };
            let result = JobResult::succeeded(&delivery.job, end, "text/plain", "done".into());
            broker.leasing.record(&result).await.unwrap();
            broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_not_given_out_again_by_four_processes_when_somebody_resets_or_makes_anew_their_consumer() {
    const JOBS: usize = 750;
    const MORE: usize = 50;
    let server = NatsServer::start().await;
    let queue: QueueName = "work".parse().unwrap();
    let submitter = open(&server).await.broker();
    submitter.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let (ran, mut workers) = (Arc::new(Mutex::new(Vec::new())), JoinSet::new());
    for _ in 0..4 {
        workers.spawn(work(open(&server).await.broker(), queue.clone(), Arc::clone(&ran)));
    }
    let mut submitted = BTreeSet::new();
    for (round, jobs) in [JOBS, MORE, MORE].into_iter().enumerate() {
        for number in 0..jobs {
            let job = Submission { key: Some(format!("{round}-{number}").parse().unwrap()), ..submission(&queue) }
                .accept(&QueuePolicy::default(), Clock::system().now());
            submitter.jobs.enqueue(job.clone()).await.unwrap();
            submitted.insert(job.id);
        }
        // Until nothing is left and nobody holds anything.
        let settled = async {
            while submitter.jobs.depth(&queue).await.unwrap().leased > 0
                || submitter.jobs.depth(&queue).await.unwrap().waiting > 0
                || !submitted.iter().all(|job| ran.lock().unwrap().contains(job))
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), settled).await.expect("all of them end");
        let (jetstream, config) = consumer(&server, &queue).await;
        if round == 0 {
            let reset = format!("CONSUMER.RESET.{}.acme", names::jobs_stream(&queue));
            let answer: serde_json::Value = jetstream.request(reset, &serde_json::json!({ "seq": 1 })).await.unwrap();
            assert_eq!(answer["reset_seq"], 1, "{answer}");
        } else if round == 1 {
            let stream = jetstream.get_stream(names::jobs_stream(&queue)).await.unwrap();
            stream.delete_consumer("acme").await.unwrap();
            // The server may still be removing the folder of the one before, and refuses until then (10012).
            let made = async {
                while stream.create_consumer(config.clone()).await.is_err() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), made).await.expect("the consumer is made anew");
        }
    }
    let again = ran.lock().unwrap().len() - submitted.len();
    assert_eq!(again, 0, "so many of {} ran again", submitted.len());
}

#[tokio::test]
async fn a_message_that_is_no_job_leaves_the_line_and_takes_no_place_of_its_clients_jobs() {
    const STRAYS: usize = 3;
    let (log, _listening) = Log::listen();
    let server = NatsServer::start().await;
    let (broker, queue): (_, QueueName) = (open(&server).await.broker(), "work".parse().unwrap());
    let mut policy = QueuePolicy { lease: Duration::from_secs(300), ..QueuePolicy::default() };
    policy.client_defaults.max_running = 1;
    broker.policies.put_policy(&queue, &policy, None).await.unwrap();
    // The lane's consumer is made with its first job.
    let first = job(&queue);
    broker.jobs.enqueue(first.clone()).await.unwrap();
    let held = broker.leasing.lease(&request(&queue, 1)).await.unwrap().remove(0);
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    for number in 0..STRAYS {
        let stray = format!("relay.jobs.{queue}.acme.no-job-{number}");
        jetstream.publish(stray, "{}".into()).await.unwrap().await.unwrap();
    }
    let next = job(&queue);
    broker.jobs.enqueue(next.clone()).await.unwrap();
    let end = End { attempt: 1, started_at: None, finished_at: Clock::system().now() };
    let result = JobResult::succeeded(&held.job, end, "text/plain", "done".into());
    broker.leasing.record(&result).await.unwrap();
    broker.leasing.settle(&held.receipt, &Settlement::Complete).await.unwrap();
    let leased = broker.leasing.lease(&request(&queue, 1)).await.unwrap();
    assert_eq!(leased.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [next.id]);
    let stream = jetstream.get_stream(names::jobs_stream(&queue)).await.unwrap();
    assert_eq!(stream.consumer_info("acme").await.unwrap().num_ack_pending, 1, "the job, and nothing else");
    // Also after another lease call.
    let now = LeaseRequest { wait: Duration::ZERO, ..request(&queue, 1) };
    assert!(broker.leasing.lease(&now).await.unwrap().is_empty());
    assert_eq!(log.count(Level::WARN, "no job's record"), STRAYS, "one line each: {log:?}");
    assert_eq!(log.count(Level::WARN, ""), STRAYS, "and no other: {log:?}");
}

#[tokio::test]
async fn a_consumer_that_somebody_changed_loses_no_job_and_is_changed_back() {
    let server = NatsServer::start().await;
    let (first, queue): (_, QueueName) = (open(&server).await.broker(), "work".parse().unwrap());
    let policy = QueuePolicy { lease: Duration::from_secs(1), ..QueuePolicy::default() };
    first.policies.put_policy(&queue, &policy, None).await.unwrap();
    let submitted = job(&queue);
    first.jobs.enqueue(submitted.clone()).await.unwrap();
    let (jetstream, config) = consumer(&server, &queue).await;
    let stream = jetstream.get_stream(names::jobs_stream(&queue)).await.unwrap();
    let changed = pull::Config { headers_only: true, max_deliver: 1, max_batch: 1, ..config };
    stream.create_consumer(changed).await.unwrap();
    let held = first.leasing.lease(&request(&queue, 1)).await.unwrap().remove(0);
    assert_eq!((held.job.payload, held.attempt), (submitted.payload.clone(), 1));
    // Its worker is gone: it comes again when the lease is over.
    let second = open(&server).await.broker();
    let again = second.leasing.lease(&request(&queue, 1)).await.unwrap().remove(0);
    assert_eq!((again.job.payload, again.attempt), (submitted.payload, 2));
    let now = stream.consumer_info("acme").await.unwrap().config;
    assert_eq!((now.headers_only, now.max_deliver, now.max_batch), (false, -1, 0));
}

#[tokio::test]
async fn a_consumer_that_somebody_turned_to_other_jobs_is_turned_back() {
    let server = NatsServer::start().await;
    let (first, queue): (_, QueueName) = (open(&server).await.broker(), "work".parse().unwrap());
    first.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let submitted = job(&queue);
    first.jobs.enqueue(submitted.clone()).await.unwrap();
    let (jetstream, config) = consumer(&server, &queue).await;
    let stream = jetstream.get_stream(names::jobs_stream(&queue)).await.unwrap();
    let turned = pull::Config { filter_subject: format!("relay.jobs.{queue}.nobody.>"), ..config };
    stream.create_consumer(turned).await.unwrap();
    // As the sweep of any server does, here of one that starts.
    let second = open(&server).await.broker();
    second.jobs.sweep(100).await.unwrap();
    let leased = second.leasing.lease(&request(&queue, 1)).await.unwrap();
    assert_eq!(leased.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [submitted.id]);
}

#[tokio::test]
async fn a_client_whose_consumers_name_is_taken_shares_a_lane_and_the_log_says_what_to_remove() {
    let (log, _listening) = Log::listen();
    let server = NatsServer::start().await;
    let (broker, queue): (_, QueueName) = (open(&server).await.broker(), "work".parse().unwrap());
    broker.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(names::jobs_stream(&queue)).await.unwrap();
    let taken =
        pull::Config { durable_name: Some("acme".to_owned()), ack_policy: AckPolicy::None, ..pull::Config::default() };
    stream.create_consumer(taken).await.unwrap();
    let submitted = job(&queue);
    broker.jobs.enqueue(submitted.clone()).await.unwrap();
    let lease = LeaseRequest { wait: Duration::from_secs(5), ..request(&queue, 1) };
    let held = broker.leasing.lease(&lease).await.unwrap();
    assert_eq!(held.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [submitted.id]);
    assert_eq!(log.count(Level::ERROR, "nats consumer rm relay-jobs-work acme"), 1);
}

#[tokio::test]
async fn the_log_says_that_a_consumer_is_paused_and_how_to_end_that() {
    let (log, _listening) = Log::listen();
    let server = NatsServer::start().await;
    let (broker, queue): (_, QueueName) = (open(&server).await.broker(), "work".parse().unwrap());
    broker.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    broker.jobs.enqueue(job(&queue)).await.unwrap();
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let pause = format!("CONSUMER.PAUSE.{}.acme", names::jobs_stream(&queue));
    let until = serde_json::json!({ "pause_until": "2100-01-01T00:00:00Z" });
    let answer: serde_json::Value = jetstream.request(pause, &until).await.unwrap();
    assert_eq!(answer["paused"], true, "{answer}");
    let lease = LeaseRequest { wait: Duration::from_secs(2), ..request(&queue, 1) };
    drop(broker.leasing.lease(&lease).await.unwrap());
    assert_eq!(log.count(Level::WARN, "nats consumer resume relay-jobs-work acme"), 1);
}
