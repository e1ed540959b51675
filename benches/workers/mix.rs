//! A mix of jobs of eight clients over NATS, and what each costs of JetStream's API; and what processes ask for that have
//! nothing to do.
//!
//! Of ten jobs five have keys, one is submitted twice, one is delayed by a second, one fails once, and the clients of two ask
//! for the result until it is there.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use tokio::time::sleep;

use crate::asked::Listener;
use crate::faults::responds;
use crate::jobs::{Jobs, Submitter};
use crate::nodes::Nodes;
use crate::relays;

/// Jobs a second.
const RATE: u64 = 20;
const CLIENTS: u64 = 8;
/// Worker processes.
const WORKERS: usize = 2;
/// When a process has been idle for so long, it does not expect a job any more.
const IDLE_AFTER: Duration = Duration::from_secs(65);
const IDLE_FOR: Duration = Duration::from_secs(20);
/// A delayed or failed job has its result within this time.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// Whether the handler of this job fails the first time.
fn fails_once(number: u64) -> bool {
    number % 10 == 7
}

/// Submits one, and does what its client does then.
pub(crate) async fn submit(client: &Client, number: u64, payload: String) {
    let (name, mut headers) = (format!("client-{}", number % CLIENTS), HeaderMap::new());
    headers.insert("Content-Type", "text/plain");
    if number % 10 == 4 {
        headers.insert("Relay-Delay", "1s");
    }
    if number.is_multiple_of(2) {
        headers.insert("Idempotency-Key", format!("job-{number}"));
    }
    let subject = format!("relay.submit.{name}.work");
    let ask = async |headers: HeaderMap| {
        let sent = client.request_with_headers(subject.clone(), headers, payload.clone().into());
        let answer = sent.await.unwrap();
        let said = answer.headers.unwrap_or_default();
        assert!(said.get("Nats-Service-Error").is_none(), "{said:?}");
        said.get("Relay-Job-Id").unwrap().to_string()
    };
    let job = ask(headers.clone()).await;
    match number % 10 {
        2 => drop(ask(headers).await),
        5 | 9 => {
            let asked = format!("relay.result.{name}");
            let outcome = async || {
                let answer = client.request(asked.clone(), job.clone().into()).await.unwrap();
                answer.headers.and_then(|headers| headers.get("Relay-Outcome").cloned())
            };
            while outcome().await.is_none() {
                sleep(Duration::from_millis(100)).await;
            }
        }
        _ => {}
    }
}

/// One run of `relay`: prints calls and errors of the API for each job, and for each second of idleness.
pub(crate) async fn run(name: &str, relay: &str, seconds: u64) {
    let (nats, jobs) = (Nodes::start().await, Arc::new(Jobs::failing_once(fails_once)));
    let client = nats.client().await;
    let (_, running) = relays::on_nats(relay, &nats, WORKERS, &jobs).await;
    responds(&client).await;
    let submitter = Arc::new(Submitter::Mixed(client.clone()));
    let first = crate::warm_up(&submitter, &jobs, WORKERS).await;
    sleep(ENDED_WITHIN).await;
    let (listener, before) = (Listener::start(&nats).await, errors(&client).await);
    let end = first + RATE * seconds;
    jobs.come(&submitter, RATE, first..end).await;
    jobs.all_begun(end).await;
    sleep(ENDED_WITHIN).await;
    let (asked, failed) = (listener.heard(), errors(&client).await - before);
    let count = (end - first) as usize;
    println!("mix {name:5} {count} jobs, {WORKERS} processes: {}", asked.pulls_each(count));
    println!("    asks for {}; errors {:.3}", asked.calls_each(count), failed as f64 / count as f64);
    sleep(IDLE_AFTER).await;
    let (listener, before) = (Listener::start(&nats).await, errors(&client).await);
    sleep(IDLE_FOR).await;
    let (asked, failed) = (listener.heard(), errors(&client).await - before);
    println!("    idle: {} a second, {failed} errors", asked.calls_each(IDLE_FOR.as_secs() as usize));
    drop(running);
}

/// Errors of the account's API so far.
async fn errors(client: &Client) -> u64 {
    let account = client.request("$JS.API.INFO", "".into()).await.unwrap();
    let account: serde_json::Value = serde_json::from_slice(&account.payload).unwrap();
    account["api"]["errors"].as_u64().unwrap()
}
