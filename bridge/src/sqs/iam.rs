//! The least that relay's identities may do, as IAM policies.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::config::SqsConfig;
use super::forward::Forward;
use super::names;

/// What an identity of relay does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `relay worker`, where table and queues are there.
    Working,
    /// `relay serve`, and a bridge to here: whoever waits for results has a reply queue of its own, and removes those of
    /// processes that are gone.
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

/// Calls of SQS on reply queues beyond that, which who waits for results makes.
pub const REPLY_ACTIONS: [&str; 3] = ["sqs:CreateQueue", "sqs:DeleteQueue", "sqs:TagQueue"];

/// What creating takes beyond that.
pub const TABLE_CREATING: [&str; 5] = [
    "dynamodb:CreateTable",
    "dynamodb:DescribeTable",
    "dynamodb:DescribeTimeToLive",
    "dynamodb:TagResource",
    "dynamodb:UpdateTimeToLive",
];

/// The same for queues.
pub const QUEUE_CREATING: [&str; 3] = ["sqs:CreateQueue", "sqs:SetQueueAttributes", "sqs:TagQueue"];

/// What it takes of SQS to look at a queue that other accounts use; with [`QUEUE_CREATING`] that is all that is needed there.
const QUEUE_LOOKING: [&str; 2] = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl"];

/// The policy of an identity with `role`. `account` and `region` stand in the names of what it may touch; `*` for any.
#[must_use]
pub fn policy(config: &SqsConfig, role: Role, account: &str) -> Value {
    let region = config.region.as_deref().unwrap_or("*");
    let table = format!("arn:aws:dynamodb:{region}:{account}:table/{}", config.table);
    let queues = format!("arn:aws:sqs:{region}:{account}:{}*", config.queue_prefix);
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
        let replies = format!("arn:aws:sqs:{region}:{account}:{}", names::reply_queue(config, "*"));
        statements
            .push(json!({ "Sid": "RelayReplies", "Effect": "Allow", "Action": REPLY_ACTIONS, "Resource": replies }));
    }
    if role != Role::Working && !config.forward.is_empty() {
        let queues: Vec<_> = config.forward.iter().map(Forward::arn).collect();
        let actions = ["sqs:GetQueueAttributes", "sqs:SendMessage"];
        statements.push(json!({ "Sid": "RelayForward", "Effect": "Allow", "Action": actions, "Resource": queues }));
    }
    if role == Role::Provisioning && !config.shares.is_empty() {
        let queues: BTreeSet<_> =
            config.shares.iter().map(|share| format!("arn:aws:sqs:{region}:{account}:{}", share.queue)).collect();
        let actions: Vec<_> = QUEUE_LOOKING.iter().chain(&QUEUE_CREATING).collect();
        statements.push(json!({ "Sid": "RelayShares", "Effect": "Allow", "Action": actions, "Resource": queues }));
    }
    json!({ "Version": "2012-10-17", "Statement": statements })
}

#[cfg(test)]
mod tests {
    use super::*;

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
