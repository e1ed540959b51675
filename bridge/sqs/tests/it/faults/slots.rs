//! Clients with a bound on running jobs: the cost of their slots, when the slots are free, and the jobs that wait for
//! them.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use relay_bridge::leasing::{Held, Recorded};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};

use super::support::{Stage, distinct};

/// How many of the calls that went through were on items of slots, repetitions by the SDK aside.
pub(crate) fn slot_calls(proxy: &AwsProxy) -> usize {
    let of_slots = |body: &serde_json::Value| {
        let key = if body["Item"].is_object() { &body["Item"] } else { &body["Key"] };
        key["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("slots#"))
    };
    let calls = ["GetItem", "PutItem", "UpdateItem", "DeleteItem"];
    calls.iter().map(|call| distinct(proxy.bodies(call).into_iter().filter(of_slots))).sum()
}

pub(crate) async fn bound(stage: &Stage, max_running: u32) -> QueuePolicy {
    let bounded = ClientPolicy { max_running, ..ClientPolicy::default() };
    let policy = QueuePolicy { clients: [(stage.client(), bounded)].into(), ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    policy
}

#[tokio::test]
async fn a_bound_costs_one_write_a_claim_and_one_an_end_however_many_workers_there_are() {
    const WORKERS: usize = 4;
    const ROUNDS: usize = 5;
    let stage = Stage::open().await;
    bound(&stage, 8).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let workers = join_all((0..WORKERS).map(|_| stage.process(proxy.url()))).await;
    let work = async |worker: &relay_bridge::broker::Broker| {
        let delivery = stage.lease(worker).await;
        assert_eq!(worker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
        worker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    };
    // The client's first job makes the item.
    stage.submit().await;
    work(&workers[0]).await;
    let before = slot_calls(&proxy);
    for _ in 0..ROUNDS {
        join_all((0..WORKERS).map(|_| stage.submit())).await;
        join_all(workers.iter().map(&work)).await;
    }
    assert_eq!(slot_calls(&proxy) - before, 2 * WORKERS * ROUNDS, "calls on the slots of {} jobs", WORKERS * ROUNDS);
}

#[tokio::test]
async fn a_heartbeat_writes_the_slot_at_most_once_a_lease_and_the_slot_is_kept() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let policy = bound(&stage, 1).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    stage.submit().await;
    let delivery = stage.lease(&broker).await;
    stage.submit().await;
    let before = slot_calls(&proxy);
    for _ in 0..9 {
        stage.clock.advance(policy.lease / 3);
        assert!(matches!(broker.leasing.extend(&delivery.receipt).await.unwrap(), Held::Until(_)));
        stage.assert_nothing_in_line().await;
    }
    let written = slot_calls(&proxy) - before;
    assert!(written <= 3, "{written} calls on the slot in 3 leases");
}

#[tokio::test]
async fn slots_of_leases_that_ended_are_free_within_one_more_lease() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let policy = bound(&stage, 2).await;
    let lost = [stage.submit().await, stage.submit().await];
    for _ in lost {
        let delivery = stage.lease(&stage.broker).await;
        stage.clock.advance(Duration::from_millis(1));
        assert!(matches!(stage.broker.leasing.extend(&delivery.receipt).await.unwrap(), Held::Until(_)));
    }
    let next = stage.submit().await;
    stage.assert_nothing_in_line().await;
    stage.clock.advance(policy.lease * 2);
    let delivery = stage.lease(&stage.broker).await;
    assert_eq!((delivery.job.id, delivery.attempt), (next.id, 1));
}

#[tokio::test]
async fn slots_of_the_release_before_count_and_its_stale_writes_are_refused() {
    let stage = Stage::open().await;
    let policy = bound(&stage, 2).await;
    let end = (stage.clock.now() + policy.lease).as_millis().to_string();
    let old = AttributeValue::M([("0".repeat(32), AttributeValue::N(end))].into());
    let key = |name: &str| match name {
        "pk" => AttributeValue::S(format!("slots#{}", stage.queue)),
        _ => AttributeValue::S(stage.client().to_string()),
    };
    let put = stage.dynamodb().put_item().table_name("relay").item("pk", key("pk")).item("sk", key("sk"));
    put.item("version", AttributeValue::N("7".to_owned())).item("held", old).send().await.unwrap();
    let read = async || {
        let get = stage.dynamodb().get_item().table_name("relay").key("pk", key("pk")).key("sk", key("sk"));
        let item = get.consistent_read(true).send().await.unwrap().item.unwrap();
        let version: u64 = item["version"].as_n().unwrap().parse().unwrap();
        (version, item["held"].as_m().unwrap().len(), item.len())
    };
    stage.submit().await;
    stage.submit().await;
    let delivery = stage.lease(&stage.broker).await;
    stage.assert_nothing_in_line().await;
    let taken = read().await;
    assert!(taken.0 > 7 && taken.1 == 2 && taken.2 == 4, "its compare-and-set of version 7 is refused: {taken:?}");
    assert_eq!(stage.broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    let freed = read().await;
    assert!(freed.0 > taken.0 && freed.1 == 1, "{freed:?}");
}

#[tokio::test]
async fn many_slots_of_leases_that_ended_are_free_under_a_bound_that_was_lowered() {
    let stage = Stage::open().await;
    bound(&stage, 1).await;
    let end = (stage.clock.now().as_millis() - 1).to_string();
    let held = (0..60).map(|at| (format!("{at:032}"), AttributeValue::N(end.clone()))).collect();
    let put = stage.dynamodb().put_item().table_name("relay").item("version", AttributeValue::N("60".to_owned()));
    let put = put.item("pk", AttributeValue::S(format!("slots#{}", stage.queue)));
    let put = put.item("sk", AttributeValue::S(stage.client().to_string()));
    put.item("held", AttributeValue::M(held)).send().await.unwrap();
    let job = stage.submit().await;
    assert_eq!(stage.lease(&stage.broker).await.job.id, job.id);
    stage.submit().await;
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn a_heartbeat_writes_the_slot_that_the_one_before_it_could_not_write() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let policy = bound(&stage, 1).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    stage.submit().await;
    let delivery = stage.lease(&broker).await;
    stage.submit().await;
    let beat = async || {
        stage.clock.advance(policy.lease / 3);
        broker.leasing.extend(&delivery.receipt).await
    };
    // The record is extended, and the slot is not.
    proxy.fault("UpdateItem", AwsFault::Hold);
    proxy.fault("UpdateItem", AwsFault::Refuse("ValidationException"));
    let let_go = async {
        proxy.held().await;
        proxy.let_go();
    };
    let (refused, ()) = tokio::join!(beat(), let_go);
    refused.unwrap_err();
    for _ in 0..3 {
        assert!(matches!(beat().await.unwrap(), Held::Until(_)));
        stage.assert_nothing_in_line().await;
    }
    let before = slot_calls(&proxy);
    stage.clock.advance(Duration::from_millis(1));
    assert!(matches!(broker.leasing.extend(&delivery.receipt).await.unwrap(), Held::Until(_)));
    assert_eq!(slot_calls(&proxy), before, "it is not owed any more");
}
