//! Processes that die between two writes of one call, where no other file has them die.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, Outcome};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Held, Recorded};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::result_log::Lookup;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::support::{PATIENCE, Stage};

/// Where a process runs that dies at once with all it does: by `shutdown_background`.
pub(crate) fn mortal() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[tokio::test]
async fn a_slot_that_was_taken_for_no_lease_is_free_when_the_lease_would_be_over() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let one_at_a_time = ClientPolicy { max_running: 1, ..ClientPolicy::default() };
    let policy = QueuePolicy { clients: [(stage.client(), one_at_a_time)].into(), ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    stage.submit().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let (process, dying, request) = (stage.process(proxy.url()).await, mortal(), stage.request(1, PATIENCE));
    // The slot's first, and the record's.
    proxy.fault("UpdateItem", AwsFault::Hold);
    proxy.fault("UpdateItem", AwsFault::Hold);
    dying.spawn(async move { drop(process.leasing.lease(&request).await) });
    proxy.held().await;
    proxy.let_go();
    // The slot is taken, and the record is not leased.
    proxy.held().await;
    dying.shutdown_background();
    let next = stage.submit().await;
    stage.assert_nothing_in_line().await;
    stage.clock.advance(policy.lease + Duration::from_millis(1));
    let delivery = stage.lease(&stage.broker).await;
    assert_eq!((delivery.job.id, delivery.attempt), (next.id, 1));
}

#[tokio::test]
async fn a_lease_that_was_extended_and_whose_message_was_not_hidden_is_given_to_nobody_else_before_its_end() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let policy = QueuePolicy { lease: Duration::from_secs(2), ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    stage.submit().await;
    let (holding, looking) =
        (AwsProxy::start(&stage.emulator.url()).await, AwsProxy::start(&stage.emulator.url()).await);
    let holder = stage.process(holding.url()).await;
    let delivery = stage.lease(&holder).await;
    holding.fault_all("ChangeMessageVisibilityBatch", AwsFault::Refuse("RequestThrottled"));
    assert!(matches!(holder.leasing.extend(&delivery.receipt).await.unwrap(), Held::Until(_)));
    // Another process receives the message when its first time is over, finds the lease, and hides it.
    let other = stage.process(looking.url()).await;
    looking.fault("ChangeMessageVisibilityBatch", AwsFault::Hold);
    let (mut leasing, request) = (JoinSet::new(), stage.request(1, PATIENCE));
    leasing.spawn(async move { other.leasing.lease(&request).await.unwrap() });
    looking.held().await;
    assert!(leasing.try_join_next().is_none(), "it is held");
    looking.let_go();
    stage.clock.advance(policy.lease + Duration::from_millis(1));
    let next = leasing.join_next().await.unwrap().unwrap();
    assert_eq!((next[0].job.id, next[0].attempt), (delivery.job.id, 2));
}

#[tokio::test]
async fn a_large_result_that_no_record_names_goes_by_itself_and_another_is_the_jobs() {
    const LARGE: usize = 8 * 1_024;
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let (process, dying) = (stage.process(proxy.url()).await, mortal());
    let delivery = stage.lease(&process).await;
    let result = |byte: u8| {
        let end = End { attempt: 1, started_at: Some(delivery.leased_at), finished_at: stage.clock.now() };
        JobResult::succeeded(&delivery.job, end, "application/octet-stream", vec![byte; LARGE].into())
    };
    proxy.fault_all("TransactWriteItems", AwsFault::Hold);
    let lost = result(1);
    dying.spawn(async move { drop(process.leasing.record(&lost).await) });
    proxy.held().await;
    dying.shutdown_background();
    assert_eq!(stage.broker.leasing.record(&result(2)).await.unwrap(), Recorded::First);
    let Lookup::Finished(found) = stage.broker.results.wait(&stage.client(), job.id, PATIENCE).await.unwrap() else {
        panic!("the job has a result");
    };
    assert_eq!(found.result.payload, vec![2; LARGE]);
    let call =
        stage.dynamodb().query().table_name("relay").key_condition_expression("pk = :pk AND begins_with(sk, :sk)");
    let call = call.expression_attribute_values(":pk", AttributeValue::S(format!("job#{}", job.id)));
    let items = call.expression_attribute_values(":sk", AttributeValue::S("result#".to_owned())).send().await.unwrap();
    let removed_at = |item: &std::collections::HashMap<String, AttributeValue>| item["expires"].as_n().unwrap().clone();
    let times: Vec<i64> = items.items().iter().map(|item| removed_at(item).parse().unwrap()).collect();
    let now = stage.clock.now().as_millis() / 1_000;
    assert!(times.len() == 2 && times.iter().all(|time| *time > now), "both, each with its end: {times:?}");
}

#[tokio::test]
async fn a_redrive_that_died_before_it_removed_the_letter_is_repeated_as_the_same_run() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let delivery = stage.lease(&stage.broker).await;
    let end = End { attempt: 1, started_at: Some(delivery.leased_at), finished_at: stage.clock.now() };
    let failure = Failure::new("exit-code", "1");
    let letter = DeadLetter {
        job: delivery.job.clone(),
        outcome: Outcome::Failed,
        failure: failure.clone(),
        attempt: 1,
        at: stage.clock.now(),
        extra: Default::default(),
    };
    stage.broker.leasing.dead_letter(&letter).await.unwrap();
    let failed = JobResult::unsuccessful(&delivery.job, Outcome::Failed, end, failure);
    assert_eq!(stage.broker.leasing.record(&failed).await.unwrap(), Recorded::First);
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let (process, dying, run) = (stage.process(proxy.url()).await, mortal(), job.run_id);
    proxy.fault_all("DeleteItem", AwsFault::Hold);
    dying.spawn(async move { drop(process.dead_letters.redrive(job.id, run).await) });
    proxy.held().await;
    dying.shutdown_background();
    let next = stage.lease(&stage.broker).await;
    assert!(next.job.run_id > run);
    let Enqueued::Known(status) = stage.broker.dead_letters.redrive(job.id, run).await.unwrap() else {
        panic!("the run that was begun");
    };
    assert_eq!((status.run_id, status.generation), (next.job.run_id, 2));
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None, "the letter is gone");
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn a_policy_that_changed_between_a_writers_look_and_its_write_is_not_overwritten() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let (queue, seen) = (&stage.queue, Some(&stage.policy));
    let late = QueuePolicy { result_max: 9, ..stage.policy.clone() };
    let meanwhile = QueuePolicy { max_attempts: 7, ..stage.policy.clone() };
    proxy.fault("UpdateItem", AwsFault::Hold);
    let other = async {
        proxy.held().await;
        stage.broker.policies.put_policy(queue, &meanwhile, seen).await.unwrap();
        proxy.let_go();
    };
    let (refused, ()) = tokio::join!(broker.policies.put_policy(queue, &late, seen), other);
    assert_eq!(refused.unwrap_err().kind(), BrokerErrorKind::StateConflict);
    assert_eq!(stage.broker.policies.policy(queue).await.unwrap(), Some(meanwhile));
}
