//! Results that no worker of relay could have recorded: a process with the broker's credentials may have. Readers are
//! told as much as can be told, and nothing is an error of relay's.

use std::sync::Arc;

use relay::api::{JobView, ResultView, ResultsPage};
use relay_bridge::broker::Broker;
use relay_bridge::contract::{Failure, JobId, Outcome};

use super::support::{Relay, Reply, Setup};
use crate::foreign_results::{UNFIT, is_fit, log, result, unfit};

async fn start() -> Relay {
    let break_broker = Box::new(|broker: &mut relay_bridge::broker::Broker| broker.results = Arc::new(unfit("dev")));
    Setup { break_broker, ..Setup::default() }.start().await
}

fn id(key: &str) -> JobId {
    JobId::derive(&"dev".parse().unwrap(), &"mail".parse().unwrap(), &key.parse().unwrap())
}

/// Holds what a list says of a result against what a result may be.
fn is_sound(name: &str, view: &ResultView) {
    assert_eq!(view.job_id, id(name), "{name}");
    assert!(is_fit(&view.content_type), "{name}: {:.80}", view.content_type);
    assert_eq!(view.failure.is_none(), view.outcome == Outcome::Succeeded, "{name}: {view:.400?}");
    if let Some(Failure { reason, detail }) = &view.failure {
        assert!(reason.len() <= 64 && detail.len() <= 8 * 1024, "{name}: {} and {}", reason.len(), detail.len());
    }
    assert!(view.meta.is_empty(), "{name}: {:.80?}", view.meta);
    assert!(view.payload_base64.is_some(), "{name}");
}

/// Holds a raw result against what HTTP carries.
fn is_raw(name: &str, reply: &Reply) {
    assert_eq!((reply.status, reply.text().as_str()), (200, "output"), "{name}");
    let content_type = reply.header("content-type");
    assert!(is_fit(content_type), "{name}: {content_type:.80}");
    let unfit_type = ["line-break", "nul", "not-ascii", "no-type", "blank-type", "long-type"].contains(&name);
    assert_eq!(content_type, if unfit_type { "application/octet-stream" } else { "text/plain" }, "{name}");
    for header in ["x-injected", "traceparent"] {
        assert_eq!(reply.header(header), "", "{name}: {header}");
    }
    for header in ["relay-outcome", "relay-attempt", "relay-run-id", "relay-job-id", "relay-cursor"] {
        assert!(is_fit(reply.header(header)), "{name}: {header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_no_worker_could_record_is_answered_with_what_http_can_carry() {
    let relay = start().await;
    for (name, _) in UNFIT {
        is_raw(name, &relay.get(&format!("/v1/jobs/{}/result", id(name))).await);
        is_raw(name, &relay.get(&format!("/v1/jobs/{}/result?wait=1s", id(name))).await);
        // A client that submits the job again and waits is given the result, too.
        is_raw(name, &relay.submit(&[("Idempotency-Key", name), ("Prefer", "wait=20")], "x").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_such_a_result_is_looked_up_and_watched_like_any_other() {
    let relay = start().await;
    for (name, _) in UNFIT {
        let reply = relay.get(&format!("/v1/jobs/{}", id(name))).await;
        assert_eq!(reply.status, 200, "{name}");
        let job: JobView = serde_json::from_slice(&reply.body).unwrap();
        let by_key = relay.get(&format!("/v1/queues/mail/jobs?key={name}")).await;
        assert_eq!(serde_json::from_slice::<JobView>(&by_key.body).unwrap(), job, "{name}");
        assert!(job.receipt.meta.is_empty(), "{name}: {:.80?}", job.receipt.meta);
        let mut events = relay.stream(&format!("/v1/jobs/{}/events", id(name)), &[]).await;
        assert_eq!(events.event().await.event, "snapshot", "{name}");
        let finished = events.event().await;
        assert_eq!(finished.event, "finished", "{name}");
        assert!(
            finished.data["meta"].as_object().is_none_or(serde_json::Map::is_empty),
            "{name}: {:.200}",
            finished.data
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_streams_of_results_tell_such_a_result_within_what_a_result_may_be() {
    let relay = start().await;
    let reply = relay.get("/v1/results").await;
    assert_eq!(reply.status, 200);
    let page: ResultsPage = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(page.entries.len(), UNFIT.len());
    let mut stream = relay.stream("/v1/results", &[]).await;
    for ((name, _), view) in UNFIT.iter().zip(&page.entries) {
        is_sound(name, view);
        let event = stream.event().await;
        assert_eq!(&*event.event, "result", "{name}");
        assert_eq!(serde_json::from_value::<ResultView>(event.data).unwrap(), *view, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_with_such_results_can_be_submitted_again_in_a_batch() {
    let relay = start().await;
    let entries: Vec<_> = UNFIT.iter().map(|(name, _)| serde_json::json!({ "text": "x", "key": name })).collect();
    let answer = relay.ask("POST /v1/queues/mail/batch", &[], serde_json::json!(entries).to_string()).await;
    assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(UNFIT.len() as u64)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_results_ends_at_a_mebibyte_as_it_is_sent_and_the_next_goes_on_behind_it() {
    const LIMIT: usize = 1 << 20;
    // Three kinds of growth: base64, the escapes of JSON, and a failure beside the payload.
    let break_broker = Box::new(|broker: &mut Broker| {
        broker.results = Arc::new(log((0..90).map(|at| {
            let mut large = result("dev", &format!("key-{at}"), vec![b'x'; 16 * 1024]);
            if at % 3 == 0 {
                large.outcome = Outcome::Failed;
                large.failure = Some(Failure { reason: "no".to_owned(), detail: "\u{1}".repeat(15 << 10) });
            }
            large
        })));
    });
    let setup = Setup { break_broker, ..Setup::default() };
    let relay = setup.start().await;
    let (mut after, mut seen, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let reply = relay.get(&format!("/v1/results?queue=mail{after}")).await;
        assert_eq!(reply.status, 200);
        assert!(reply.body.len() <= LIMIT + 1_024, "a page of {} bytes", reply.body.len());
        let page: ResultsPage = serde_json::from_slice(&reply.body).unwrap();
        if page.entries.is_empty() {
            break;
        }
        pages += 1;
        seen.extend(page.entries.iter().map(|entry| entry.job_id));
        after = format!("&after={}", page.next);
    }
    let all: Vec<_> = (0..90).map(|at| id(&format!("key-{at}"))).collect();
    assert_eq!(seen, all, "each of them once and in order");
    assert!((2..12).contains(&pages), "{pages} pages: they are filled");
}
