//! A sweep of several queues, of which one is refused, or has much to do.

use std::time::Duration;

use relay_bridge::contract::{Job, Outcome, QueueName};
use relay_conformance::testing::{AwsFault, AwsProxy};
use tokio::task::JoinSet;

use super::support::{Stage, distinct};

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

#[tokio::test]
async fn a_sweep_sends_nothing_more_to_an_sqs_that_does_not_answer_and_the_rest_is_sent_later() {
    // A step looks at a hundred jobs at once, and waits for their messages.
    const JOBS: usize = 130;
    let stage = Stage::at_a_clock_that_is_moved().await;
    let mut submitting = JoinSet::new();
    for _ in 0..JOBS {
        let (jobs, job) = (stage.broker.jobs.clone(), stage.job(None));
        submitting.spawn(async move { jobs.enqueue(job).await.unwrap() });
    }
    submitting.join_all().await;
    stage.lose_all_messages().await;
    stage.clock.advance(Duration::from_secs(30));
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let sweeping = stage.process_with(proxy.url(), |_| {}).await;
    proxy.fault_all("SendMessageBatch", AwsFault::Hold);
    sweeping.broker().jobs.sweep(500).await.unwrap();
    proxy.mend("SendMessageBatch");
    sweeping.close().await;
    let bodies = proxy.bodies("SendMessageBatch");
    let entries = bodies.iter().flat_map(|body| body["Entries"].as_array().unwrap());
    let sent = distinct(entries.map(|entry| entry["MessageBody"].clone()));
    assert!((1..=100).contains(&sent), "{sent} of {JOBS} jobs were handed to an SQS that does not answer");
    stage.clock.advance(Duration::from_secs(30));
    while stage.broker.jobs.sweep(500).await.unwrap().more {}
    let mut leased = std::collections::HashSet::new();
    while leased.len() < JOBS {
        let held = stage.broker.leasing.lease(&stage.request(10, Duration::from_secs(5))).await.unwrap();
        assert!(!held.is_empty(), "{} of {JOBS} jobs came", leased.len());
        leased.extend(held.iter().map(|delivery| delivery.job.id));
    }
}

#[tokio::test]
async fn a_queue_with_more_to_do_than_a_step_takes_does_not_keep_the_sweep_from_those_behind_it() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let first: QueueName = "first".parse().unwrap();
    stage.broker.policies.put_policy(&first, &stage.policy, None).await.unwrap();
    let of_first = || Job { queue: first.clone(), ..stage.job(None) };
    for _ in 0..6 {
        stage.broker.jobs.enqueue(of_first()).await.unwrap();
    }
    let job = stage.submit().await;
    stage.lose_all_messages().await;
    // As many of the first queue are due in each step as one takes.
    for _ in 0..2 {
        stage.clock.advance(Duration::from_secs(30));
        stage.broker.jobs.sweep(3).await.unwrap();
    }
    assert_eq!(stage.lease(&stage.broker).await.job.id, job.id);
}
