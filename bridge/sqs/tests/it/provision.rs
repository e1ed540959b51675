//! Provisioning: the table, relay's own queues, and queues that other accounts use, at an emulator that holds these
//! accounts to the queues' policies.

use std::collections::HashMap;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials as Keys, Region};
use aws_sdk_sqs::types::QueueAttributeName as Name;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::provision::Wanted;
use relay_conformance::testing::AwsEmulator;
use relay_sqs::config::{Credentials, SqsConfig};
use relay_sqs::{Settings, Sqs};

/// Relay's account, and three others. The emulator takes a caller's account from the key's id.
const OWN: &str = "999988887777";
const SHOP: &str = "111122223333";
const READER: &str = "444455556666";
const STRANGER: &str = "777788889999";

struct Stage {
    emulator: AwsEmulator,
    queue: QueueName,
}

impl Stage {
    async fn open() -> Self {
        Self { emulator: AwsEmulator::start_with_policies().await, queue: "orders".parse().unwrap() }
    }

    async fn relay(&self, shares: &[String]) -> Sqs {
        self.relay_with(shares, false).await
    }

    async fn relay_with(&self, shares: &[String], fifo: bool) -> Sqs {
        let config = SqsConfig {
            fifo,
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(self.emulator.url()),
            credentials: Credentials::keys(OWN, "test"),
            shares: shares.iter().map(|share| share.parse().unwrap()).collect(),
            ..SqsConfig::default()
        };
        Sqs::connect(config, Settings::default()).await.unwrap()
    }

    /// The changes that are planned. They are made as well, unless they need force that is not given.
    async fn provision(&self, shares: &[String], force: bool) -> Vec<(String, bool)> {
        let sqs = self.relay(shares).await;
        let wanted = [Wanted { queue: self.queue.clone(), policy: QueuePolicy::default(), seen: None }];
        let planned = sqs.broker().provision.plan(&wanted).await.unwrap();
        match sqs.broker().provision.apply(&wanted, force).await {
            Ok(done) => assert_eq!(done, planned),
            Err(error) => {
                assert_eq!(error.kind(), BrokerErrorKind::StateConflict, "{error}");
                assert!(!force && planned.iter().any(|change| change.destructive), "{error}");
            }
        }
        planned.into_iter().map(|change| (change.what, change.destructive)).collect()
    }

    fn account(&self, id: &str) -> Client {
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("eu-central-1"))
            .endpoint_url(self.emulator.url())
            .credentials_provider(Keys::new(id, "test", None, None, "test"))
            .build();
        Client::from_conf(config)
    }

    /// The address of a queue of relay's account.
    async fn url(&self, name: &str) -> String {
        self.account(OWN).get_queue_url().queue_name(name).send().await.unwrap().queue_url.unwrap()
    }

    async fn sends(&self, account: &str, queue: &str) -> bool {
        let url = self.url(queue).await;
        allowed(self.account(account).send_message().queue_url(url).message_body("hello").send().await)
    }

    async fn receives(&self, account: &str, queue: &str) -> bool {
        let url = self.url(queue).await;
        allowed(self.account(account).receive_message().queue_url(url).send().await)
    }

    async fn policy(&self, queue: &str) -> Option<String> {
        let call = self.account(OWN).get_queue_attributes().queue_url(self.url(queue).await);
        let found = call.attribute_names(Name::Policy).send().await.unwrap().attributes.unwrap_or_default();
        found.get(&Name::Policy).cloned()
    }

    async fn write_policy(&self, queue: &str, policy: String) {
        let call = self.account(OWN).set_queue_attributes().queue_url(self.url(queue).await);
        call.set_attributes(Some(HashMap::from([(Name::Policy, policy)]))).send().await.unwrap();
    }
}

#[tokio::test]
async fn a_redrive_policy_and_too_small_messages_are_differences_that_provisioning_ends() {
    let stage = Stage::open().await;
    stage.provision(&[], false).await;
    let own = stage.account(OWN);
    own.create_queue().queue_name("elsewhere").send().await.unwrap();
    let redrive =
        format!("{{\"deadLetterTargetArn\":\"arn:aws:sqs:eu-central-1:{OWN}:elsewhere\",\"maxReceiveCount\":\"3\"}}");
    let changed = HashMap::from([(Name::RedrivePolicy, redrive), (Name::MaximumMessageSize, "1024".to_owned())]);
    let url = stage.url("relay-orders").await;
    own.set_queue_attributes().queue_url(&url).set_attributes(Some(changed)).send().await.unwrap();
    let planned = stage.provision(&[], false).await;
    let lines: Vec<_> = planned.iter().map(|(what, _)| what.as_str()).collect();
    let of = "queue `relay-orders` of SQS";
    assert_eq!(lines, [format!("{of}: MaximumMessageSize: 262144"), format!("{of}: RedrivePolicy: none")]);
    let found = own.get_queue_attributes().queue_url(&url).attribute_names(Name::All).send().await.unwrap();
    let found = found.attributes.unwrap();
    assert_eq!(found[&Name::MaximumMessageSize], "262144");
    assert!(found.get(&Name::RedrivePolicy).is_none_or(String::is_empty), "{found:?}");
    assert!(stage.provision(&[], false).await.is_empty());
}

/// Whether AWS did it; anything but a refusal for want of a right is a failure of the test.
fn allowed<T, E>(answer: Result<T, aws_sdk_sqs::error::SdkError<E>>) -> bool
where
    E: aws_sdk_sqs::error::ProvideErrorMetadata + std::fmt::Debug,
{
    match answer {
        Ok(_) => true,
        Err(error) => {
            let code = error.as_service_error().and_then(|error| error.code());
            assert!(code.is_some_and(|code| code.starts_with("AccessDenied")), "{error:?}");
            false
        }
    }
}

#[tokio::test]
async fn the_table_has_its_indexes_an_end_for_items_and_a_tag() {
    let stage = Stage::open().await;
    stage.provision(&[], false).await;
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::v2026_01_12())
        .region(aws_sdk_dynamodb::config::Region::new("eu-central-1"))
        .endpoint_url(stage.emulator.url())
        .credentials_provider(Keys::new(OWN, "test", None, None, "test"))
        .build();
    let dynamodb = aws_sdk_dynamodb::Client::from_conf(config);
    let table = dynamodb.describe_table().table_name("relay").send().await.unwrap().table.unwrap();
    let billing = table.billing_mode_summary().and_then(|summary| summary.billing_mode()).unwrap();
    assert_eq!(billing.as_str(), "PAY_PER_REQUEST");
    let mut indexes: Vec<_> =
        table.global_secondary_indexes().iter().map(|index| index.index_name().unwrap()).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, ["by_client", "by_time"]);
    let ends = dynamodb.describe_time_to_live().table_name("relay").send().await.unwrap();
    let ends = ends.time_to_live_description.unwrap();
    assert_eq!(ends.attribute_name(), Some("expires"));
    assert!(ends.time_to_live_status().unwrap().as_str().starts_with("ENABL"), "{ends:?}");
    let tags = dynamodb.list_tags_of_resource().resource_arn(table.table_arn().unwrap()).send().await.unwrap();
    assert!(tags.tags().iter().any(|tag| (tag.key(), tag.value()) == ("application", "relay")), "{tags:?}");
}

#[tokio::test]
async fn relays_own_queues_are_as_they_shall_be_and_what_somebody_changed_is_put_right() {
    let stage = Stage::open().await;
    let high_throughput =
        [(Name::DeduplicationScope, "messageGroup"), (Name::FifoThroughputLimit, "perMessageGroupId")];
    for (fifo, name, more) in [(false, "relay-orders", &[][..]), (true, "relay-orders.fifo", &high_throughput)] {
        let sqs = stage.relay_with(&[], fifo).await;
        let provision = sqs.broker().provision;
        let wanted = [Wanted { queue: stage.queue.clone(), policy: QueuePolicy::default(), seen: None }];
        provision.apply(&wanted, false).await.unwrap();
        let (client, url) = (stage.account(OWN), stage.url(name).await);
        let found = async || {
            let call = client.get_queue_attributes().queue_url(&url).attribute_names(Name::All);
            call.send().await.unwrap().attributes.unwrap()
        };
        let usual = [(Name::MessageRetentionPeriod, "1209600"), (Name::SqsManagedSseEnabled, "true")];
        let expected: Vec<_> = usual.iter().chain(more).collect();
        let attributes = found().await;
        for (name, value) in &expected {
            assert_eq!(attributes.get(name).map(String::as_str), Some(*value), "{name}");
        }
        assert_eq!((attributes.get(&Name::RedrivePolicy), attributes.get(&Name::Policy)), (None, None));
        let tags = client.list_queue_tags().queue_url(&url).send().await.unwrap().tags.unwrap();
        assert_eq!(tags["application"], "relay");
        let shorter = HashMap::from([(Name::MessageRetentionPeriod, "60".to_owned())]);
        client.set_queue_attributes().queue_url(&url).set_attributes(Some(shorter)).send().await.unwrap();
        let [change] = &provision.apply(&wanted, false).await.unwrap()[..] else { panic!("one change") };
        assert_eq!(change.what, format!("queue `{name}` of SQS: MessageRetentionPeriod: 1209600"));
        assert_eq!(found().await[&Name::MessageRetentionPeriod], "1209600");
    }
}

fn shares() -> Vec<String> {
    vec![format!("shop-orders=send:{SHOP}"), format!("shop-results=receive:{READER}")]
}

#[tokio::test]
async fn another_account_does_what_it_was_let_do_in_the_queues_that_were_named_and_nothing_else() {
    let stage = Stage::open().await;
    let planned = stage.provision(&shares(), false).await;
    for expected in [
        "queue `shop-orders` of SQS, for others: create it".to_owned(),
        format!(
            "queue `shop-orders` of SQS, for others: allow arn:aws:iam::{SHOP}:root: sqs:GetQueueUrl, sqs:SendMessage"
        ),
        "queue `shop-results` of SQS, for others: create it".to_owned(),
    ] {
        assert!(planned.contains(&(expected.clone(), false)), "{expected}: {planned:?}");
    }
    let mut may = Vec::new();
    for queue in ["shop-orders", "shop-results", "relay-orders"] {
        for account in [SHOP, READER, STRANGER] {
            may.push((stage.sends(account, queue).await, stage.receives(account, queue).await));
        }
    }
    let (nothing, send, receive) = ((false, false), (true, false), (false, true));
    let expected = [send, nothing, nothing, nothing, receive, nothing, nothing, nothing, nothing];
    assert_eq!(may, expected, "(send, receive) of shop, reader, stranger at orders, results, and relay's own line");
    assert!(stage.sends(OWN, "shop-results").await && stage.receives(OWN, "shop-orders").await);
    assert!(stage.provision(&shares(), false).await.is_empty(), "done once");
}

#[tokio::test]
async fn a_queue_made_for_others_is_kept_encrypted_and_tagged_like_relays_own() {
    let stage = Stage::open().await;
    stage.provision(&["shop-results.fifo".to_owned()], false).await;
    let (client, url) = (stage.account(OWN), stage.url("shop-results.fifo").await);
    let found = client.get_queue_attributes().queue_url(&url).attribute_names(Name::All).send().await.unwrap();
    let found = found.attributes.unwrap();
    for (name, value) in
        [(Name::MessageRetentionPeriod, "1209600"), (Name::SqsManagedSseEnabled, "true"), (Name::FifoQueue, "true")]
    {
        assert_eq!(found.get(&name).map(String::as_str), Some(value), "{name}");
    }
    let tags = client.list_queue_tags().queue_url(&url).send().await.unwrap().tags.unwrap();
    assert_eq!(tags["application"], "relay");
    assert_eq!(stage.policy("shop-results.fifo").await, None, "nobody else was named");
}

#[tokio::test]
async fn who_loses_a_right_is_told_and_loses_it_with_force_only() {
    let stage = Stage::open().await;
    stage.provision(&shares(), false).await;
    let fewer = vec![format!("shop-orders=send:{STRANGER}"), "shop-results".to_owned()];
    let planned = stage.provision(&fewer, false).await;
    assert!(
        planned.iter().any(|(what, force)| *force && what.contains(&format!("no longer allow arn:aws:iam::{SHOP}")))
    );
    assert!(stage.sends(SHOP, "shop-orders").await, "nothing was changed");
    assert!(!stage.sends(STRANGER, "shop-orders").await);
    stage.provision(&fewer, true).await;
    assert!(!stage.sends(SHOP, "shop-orders").await && stage.sends(STRANGER, "shop-orders").await);
    assert!(!stage.receives(READER, "shop-results").await);
    assert!(stage.provision(&fewer, false).await.is_empty());
}

#[tokio::test]
async fn a_policy_that_somebody_else_changed_is_shown_and_put_right() {
    let stage = Stage::open().await;
    stage.provision(&shares(), false).await;
    let ours = stage.policy("shop-orders").await.unwrap();
    stage.write_policy("shop-orders", ours.replace(&format!("arn:aws:iam::{SHOP}:root"), "*")).await;
    assert!(stage.sends(STRANGER, "shop-orders").await, "everybody in the world");
    let planned = stage.provision(&shares(), false).await;
    assert!(planned.iter().any(|(what, force)| *force && what.contains("no longer allow *: ")), "{planned:?}");
    stage.provision(&shares(), true).await;
    assert!(!stage.sends(STRANGER, "shop-orders").await && stage.sends(SHOP, "shop-orders").await);
    stage.write_policy("shop-orders", String::new()).await;
    assert!(!stage.sends(SHOP, "shop-orders").await, "its policy is gone");
    assert!(!stage.provision(&shares(), false).await.is_empty());
    assert!(stage.sends(SHOP, "shop-orders").await);
}
