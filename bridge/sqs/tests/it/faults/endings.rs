//! Processes that end one run at a time, or one that another has given out anew since.

use std::time::Duration;

use relay_bridge::contract::{JobResult, Outcome, Timestamp};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::Recorded;
use relay_bridge::result_log::Lookup;
use relay_bridge::rules::counts::Counted;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};

use super::support::Stage;

/// The result that the only job has.
async fn result_of(stage: &Stage, sent: &JobResult) -> JobResult {
    match stage.broker.results.lookup(&sent.client, sent.job_id).await.unwrap() {
        Lookup::Finished(found) => found.result,
        other => panic!("the run has ended: {other:?}"),
    }
}

#[tokio::test]
async fn a_result_that_was_recorded_stays_as_it_was_whatever_comes_with_the_same_claim() {
    let stage = Stage::open().await;
    for size in [1, 8 * 1_024] {
        stage.submit().await;
        let delivery = stage.lease(&stage.broker).await;
        let sent = |detail| JobResult { payload: vec![7; size].into(), ..stage.failure(&delivery, detail) };
        assert_eq!(stage.broker.leasing.record(&sent("the first")).await.unwrap(), Recorded::First);
        let kept = result_of(&stage, &sent("")).await;
        assert_eq!(
            stage.broker.leasing.record(&sent("another")).await.unwrap(),
            Recorded::First,
            "as far as it counts"
        );
        assert!(result_of(&stage, &sent("")).await == kept, "{size} bytes");
        assert_eq!(kept.failure.map(|failure| failure.detail), Some("the first".to_owned()));
        stage.broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
    }
}

#[tokio::test]
async fn a_run_that_two_processes_expire_is_told_as_expired_by_one() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let slow = stage.process(proxy.url()).await;
    stage.submit().await;
    stage.clock.advance(stage.policy.job_ttl);
    proxy.fault("TransactWriteItems", AwsFault::Hold);
    let other = async {
        proxy.held().await;
        let swept = stage.broker.jobs.sweep(100).await.unwrap();
        proxy.let_go();
        swept.expired.len()
    };
    let (swept, first) = tokio::join!(slow.jobs.sweep(100), other);
    assert_eq!((first, swept.unwrap().expired.len()), (1, 0));
}

#[tokio::test]
async fn an_attempt_that_another_process_started_is_recorded_as_that_attempt() {
    let stage = Stage::open().await;
    let (first, second) = (stage.process(stage.emulator.url()).await, &stage.broker);
    stage.submit().await;
    let delivery = stage.lease(&first).await;
    second.leasing.settle(&delivery.receipt, &Settlement::RetryAfter(Duration::ZERO)).await.unwrap();
    let again = stage.lease(second).await;
    let sent = stage.success(&again);
    assert_eq!(first.leasing.record(&sent).await.unwrap(), Recorded::First);
    assert_eq!((again.attempt, result_of(&stage, &sent).await.attempt), (2, 2));
    assert_eq!(first.counts.read(), Counted::default(), "nothing was corrected");
}

#[tokio::test]
async fn a_result_that_is_sent_again_is_counted_as_that_and_as_nothing_else() {
    let stage = Stage::open().await;
    stage.submit().await;
    let delivery = stage.lease(&stage.broker).await;
    let sent = JobResult { finished_at: Timestamp::MAX, ..stage.success(&delivery) };
    for _ in 0..2 {
        assert_eq!(stage.broker.leasing.record(&sent).await.unwrap(), Recorded::First);
    }
    let counted = Counted { times_corrected: 1, results_resent: 1, ..Counted::default() };
    assert_eq!(stage.broker.counts.read(), counted);
}

#[tokio::test]
async fn a_result_that_is_refused_takes_as_many_transactions_as_the_sdk_tries_and_no_multiple() {
    let stage = Stage::open().await;
    stage.submit().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    let delivery = stage.lease(&worker).await;
    let result = stage.success(&delivery);
    for (fault, most) in [
        (AwsFault::Refuse("ThrottlingException"), 3),
        (AwsFault::Refuse("ProvisionedThroughputExceededException"), 3),
        (AwsFault::Refuse("AccessDeniedException"), 1),
        // Which the next call may have another token for.
        (AwsFault::Refuse("ExpiredTokenException"), 2),
        // Which the SDK does not repeat.
        (AwsFault::Cancel("ThrottlingError"), 1),
        (AwsFault::Cancel("ProvisionedThroughputExceeded"), 1),
        // The outcome is in doubt: one more try looks at it.
        (AwsFault::LoseAnswer, 6),
    ] {
        let before = proxy.calls("TransactWriteItems");
        proxy.fault_all("TransactWriteItems", fault.clone());
        let recorded = worker.leasing.record(&result).await;
        proxy.mend("TransactWriteItems");
        let taken = proxy.calls("TransactWriteItems") - before;
        assert!((1..=most).contains(&taken), "{taken} transactions for one result: {fault:?}");
        let throttled = matches!(fault, AwsFault::Cancel(_)) || taken == 3;
        let is_overloaded = |kind| matches!(kind, BrokerErrorKind::Overloaded { .. });
        assert!(!throttled || is_overloaded(recorded.unwrap_err().kind()), "a worker waits, and tries again");
    }
    assert_eq!(worker.leasing.record(&result).await.unwrap(), Recorded::First);
}

#[tokio::test]
async fn a_large_result_that_was_refused_leaves_no_item_and_its_refusal_stands_if_that_fails() {
    const LARGE: usize = 8 * 1_024;
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    let delivery = stage.lease(&broker).await;
    let sent = |byte: u8| JobResult { payload: vec![byte; LARGE].into(), ..stage.success(&delivery) };
    assert_eq!(stage.broker.leasing.record(&sent(1)).await.unwrap(), Recorded::First);
    let kept = stage.items_of(&job).await;
    // This process gave the job out, and writes before it looks.
    let refused = Recorded::Superseded(Outcome::Succeeded);
    assert_eq!(broker.leasing.record(&sent(2)).await.unwrap(), refused);
    assert_eq!(stage.items_of(&job).await, kept, "the item of the result that counts, and no other");
    proxy.fault_all("DeleteItem", AwsFault::Refuse("ValidationException"));
    assert_eq!(broker.leasing.record(&sent(3)).await.unwrap(), refused);
    assert_eq!(result_of(&stage, &sent(1)).await.payload, vec![1; LARGE]);
}
