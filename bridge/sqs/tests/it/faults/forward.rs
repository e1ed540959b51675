//! Results sent to queues of clients: in order, each once unless a process dies in between, and nobody holds up another.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::{MessageSystemAttributeName, QueueAttributeName};
use relay_bridge::contract::{ClientId, Job, RunId};
use relay_bridge::leasing::Recorded;
use relay_bridge::result_log::Finished;
use relay_conformance::testing::{AwsFault, AwsProxy};
use relay_sqs::Sqs;
use relay_sqs::forward::Forward;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::support::Stage;

/// A body that tells results apart.
fn body(finished: &Finished, _: usize) -> String {
    format!("{} {}", finished.result.run_id, finished.result.outcome)
}

/// A process that forwards, and how it is told to stop.
struct Forwarding {
    sqs: Sqs,
    running: JoinSet<()>,
    stop: CancellationToken,
}

impl Forwarding {
    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.unwrap();
        }
        self.sqs.close().await;
    }
}

/// A message as its reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    body: String,
    run: String,
    group: Option<String>,
}

impl Stage {
    /// A queue of a client's own; its URL.
    async fn mailbox(&self, name: &str) -> String {
        let mut call = self.sqs().create_queue().queue_name(name);
        if name.ends_with(".fifo") {
            call = call.attributes(QueueAttributeName::FifoQueue, "true");
        }
        call.send().await.unwrap().queue_url.unwrap()
    }

    async fn forwarder(&self, url: String, to: &[(&str, &str)]) -> Sqs {
        let forward = to.iter().map(|(client, url)| format!("{client}={url}").parse::<Forward>().unwrap()).collect();
        self.process_that_forwards(url, forward).await
    }

    async fn forward(&self, url: String, to: &[(&str, &str)]) -> Forwarding {
        let (sqs, stop, mut running) = (self.forwarder(url, to).await, CancellationToken::new(), JoinSet::new());
        let (forwarding, stopped) = (sqs.clone(), stop.clone());
        running.spawn(async move { forwarding.forward(Arc::new(body), stopped).await });
        Forwarding { sqs, running, stop }
    }

    /// Ends one more job of `client`; its run.
    async fn finish(&self, client: &str) -> RunId {
        let client: ClientId = client.parse().unwrap();
        let job = Job { client, ..self.job(None) };
        self.broker.jobs.enqueue(job).await.unwrap();
        let delivery = self.lease(&self.broker).await;
        assert_eq!(self.broker.leasing.record(&self.success(&delivery)).await.unwrap(), Recorded::First);
        self.broker.leasing.settle(&delivery.receipt, &relay_bridge::settlement::Settlement::Complete).await.unwrap();
        delivery.job.run_id
    }

    /// The next `count` messages of a queue, which have to come.
    async fn read(&self, url: &str, count: usize) -> Vec<Read> {
        let (sqs, mut read) = (self.sqs(), Vec::new());
        while read.len() < count {
            let call = sqs.receive_message().queue_url(url).max_number_of_messages(1).wait_time_seconds(20);
            let call = call.message_attribute_names("All");
            let found = call.message_system_attribute_names(MessageSystemAttributeName::MessageGroupId).send().await;
            for message in found.unwrap().messages.unwrap_or_default() {
                let text = |name: &str| message.message_attributes().unwrap()[name].string_value().unwrap().to_owned();
                assert_eq!((text("Relay-Outcome").as_str(), text("Relay-Queue").as_str()), ("succeeded", "work"));
                assert!(!text("Relay-Job-Id").is_empty());
                let group = message.attributes().and_then(|all| all.get(&MessageSystemAttributeName::MessageGroupId));
                read.push(Read {
                    body: message.body().unwrap().to_owned(),
                    run: text("Relay-Run-Id"),
                    group: group.cloned(),
                });
                let handle = message.receipt_handle().unwrap();
                sqs.delete_message().queue_url(url).receipt_handle(handle).send().await.unwrap();
            }
        }
        read
    }

    /// Nothing is in this queue now.
    async fn assert_empty(&self, url: &str) {
        let found = self.sqs().receive_message().queue_url(url).send().await.unwrap();
        assert!(found.messages().is_empty(), "{found:?}");
    }
}

fn runs(read: &[Read]) -> Vec<String> {
    read.iter().map(|read| read.run.clone()).collect()
}

#[tokio::test]
async fn a_client_gets_each_of_its_results_in_order_also_those_from_before() {
    let stage = Stage::open().await;
    let url = stage.mailbox("results.fifo").await;
    let mut ended = Vec::new();
    for _ in 0..3 {
        ended.push(stage.finish("shop").await.to_string());
        stage.finish("other").await;
    }
    let forwarding = stage.forward(stage.emulator.url(), &[("shop", &url)]).await;
    let before = stage.read(&url, 3).await;
    ended.push(stage.finish("shop").await.to_string());
    let after = stage.read(&url, 1).await;
    assert_eq!([runs(&before), runs(&after)].concat(), ended);
    assert_eq!(before[0].body, format!("{} succeeded", ended[0]));
    assert_eq!(before[0].group.as_deref(), Some("shop"));
    forwarding.stop().await;
    stage.assert_empty(&url).await;
}

#[tokio::test]
async fn of_two_processes_one_sends_and_the_other_goes_on_when_it_stops() {
    let stage = Stage::open().await;
    let url = stage.mailbox("results").await;
    let first = stage.forward(stage.emulator.url(), &[("shop", &url)]).await;
    let one = stage.finish("shop").await.to_string();
    assert_eq!(runs(&stage.read(&url, 1).await), [one]);
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let second = stage.forward(proxy.url(), &[("shop", &url)]).await;
    let two = stage.finish("shop").await.to_string();
    assert_eq!(runs(&stage.read(&url, 1).await), [two]);
    assert_eq!(proxy.calls("SendMessageBatch"), 0, "it holds no place");
    first.stop().await;
    second.stop().await;
    let third = stage.forward(stage.emulator.url(), &[("shop", &url)]).await;
    let three = stage.finish("shop").await.to_string();
    assert_eq!(runs(&stage.read(&url, 1).await), [three], "after what was sent, at once");
    third.stop().await;
    stage.assert_empty(&url).await;
}

#[tokio::test]
async fn a_process_that_dies_before_it_noted_what_it_sent_makes_another_send_it_again_as_the_same_run() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let (plain, fifo) = (stage.mailbox("results").await, stage.mailbox("results.fifo").await);
    let run = stage.finish("shop").await.to_string();
    let other = stage.finish("other").await.to_string();
    let to = [("shop", plain.as_str()), ("other", fifo.as_str())];
    for (client, url) in to {
        let proxy = AwsProxy::start(&stage.emulator.url()).await;
        let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sqs = stage.forwarder(proxy.url(), &[(client, url)]).await;
        proxy.fault("SendMessageBatch", AwsFault::Hold);
        dying.spawn(async move { sqs.forward(Arc::new(body), CancellationToken::new()).await });
        proxy.held().await;
        // Sent, and not noted: the next write is the cursor's.
        proxy.fault("UpdateItem", AwsFault::Hold);
        proxy.let_go();
        proxy.held().await;
        dying.shutdown_background();
    }
    // Nobody else begins before the dead one's time is over.
    stage.clock.advance(Duration::from_secs(61));
    let forwarding = stage.forward(stage.emulator.url(), &to).await;
    assert_eq!(runs(&stage.read(&plain, 2).await), [run.clone(), run]);
    assert_eq!(runs(&stage.read(&fifo, 1).await), [other], "SQS took the second for the first");
    let next = stage.finish("other").await.to_string();
    assert_eq!(runs(&stage.read(&fifo, 1).await), [next]);
    forwarding.stop().await;
    stage.assert_empty(&plain).await;
}

#[tokio::test]
async fn a_client_whose_queue_is_gone_holds_up_nobody_and_gets_everything_once_it_is_there() {
    let stage = Stage::open().await;
    let gone = stage.mailbox("gone").await;
    stage.sqs().delete_queue().queue_url(&gone).send().await.unwrap();
    let there = stage.mailbox("there").await;
    let lost = stage.finish("shop").await.to_string();
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let forwarding = stage.forward(proxy.url(), &[("shop", &gone), ("other", &there)]).await;
    let other = stage.finish("other").await.to_string();
    assert_eq!(runs(&stage.read(&there, 1).await), [other]);
    assert_eq!(stage.mailbox("gone").await, gone);
    assert_eq!(runs(&stage.read(&gone, 1).await), [lost]);
    forwarding.stop().await;
}
