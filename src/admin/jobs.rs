//! Jobs as an operator looks them up: by id or by key, or a client's newest ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::get;
use http::StatusCode;
use relay_bridge::broker::Broker;
use relay_bridge::contract::{ClientId, Failure, IdempotencyKey, JobId, JobState, Outcome, QueueName, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::job_queue::JobFilter;
use relay_bridge::result_log::{Finished, Lookup};
use serde::{Deserialize, Serialize};

use super::Admin;
use super::operator::{self, Answer, Refused};
use super::routes::json;
use crate::api::{JobView, JobsPage, Slug, fit};

/// Clients among which a job is looked for when none is named: those with the most jobs.
const CLIENTS_MAX: usize = 200;
/// Jobs of a page.
const PAGE: u32 = 50;
/// The part of a payload that is shown on request, in bytes.
const PREVIEW_MAX: usize = 4 * 1024;

/// The paths of jobs.
pub(super) fn router() -> Router<Arc<Admin>> {
    Router::new().route("/v1/jobs", get(list)).route("/v1/job", get(find))
}

/// The parameters by which a job is looked for.
#[derive(Deserialize)]
struct Sought {
    id: Option<String>,
    client: Option<String>,
    queue: Option<String>,
    key: Option<String>,
    /// Whether payloads are shown: they may be personal.
    #[serde(default)]
    payload: bool,
}

/// A job's life.
#[derive(Serialize)]
struct Life {
    job: JobView,
    /// Trace context, as it came in and is given to handlers.
    trace: BTreeMap<String, String>,
    result: Option<Ended>,
    dead_letter: Option<Dead>,
}

#[derive(Serialize)]
struct Ended {
    outcome: Outcome,
    attempt: u32,
    reason: Option<String>,
    detail: Option<String>,
    content_type: String,
    size: u64,
    erased: bool,
    preview: Option<Preview>,
}

#[derive(Serialize)]
struct Dead {
    run_id: String,
    at: Timestamp,
    preview: Option<Preview>,
}

/// The begin of a payload.
#[derive(Serialize)]
struct Preview {
    text: String,
    cut: bool,
}

impl Preview {
    fn of(payload: &[u8]) -> Self {
        let shown = &payload[..payload.len().min(PREVIEW_MAX)];
        // Half a character at the end is no reason to show digits.
        let text = match std::str::from_utf8(shown) {
            Ok(text) => text.to_owned(),
            Err(error) if error.error_len().is_none() => {
                String::from_utf8_lossy(&shown[..error.valid_up_to()]).into_owned()
            }
            Err(_) => {
                let lines =
                    shown.chunks(16).map(|bytes| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>());
                lines.collect::<Vec<_>>().join("\n")
            }
        };
        Self { text, cut: payload.len() > PREVIEW_MAX }
    }
}

/// `GET /v1/job?id=` or `?queue=&key=`, with `client=` if it is known and `payload=true` to see the begin of payloads.
async fn find(State(admin): State<Arc<Admin>>, sought: Result<Query<Sought>, QueryRejection>) -> Answer {
    let Query(sought) = sought.map_err(unreadable)?;
    let broker = operator::broker(&admin)?;
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let clients: Vec<ClientId> = match given(&sought.client) {
        Some(client) => vec![client.parse()?],
        None => known_clients(&admin),
    };
    let by_key = match (given(&sought.id), given(&sought.queue), given(&sought.key)) {
        (Some(id), _, _) => Err(id.parse::<JobId>()?),
        (None, Some(queue), Some(key)) => Ok((queue.parse::<QueueName>()?, IdempotencyKey::from_header(&key)?)),
        _ => {
            let detail = "say which job: `id`, or `queue` and `key`";
            return Err(Refused::new(Slug::MalformedRequest, detail));
        }
    };
    for client in &clients {
        let id = match &by_key {
            Ok((queue, key)) => JobId::derive(client, queue, key),
            Err(id) => *id,
        };
        if let Some(life) = life(broker, client, id, sought.payload).await? {
            return Ok(json(StatusCode::OK, &life));
        }
    }
    let detail =
        format!("none of {} clients has such a job, or it is past its retention: name its client", clients.len());
    Err(Refused::new(Slug::NotFound, detail))
}

fn unreadable(error: QueryRejection) -> Refused {
    Refused::new(
        Slug::MalformedRequest,
        format!("{error}: write id=, queue=, key=, client=, state=, key_prefix= and after=, as the path has them"),
    )
}

/// Those that this process saw, the busiest first.
fn known_clients(admin: &Admin) -> Vec<ClientId> {
    let mut clients: Vec<_> = admin.telemetry.flows().by_client().into_iter().collect();
    clients.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.submitted));
    clients.into_iter().take(CLIENTS_MAX).map(|(client, _)| client).collect()
}

async fn life(broker: &Broker, client: &ClientId, id: JobId, payload: bool) -> Result<Option<Life>, Refused> {
    let (status, finished) = match broker.results.lookup(client, id).await? {
        Lookup::Absent => return Ok(None),
        Lookup::Open(status) => (Some(*status), None),
        Lookup::Finished(finished) => (broker.jobs.status(client, id).await?, Some(*finished)),
    };
    let attempts = match (&status, &finished) {
        (Some(status), _) => Some(status.queue.clone()),
        (None, finished) => finished.as_ref().map(|finished| finished.result.queue.clone()),
    };
    let attempts = match attempts {
        Some(queue) => broker.policies.policy(&queue).await?.map(|policy| policy.max_attempts),
        None => None,
    };
    let job = match (&finished, &status) {
        (Some(finished), status) => JobView::of_result(&finished.result, status.as_ref(), attempts),
        (None, Some(status)) => JobView::of_status(status, attempts),
        (None, None) => return Ok(None),
    };
    let trace = status.iter().flat_map(|status| &status.headers).filter(|(name, _)| name.starts_with("trace"));
    let letter = broker.dead_letters.get(id).await?.filter(|letter| letter.job.client == *client);
    Ok(Some(Life {
        job,
        trace: trace.map(|(name, value)| (name.clone(), value.clone())).collect(),
        result: finished.as_ref().map(|finished| ended(finished, payload)),
        dead_letter: letter.as_ref().map(|letter| dead(letter, payload)),
    }))
}

fn ended(finished: &Finished, payload: bool) -> Ended {
    let result = &finished.result;
    let (reason, detail) = fit::failure(result).map(|Failure { reason, detail }| (reason, detail)).unzip();
    Ended {
        outcome: result.outcome,
        attempt: result.attempt,
        reason,
        detail,
        content_type: fit::content_type(result).to_owned(),
        size: result.payload.len() as u64,
        erased: finished.erased,
        preview: payload.then(|| Preview::of(&result.payload)),
    }
}

fn dead(letter: &DeadLetter, payload: bool) -> Dead {
    let preview = payload.then(|| Preview::of(&letter.job.payload));
    Dead { run_id: letter.job.run_id.to_string(), at: letter.at, preview }
}

/// The parameters by which jobs are listed.
#[derive(Deserialize)]
struct Listed {
    client: String,
    queue: Option<String>,
    state: Option<String>,
    key_prefix: Option<String>,
    after: Option<String>,
}

/// The prefix of keys: as a key, it is some visible ASCII.
pub(super) fn key_prefix(text: &str) -> Result<String, Refused> {
    let prefix: IdempotencyKey = text.parse()?;
    Ok(prefix.as_str().to_owned())
}

/// `GET /v1/jobs?client=&queue=&state=&key_prefix=&after=`: a client's jobs, newest first.
async fn list(State(admin): State<Arc<Admin>>, listed: Result<Query<Listed>, QueryRejection>) -> Answer {
    let Query(listed) = listed.map_err(unreadable)?;
    let broker = operator::broker(&admin)?;
    let client: ClientId = listed.client.parse()?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let state = match given(listed.state).as_deref() {
        None => None,
        Some("queued") => Some(JobState::Queued),
        Some("leased") => Some(JobState::Leased),
        Some(outcome) => Some(JobState::Finished(outcome.parse()?)),
    };
    let filter = JobFilter {
        queues: given(listed.queue).map(|queue| queue.parse().map(|queue| vec![queue])).transpose()?,
        state,
        key_prefix: given(listed.key_prefix).as_deref().map(key_prefix).transpose()?,
        after: given(listed.after).as_deref().map(str::parse).transpose()?,
        limit: PAGE,
    };
    let page = broker.jobs.list(&client, &filter).await?;
    let jobs = page.jobs.iter().map(|status| JobView::of_status(status, None)).collect();
    Ok(json(StatusCode::OK, &JobsPage { jobs, next: page.next }))
}
