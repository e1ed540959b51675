//! The answers of a scripted server over HTTP, whatever version carries them: `http1` and `http2` do.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use relay::api::{ResultsPage, header};
use relay_bridge::contract::IdempotencyKey;
use relay_bridge::result_log::Reset;
use serde::Serialize;
use serde_json::Value;

use super::scenario::{Name, Step};
use super::script::{Answer, Asked, Script, cursor, document};

pub(super) struct Requested {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// Names are in lower case.
    pub(super) headers: Vec<(String, String)>,
    /// The size of the body.
    pub(super) bytes: usize,
}

impl Requested {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// An answer over HTTP.
pub(super) enum Reply {
    Message(Message),
    Raw(String),
    Lost,
    Never,
    Untaken,
}

pub(super) struct Message {
    pub(super) status: u64,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

/// Takes a request that came at the address `at`, and gives the answer to it once it is time.
pub(super) async fn attend(script: &Script, at: usize, requested: &Requested) -> (Step, Reply) {
    let token = requested.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    script.state().tokens.extend(token.map(str::to_owned));
    let (call, query) = asked(requested);
    let wants_results = call.call == Name::Results;
    let (step, answer) = script.begin(at, call);
    script.hold(&step).await;
    let message = match answer {
        Answer::Never => return (step, Reply::Never),
        Answer::Lost => return (step, Reply::Lost),
        Answer::Untaken => return (step, Reply::Untaken),
        Answer::Raw(text) => return (step, Reply::Raw(text)),
        Answer::Receipt(_) if wants_results => page(script, &step, &query),
        Answer::Receipt(receipt) => with_json(202, &step, &*receipt),
        Answer::Open(view) => with_json(202, &step, &*view),
        Answer::Job(view) => with_json(200, &step, &*view),
        Answer::Whoami(text) => with_json(200, &step, &serde_json::from_str::<Value>(&text).unwrap()),
        Answer::Problem(trouble) => {
            let document = document(&trouble);
            let mut message = with_json(document["status"].as_u64().unwrap(), &step, &document);
            let after = trouble.retry_after_ms.map(|after| after.div_ceil(1_000).to_string());
            message.headers.extend(after.map(|after| ("retry-after", after)));
            message
        }
        Answer::Result { view, payload } => {
            let mut message = Message::new(200, &view.content_type, &step, payload.into());
            message.headers.extend([
                (header::JOB_ID, view.job_id.to_string()),
                (header::RUN_ID, view.run_id.to_string()),
                (header::OUTCOME, view.outcome.to_string()),
                (header::ATTEMPT, view.attempt.to_string()),
                (header::CURSOR, view.cursor),
            ]);
            message
        }
    };
    (step, Reply::Message(message))
}

impl Message {
    fn new(status: u64, content_type: &str, step: &Step, body: Vec<u8>) -> Self {
        let mut headers = vec![("content-type", content_type.to_owned())];
        if step.unknown_fields {
            headers.push(("relay-novel", "1".to_owned()));
        }
        Self { status, headers, body }
    }
}

fn with_json<T: Serialize>(status: u64, step: &Step, value: &T) -> Message {
    let mut value = serde_json::to_value(value).unwrap();
    if step.unknown_fields {
        value["novel"] = serde_json::json!({"a": [1]});
    }
    Message::new(status, "application/json", step, value.to_string().into())
}

fn page(script: &Script, step: &Step, query: &str) -> Message {
    let value = |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name);
    let limit: u32 = value("limit").unwrap().1.parse().unwrap();
    let (first, reset) = script.behind(value("after").map(|(_, after)| after));
    let kept = &script.server.results;
    let (places, first) = match script.passes(first) {
        Some(behind) => (behind..=0, behind),
        None => (first..=kept.count.min(first + limit - 1), first),
    };
    let payload = STANDARD.encode(vec![b'x'; kept.bytes]);
    let mut page = ResultsPage {
        reset: reset.then_some(Reset::OlderThanRetention),
        entries: places.map(|place| script.kept(place)).collect(),
        next: cursor(first - 1),
    };
    for entry in &mut page.entries {
        entry.payload_base64 = Some(payload.clone());
        page.next = entry.cursor.clone();
    }
    let count = page.entries.len();
    script.seen.send_modify(|seen| (seen.pushed, seen.is_spent) = (seen.pushed + count, true));
    with_json(200, step, &page)
}

/// The call that a request is, and its query.
fn asked(requested: &Requested) -> (Asked, String) {
    let (path, query) = requested.target.split_once('?').unwrap_or((&requested.target, ""));
    let of = |name, job: &str| Asked::of(name, job.parse().unwrap());
    let asked = match (requested.method.as_str(), path.split('/').skip(2).collect::<Vec<_>>().as_slice()) {
        ("POST", ["queues", queue, "jobs"]) => {
            let key = requested.header(header::IDEMPOTENCY_KEY);
            let key = key.map(|key| IdempotencyKey::from_header(key).unwrap());
            Asked { queue: queue.parse().ok(), key, bytes: requested.bytes, ..Asked::new(Name::Submit) }
        }
        ("GET", ["jobs", job, "result"]) => of(Name::Wait, job),
        ("GET", ["jobs", job]) => of(Name::Status, job),
        ("POST", ["jobs", job, "cancel"]) => of(Name::Cancel, job),
        ("POST", ["jobs", job, "rerun"]) => of(Name::Rerun, job),
        ("GET", ["whoami"]) => Asked::new(Name::Whoami),
        ("GET", ["results"]) => Asked::new(Name::Results),
        other => panic!("no call of the library: {other:?}"),
    };
    (asked, query.to_owned())
}
