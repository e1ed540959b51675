//! Batches that fail in part, receives that hang, and receives whose answer is lost.

use std::time::Duration;

use relay_bridge::contract::QueueName;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{LeaseRequest, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};
use relay_sqs::Sqs;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::support::{PATIENCE, Stage};
use super::taking::ENDS_WITHIN;

const JOBS: u32 = 16;

#[tokio::test]
async fn of_a_batch_that_sqs_sent_in_part_the_rest_is_sent_again_alone() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    proxy.fault("SendMessageBatch", AwsFault::FailFirst);
    let mut submitting = JoinSet::new();
    for _ in 0..JOBS {
        let (jobs, job) = (broker.jobs.clone(), stage.job(None));
        submitting.spawn(async move { jobs.enqueue(job).await.unwrap() });
    }
    submitting.join_all().await;
    assert_eq!(proxy.entries("SendMessageBatch"), JOBS as usize + 1, "one entry went twice");
    for _ in 0..JOBS {
        stage.lease(&stage.broker).await;
    }
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn of_a_batch_that_sqs_deleted_in_part_the_rest_is_deleted_again_alone() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let mut held = Vec::new();
    for _ in 0..JOBS {
        stage.submit().await;
        held.push(stage.lease(&broker).await);
    }
    proxy.fault("DeleteMessageBatch", AwsFault::FailFirst);
    let mut settling = JoinSet::new();
    for delivery in held {
        let (leasing, result) = (broker.leasing.clone(), stage.success(&delivery));
        settling.spawn(async move {
            assert_eq!(leasing.record(&result).await.unwrap(), Recorded::First);
            leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
        });
    }
    settling.join_all().await;
    assert_eq!(proxy.entries("DeleteMessageBatch"), JOBS as usize + 1, "one entry went twice");
    assert_eq!(stage.messages().await, 0);
}

#[tokio::test]
async fn a_receive_on_fifo_whose_answer_is_lost_gets_the_same_messages_and_each_runs_once() {
    let stage = Stage::on_fifo().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    proxy.fault("ReceiveMessage", AwsFault::LoseAndReplay);
    let delivery = stage.lease(&broker).await;
    assert_eq!((delivery.job.id, delivery.attempt), (job.id, 1));
    let attempts: Vec<_> =
        proxy.bodies("ReceiveMessage").iter().map(|body| body["ReceiveRequestAttemptId"].clone()).collect();
    assert!(attempts.len() >= 2 && attempts[0] == attempts[1] && attempts[0].is_string(), "{attempts:?}");
    assert_eq!(broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    assert_eq!(stage.messages().await, 0);
}

#[tokio::test]
async fn a_receive_that_hangs_ends_by_its_timeout_and_other_queues_go_on() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let other: QueueName = "other".parse().unwrap();
    broker.policies.put_policy(&other, &stage.policy, None).await.unwrap();
    proxy.fault("ReceiveMessage", AwsFault::Hold);
    let (leasing, request) = (broker.leasing.clone(), stage.request(1, PATIENCE));
    let mut hanging = JoinSet::new();
    hanging.spawn(async move { leasing.lease(&request).await.unwrap() });
    proxy.held().await;
    let job = stage.submit().await;
    let elsewhere = relay_bridge::contract::Job { queue: other.clone(), ..stage.job(None) };
    broker.jobs.enqueue(elsewhere).await.unwrap();
    let of_other = LeaseRequest { queues: vec![other], ..stage.request(1, Duration::from_secs(20)) };
    assert_eq!(broker.leasing.lease(&of_other).await.unwrap().len(), 1, "while the first one hangs");
    assert!(hanging.try_join_next().is_none());
    let held = hanging.join_next().await.unwrap().unwrap();
    assert_eq!(held[0].job.id, job.id, "after the dead call was given up");
}

/// A process as at SIGTERM: its last receive is held at the proxy, and nobody asks any more.
async fn receiving_for_nobody(stage: &Stage) -> (AwsProxy, Sqs) {
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let ending = stage.process_with(proxy.url(), |_| {}).await;
    proxy.fault("ReceiveMessage", AwsFault::Hold);
    let (leasing, request) = (ending.broker().leasing, stage.request(1, PATIENCE));
    let mut asking = JoinSet::new();
    asking.spawn(async move { leasing.lease(&request).await });
    proxy.held().await;
    asking.shutdown().await;
    (proxy, ending)
}

#[tokio::test]
async fn what_the_last_receive_of_a_process_that_ends_brings_is_at_once_anothers() {
    let stage = Stage::open().await;
    // Far longer than the test waits: a message that is not handed back does not come.
    let policy = QueuePolicy { lease: PATIENCE * 10, ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    let (proxy, ending) = receiving_for_nobody(&stage).await;
    let job = stage.submit().await;
    tokio::join!(ending.close(), async { proxy.let_go() });
    let delivery = stage.lease(&stage.broker).await;
    assert_eq!((delivery.job.id, delivery.attempt), (job.id, 1));
}

#[tokio::test]
async fn a_receive_that_does_not_end_holds_up_the_end_of_its_process_no_longer_than_it_is_given() {
    let stage = Stage::open().await;
    let (_proxy, ending) = receiving_for_nobody(&stage).await;
    let closed = timeout(ENDS_WITHIN, ending.close_by(tokio::time::Instant::now())).await;
    closed.expect("it waits for the receive");
}

#[tokio::test]
async fn a_message_that_is_none_of_relays_fails_no_receive_and_is_hidden_for_less_than_sqs_allows() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    stage.send_strange("none of relay's").await;
    let job = stage.submit().await;
    proxy.fault_all("ChangeMessageVisibilityBatch", AwsFault::Refuse("InvalidParameterValue"));
    let held = worker.leasing.lease(&stage.request(10, PATIENCE)).await.unwrap();
    assert_eq!(held.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [job.id]);
    while proxy.calls("ChangeMessageVisibilityBatch") == 0 {
        tokio::task::yield_now().await;
    }
    for body in proxy.bodies("ChangeMessageVisibilityBatch") {
        let seconds = body["Entries"][0]["VisibilityTimeout"].as_u64().unwrap();
        assert!((36_000..43_200).contains(&seconds), "{seconds} s");
    }
}

#[tokio::test]
async fn a_submission_is_answered_while_sqs_hangs_and_its_message_goes_on() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    // The first call of a process opens connections, which may take longer than an answer waits.
    broker.jobs.enqueue(stage.job(None)).await.unwrap();
    stage.lease(&stage.broker).await;
    proxy.fault_all("SendMessageBatch", AwsFault::Hold);
    let before = proxy.calls("SendMessageBatch");
    let job = stage.job(None);
    assert!(matches!(broker.jobs.enqueue(job.clone()).await.unwrap(), Enqueued::Created(_)));
    let tried = proxy.calls("SendMessageBatch") - before;
    assert!(tried <= 1, "it was answered within the first try, and not after {tried}");
    proxy.held().await;
    // Neither did anybody sweep.
    proxy.mend("SendMessageBatch");
    assert_eq!(stage.lease(&stage.broker).await.job.id, job.id);
}
