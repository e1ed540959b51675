//! Streams that somebody deleted while relay uses them: what was in them is lost, and nothing else is said to be.

use async_nats::jetstream;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, Outcome};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::Recorded;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::provision::Wanted;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::names::{DEAD_STREAM, RESULTS_STREAM};

use super::support::{PATIENCE, Stage};

/// What is asked may be answered later, and the words say what an operator is to do.
fn assert_later(refused: &BrokerError, stream: &str) {
    assert_eq!(refused.kind(), BrokerErrorKind::Unavailable, "{refused}");
    assert!(refused.detail().contains(stream) && refused.detail().contains("relay provision"), "{refused}");
}

async fn delete(server: &NatsServer, stream: &str) {
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    jetstream.delete_stream(stream).await.unwrap();
}

async fn provision(stage: &Stage) {
    let wanted = Wanted { queue: stage.queue.clone(), policy: stage.policy.clone(), seen: Some(stage.policy.clone()) };
    stage.broker.provision.apply(&[wanted], false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_stream_of_results_no_job_is_said_not_to_be_there_and_each_is_recorded_once_it_is_back() {
    let server = NatsServer::start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    stage.submit("acme", "key").await;
    let held = stage.lease(1, PATIENCE).await.remove(0);
    let (client, id) = (&held.job.client, held.job.id);
    delete(&server, RESULTS_STREAM).await;
    assert_later(&stage.broker.jobs.status(client, id).await.unwrap_err(), RESULTS_STREAM);
    assert_later(&stage.broker.results.lookup(client, id).await.unwrap_err(), RESULTS_STREAM);
    assert_later(&stage.broker.jobs.cancel(client, id).await.unwrap_err(), RESULTS_STREAM);
    let settled = stage.broker.leasing.settle(&held.receipt, &Settlement::Complete).await;
    assert_later(&settled.unwrap_err(), RESULTS_STREAM);
    provision(&stage).await;
    assert_eq!(stage.succeed(&held, "done").await, Recorded::First);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_stream_of_dead_letters_a_run_waits_for_its_letter() {
    let server = NatsServer::start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    stage.submit("acme", "key").await;
    let held = stage.lease(1, PATIENCE).await.remove(0);
    delete(&server, DEAD_STREAM).await;
    let failure = Failure::new("exit-code", "1");
    let end = End { attempt: 1, started_at: None, finished_at: stage.clock.now() };
    let failed = JobResult::unsuccessful(&held.job, Outcome::Failed, end, failure.clone());
    assert_later(&stage.broker.leasing.record(&failed).await.unwrap_err(), DEAD_STREAM);
    assert_later(&stage.broker.dead_letters.get(held.job.id).await.unwrap_err(), DEAD_STREAM);
    provision(&stage).await;
    let (job, at) = (held.job.clone(), stage.clock.now());
    let letter = DeadLetter { job, outcome: Outcome::Failed, attempt: 1, failure, at, extra: Default::default() };
    stage.broker.leasing.dead_letter(&letter).await.unwrap();
    assert_eq!(stage.broker.leasing.record(&failed).await.unwrap(), Recorded::First);
    assert!(stage.broker.dead_letters.get(held.job.id).await.unwrap().is_some());
}
