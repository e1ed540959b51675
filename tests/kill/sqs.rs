//! `kill -9` of two bridges in turn, while messages of a queue of SQS that knows nothing of relay become jobs, while jobs of a
//! relay on SQS are done on NATS, and while jobs of another relay are done on SQS: each message is one job, what can't be one
//! is put aside, and each job has one result, which is also sent to where the messages came from.
//!
//! `RELAY_KILL_JOBS` sets the number of messages (400 here, 150 where SQS is the target; the emulator is no place for more
//! than 2,000); `RELAY_KILL_SEED` replays a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::aws_support::{create_queue, on_sqs, with_credentials};
use crate::cli_support::Running;
use crate::support::rounds::{Replicas, each_has_one_result, moment};
use crate::support::{Random, Starts, jobs_and_seed};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Outcome, QueueName, Submission};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Lookup, ResultFilter, Start};
use relay_conformance::testing::{AwsEmulator, NatsServer};
use relay_sqs::config::{Credentials, SqsConfig};
use relay_sqs::{Settings, Sqs};
use serde_json::json;
use tokio::sync::watch;

const MESSAGES: usize = 400;
/// Jobs where the emulator keeps them as well: each of them takes it some twenty calls.
const JOBS_AT_TARGET: usize = 150;
/// Kills, at equal distances.
const KILLS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_of_a_queue_of_sqs_is_one_job_and_has_one_answer_whatever_bridge_is_killed() {
    let _alone = crate::support::alone().await;
    let (messages, seed) = jobs_and_seed(MESSAGES);
    let dir = tempfile::tempdir().unwrap();
    let (emulator, inner) = (AwsEmulator::start().await, NatsServer::start().await);
    let sqs = |action: &str, body: &serde_json::Value| crate::aws_support::sqs(&emulator, action, body);
    let [orders, refused, answers] = ["orders", "refused", "answers.fifo"].map(|name| create_queue(&emulator, name));
    let provisioned = crate::cli_support::run(["provision", "--nats", &inner.url()]);
    assert_eq!(crate::cli_support::code(&provisioned), 0, "{provisioned:?}");
    let text = |value: &str| json!({ "DataType": "String", "StringValue": value });
    let mut sent = BTreeMap::new();
    for n in 0..messages {
        let attributes = json!({ "Order-Id": text(&format!("order-{n}")), "X-Tenant": text("blue") });
        let body = format!("payload of order-{n}");
        let message = json!({ "QueueUrl": orders, "MessageBody": body, "MessageAttributes": attributes });
        let id = sqs("SendMessage", &message)["MessageId"].as_str().unwrap().to_owned();
        sent.insert(id, format!("order-{n}"));
    }
    // The same order in another message: one job, and an answer to each.
    let again = json!({
        "QueueUrl": orders, "MessageBody": "payload of order-0",
        "MessageAttributes": { "Order-Id": text("order-0"), "X-Tenant": text("blue") },
    });
    sent.insert(sqs("SendMessage", &again)["MessageId"].as_str().unwrap().to_owned(), "order-0".to_owned());
    sqs(
        "SendMessage",
        &json!({ "QueueUrl": orders, "MessageBody": "no order", "MessageAttributes": { "X": text("kept") } }),
    );

    let (config, starts) = (dir.path().join("relay.toml"), Starts::new(dir.path()));
    fs::write(&config, configured(&orders, &refused, &answers, &emulator, &inner)).unwrap();
    let worker = Running::start_command(starts.worker(&["--nats", &inner.url()]));
    let (mut bridges, mut random) = (Replicas::start(2, || bridge(&config)), Random::new(seed));
    let left = || {
        let names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
        let found = sqs("GetQueueAttributes", &json!({ "QueueUrl": orders, "AttributeNames": names }));
        names.iter().map(|name| found["Attributes"][name].as_str().unwrap().parse::<usize>().unwrap()).sum::<usize>()
    };
    for kill in 0..KILLS {
        while left() > messages - messages / (KILLS + 1) * (kill + 1) {
            tokio::task::yield_now().await;
        }
        bridges.kill_one(&mut random);
    }
    // The messages that a killed bridge held come again when their time is over.
    while left() > 0 || starts.jobs().len() < messages {
        tokio::task::yield_now().await;
    }
    bridges.stop();
    worker.stop();
    let (mut answered, mut runs) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let asked = json!({ "QueueUrl": answers, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"] });
        let received = sqs("ReceiveMessage", &asked);
        let received = received["Messages"].as_array().filter(|messages| !messages.is_empty());
        let Some(received) = received else { break };
        for message in received {
            let attribute = |name: &str| message["MessageAttributes"][name]["StringValue"].as_str().unwrap().to_owned();
            assert_eq!(attribute("Relay-Outcome"), "succeeded");
            let message_id = attribute("Relay-In-Reply-To");
            let to = sent.get(&message_id).unwrap();
            assert_eq!((attribute("Relay-Key"), attribute("Relay-Hops").as_str()), (to.clone(), "1"));
            runs.insert(attribute("Relay-Run-Id"));
            let body: serde_json::Value = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
            let payload = BASE64_STANDARD.decode(body["payload_base64"].as_str().unwrap()).unwrap();
            assert_eq!(payload, format!("payload of {to}").into_bytes());
            assert!(answered.insert(message_id), "a second answer to {to}");
            sqs("DeleteMessage", &json!({ "QueueUrl": answers, "ReceiptHandle": message["ReceiptHandle"] }));
        }
    }
    assert_eq!((answered.len(), runs.len()), (sent.len(), messages), "one answer per message");
    let aside = sqs(
        "ReceiveMessage",
        &json!({ "QueueUrl": refused, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"] }),
    );
    let aside = aside["Messages"].as_array().unwrap();
    println!(
        "sent {messages} and one that is no order, jobs {}, answers {}, put aside {}; kills of bridges {KILLS}",
        starts.jobs().len(),
        answered.len(),
        aside.len()
    );
    assert_eq!(starts.jobs().len(), messages, "one job per message");
    assert!(aside.iter().all(|message| message["Body"] == "no order"), "{aside:?}");
    let attribute = |name: &str| aside[0]["MessageAttributes"][name]["StringValue"].as_str().unwrap_or_default();
    assert_eq!((attribute("Relay-Reason"), attribute("X"), attribute("Relay-Queue")), ("missing", "kept", "orders"));
    assert!(attribute("Relay-Detail").contains("order-id"), "{}", attribute("Relay-Detail"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_of_a_relay_on_sqs_has_one_result_from_nats_whatever_bridge_is_killed() {
    let _alone = crate::support::alone().await;
    let (jobs, seed) = jobs_and_seed(MESSAGES);
    let dir = tempfile::tempdir().unwrap();
    let (emulator, inner) = (AwsEmulator::start().await, NatsServer::start().await);
    let provisioned = crate::cli_support::run(["provision", "--nats", &inner.url()]);
    assert_eq!(crate::cli_support::code(&provisioned), 0, "{provisioned:?}");
    let config = SqsConfig {
        region: Some("eu-central-1".to_owned()),
        endpoint: Some(emulator.url()),
        credentials: Credentials::keys("test", "test"),
        ..SqsConfig::default()
    };
    let sqs = Sqs::connect(config, Settings::default()).await.unwrap();
    let (broker, queue): (_, QueueName) = (sqs.broker(), "default".parse().unwrap());
    let policy = QueuePolicy { lease: Duration::from_secs(2), ..QueuePolicy::default() };
    broker.policies.put_policy(&queue, &policy, None).await.unwrap();
    let mut submitted = Vec::new();
    for n in 0..jobs {
        let submission = Submission {
            client: "shop".parse().unwrap(),
            queue: queue.clone(),
            key: Some(format!("job-{n}").parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: format!("payload of job-{n}").into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        let job = submission.accept(&policy, Clock::system().now());
        submitted.push((job.id, job.payload.clone()));
        broker.jobs.enqueue(job).await.unwrap();
    }

    let (file, starts) = (dir.path().join("relay.toml"), Starts::new(dir.path()));
    let text = format!(
        "[[bridge]]\nname = \"aws\"\nslots = 32\nqueues = {{ default = \"default\" }}\n\
         from.relay_sqs = {{ region = \"eu-central-1\", endpoint = \"{}\" }}\nto.nats = {{ servers = [\"{}\"] }}\n",
        emulator.url(),
        inner.url()
    );
    fs::write(&file, text).unwrap();
    let worker = Running::start_command(starts.worker(&["--nats", &inner.url()]));
    let (mut bridges, mut random) = (Replicas::start(2, || bridge(&file)), Random::new(seed));
    let client = "shop".parse().unwrap();
    for (n, (job, payload)) in submitted.iter().enumerate() {
        let Lookup::Finished(finished) = broker.results.wait(&client, *job, Duration::from_secs(120)).await.unwrap()
        else {
            panic!("job {n} has no result");
        };
        assert_eq!((finished.result.outcome, &finished.result.payload), (Outcome::Succeeded, payload));
        let (n, every) = (n + 1, jobs / (KILLS + 1));
        if n.is_multiple_of(every) && n / every <= KILLS {
            bridges.kill_one(&mut random);
        }
    }
    let (mut seen, mut start) = (BTreeSet::new(), Start::Oldest);
    loop {
        let page = broker.results.page(&client, &start, &ResultFilter::ALL, 100, Duration::ZERO).await.unwrap();
        if page.entries.is_empty() {
            break;
        }
        for entry in page.entries {
            assert!(seen.insert(entry.result.job_id), "a second result of {}", entry.result.job_id);
        }
        start = Start::After(page.next);
    }
    let killed = bridges.killed;
    bridges.stop();
    worker.stop();
    let at_target = starts.jobs().len();
    println!("submitted {jobs}, jobs at the target {at_target}, results {}; kills of bridges {killed}", seen.len());
    assert_eq!((seen.len(), at_target), (jobs, jobs));
    sqs.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_of_another_relay_has_one_result_from_sqs_whatever_bridge_is_killed() {
    let _alone = crate::support::alone().await;
    let (jobs, seed) = jobs_and_seed(JOBS_AT_TARGET);
    let (dir, emulator) = (tempfile::tempdir().unwrap(), AwsEmulator::start().await);
    let made = on_sqs(&emulator.url(), &["provision", "--lease", "2s"], &[]).output().unwrap();
    assert_eq!(crate::cli_support::code(&made), 0, "{made:?}");
    let data = dir.path().join("data");
    let source = ["serve", "--no-auth", "--json", "--lease", "2s", "--retry-base", "50ms", "--log", "error"];
    let places = ["--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
    let source = Running::start(source.iter().chain(&places));
    let (starts, url, leases) = (Starts::new(dir.path()), emulator.url(), source.workers());
    let at_target = ["--sqs", "--sqs-endpoint", &url];
    let worker = Running::start_command(with_credentials(starts.worker(&at_target)));
    let args = ["bridge", "--json", "--log", "error", "--slots", "16", "--from-tcp", &leases];
    let (mut bridges, mut random) = (Replicas::start(2, || on_sqs(&url, &args, &[])), Random::new(seed));
    each_has_one_result(&source.url(), jobs, &starts, async |mut progress: watch::Receiver<usize>| {
        for kill in 0..KILLS {
            moment(&mut progress, jobs, KILLS, kill).await;
            bridges.kill_one(&mut random);
        }
    })
    .await;
    println!("kills of bridges {}", bridges.killed);
    bridges.stop();
    worker.stop();
    source.stop();
}

fn configured(orders: &str, refused: &str, answers: &str, emulator: &AwsEmulator, inner: &NatsServer) -> String {
    format!(
        r#"
[[bridge]]
name = "aws"
slots = 32
reply = "{answers}"
from.sqs = {{ queue = "{orders}", put_aside = "{refused}", region = "eu-central-1", endpoint = "{}" }}
to.nats = {{ servers = ["{}"] }}
job = {{ client = "shop", queue = "default", key = "{{header.Order-Id}}", content_type = "text/plain", meta = ["X-Tenant"] }}
"#,
        emulator.url(),
        inner.url()
    )
}

fn bridge(config: &Path) -> Command {
    with_credentials(crate::cli_support::relay([
        "bridge",
        "--json",
        "--log",
        "error",
        "--config",
        config.to_str().unwrap(),
    ]))
}
