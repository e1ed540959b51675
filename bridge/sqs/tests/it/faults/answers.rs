//! Calls that took effect and whose answers were lost: the SDK repeats them, and they find their own effects.

use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Held, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{ResultFilter, Start};
use relay_bridge::rules::counts::Counted;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};

use super::support::{PATIENCE, Stage};

#[tokio::test]
async fn an_enqueue_whose_answer_is_lost_made_the_job_and_one_only() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    proxy.fault("PutItem", AwsFault::LoseAnswer);
    let job = stage.job(Some("key"));
    let enqueued = broker.jobs.enqueue(job.clone()).await.unwrap();
    assert!(matches!(enqueued, Enqueued::Created(_)), "it met its own record: {enqueued:?}");
    assert_eq!(proxy.calls("PutItem"), 2);
    let delivery = stage.lease(&broker).await;
    assert_eq!((delivery.job, delivery.attempt), (job, 1));
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn a_lease_whose_answer_is_lost_spends_one_attempt() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    proxy.fault("UpdateItem", AwsFault::LoseAnswer);
    let delivery = stage.lease(&broker).await;
    assert_eq!((delivery.job.id, delivery.attempt), (job.id, 1));
    proxy.fault("UpdateItem", AwsFault::LoseAnswer);
    assert!(matches!(broker.leasing.extend(&delivery.receipt).await.unwrap(), Held::Until(_)));
    proxy.fault("UpdateItem", AwsFault::LoseAnswer);
    broker.leasing.settle(&delivery.receipt, &Settlement::HandBack(std::time::Duration::ZERO)).await.unwrap();
    assert_eq!(stage.lease(&broker).await.attempt, 1, "the hand-back gave one attempt back");
}

#[tokio::test]
async fn a_result_whose_answer_is_lost_is_recorded_once_and_is_the_first() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    stage.submit().await;
    let delivery = stage.lease(&broker).await;
    // More often than the SDK repeats it: relay looks at the record.
    for _ in 0..4 {
        proxy.fault("TransactWriteItems", AwsFault::LoseAnswer);
    }
    assert_eq!(broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    assert_eq!(broker.counts.read(), Counted::default(), "it was sent once");
    broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    let page = broker.results.page(&stage.client(), &Start::Oldest, &ResultFilter::ALL, 100, PATIENCE).await.unwrap();
    assert_eq!(page.entries.len(), 1);
}

#[tokio::test]
async fn a_message_that_is_sent_twice_is_one_delivery() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    proxy.fault("SendMessageBatch", AwsFault::LoseAnswer);
    broker.jobs.enqueue(stage.job(Some("key"))).await.unwrap();
    assert_eq!(proxy.calls("SendMessageBatch"), 2, "both took effect");
    let delivery = stage.lease(&broker).await;
    stage.assert_nothing_in_line().await;
    assert_eq!(broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn a_call_that_aws_throttles_is_refused_with_a_time_to_come_back() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    stage.submit().await;
    let job = stage.job(Some("key"));
    broker.policies.policy(&stage.queue).await.unwrap();
    // As often as the SDK tries.
    for _ in 0..3 {
        proxy.fault("PutItem", AwsFault::Refuse("ProvisionedThroughputExceededException"));
    }
    let error = broker.jobs.enqueue(job.clone()).await.unwrap_err();
    assert!(matches!(error.kind(), BrokerErrorKind::Overloaded { .. }), "{error}");
    assert!(error.had_no_effect());
    assert!(matches!(broker.jobs.enqueue(job).await.unwrap(), Enqueued::Created(_)));
}

#[tokio::test]
async fn a_refusal_of_the_repetition_of_a_call_without_an_answer_leaves_the_call_in_doubt() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    broker.policies.policy(&stage.queue).await.unwrap();
    for code in ["AccessDeniedException", "ExpiredTokenException", "ProvisionedThroughputExceededException"] {
        let before = proxy.calls("PutItem");
        proxy.fault("PutItem", AwsFault::LoseAnswer);
        // As often as the SDK tries, if it repeats such a refusal.
        proxy.fault_all("PutItem", AwsFault::Refuse(code));
        let job = stage.job(Some(code));
        let error = broker.jobs.enqueue(job.clone()).await.unwrap_err();
        assert!(proxy.calls("PutItem") > before + 1, "it was repeated");
        assert_eq!(error.kind(), BrokerErrorKind::Ambiguous, "{code}: {error}");
        assert!(!error.had_no_effect() && error.detail().contains(code), "{error}");
        proxy.mend("PutItem");
        assert!(matches!(broker.jobs.enqueue(job).await.unwrap(), Enqueued::Known(_)), "its record is there");
    }
}

#[tokio::test]
async fn a_result_whose_answer_is_lost_stays_in_doubt_however_a_later_try_is_refused() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    stage.submit().await;
    let delivery = stage.lease(&broker).await;
    // As often as the SDK tries, which is when relay tries by itself.
    for _ in 0..3 {
        proxy.fault("TransactWriteItems", AwsFault::LoseAnswer);
    }
    proxy.fault_all("TransactWriteItems", AwsFault::Refuse("AccessDeniedException"));
    let error = broker.leasing.record(&stage.success(&delivery)).await.unwrap_err();
    assert_eq!(error.kind(), BrokerErrorKind::Ambiguous, "{error}");
    proxy.mend("TransactWriteItems");
    let page = broker.results.page(&stage.client(), &Start::Oldest, &ResultFilter::ALL, 100, PATIENCE).await.unwrap();
    assert_eq!(page.entries.len(), 1, "it was recorded");
}

#[tokio::test]
async fn a_job_that_was_accepted_and_could_not_be_sent_is_accepted() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    for _ in 0..3 {
        proxy.fault("SendMessageBatch", AwsFault::Refuse("RequestThrottled"));
    }
    let job = stage.job(Some("key"));
    assert!(matches!(broker.jobs.enqueue(job.clone()).await.unwrap(), Enqueued::Created(_)));
    stage.assert_nothing_in_line().await;
    stage.clock.advance(std::time::Duration::from_secs(30));
    broker.jobs.sweep(100).await.unwrap();
    assert_eq!(stage.lease(&broker).await.job.id, job.id);
}

#[tokio::test]
async fn a_policy_whose_answer_is_lost_is_written_and_no_conflict_with_itself() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    proxy.fault("UpdateItem", AwsFault::LoseAnswer);
    let policy = QueuePolicy { max_attempts: 7, ..stage.policy.clone() };
    broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    assert_eq!(proxy.calls("UpdateItem"), 2);
    assert_eq!(stage.broker.policies.policy(&stage.queue).await.unwrap(), Some(policy));
}

#[tokio::test]
async fn a_rerun_and_a_redrive_whose_answers_are_lost_begin_a_run_and_send_its_job() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    let fail = async || {
        let delivery = stage.lease(&broker).await;
        assert_eq!(broker.leasing.record(&stage.failure(&delivery, "")).await.unwrap(), Recorded::First);
        broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
        delivery.job
    };
    let first = fail().await;
    proxy.fault("UpdateItem", AwsFault::LoseAnswer);
    let rerun = broker.jobs.rerun(&job.client, job.id, first.generation).await.unwrap();
    assert!(matches!(rerun, Enqueued::Created(_)), "it met its own run: {rerun:?}");
    let second = fail().await;
    proxy.fault("UpdateItem", AwsFault::LoseAnswer);
    let redriven = broker.dead_letters.redrive(job.id, second.run_id).await.unwrap();
    assert!(matches!(redriven, Enqueued::Created(_)), "it met its own run: {redriven:?}");
    let third = fail().await;
    // Nothing but the letter is left.
    stage.clock.advance(stage.policy.job_ttl + stage.policy.retention);
    proxy.fault("PutItem", AwsFault::LoseAnswer);
    let redriven = broker.dead_letters.redrive(job.id, third.run_id).await.unwrap();
    assert!(matches!(redriven, Enqueued::Created(_)), "it met its own run: {redriven:?}");
    assert_eq!(stage.lease(&broker).await.job.generation, 4);
}

#[tokio::test]
async fn a_result_that_meets_an_expired_token_is_recorded_once_there_is_another() {
    let stage = Stage::open().await;
    stage.submit().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    let delivery = stage.lease(&worker).await;
    let result = stage.success(&delivery);
    for code in ["ExpiredTokenException", "ExpiredToken"] {
        proxy.fault_all("TransactWriteItems", AwsFault::Refuse(code));
        let refused = worker.leasing.record(&result).await.unwrap_err();
        assert!(refused.is_transient() && refused.had_no_effect(), "its worker tries again: {refused:?}");
    }
    // Renewed while the call tries.
    proxy.mend("TransactWriteItems");
    proxy.fault("TransactWriteItems", AwsFault::Refuse("ExpiredTokenException"));
    assert_eq!(worker.leasing.record(&result).await.unwrap(), Recorded::First);
}
