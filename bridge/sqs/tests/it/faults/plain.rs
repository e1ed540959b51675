//! Queues that know nothing of relay, from which a bridge takes messages: the attributes of a message that is put
//! aside.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use relay_conformance::testing::AwsEmulator;
use relay_sqs::config::{Credentials, SqsConfig};
use relay_sqs::plain::{PlainMessage, PlainQueue};

/// A queue and the one for messages that are put aside, each with a small limit.
struct Queues {
    emulator: AwsEmulator,
    sqs: aws_sdk_sqs::Client,
    from: String,
    aside: String,
}

const MESSAGE_MAX: usize = 2_048;

impl Queues {
    async fn open() -> Self {
        let emulator = AwsEmulator::start().await;
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(aws_sdk_sqs::config::BehaviorVersion::v2026_01_12())
            .region(aws_sdk_sqs::config::Region::new("eu-central-1"))
            .endpoint_url(emulator.url())
            .credentials_provider(aws_sdk_sqs::config::Credentials::new("test", "test", None, None, "test"))
            .build();
        let sqs = aws_sdk_sqs::Client::from_conf(config);
        let make = async |name: &str| {
            let call = sqs.create_queue().queue_name(name);
            let call = call.attributes(QueueAttributeName::MaximumMessageSize, MESSAGE_MAX.to_string());
            call.send().await.unwrap().queue_url.unwrap()
        };
        let (from, aside) = (make("orders").await, make("orders-refused").await);
        Self { emulator, sqs, from, aside }
    }

    /// As a bridge opens it that takes from `from` and puts aside in `aside`.
    async fn bridge(&self, from: &str, aside: &str) -> PlainQueue {
        let config = SqsConfig {
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(self.emulator.url()),
            credentials: Credentials::keys("test", "test"),
            ..SqsConfig::default()
        };
        PlainQueue::open(&config, from, aside, None).await.unwrap()
    }

    async fn send(&self, body: &str, attributes: &[(String, &str)]) {
        let mut call = self.sqs.send_message().queue_url(&self.from).message_body(body);
        for (name, value) in attributes {
            let value = MessageAttributeValue::builder().data_type("String").string_value(*value).build().unwrap();
            call = call.message_attributes(name, value);
        }
        call.send().await.unwrap();
    }
}

async fn next(queue: &PlainQueue) -> PlainMessage {
    let hidden = Duration::from_secs(600);
    queue.receive(NonZeroU32::MIN, hidden, Duration::from_secs(20)).await.unwrap().pop().expect("a message is in line")
}

/// Has a message go round once, over one bridge and back over another; its attributes then.
async fn round(queues: &Queues, body: &str, attributes: &[(String, &str)]) -> BTreeMap<String, String> {
    let there = queues.bridge(&queues.from, &queues.aside).await;
    let back = queues.bridge(&queues.aside, &queues.from).await;
    queues.send(body, attributes).await;
    let message = next(&there).await;
    there.copy_aside(&message, "missing", "no order").await.unwrap();
    let message = next(&back).await;
    back.copy_aside(&message, "missing", "no order").await.unwrap();
    next(&there).await.attributes
}

#[tokio::test]
async fn what_is_put_aside_counts_its_hops_however_many_attributes_it_has() {
    let queues = Queues::open().await;
    let ten: Vec<_> = (0..10).map(|nth| (format!("X-{nth}"), "a word")).collect();
    let attributes = round(&queues, "{}", &ten).await;
    assert_eq!(attributes.get("relay-hops").map(String::as_str), Some("2"), "{attributes:?}");
    assert_eq!(attributes.len(), 10, "as many as a message takes");
    assert!((0..9).all(|nth| attributes.contains_key(&format!("x-{nth}"))), "the last one made room: {attributes:?}");
}

#[tokio::test]
async fn what_is_put_aside_counts_its_hops_whatever_case_they_came_in() {
    let queues = Queues::open().await;
    let attributes = round(&queues, "{}", &[("RELAY-HOPS".to_owned(), "3")]).await;
    assert_eq!(attributes.get("relay-hops").map(String::as_str), Some("5"), "{attributes:?}");
}

#[tokio::test]
async fn what_is_put_aside_counts_its_hops_where_its_body_leaves_room_for_nothing_else() {
    let queues = Queues::open().await;
    let attributes = round(&queues, &"x".repeat(MESSAGE_MAX - 20), &[]).await;
    assert_eq!(attributes, [("relay-hops".to_owned(), "2".to_owned())].into());
}
