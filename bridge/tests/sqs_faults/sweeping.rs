//! A sweep of several queues, of which one is refused.

use std::time::Duration;

use relay_bridge::contract::{Job, Outcome, QueueName};
use relay_bridge::testing::{AwsFault, AwsProxy};

use crate::support::Stage;

#[tokio::test]
async fn a_queue_that_is_refused_does_not_stop_the_sweep_of_later_ones() {
    // Its messages are not taken, each try of the SDK; its records are not read.
    for (call, fault, times) in
        [("SendMessageBatch", "RequestThrottled", 3), ("BatchGetItem", "AccessDeniedException", 1)]
    {
        let stage = Stage::at_a_clock_that_is_moved().await;
        let first: QueueName = "first".parse().unwrap();
        stage.broker.policies.put_policy(&first, &stage.policy, None).await.unwrap();
        let refused = Job { queue: first.clone(), ..stage.job(None) };
        stage.broker.jobs.enqueue(refused).await.unwrap();
        let job = stage.submit().await;
        stage.lose_all_messages().await;
        stage.clock.advance(Duration::from_secs(30));
        let proxy = AwsProxy::start(&stage.emulator.url()).await;
        let sweeping = stage.process(proxy.url()).await;
        for _ in 0..times {
            proxy.fault(call, AwsFault::Refuse(fault));
        }
        sweeping.jobs.sweep(100).await.unwrap();
        let held = stage.broker.leasing.lease(&stage.request(10, Duration::from_secs(5))).await.unwrap();
        assert_eq!(held.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [job.id], "{call}: {fault}");
    }
}

#[tokio::test]
async fn a_job_that_is_refused_does_not_hold_up_the_others_of_its_queue_nor_its_own_end() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    stage.clock.advance(Duration::from_secs(30));
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let sweeping = stage.process(proxy.url()).await;
    proxy.fault_all("SendMessageBatch", AwsFault::Refuse("RequestThrottled"));
    stage.clock.advance(job.expires_at.since(stage.clock.now()) - Duration::from_secs(10));
    // A step has one place, and the refused job is not in it again.
    let other = stage.submit().await;
    sweeping.jobs.sweep(1).await.unwrap();
    stage.clock.advance(Duration::from_secs(10));
    let swept = sweeping.jobs.sweep(1).await.unwrap();
    let ended: Vec<_> = swept.expired.iter().map(|result| (result.job_id, result.outcome)).collect();
    assert_eq!(ended, [(job.id, Outcome::Expired)]);
    stage.clock.advance(Duration::from_secs(20));
    proxy.mend("SendMessageBatch");
    stage.lose_all_messages().await;
    sweeping.jobs.sweep(1).await.unwrap();
    assert_eq!(stage.lease(&stage.broker).await.job.id, other.id);
}

#[tokio::test]
async fn a_parked_job_that_could_not_be_sent_at_its_time_is_sent_later_however_many_messages_there_are() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let hour = Duration::from_secs(3_600);
    let job = Job { due_at: stage.clock.now() + hour, ..stage.job(None) };
    stage.broker.jobs.enqueue(job.clone()).await.unwrap();
    for _ in 0..5 {
        stage.send_strange("none of relay's").await;
    }
    stage.clock.advance(hour);
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let sweeping = stage.process(proxy.url()).await;
    proxy.fault_all("SendMessageBatch", AwsFault::Refuse("RequestThrottled"));
    for _ in 0..3 {
        sweeping.jobs.sweep(100).await.unwrap();
        stage.clock.advance(Duration::from_secs(30));
    }
    proxy.mend("SendMessageBatch");
    sweeping.jobs.sweep(100).await.unwrap();
    assert_eq!(stage.messages().await, 6);
    // And not once more.
    stage.clock.advance(Duration::from_secs(3_600));
    sweeping.jobs.sweep(100).await.unwrap();
    assert_eq!(stage.messages().await, 6);
    assert_eq!(stage.lease(&stage.broker).await.job.id, job.id);
}
