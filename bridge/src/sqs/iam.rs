//! The least that relay's identities may do, as IAM policies.

use serde_json::{Value, json};

use super::config::SqsConfig;

/// What an identity of relay does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `relay serve` and `relay worker`, where table and queues are there.
    Running,
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
    json!({
        "Version": "2012-10-17",
        "Statement": [
            { "Sid": "RelayTable", "Effect": "Allow", "Action": of_table, "Resource": [table, format!("{table}/index/*")] },
            { "Sid": "RelayQueues", "Effect": "Allow", "Action": of_queues, "Resource": queues },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_relay_may_create_nothing() {
        let running = policy(&SqsConfig::default(), Role::Running, "123456789012").to_string();
        for creating in TABLE_CREATING.iter().chain(&QUEUE_CREATING) {
            assert!(!running.contains(creating), "{creating}");
        }
        let provisioning = policy(&SqsConfig::default(), Role::Provisioning, "*").to_string();
        assert!(provisioning.contains("dynamodb:CreateTable") && provisioning.contains("sqs:CreateQueue"));
    }
}
