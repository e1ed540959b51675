//! Reply queues: other processes tell a waiting process, which does not depend on that, and leaves no queue behind.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use relay_bridge::broker::Broker;
use relay_bridge::contract::Job;
use relay_bridge::leasing::Recorded;
use relay_bridge::result_log::Lookup;
use relay_conformance::testing::{AwsFault, AwsProxy};
use relay_sqs::{Settings, Sqs};
use tokio::task::JoinSet;

use super::support::{PATIENCE, Stage};

/// Longer than any test runs.
const NEVER: Duration = Duration::from_secs(3_600);

/// Waits for `job` as a caller that looks by itself only now and then.
fn wait_for(broker: &Broker, job: &Job) -> JoinSet<Lookup> {
    let (results, client, id) = (broker.results.clone(), job.client.clone(), job.id);
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { results.wait(&client, id, PATIENCE).await.unwrap() });
    waiting
}

async fn ended(mut waiting: JoinSet<Lookup>) -> bool {
    matches!(waiting.join_next().await.unwrap().unwrap(), Lookup::Finished(_))
}

/// Has a worker of its own process end the job that is in line.
async fn work(stage: &Stage, worker: &Broker) {
    let delivery = stage.lease(worker).await;
    assert_eq!(worker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
}

impl Stage {
    /// The names of the processes that are told when the job ends, once there are `at_least` so many.
    pub(crate) async fn told(&self, job: &Job, at_least: usize) -> Vec<String> {
        loop {
            let call = self.dynamodb().get_item().table_name("relay").consistent_read(true);
            let call = call.key("pk", AttributeValue::S(format!("job#{}", job.id)));
            let item = call.key("sk", AttributeValue::S("record".to_owned())).send().await.unwrap().item.unwrap();
            let names = item.get("waiters").map(|names| names.as_ss().unwrap().clone()).unwrap_or_default();
            if names.len() >= at_least {
                return names;
            }
        }
    }

    /// Every reply queue that is in use by the table, with its last sign of life.
    async fn in_use(&self) -> Vec<(String, i64)> {
        let call = self.dynamodb().query().table_name("relay").consistent_read(true);
        let call = call.key_condition_expression("pk = :pk");
        let found = call.expression_attribute_values(":pk", AttributeValue::S("replies".to_owned())).send().await;
        let read = |item: &std::collections::HashMap<String, AttributeValue>| {
            (item["sk"].as_s().unwrap().clone(), item["beat"].as_n().unwrap().parse().unwrap())
        };
        found.unwrap().items().iter().map(read).collect()
    }

    /// The names of every reply queue of SQS.
    async fn reply_queues(&self) -> Vec<String> {
        let found = self.sqs().list_queues().queue_name_prefix("relay-_reply_").send().await.unwrap();
        found.queue_urls().iter().map(|url| url.rsplit('_').next().unwrap().to_owned()).collect()
    }
}

pub(crate) fn looks_never(settings: &mut Settings) {
    settings.look_every = NEVER;
}

#[tokio::test]
async fn who_waits_is_woken_by_the_process_that_ended_the_run() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let waiter = stage.process_with(stage.emulator.url(), looks_never).await;
    let waiting = wait_for(&waiter.broker(), &job);
    stage.told(&job, 1).await;
    work(&stage, &stage.broker).await;
    assert!(ended(waiting).await);
}

#[tokio::test]
async fn every_process_that_waits_is_told_and_each_once() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let mut waiters: Vec<(Sqs, JoinSet<Lookup>)> = Vec::new();
    for _ in 0..3 {
        let waiter = stage.process_with(stage.emulator.url(), looks_never).await;
        // Two at a time of one process are one name.
        let mut waiting = wait_for(&waiter.broker(), &job);
        let (results, client, id) = (waiter.broker().results, job.client.clone(), job.id);
        waiting.spawn(async move { results.wait(&client, id, PATIENCE).await.unwrap() });
        waiters.push((waiter, waiting));
    }
    assert_eq!(stage.told(&job, 3).await.len(), 3);
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process_with(proxy.url(), |_| {}).await;
    work(&stage, &worker.broker()).await;
    for (_, mut waiting) in waiters {
        while let Some(found) = waiting.join_next().await {
            assert!(matches!(found.unwrap(), Lookup::Finished(_)));
        }
    }
    worker.close().await;
    assert_eq!(proxy.calls("SendMessageBatch"), 3);
}

#[tokio::test]
async fn who_is_not_told_sees_the_result_by_looking() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let waiter = stage.process_with(stage.emulator.url(), |settings| settings.look_every /= 10).await;
    let waiting = wait_for(&waiter.broker(), &job);
    stage.told(&job, 1).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    proxy.fault("SendMessageBatch", AwsFault::Hold);
    work(&stage, &worker).await;
    // The message is on its way, and never comes.
    proxy.held().await;
    assert!(ended(waiting).await);
}

#[tokio::test]
async fn a_process_that_may_have_no_reply_queue_sees_results_by_looking() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    proxy.fault("CreateQueue", AwsFault::Refuse("AccessDenied"));
    let waiter = stage.process(proxy.url()).await;
    let waiting = wait_for(&waiter, &job);
    while proxy.calls("CreateQueue") == 0 {
        tokio::task::yield_now().await;
    }
    work(&stage, &stage.broker).await;
    assert!(ended(waiting).await);
}

#[tokio::test]
async fn a_run_that_begins_anew_tells_nobody_who_waited_for_the_one_before() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let waiting = wait_for(&stage.broker, &job);
    stage.told(&job, 1).await;
    work(&stage, &stage.broker).await;
    assert!(ended(waiting).await);
    stage.broker.jobs.rerun(&job.client, job.id, job.generation).await.unwrap();
    assert!(stage.told(&job, 0).await.is_empty());
}

#[tokio::test]
async fn a_process_that_stops_takes_its_reply_queue_with_it() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let waiter = stage.process_with(stage.emulator.url(), looks_never).await;
    let waiting = wait_for(&waiter.broker(), &job);
    let names = stage.told(&job, 1).await;
    assert_eq!(stage.reply_queues().await, names);
    waiter.close().await;
    assert!(!ended(waiting).await, "it says what it knows and goes");
    assert!(stage.reply_queues().await.is_empty() && stage.in_use().await.is_empty());
    // And a process that ends the run afterwards tells nobody, which is no error.
    work(&stage, &stage.broker).await;
}

#[tokio::test]
async fn a_process_that_never_waits_has_no_reply_queue() {
    let stage = Stage::open().await;
    stage.submit().await;
    work(&stage, &stage.broker).await;
    stage.broker.jobs.sweep(100).await.unwrap();
    assert!(stage.reply_queues().await.is_empty() && stage.in_use().await.is_empty());
}

#[tokio::test]
async fn of_a_killed_process_nothing_is_left_and_a_live_one_keeps_its_reply_queue() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    let often = |settings: &mut Settings| {
        looks_never(settings);
        settings.reply_beat = Duration::from_millis(50);
    };
    let killed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let waiter = stage.process_with(stage.emulator.url(), often).await;
    let (results, client, id) = (waiter.broker().results, job.client.clone(), job.id);
    killed.spawn(async move { results.wait(&client, id, PATIENCE).await });
    let dead = stage.told(&job, 1).await;
    drop(waiter);
    killed.shutdown_background();

    let live = stage.process_with(stage.emulator.url(), often).await;
    let waiting = wait_for(&live.broker(), &job);
    let both = stage.told(&job, 2).await;
    let name = both.iter().find(|name| !dead.contains(name)).unwrap();
    live.broker().jobs.sweep(100).await.unwrap();
    assert_eq!((stage.reply_queues().await.len(), stage.in_use().await.len()), (2, 2), "it may only stand still");

    stage.clock.advance(Duration::from_secs(400));
    let now = stage.clock.now().as_millis();
    while !stage.in_use().await.iter().any(|(of, beat)| of == name && *beat == now) {}
    while stage.in_use().await.len() > 1 {
        live.broker().jobs.sweep(100).await.unwrap();
    }
    assert_eq!(&stage.reply_queues().await, std::slice::from_ref(name));
    work(&stage, &stage.broker).await;
    assert!(ended(waiting).await, "the live one is told as before");
}

#[tokio::test]
async fn a_process_that_was_taken_for_dead_has_a_new_reply_queue() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let often = |settings: &mut Settings| {
        settings.look_every = Duration::from_millis(200);
        settings.reply_beat = Duration::from_millis(50);
    };
    let waiter = stage.process_with(stage.emulator.url(), often).await;
    let waiting = wait_for(&waiter.broker(), &job);
    let names = stage.told(&job, 1).await;
    let call = stage.dynamodb().delete_item().table_name("relay").key("pk", AttributeValue::S("replies".to_owned()));
    call.key("sk", AttributeValue::S(names[0].clone())).send().await.unwrap();
    // The same wait is told by the new one.
    let both = stage.told(&job, 2).await;
    let new = both.iter().find(|name| !names.contains(name)).unwrap();
    assert_eq!(&stage.reply_queues().await, std::slice::from_ref(new));
    work(&stage, &stage.broker).await;
    assert!(ended(waiting).await);
}

#[tokio::test]
async fn a_reply_queue_that_sqs_does_not_know_in_its_first_moments_is_not_taken_for_dead() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let waiter = stage.process_with(proxy.url(), |settings| settings.look_every = Duration::from_millis(200)).await;
    proxy.fault("ReceiveMessage", AwsFault::Refuse("QueueDoesNotExist"));
    let waiting = wait_for(&waiter.broker(), &job);
    let names = stage.told(&job, 1).await;
    while proxy.calls("ReceiveMessage") < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stage.reply_queues().await, names, "it is read again, and no other one was made");
    work(&stage, &stage.broker).await;
    assert!(ended(waiting).await);
}
