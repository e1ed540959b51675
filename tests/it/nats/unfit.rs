//! Results that no worker of relay could have recorded, as readers over NATS are told them.

use std::sync::Arc;

use relay_bridge::contract::{Failure, JobId, Outcome};

use super::support::{Answer, Relay, Setup};
use crate::foreign_results::{Log, UNFIT, is_fit, log, result, unfit};

async fn start(log: Log) -> Relay {
    let break_broker = Box::new(move |broker: &mut relay_bridge::broker::Broker| broker.results = Arc::new(log));
    Setup { break_broker, ..Setup::default() }.start().await
}

fn id(key: &str) -> JobId {
    JobId::derive(&"me".parse().unwrap(), &"mail".parse().unwrap(), &key.parse().unwrap())
}

/// Holds a raw result against what headers of NATS, and of HTTP behind it, carry.
fn is_raw(name: &str, answer: &Answer) {
    assert_eq!((answer.header("Nats-Service-Error"), answer.text()), ("", "output"), "{name}");
    let content_type = answer.header("Content-Type");
    let unfit_type = ["line-break", "nul", "not-ascii", "no-type", "blank-type", "long-type"].contains(&name);
    assert_eq!(content_type, if unfit_type { "application/octet-stream" } else { "text/plain" }, "{name}");
    for (header, values) in answer.0.headers.iter().flat_map(|headers| headers.iter()) {
        assert_ne!(header.to_string(), "X-Injected", "{name}");
        assert_ne!(header.to_string(), "traceparent", "{name}");
        assert!(values.iter().all(|value| is_fit(value.as_str())), "{name}: {header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_no_worker_could_record_is_answered_with_what_headers_can_carry() {
    let relay = start(unfit("me")).await;
    for (name, _) in UNFIT {
        is_raw(name, &relay.ask("relay.result.me", &[], id(name).to_string()).await);
        assert_eq!(relay.ask("relay.status.me", &[], id(name).to_string()).await.field("job_id"), id(name).to_string());
    }
    let mut all = relay.until_empty("relay.results.me", &[]).await;
    let end = all.pop().unwrap();
    assert_eq!((end.header("Relay-Count"), all.len()), (UNFIT.len().to_string().as_str(), UNFIT.len()));
    for ((name, _), answer) in UNFIT.iter().zip(&all) {
        is_raw(name, answer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_many_results_ends_by_the_bytes_that_were_sent_and_the_next_goes_on_behind_it() {
    const LIMIT: usize = 4 << 20;
    // Without a payload the body is the entry as JSON, in which a byte of the failure can become six.
    let relay = start(log((0..300).map(|at| {
        let mut failed = result("me", &format!("key-{at}"), "");
        failed.outcome = Outcome::Failed;
        failed.failure = Some(Failure { reason: "no".to_owned(), detail: "\u{1}".repeat(15 << 10) });
        failed
    })))
    .await;
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let headers: Vec<(&str, &str)> = after.iter().map(|after: &String| ("Relay-After", after.as_str())).collect();
        let headers = [&headers[..], &[("Relay-Limit", "1000")]].concat();
        let mut answers = relay.until_empty("relay.results.me", &headers).await;
        let end = answers.pop().unwrap();
        assert_eq!(end.header("Relay-Count"), answers.len().to_string());
        if answers.is_empty() {
            break;
        }
        let bytes: usize = answers.iter().map(|answer| answer.0.payload.len()).sum();
        assert!(bytes <= LIMIT + (64 << 10), "an answer of {bytes} bytes");
        seen.extend(answers.iter().map(|answer| answer.field("job_id")));
        after = Some(end.header("Relay-Cursor").to_owned());
    }
    let all: Vec<_> = (0..300).map(|at| id(&format!("key-{at}")).to_string()).collect();
    assert_eq!(seen, all, "each of them once and in order");
}
