//! IAM policies for relay's identities, each with the fewest rights that its role needs.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::config::SqsConfig;
use crate::forward::Forward;
use crate::limits::partition;
use crate::names;

/// The role of one of relay's identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `relay worker`, where the table and the queues exist already.
    Working,
    /// `relay serve`, and a bridge to this broker: a process that waits for results has a reply queue of its own, and
    /// removes the reply queues of processes that are gone.
    Serving,
    /// `relay provision`, and a server that creates its queues itself.
    Provisioning,
}

/// Calls of DynamoDB that a running relay makes, on the table and on its indexes.
pub const TABLE_ACTIONS: [&str; 6] = [
    "dynamodb:BatchGetItem",
    "dynamodb:DeleteItem",
    "dynamodb:GetItem",
    "dynamodb:PutItem",
    "dynamodb:Query",
    "dynamodb:UpdateItem",
];

/// Calls of SQS that a running relay makes; a batch is allowed by the call of one.
pub const QUEUE_ACTIONS: [&str; 6] = [
    "sqs:ChangeMessageVisibility",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "sqs:GetQueueUrl",
    "sqs:ReceiveMessage",
    "sqs:SendMessage",
];

/// Further calls of SQS, on reply queues, that a process makes if it waits for results.
pub const REPLY_ACTIONS: [&str; 3] = ["sqs:CreateQueue", "sqs:DeleteQueue", "sqs:TagQueue"];

/// Further calls of DynamoDB that creating the table takes.
pub const TABLE_CREATING: [&str; 5] = [
    "dynamodb:CreateTable",
    "dynamodb:DescribeTable",
    "dynamodb:DescribeTimeToLive",
    "dynamodb:TagResource",
    "dynamodb:UpdateTimeToLive",
];

/// Further calls of SQS that creating queues takes.
pub const QUEUE_CREATING: [&str; 3] = ["sqs:CreateQueue", "sqs:SetQueueAttributes", "sqs:TagQueue"];

/// Calls on a KMS key with which a table or a queue is encrypted, allowed through these services alone. Creating a
/// table with such a key takes `kms:CreateGrant` as well.
const KEY_ACTIONS: [&str; 5] =
    ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncrypt*"];

/// Calls of SQS that look at a queue that other accounts use. Together with [`QUEUE_CREATING`] they are all that such a
/// queue needs.
const QUEUE_LOOKING: [&str; 2] = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl"];

/// The policy of an identity with `role`. The names of the resources that it may touch contain `account` and the
/// configured region; `*` stands for any.
#[must_use]
pub fn policy(config: &SqsConfig, role: Role, account: &str) -> Value {
    let partition = partition(config.region.as_deref());
    let region = config.region.as_deref().unwrap_or("*");
    let table = format!("arn:{partition}:dynamodb:{region}:{account}:table/{}", config.table);
    let queues = format!("arn:{partition}:sqs:{region}:{account}:{}*", config.queue_prefix);
    let (mut of_table, mut of_queues) = (TABLE_ACTIONS.to_vec(), QUEUE_ACTIONS.to_vec());
    if role == Role::Provisioning {
        of_table.extend(TABLE_CREATING);
        of_queues.extend(QUEUE_CREATING);
    }
    let mut statements = vec![
        json!({ "Sid": "RelayTable", "Effect": "Allow", "Action": of_table, "Resource": [table, format!("{table}/index/*")] }),
        json!({ "Sid": "RelayQueues", "Effect": "Allow", "Action": of_queues, "Resource": queues }),
    ];
    if role != Role::Working {
        let replies = format!("arn:{partition}:sqs:{region}:{account}:{}", names::reply_queue(config, "*"));
        statements
            .push(json!({ "Sid": "RelayReplies", "Effect": "Allow", "Action": REPLY_ACTIONS, "Resource": replies }));
    }
    if role != Role::Working && !config.forward.is_empty() {
        let queues: Vec<_> = config.forward.iter().map(Forward::arn).collect();
        let actions = ["sqs:GetQueueAttributes", "sqs:SendMessage"];
        statements.push(json!({ "Sid": "RelayForward", "Effect": "Allow", "Action": actions, "Resource": queues }));
    }
    if role == Role::Provisioning && !config.shares.is_empty() {
        let queues: BTreeSet<_> = config
            .shares
            .iter()
            .map(|share| format!("arn:{partition}:sqs:{region}:{account}:{}", share.queue))
            .collect();
        let actions: Vec<_> = QUEUE_LOOKING.iter().chain(&QUEUE_CREATING).collect();
        statements.push(json!({ "Sid": "RelayShares", "Effect": "Allow", "Action": actions, "Resource": queues }));
    }
    let mut of_keys = KEY_ACTIONS.to_vec();
    if role == Role::Provisioning {
        of_keys.push("kms:CreateGrant");
    }
    let domain = if partition == "aws-cn" { "amazonaws.com.cn" } else { "amazonaws.com" };
    let via = ["dynamodb", "sqs"].map(|service| format!("{service}.{region}.{domain}"));
    statements.push(json!({
        "Sid": "RelayKeys", "Effect": "Allow", "Action": of_keys,
        "Resource": format!("arn:{partition}:kms:{region}:{account}:key/*"),
        "Condition": { "StringLike": { "kms:ViaService": via } },
    }));
    json!({ "Version": "2012-10-17", "Statement": statements })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_resources_are_of_the_partition_of_their_region() {
        for (region, partition) in [
            ("eu-central-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("eusc-de-east-1", "aws-eusc"),
        ] {
            let forward = format!("shop=https://sqs.{region}.amazonaws.com/111122223333/results");
            let config = SqsConfig {
                region: Some(region.to_owned()),
                forward: vec![forward.parse().unwrap()],
                shares: vec!["shop-orders".parse().unwrap()],
                ..SqsConfig::default()
            };
            let text = policy(&config, Role::Provisioning, "123456789012").to_string();
            let (all, right) = (text.matches("\"arn:").count(), text.matches(&format!("\"arn:{partition}:")).count());
            assert!(all == right && all > 4, "{region}: {text}");
        }
    }

    #[test]
    fn every_identity_may_use_a_key_of_the_account_through_both_services() {
        for (role, grants) in [(Role::Working, false), (Role::Serving, false), (Role::Provisioning, true)] {
            let policy = policy(&SqsConfig::default(), role, "123456789012");
            let keys = policy["Statement"].as_array().unwrap().iter().find(|one| one["Sid"] == "RelayKeys");
            let keys = keys.unwrap_or_else(|| panic!("{role:?} may use no key"));
            let actions = keys["Action"].as_array().unwrap();
            assert!(actions.contains(&json!("kms:Decrypt")) && actions.contains(&json!("kms:GenerateDataKey")));
            assert_eq!(actions.contains(&json!("kms:CreateGrant")), grants, "{role:?}");
            let via = &keys["Condition"]["StringLike"]["kms:ViaService"];
            assert_eq!(via, &json!(["dynamodb.*.amazonaws.com", "sqs.*.amazonaws.com"]));
        }
    }

    #[test]
    fn a_worker_may_create_nothing_and_a_server_its_reply_queue_only() {
        let working = policy(&SqsConfig::default(), Role::Working, "123456789012").to_string();
        let serving = policy(&SqsConfig::default(), Role::Serving, "123456789012");
        for creating in TABLE_CREATING.iter().chain(&QUEUE_CREATING) {
            assert!(!working.contains(creating), "{creating}");
        }
        let creates = |statement: &&Value| statement.to_string().contains("Create");
        let statements = serving["Statement"].as_array().unwrap();
        let creating: Vec<_> = statements.iter().filter(creates).map(|statement| &statement["Resource"]).collect();
        assert_eq!(creating, ["arn:aws:sqs:*:123456789012:relay-_reply_*"]);
        let provisioning = policy(&SqsConfig::default(), Role::Provisioning, "*").to_string();
        assert!(provisioning.contains("dynamodb:CreateTable") && provisioning.contains("sqs:CreateQueue"));
    }
}
