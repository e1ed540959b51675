//! An account with little room: relay fills it as far as what it took can still end, and what others filled waits.

use async_nats::jetstream::{self, Context};
use futures_util::future::join_all;
use relay_bridge::contract::{JobState, JobStatus, Outcome};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::Recorded;
use relay_bridge::policy::QueuePolicy;
use relay_conformance::testing::{NatsCluster, NatsServer, NatsServerBuilder};
use relay_nats::config::{Credentials, NatsConfig, Secret};

use super::support::{CLUSTERS, PATIENCE, Stage};

/// Together they are as much as the account may have: 40 MiB.
const BURST: usize = 209;
const PAYLOAD_BYTES: usize = 200_000;

/// A server whose only account may keep `max_file` on disk.
fn server(max_file: &str) -> NatsServerBuilder {
    let user = "{ user: relay, password: x }";
    let limits = format!("{{ max_mem: 64MB, max_file: {max_file}, max_streams: 100, max_consumers: 1000 }}");
    NatsServer::builder().config(&format!("accounts {{ A: {{ users: [{user}], jetstream: {limits} }} }}"))
}

async fn open(url: &str, replicas: u8) -> Stage {
    let credentials = Credentials::User { name: "relay".to_owned(), password: Secret::Value("x".to_owned()) };
    let config = NatsConfig { credentials, ..NatsConfig::new(url.split(',')) };
    Stage::open_as(config, replicas, QueuePolicy::default()).await
}

/// Four processes on one queue.
async fn four(url: &str, replicas: u8) -> Vec<Stage> {
    let mut stages = Vec::new();
    for _ in 0..4 {
        stages.push(open(url, replicas).await);
    }
    stages
}

/// Somebody else who uses the account.
async fn other(server: &NatsServer) -> Context {
    let options = async_nats::ConnectOptions::with_user_and_password("relay".to_owned(), "x".to_owned());
    jetstream::new(options.connect(server.url()).await.unwrap())
}

/// Submits a burst over `stages` at once. The jobs that were taken.
async fn burst(stages: &[Stage]) -> Vec<JobStatus> {
    let submissions = (0..BURST).map(|number| {
        let stage = &stages[number % stages.len()];
        let mut job = stage.job("acme", &format!("key-{number}"));
        job.payload = vec![b'x'; PAYLOAD_BYTES].into();
        stage.broker.jobs.enqueue(job)
    });
    let mut taken = Vec::new();
    for answer in join_all(submissions).await {
        match answer {
            Ok(Enqueued::Created(status)) => taken.push(status),
            Err(refused) => assert!(is_of_storage(&refused), "{refused}"),
            known => panic!("{known:?}"),
        }
    }
    assert!(taken.len() > BURST / 2, "{} were taken", taken.len());
    assert!(taken.len() < BURST, "all were taken");
    taken
}

fn is_of_storage(refused: &BrokerError) -> bool {
    matches!(refused.kind(), BrokerErrorKind::Overloaded { .. }) && refused.is_of_storage() && refused.had_no_effect()
}

/// Ends every one of the jobs, each by a call that is made once: the first is erased, the second cancelled, the others run.
async fn end(stage: &Stage, taken: &[JobStatus]) {
    let (jobs, leasing) = (&stage.broker.jobs, &stage.broker.leasing);
    let mut cancelled = jobs.cancel(&taken[1].client, taken[1].job_id).await.unwrap();
    assert_eq!(cancelled.state, JobState::Finished(Outcome::Cancelled));
    let mut ran = 0;
    while ran < taken.len() - 1 {
        let deliveries = stage.lease(16, PATIENCE).await;
        assert!(!deliveries.is_empty(), "{ran} of {} ran, and then nothing came", taken.len());
        for delivery in deliveries {
            let recorded = leasing.record(&stage.success(&delivery, "done")).await.unwrap();
            assert_eq!(recorded, Recorded::First);
            stage.settle(&delivery).await;
            ran += 1;
        }
    }
    for status in [&taken[0], &taken[1]] {
        jobs.erase(&status.client, status.job_id).await.unwrap();
        cancelled = jobs.status(&status.client, status.job_id).await.unwrap().unwrap();
        assert_eq!(cancelled.size, 0, "its payload is stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_into_a_small_account_leaves_room_to_end_what_was_taken() {
    let server = server("40MB").start().await;
    let stage = open(&server.url(), 1).await;
    let taken = burst(std::slice::from_ref(&stage)).await;
    end(&stage, &taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_into_a_small_account_through_four_replicas_leaves_room_to_end_what_was_taken() {
    let server = server("40MB").start().await;
    let stages = four(&server.url(), 1).await;
    let taken = burst(&stages).await;
    end(&stages[3], &taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_room_a_submission_asks_the_server_for_nothing_else() {
    const JOBS: usize = 2_000;
    let server = server("4GB").start().await;
    let stage = open(&server.url(), 1).await;
    stage.submit("acme", "first").await;
    let asked = async || server.monitor("/jsz").await.unwrap()["api"]["total"].as_u64().unwrap();
    let before = asked().await;
    stage.submit_many("acme", "job", JOBS).await;
    // Waiting jobs are counted anew every second, and storage every other.
    let asked = asked().await - before;
    assert!(asked < JOBS as u64 / 10, "the server was asked {asked} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_filled_refuses_results_and_erasures_until_there_is_room_and_loses_nothing() {
    let server = server("40MB").start().await;
    let (stage, other) = (open(&server.url(), 1).await, other(&server).await);
    let finished = stage.submit("acme", "finished").await.status().clone();
    stage.run(1).await;
    let held = stage.submit("acme", "held").await.status().clone();
    let delivery = stage.lease(1, PATIENCE).await.remove(0);
    let foreign = jetstream::stream::Config { name: "other".to_owned(), ..Default::default() };
    let stream = other.create_stream(foreign).await.unwrap();
    for bytes in [1_000_000, 10_000, 100, 1] {
        while other.publish("other", vec![b'x'; bytes].into()).await.unwrap().await.is_ok() {}
    }

    let result = stage.success(&delivery, "done");
    let refused = stage.broker.leasing.record(&result).await.unwrap_err();
    assert!(is_of_storage(&refused), "{refused}");
    let refused = stage.broker.jobs.erase(&finished.client, finished.job_id).await.unwrap_err();
    assert!(is_of_storage(&refused), "{refused}");
    let refused = stage.broker.jobs.enqueue(stage.job("acme", "another")).await.unwrap_err();
    assert!(is_of_storage(&refused), "{refused}");

    stream.purge().await.unwrap();
    assert_eq!(stage.broker.leasing.record(&result).await.unwrap(), Recorded::First);
    stage.settle(&delivery).await;
    for job in [finished, held] {
        stage.broker.jobs.erase(&job.client, job.job_id).await.unwrap();
        let status = stage.broker.jobs.status(&job.client, job.job_id).await.unwrap().unwrap();
        assert_eq!((status.state, status.size), (JobState::Finished(Outcome::Succeeded), 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_into_a_small_account_of_a_cluster_leaves_room_to_end_what_was_taken() {
    let _alone = CLUSTERS.lock().await;
    let cluster = NatsCluster::start_with(3, server("120MB")).await;
    let stages = four(&cluster.url(), 3).await;
    let taken = burst(&stages).await;
    end(&stages[3], &taken).await;
}
