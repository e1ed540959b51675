//! The printed permissions against the calls that the adapter makes, found in its sources.

use std::collections::BTreeSet;
use std::path::Path;

use relay_sqs::iam::{QUEUE_ACTIONS, QUEUE_CREATING, REPLY_ACTIONS, TABLE_ACTIONS, TABLE_CREATING};

/// Methods of the SDK's clients, and their names in IAM. A batch and a transaction are allowed by their parts.
const CALLS: [(&str, &[&str]); 21] = [
    ("batch_get_item", &["dynamodb:BatchGetItem"]),
    ("change_message_visibility_batch", &["sqs:ChangeMessageVisibility"]),
    ("create_queue", &["sqs:CreateQueue", "sqs:TagQueue"]),
    ("create_table", &["dynamodb:CreateTable", "dynamodb:TagResource"]),
    ("delete_item", &["dynamodb:DeleteItem"]),
    ("delete_message_batch", &["sqs:DeleteMessage"]),
    ("delete_queue", &["sqs:DeleteQueue"]),
    ("describe_table", &["dynamodb:DescribeTable"]),
    ("describe_time_to_live", &["dynamodb:DescribeTimeToLive"]),
    ("get_item", &["dynamodb:GetItem"]),
    ("get_queue_attributes", &["sqs:GetQueueAttributes"]),
    ("get_queue_url", &["sqs:GetQueueUrl"]),
    ("put_item", &["dynamodb:PutItem"]),
    ("query", &["dynamodb:Query"]),
    ("receive_message", &["sqs:ReceiveMessage"]),
    ("scan", &["dynamodb:Scan"]),
    ("send_message_batch", &["sqs:SendMessage"]),
    ("set_queue_attributes", &["sqs:SetQueueAttributes"]),
    ("transact_write_items", &["dynamodb:PutItem", "dynamodb:UpdateItem"]),
    ("update_item", &["dynamodb:UpdateItem"]),
    ("update_time_to_live", &["dynamodb:UpdateTimeToLive"]),
];

#[test]
fn the_permissions_are_those_of_the_calls_that_the_adapter_makes() {
    let mut source = String::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    let compact: String = source.chars().filter(|c| !c.is_whitespace()).collect();
    let made = CALLS.iter().filter(|(call, _)| compact.contains(&format!(".{call}()")));
    let needed: BTreeSet<_> = made.flat_map(|(_, actions)| actions.iter().copied()).collect();
    let given = TABLE_ACTIONS.iter().chain(&TABLE_CREATING).chain(&QUEUE_ACTIONS).chain(&QUEUE_CREATING);
    let given = given.chain(&REPLY_ACTIONS);
    assert_eq!(needed, given.copied().collect());
}

/// Adds all files of a folder and of the folders in it.
fn read(folder: &Path, source: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => read(&path, source),
            false => source.push_str(&std::fs::read_to_string(path).unwrap()),
        }
    }
}
