//! The answer to a submission, and a job as its client sees it. Neither holds the payload.

use std::collections::BTreeMap;
#[cfg(feature = "server")]
use std::fmt::Write as _;

use relay_bridge::contract::job::meta;
use relay_bridge::contract::{
    ClientId, IdempotencyKey, JobId, JobResult, JobState, JobStatus, Outcome, QueueName, RunId, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::fit;
#[cfg(feature = "server")]
use super::schema;

/// What relay promises when it accepts a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Receipt {
    /// The job; under a key it is the same for every retry.
    #[cfg_attr(feature = "server", schema(value_type = schema::JobId))]
    pub job_id: JobId,
    /// The current run.
    #[cfg_attr(feature = "server", schema(value_type = schema::RunId))]
    pub run_id: RunId,
    /// The current run's number, from 1.
    pub generation: u32,
    /// Whose job it is.
    #[cfg_attr(feature = "server", schema(value_type = schema::ClientName))]
    pub client: ClientId,
    /// Where it waits.
    #[cfg_attr(feature = "server", schema(value_type = schema::QueueName))]
    pub queue: QueueName,
    /// The idempotency key; `null` if the client gave none.
    #[serde(default)]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Key>))]
    pub key: Option<IdempotencyKey>,
    /// The `Relay-Meta-*` headers, without the prefix, in lower case; none once the job is erased.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    /// `queued`, `leased`, or the outcome.
    #[serde(with = "state_text")]
    #[cfg_attr(feature = "server", schema(value_type = schema::State))]
    pub state: JobState,
    /// Whether an earlier request did the work.
    pub replayed: bool,
    /// When relay accepted the job's first run.
    #[cfg_attr(feature = "server", schema(value_type = schema::Time))]
    pub accepted_at: Timestamp,
    /// The run's deadline; `null` only for a finished job of which nothing but its result is kept.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Time>))]
    pub expires_at: Option<Timestamp>,
    /// Where to look next.
    pub links: Links,
}

/// Paths of one job, relative to the address that the request went to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Links {
    /// The job.
    #[serde(rename = "self")]
    pub job: String,
    /// Its result; `?wait=20s` waits for it.
    pub result: String,
    /// Its events.
    pub events: String,
}

impl Links {
    /// The path of `job` itself.
    #[must_use]
    pub fn path(job: JobId) -> String {
        format!("/v1/jobs/{job}")
    }

    /// The paths of `job`.
    #[must_use]
    pub fn of(job: JobId) -> Self {
        let job = Self::path(job);
        Self { result: format!("{job}/result"), events: format!("{job}/events"), job }
    }
}

impl Receipt {
    /// The receipt of a job as it stands.
    #[must_use]
    pub fn new(status: &JobStatus, replayed: bool) -> Self {
        Self {
            job_id: status.job_id,
            run_id: status.run_id,
            generation: status.generation,
            client: status.client.clone(),
            queue: status.queue.clone(),
            key: status.key.clone(),
            meta: meta(&status.headers),
            state: status.state,
            replayed,
            accepted_at: status.accepted_at,
            expires_at: Some(status.expires_at),
            links: Links::of(status.job_id),
        }
    }
}

/// The receipt of a job as it stands, as JSON: byte for byte what [`Receipt::new`] is with `serde_json`. It answers most
/// requests, and little in it can need an escape: names, ids, times and paths of an id are plain ASCII.
#[cfg(feature = "server")]
pub(crate) fn to_json(status: &JobStatus, replayed: bool) -> Vec<u8> {
    let meta = meta(&status.headers);
    // Room for names of the greatest length: only what needs escapes makes it grow.
    let own: usize = meta.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    let mut json = String::with_capacity(672 + own + status.key.as_ref().map_or(0, |key| key.as_str().len()));
    let id = status.job_id.to_string();
    json.push_str(r#"{"job_id":""#);
    json.push_str(&id);
    // Writing to a `String` can't fail.
    write!(json, r#"","run_id":"{}","generation":{},"client":""#, status.run_id, status.generation).ok();
    json.push_str(status.client.as_str());
    json.push_str(r#"","queue":""#);
    json.push_str(status.queue.as_str());
    json.push_str(r#"","key":"#);
    match &status.key {
        None => json.push_str("null"),
        Some(key) => push_text(&mut json, key.as_str()),
    }
    json.push_str(r#","meta":{"#);
    for (at, (name, value)) in meta.iter().enumerate() {
        if at > 0 {
            json.push(',');
        }
        push_text(&mut json, name);
        json.push(':');
        push_text(&mut json, value);
    }
    json.push_str(r#"},"state":""#);
    json.push_str(status.state.as_str());
    json.push_str(if replayed { r#"","replayed":true"# } else { r#"","replayed":false"# });
    write!(json, r#","accepted_at":"{}","expires_at":"{}""#, status.accepted_at, status.expires_at).ok();
    json.push_str(r#","links":{"self":"/v1/jobs/"#);
    json.push_str(&id);
    json.push_str(r#"","result":"/v1/jobs/"#);
    json.push_str(&id);
    json.push_str(r#"/result","events":"/v1/jobs/"#);
    json.push_str(&id);
    json.push_str(r#"/events"}}"#);
    json.into_bytes()
}

/// Appends a client's own text, quoted.
#[cfg(feature = "server")]
fn push_text(json: &mut String, text: &str) {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        json.push('"');
        json.push_str(text);
        json.push('"');
    } else {
        // A text can always be written.
        json.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}

/// A job as its client sees it: the receipt and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct JobView {
    /// Everything the receipt says; `replayed` is `false`.
    #[serde(flatten)]
    pub receipt: Receipt,
    /// Attempts started in this run.
    pub attempt: u32,
    /// Attempts the queue allows now; `null` if the queue is gone.
    pub max_attempts: Option<u32>,
    /// When the current or last attempt started.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Time>))]
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Time>))]
    pub finished_at: Option<Timestamp>,
    /// How the run ended.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Outcome>))]
    pub outcome: Option<Outcome>,
    /// When a waiting job may next be taken, if that is in the future.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Time>))]
    pub next_attempt_at: Option<Timestamp>,
    /// The payload's content type; `null` if nothing but the result is kept.
    pub content_type: Option<String>,
    /// The payload's size in bytes; `null` if nothing but the result is kept.
    pub size: Option<u64>,
}

impl JobView {
    /// The job as its record says.
    #[must_use]
    pub fn of_status(status: &JobStatus, max_attempts: Option<u32>) -> Self {
        Self {
            receipt: Receipt::new(status, false),
            attempt: status.attempt,
            max_attempts,
            started_at: status.started_at,
            finished_at: status.finished_at,
            outcome: status.state.outcome(),
            next_attempt_at: status.next_attempt_at,
            content_type: Some(status.content_type.clone()),
            size: Some(status.size),
        }
    }

    /// A finished job. The result says how the run ended; `status` is its record, where one is kept: for the same run
    /// it adds the rest, and for a greater one it is the job as it stands now.
    #[must_use]
    pub fn of_result(result: &JobResult, status: Option<&JobStatus>, max_attempts: Option<u32>) -> Self {
        match status {
            Some(status) if status.run_id > result.run_id => Self::of_status(status, max_attempts),
            Some(status) => {
                let mut view = Self::of_status(status, max_attempts);
                view.finish(result);
                view
            }
            None => {
                let receipt = Receipt {
                    job_id: result.job_id,
                    run_id: result.run_id,
                    generation: result.generation,
                    client: result.client.clone(),
                    queue: result.queue.clone(),
                    key: result.key.clone(),
                    meta: fit::meta(result),
                    state: JobState::Finished(result.outcome),
                    replayed: false,
                    accepted_at: result.accepted_at,
                    expires_at: None,
                    links: Links::of(result.job_id),
                };
                let mut view = Self {
                    receipt,
                    attempt: result.attempt,
                    max_attempts,
                    started_at: None,
                    finished_at: None,
                    outcome: None,
                    next_attempt_at: None,
                    content_type: None,
                    size: None,
                };
                view.finish(result);
                view
            }
        }
    }

    fn finish(&mut self, result: &JobResult) {
        self.receipt.state = JobState::Finished(result.outcome);
        self.attempt = result.attempt;
        self.started_at = result.started_at;
        self.finished_at = Some(result.finished_at);
        self.outcome = Some(result.outcome);
        self.next_attempt_at = None;
    }
}

/// A page of the caller's jobs, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct JobsPage {
    /// The jobs.
    pub jobs: Vec<JobView>,
    /// Pass it as `after` for the next page; `null` on the last one.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::JobId>))]
    pub next: Option<JobId>,
}

/// [`JobState`] as the word that the API uses.
pub mod state_text {
    use relay_bridge::contract::{JobState, Outcome};
    use serde::{Deserialize, Deserializer, Serializer};

    /// The state that `text` names, or `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<JobState> {
        match text {
            "queued" => Some(JobState::Queued),
            "leased" => Some(JobState::Leased),
            _ => text.parse::<Outcome>().ok().map(JobState::Finished),
        }
    }

    pub(super) fn serialize<S: Serializer>(state: &JobState, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(state.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobState, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| serde::de::Error::custom("not a job state that this version of relay knows"))
    }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_receipt_is_written_by_hand_as_serde_would_write_it() {
        let now = Timestamp::from_millis(1_763_865_086_007);
        let meta = |name: &str, value: &str| (format!("relay-meta-{name}"), value.to_owned());
        let headers = [
            BTreeMap::new(),
            [
                ("traceparent".to_owned(), "00".to_owned()),
                meta("n", "1"),
                meta("z", "\"quoted\" \\ and\ttabbed \u{e9}"),
            ]
            .into(),
        ];
        let names = ["c".to_owned(), "n-9".repeat(21)];
        let ends = [(JobState::Queued, false), (JobState::Finished(Outcome::Succeeded), true)];
        for (name, (state, replayed), key, headers) in names.iter().zip(ends).flat_map(|(name, end)| {
            let keys = [None, Some("order-17"), Some(r#"a"quoted"\key"#)];
            let headers = &headers;
            keys.into_iter().flat_map(move |key| headers.iter().map(move |headers| (name, end, key, headers)))
        }) {
            let status = JobStatus {
                job_id: JobId::mint(),
                run_id: RunId::mint(now, None),
                generation: u32::MAX,
                client: name.parse().unwrap(),
                queue: name.replace('-', "_").parse().unwrap(),
                key: key.map(|key| key.parse().unwrap()),
                fingerprint: relay_bridge::contract::Fingerprint::of("", None, b""),
                state,
                attempt: 1,
                content_type: String::new(),
                size: 0,
                headers: headers.clone(),
                accepted_at: now,
                expires_at: now + Duration::MAX,
                started_at: None,
                finished_at: None,
                next_attempt_at: None,
            };
            let json = String::from_utf8(to_json(&status, replayed)).unwrap();
            assert_eq!(json, serde_json::to_string(&Receipt::new(&status, replayed)).unwrap());
            assert!(json.len() <= 800, "{}", json.len());
        }
    }
}
