//! The end of a process: messages at hand go back, and calls that hang do not hold it up.

use std::time::Duration;

use relay_bridge::leasing::Recorded;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::support::{Stage, distinct};

#[tokio::test]
async fn messages_at_hand_of_a_process_that_ends_are_at_once_anothers() {
    let (stage, running) = Stage::at_a_full_client(1).await;
    // Its call has ended, or is still waiting.
    for wait in [Duration::ZERO, Duration::from_secs(60)] {
        let proxy = AwsProxy::start(&stage.emulator.url()).await;
        let ending = stage.process_with(proxy.url(), |_| {}).await;
        let (leasing, request) = (ending.broker().leasing, stage.request(1, wait));
        let mut asking = JoinSet::new();
        asking.spawn(async move { leasing.lease(&request).await });
        // The second receive begins behind what the first one brought.
        let enough = if wait.is_zero() { 1 } else { 2 };
        while proxy.calls("ReceiveMessage") < enough || wait.is_zero() && !asking.is_empty() {
            asking.try_join_next();
            tokio::task::yield_now().await;
        }
        ending.close().await;
        asking.shutdown().await;
    }
    assert_eq!(stage.broker.leasing.record(&stage.success(&running)).await.unwrap(), Recorded::First);
    stage.broker.leasing.settle(&running.receipt, &Settlement::Complete).await.unwrap();
    assert_eq!(stage.lease(&stage.broker).await.attempt, 1);
}

#[tokio::test]
async fn calls_that_pile_up_while_sqs_hangs_do_not_hold_up_the_end_of_a_process() {
    // Twenty go at a time, each for as long as a call may take.
    const JOBS: usize = 60;
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let ending = stage.process_with(proxy.url(), |_| {}).await;
    proxy.fault_all("SendMessageBatch", AwsFault::Hold);
    let mut submitting = JoinSet::new();
    for _ in 0..JOBS {
        let (jobs, job) = (ending.broker().jobs, stage.job(None));
        submitting.spawn(async move { jobs.enqueue(job).await.unwrap() });
    }
    submitting.join_all().await;
    ending.close_by(Instant::now()).await;
    let bodies = proxy.bodies("SendMessageBatch");
    let entries = bodies.iter().flat_map(|body| body["Entries"].as_array().unwrap());
    let tried = distinct(entries.map(|entry| entry["MessageBody"].clone()));
    assert!(tried < JOBS, "it ended after all {JOBS} messages had been tried");
}
