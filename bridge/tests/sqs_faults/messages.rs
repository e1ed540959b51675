//! Messages that were never sent, or are gone: the record knows, and the sweep and replays send others.

use std::time::Duration;

use relay_bridge::contract::Outcome;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::Recorded;
use relay_bridge::settlement::Settlement;

use crate::support::Stage;

#[tokio::test]
async fn a_job_whose_message_was_never_sent_is_sent_by_the_sweep_of_any_process() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    stage.lose_all_messages().await;
    let other = stage.process(stage.emulator.url()).await;
    other.jobs.sweep(100).await.unwrap();
    stage.assert_nothing_in_line().await;
    stage.clock.advance(Duration::from_secs(30));
    other.jobs.sweep(100).await.unwrap();
    let delivery = stage.lease(&stage.broker).await;
    assert_eq!((delivery.job.id, delivery.attempt), (job.id, 1));
    // And not again and again.
    other.jobs.sweep(100).await.unwrap();
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn a_replay_at_another_process_sends_a_job_that_nobody_took() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    stage.lose_all_messages().await;
    stage.clock.advance(Duration::from_secs(10));
    let other = stage.process(stage.emulator.url()).await;
    assert!(matches!(other.jobs.enqueue(job.clone()).await.unwrap(), Enqueued::Known(_)));
    assert_eq!(stage.lease(&stage.broker).await.job.id, job.id);
}

#[tokio::test]
async fn a_job_parked_for_hours_comes_by_the_sweep_when_its_message_is_gone() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    stage.submit().await;
    for delay in [Duration::from_secs(60), Duration::from_secs(3 * 3_600)] {
        let delivery = stage.lease(&stage.broker).await;
        stage.broker.leasing.settle(&delivery.receipt, &Settlement::RetryAfter(delay)).await.unwrap();
        stage.lose_all_messages().await;
        stage.clock.advance(delay - Duration::from_secs(1));
        stage.broker.jobs.sweep(100).await.unwrap();
        stage.assert_nothing_in_line().await;
        // A message that SQS should have delivered is missed half a minute later.
        stage.clock.advance(Duration::from_secs(31));
        stage.broker.jobs.sweep(100).await.unwrap();
    }
    assert_eq!(stage.lease(&stage.broker).await.attempt, 3);
}

#[tokio::test]
async fn a_message_of_a_run_that_ended_is_deleted_by_who_receives_it() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    let cancelled = stage.broker.jobs.cancel(&job.client, job.id).await.unwrap();
    assert_eq!(cancelled.state.outcome(), Some(Outcome::Cancelled));
    assert_eq!(stage.broker.jobs.depth(&stage.queue).await.unwrap(), Default::default());
    stage.assert_nothing_in_line().await;
    // Nor does it come when its time would be over.
    stage.clock.advance(stage.policy.lease * 2);
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn a_worker_that_died_before_it_deleted_its_message_leaves_nothing_that_runs_again() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    stage.submit().await;
    let delivery = stage.lease(&stage.broker).await;
    assert_eq!(stage.broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    // Somebody sent it once more, long ago; it is received only now.
    stage.broker.jobs.enqueue(delivery.job.clone()).await.unwrap();
    stage.clock.advance(stage.policy.lease * 2);
    stage.assert_nothing_in_line().await;
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
}
