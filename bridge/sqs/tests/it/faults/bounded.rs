//! Workers at a queue in which a client that runs as many jobs as it may has a backlog.

use std::time::{Duration, Instant};

use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use relay_bridge::contract::{Job, QueueName};
use relay_bridge::leasing::{Delivery, LeaseRequest, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};
use tokio::task::JoinSet;

use super::slots::{bound, slot_calls};
use super::support::{PATIENCE, Stage};

/// Long enough that no message comes back by itself within a test.
const LONG: Duration = Duration::from_secs(600);

impl Stage {
    /// Has a client run the one job that it may, with `waiting` messages of its second one in line.
    pub(crate) async fn at_a_full_client(waiting: usize) -> (Self, Delivery) {
        let mut stage = Self::open().await;
        let first = stage.policy.clone();
        stage.policy.lease = LONG;
        stage.broker.policies.put_policy(&stage.queue, &stage.policy, Some(&first)).await.unwrap();
        bound(&stage, 1).await;
        stage.submit().await;
        let running = stage.lease(&stage.broker).await;
        stage.submit().await;
        let sqs = stage.sqs();
        let url = sqs.get_queue_url().queue_name(format!("relay-{}", stage.queue)).send().await.unwrap();
        let url = url.queue_url.unwrap();
        let received = sqs.receive_message().queue_url(&url).visibility_timeout(0).send().await.unwrap();
        let body = received.messages()[0].body().unwrap().to_owned();
        for from in (1..waiting).step_by(10) {
            let entry = |at: usize| {
                let entry = SendMessageBatchRequestEntry::builder().id(at.to_string()).message_body(&body);
                entry.message_group_id(stage.client().as_str()).build().unwrap()
            };
            let entries = Some((from..waiting.min(from + 10)).map(entry).collect());
            sqs.send_message_batch().queue_url(&url).set_entries(entries).send().await.unwrap();
        }
        (stage, running)
    }

    /// A job of another client, behind everything.
    async fn submit_of_another(&self, queue: &QueueName) -> Job {
        let other = Job { client: "other".parse().unwrap(), queue: queue.clone(), ..self.job(None) };
        self.broker.jobs.enqueue(other.clone()).await.unwrap();
        other
    }
}

/// How many of the receives were of a queue.
fn receives(proxy: &AwsProxy, queue: &QueueName) -> usize {
    let of_queue = |body: &&serde_json::Value| body["QueueUrl"].as_str().unwrap().ends_with(&format!("relay-{queue}"));
    proxy.bodies("ReceiveMessage").iter().filter(of_queue).count()
}

#[tokio::test]
async fn a_client_at_its_bound_keeps_no_slot_idle_for_others_behind_its_messages() {
    // One after the other with a pause each they would take longer than anybody waits here.
    let (stage, _) = Stage::at_a_full_client(300).await;
    let other = stage.submit_of_another(&stage.queue).await;
    assert_eq!(stage.lease(&stage.broker).await.job.client, other.client);
}

#[tokio::test]
async fn a_worker_of_two_queues_is_given_what_the_second_has_whatever_a_full_client_has_in_the_first() {
    let (stage, _) = Stage::at_a_full_client(60).await;
    let second: QueueName = "second".parse().unwrap();
    stage.broker.policies.put_policy(&second, &QueuePolicy::default(), None).await.unwrap();
    let job = stage.submit_of_another(&second).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    let both = LeaseRequest { queues: vec![stage.queue.clone(), second], ..stage.request(10, PATIENCE) };
    let held = worker.leasing.lease(&both).await.unwrap();
    assert_eq!(held.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [job.id]);
    assert_eq!(receives(&proxy, &stage.queue), 1, "receives of the first queue before the second was looked at");
}

#[tokio::test]
async fn a_job_that_was_at_hand_is_delivered_although_its_message_could_not_be_hidden_anew() {
    let (stage, running) = Stage::at_a_full_client(1).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    assert!(worker.leasing.lease(&stage.request(1, Duration::ZERO)).await.unwrap().is_empty(), "it is at hand");
    assert_eq!(stage.broker.leasing.record(&stage.success(&running)).await.unwrap(), Recorded::First);
    stage.broker.leasing.settle(&running.receipt, &Settlement::Complete).await.unwrap();
    // The SDK gives an unanswered try up after seconds and repeats it: by then the message was received long ago.
    proxy.fault("UpdateItem", AwsFault::Hold);
    proxy.fault_all("ChangeMessageVisibilityBatch", AwsFault::Refuse("InvalidParameterValue"));
    let delivery = stage.lease(&worker).await;
    assert_eq!(delivery.attempt, 1, "no attempt was spent without a start");
    assert!(proxy.calls("ChangeMessageVisibilityBatch") > 0);
}

#[tokio::test]
async fn of_many_messages_of_a_full_client_one_tries_for_a_slot() {
    let (stage, _) = Stage::at_a_full_client(10).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    assert!(worker.leasing.lease(&stage.request(10, Duration::ZERO)).await.unwrap().is_empty());
    assert_eq!((receives(&proxy, &stage.queue), slot_calls(&proxy)), (1, 1), "ten messages at once");
}

#[tokio::test]
async fn a_worker_keeps_a_hundred_messages_of_a_full_client_and_leaves_the_others_to_others_within_seconds() {
    let (stage, _) = Stage::at_a_full_client(140).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process_with(proxy.url(), |_| {}).await;
    let (leasing, request) = (worker.broker().leasing, stage.request(10, PATIENCE));
    let mut asking = JoinSet::new();
    asking.spawn(async move { leasing.lease(&request).await });
    while proxy.calls("ReceiveMessage") < 15 && asking.try_join_next().is_none() {
        tokio::task::yield_now().await;
    }
    asking.shutdown().await;
    worker.close().await;
    let entries = proxy.bodies("ChangeMessageVisibilityBatch");
    let entries = entries.iter().flat_map(|body| body["Entries"].as_array().unwrap());
    let left: Vec<_> = entries.map(|entry| entry["VisibilityTimeout"].as_u64().unwrap()).collect();
    let seconds = left.iter().filter(|seconds| (1..=10).contains(*seconds)).count();
    assert!(seconds >= 40, "{seconds} of at least 40 come again within seconds: {left:?}");
}

#[tokio::test]
async fn a_worker_receives_the_backlog_of_a_full_client_no_faster_than_ten_batches_a_second() {
    let (stage, _) = Stage::at_a_full_client(400).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    let begun = Instant::now();
    assert!(worker.leasing.lease(&stage.request(1, Duration::from_secs(3))).await.unwrap().is_empty());
    // However long it took: a pause of a second lies behind every ten.
    let most = 10 * (begun.elapsed().as_secs() as usize + 2);
    let made = receives(&proxy, &stage.queue);
    assert!(made <= most, "{made} receives, at most {most} were to be made");
}
