//! Results in a client's own queue of SQS, sent by the binary, across a `kill -9` between a message and its cursor.

use std::time::{Duration, Instant};

use crate::aws_support::{on_sqs, sqs};
use crate::cli_support::Running;
use relay::api::ResultView;
use relay::client::{Client, NewJob, ResultsFilter};
use relay_bridge::contract::{JobId, RunId};
use relay_conformance::testing::{AwsEmulator, AwsFault, AwsProxy};
use serde_json::json;

/// Longer than another server takes to find that the one at work is dead.
const PATIENCE: Duration = Duration::from_secs(240);
/// Jobs of each of the three parts: of the first all are noted as sent, of the second none, the third is the next server's.
const EACH: usize = 10;

// The proxy has a thread of its own: the test blocks one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_queue_has_each_result_once_and_in_order_whenever_the_server_is_killed() {
    let emulator = AwsEmulator::start().await;
    let share = ["--sqs-share", "dev-results.fifo=receive:111122223333"];
    let made = on_sqs(&emulator.url(), &["provision", "--queue", "orders"], &share).output().unwrap();
    assert_eq!(crate::cli_support::code(&made), 0, "{made:?}");
    let mailbox = sqs(&emulator, "GetQueueUrl", &json!({ "QueueName": "dev-results.fifo" }));
    let mailbox = mailbox["QueueUrl"].as_str().unwrap();
    let worker = ["worker", "--json", "--slots", "4", "--queue", "orders", "--log", "error"];
    let worker = Running::start_command(on_sqs(&emulator.url(), &worker, &["--", "tr", "a-z", "A-Z"]));
    let forward = format!("dev={mailbox}");
    let serve = |url: &str| {
        let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--queue", "orders", "--log", "error"];
        Running::start_command(on_sqs(url, &args, &["--sqs-forward", &forward]))
    };
    let mut read = Vec::new();

    let proxy = AwsProxy::start(&emulator.url()).await;
    let doomed = serve(&proxy.url());
    submit(&doomed, 0..EACH).await;
    receive(&emulator, mailbox, &mut read, EACH);
    // Results are sent, and the place up to which they are is never noted.
    proxy.fault_all("UpdateItem", AwsFault::Hold);
    submit(&doomed, EACH..2 * EACH).await;
    receive(&emulator, mailbox, &mut read, EACH + 1);
    proxy.held().await;
    doomed.kill();
    let not_noted = read[EACH..].to_vec();

    let proxy = AwsProxy::start(&emulator.url()).await;
    let server = serve(&proxy.url());
    submit(&server, 2 * EACH..3 * EACH).await;
    receive(&emulator, mailbox, &mut read, 3 * EACH);
    let sent: Vec<_> = proxy.bodies("SendMessageBatch").iter().map(ToString::to_string).collect();
    for (_, run) in not_noted {
        assert!(
            sent.iter().any(|sent| sent.contains(&run.to_string())),
            "sent again, and taken for the same by the queue"
        );
    }
    let rest = sqs(&emulator, "ReceiveMessage", &json!({ "QueueUrl": mailbox, "MaxNumberOfMessages": 10 }));
    assert!(rest["Messages"].as_array().is_none_or(Vec::is_empty), "{rest}");
    let client = Client::new(&server.url(), None).unwrap();
    let page = client.page(&ResultsFilter::default()).await.unwrap();
    let log: Vec<_> = page.entries.iter().map(|entry| (entry.job_id, entry.run_id)).collect();
    assert_eq!(read, log, "as the client reads them over HTTP");
    assert_eq!(log.len(), 3 * EACH);
    worker.stop();
    server.stop();
}

async fn submit(server: &Running, numbers: std::ops::Range<usize>) {
    let client = Client::new(&server.url(), None).unwrap();
    for number in numbers {
        let job = NewJob {
            key: Some(format!("job-{number}").parse().unwrap()),
            content_type: "text/plain".to_owned(),
            ..NewJob::new("orders".parse().unwrap(), "hello")
        };
        client.submit(&job).await.unwrap();
    }
}

/// Reads messages, and deletes each, until there were `count` in all.
fn receive(emulator: &AwsEmulator, queue: &str, read: &mut Vec<(JobId, RunId)>, count: usize) {
    let until = Instant::now() + PATIENCE;
    while read.len() < count {
        assert!(Instant::now() < until, "{} of {count} came", read.len());
        let ask = json!({ "QueueUrl": queue, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 1, "MessageAttributeNames": ["All"] });
        for message in sqs(emulator, "ReceiveMessage", &ask)["Messages"].as_array().into_iter().flatten() {
            let result: ResultView = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
            assert_eq!(result.payload_base64.as_deref(), Some("SEVMTE8="));
            let attribute = &message["MessageAttributes"]["Relay-Run-Id"]["StringValue"];
            assert_eq!(attribute.as_str(), Some(result.run_id.to_string().as_str()));
            read.push((result.job_id, result.run_id));
            sqs(emulator, "DeleteMessage", &json!({ "QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"] }));
        }
    }
}
