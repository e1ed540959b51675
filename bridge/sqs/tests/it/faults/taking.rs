//! Lease calls that do not wait, or ask several queues: how they end.

use std::time::Duration;

use relay_conformance::testing::{AwsFault, AwsProxy};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::support::{PATIENCE, Stage};

/// Far longer than a process takes to end that waits for nothing, and shorter than the 10 s that calls on their way have.
pub(crate) const ENDS_WITHIN: Duration = Duration::from_secs(9);

#[tokio::test]
async fn a_lease_that_does_not_wait_ends_where_its_queue_is_paused_while_it_receives() {
    let stage = Stage::open().await;
    for _ in 0..10 {
        stage.submit().await;
    }
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    proxy.fault("ReceiveMessage", AwsFault::Hold);
    let pause = async {
        proxy.held().await;
        worker.policies.set_paused(&stage.queue, true).await.unwrap();
        proxy.let_go();
    };
    let request = stage.request(10, Duration::ZERO);
    let (held, ()) = tokio::join!(timeout(PATIENCE / 6, worker.leasing.lease(&request)), pause);
    assert!(held.expect("it receives again and again").unwrap().is_empty());
    assert_eq!(proxy.calls("ReceiveMessage"), 1);
}

#[tokio::test]
async fn a_lease_whose_caller_went_away_takes_no_more_and_hands_back_what_it_has() {
    let stage = Stage::open().await;
    for _ in 0..30 {
        stage.submit().await;
    }
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process_with(proxy.url(), |_| {}).await;
    let (leasing, request) = (worker.broker().leasing, stage.request(30, Duration::ZERO));
    // The first receive brings ten jobs, and the call goes away during the second.
    proxy.fault("ReceiveMessage", AwsFault::Hold);
    proxy.fault("ReceiveMessage", AwsFault::Hold);
    let mut asking = JoinSet::new();
    asking.spawn(async move { leasing.lease(&request).await });
    proxy.held().await;
    proxy.let_go();
    proxy.held().await;
    asking.shutdown().await;
    proxy.let_go();
    worker.close().await;
    assert_eq!(proxy.calls("ReceiveMessage"), 2);
    let held = stage.broker.leasing.lease(&stage.request(30, Duration::ZERO)).await.unwrap();
    assert_eq!(held.iter().map(|delivery| delivery.attempt).collect::<Vec<_>>(), [1; 30], "no attempt was spent");
}

#[tokio::test]
async fn a_lease_that_does_not_wait_holds_up_the_end_of_its_process_no_longer_than_it_is_given() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let ending = stage.process_with(proxy.url(), |_| {}).await;
    proxy.fault("ReceiveMessage", AwsFault::Hold);
    let (leasing, request) = (ending.broker().leasing, stage.request(1, Duration::ZERO));
    let mut asking = JoinSet::new();
    asking.spawn(async move { leasing.lease(&request).await });
    proxy.held().await;
    asking.shutdown().await;
    timeout(ENDS_WITHIN, ending.close_by(tokio::time::Instant::now())).await.expect("it waits for the receive");
}
