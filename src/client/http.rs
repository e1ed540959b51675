//! The transport over HTTP: one method per call, one try each.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::contract::{ClientId, IdempotencyKey, JobId, QueueName};
use relay_bridge::support::without_passwords;
use reqwest::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::addresses::Connecting;
use super::error::{ClientError, cause, chain};
use super::job::{JobsFilter, NewJob, ResultsFilter, RunResult, Submitted, WAIT_MAX};
use super::pool::Pool;
use super::retry::ANSWER_MAX;
use super::tls::ClientTls;
use crate::api::{DurationText, JobView, JobsPage, Problem, Receipt, ResultsPage, Retry, Slug, Whoami, header};

/// W3C trace context.
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// How long a body may take there and back.
const ECHO_MAX: Duration = Duration::from_secs(10);
/// The characters that are told of the place that something else leads to.
const LOCATION_SHOWN: usize = 200;
/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Calls one relay. Cloning is cheap and shares the connections.
#[derive(Clone)]
pub(crate) struct Http {
    pool: Arc<Pool>,
    server: Url,
    key: Option<String>,
    client: Option<ClientId>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key, nor a password.
        f.debug_struct("Http").field("server", &without_passwords(self.server.as_str())).finish_non_exhaustive()
    }
}

impl Http {
    /// Calls the relay at `server`. `key` is the whole API key.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if `server` is not an `http` or `https` address, TLS can't be set up, or a file of `tls` can't be read.
    pub(crate) fn new(server: &str, key: Option<String>, tls: &ClientTls) -> Result<Self, ClientError> {
        let url = Url::parse(server).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let server = url.ok_or_else(|| {
            let server = without_passwords(server);
            ClientError::Invalid(format!("`{server}` is not a server address such as http://127.0.0.1:7410"))
        })?;
        Ok(Self {
            pool: Arc::new(Pool::new(server.clone(), tls.clone(), Connecting::default())?),
            server,
            key,
            client: None,
        })
    }

    /// The same as client `client`. Heeded only by a server without authentication.
    #[must_use]
    pub(crate) fn named(mut self, client: ClientId) -> Self {
        self.client = Some(client);
        self
    }

    /// The same over connections of its own, which are made so.
    ///
    /// # Errors
    /// [`ClientError::Invalid`]: a file of TLS is not good any more.
    pub(super) fn connecting(self, connecting: Connecting) -> Result<Self, ClientError> {
        Ok(Self { pool: Arc::new(self.pool.connecting(connecting)?), ..self })
    }

    /// Submits a job. With `wait` (at most [`WAIT_MAX`]) the answer is its result if it comes in time.
    ///
    /// # Errors
    /// [`ClientError`]; see [`ClientError::may_repeat`].
    pub(crate) async fn submit(&self, job: &NewJob, wait: Option<Duration>) -> Result<Submitted, ClientError> {
        let url = self.url(&["v1", "queues", job.queue.as_str(), "jobs"]);
        let mut request = self.request(Method::POST, url, wait.unwrap_or_default());
        request = request.header(CONTENT_TYPE, &job.content_type).body(job.payload.clone());
        if let Some(key) = &job.key {
            request = request.header(header::IDEMPOTENCY_KEY, key.as_str());
        }
        for (name, value) in [(header::DELAY, job.delay), (header::EXPIRES_IN, job.expires_in)] {
            if let Some(duration) = value {
                request = request.header(name, DurationText(duration).to_string());
            }
        }
        for (name, value) in &job.meta {
            request = request.header(format!("{}{name}", header::META_PREFIX), value);
        }
        for (name, value) in [(TRACEPARENT, &job.traceparent), (TRACESTATE, &job.tracestate)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        // In whole seconds (RFC 7240). The caller waits for the job by its id for what is left.
        if let Some(seconds) = wait.map(|wait| wait.min(WAIT_MAX).as_secs()).filter(|seconds| *seconds > 0) {
            request = request.header(header::PREFER, format!("wait={seconds}"));
        }
        let answer = self.send(request).await?;
        if answer.headers.contains_key(header::OUTCOME) {
            return answer.result().map(Box::new).map(Submitted::Finished);
        }
        answer.json().map(Box::new).map(Submitted::Accepted)
    }

    /// The job's result, or `None` while its run is open. Waits for it up to `wait`, at most [`WAIT_MAX`].
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, `result-expired`, or the server is away.
    pub(crate) async fn result(&self, job: JobId, wait: Duration) -> Result<Option<RunResult>, ClientError> {
        let wait = wait.min(WAIT_MAX);
        let mut url = self.url(&["v1", "jobs", &job.to_string(), "result"]);
        if !wait.is_zero() {
            url.query_pairs_mut().append_pair("wait", &DurationText(wait).to_string());
        }
        let answer = self.send(self.request(Method::GET, url, wait)).await?;
        if answer.status == StatusCode::ACCEPTED { Ok(None) } else { answer.result().map(Some) }
    }

    /// Where the job stands.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub(crate) async fn status(&self, job: JobId) -> Result<JobView, ClientError> {
        let url = self.url(&["v1", "jobs", &job.to_string()]);
        self.send(self.request(Method::GET, url, Duration::ZERO)).await?.json()
    }

    /// Ends the job's run as `cancelled`, unless it ended before: the answer says how it ended.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub(crate) async fn cancel(&self, job: JobId) -> Result<JobView, ClientError> {
        let url = self.url(&["v1", "jobs", &job.to_string(), "cancel"]);
        self.send(self.request(Method::POST, url, Duration::ZERO)).await?.json()
    }

    /// The job that was submitted to `queue` under `key`.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub(crate) async fn by_key(&self, queue: &QueueName, key: &str) -> Result<JobView, ClientError> {
        let mut url = self.url(&["v1", "queues", queue.as_str(), "jobs"]);
        url.query_pairs_mut().append_pair("key", key);
        self.send(self.request(Method::GET, url, Duration::ZERO)).await?.json()
    }

    /// A page of the caller's jobs, newest first.
    ///
    /// # Errors
    /// [`ClientError`]: a job to begin behind that is not the caller's, or the server is away.
    pub(crate) async fn jobs(&self, filter: &JobsFilter) -> Result<JobsPage, ClientError> {
        let mut url = self.url(&["v1", "jobs"]);
        let text = |name, value: Option<String>| value.map(|value| (name, value));
        let given = [
            text("limit", Some(filter.limit.to_string())),
            text("queue", filter.queue.as_ref().map(ToString::to_string)),
            text("state", filter.state.map(|state| state.to_string())),
            text("key_prefix", filter.key_prefix.clone()),
            text("after", filter.after.map(|after| after.to_string())),
        ];
        url.query_pairs_mut().extend_pairs(given.into_iter().flatten());
        self.send(self.request(Method::GET, url, Duration::ZERO)).await?.json()
    }

    /// Starts a finished job again, from the run with number `from`. Repeating the call is harmless.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, `state-conflict` if the job is open or in another generation, or the server is away.
    pub(crate) async fn rerun(&self, job: JobId, from: u32) -> Result<Receipt, ClientError> {
        let mut url = self.url(&["v1", "jobs", &job.to_string(), "rerun"]);
        url.query_pairs_mut().append_pair("from", &from.to_string());
        self.send(self.request(Method::POST, url, Duration::ZERO)).await?.json()
    }

    /// Removes payload and result of a finished job.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, `state-conflict` if the job is open, or the server is away.
    pub(crate) async fn erase(&self, job: JobId) -> Result<(), ClientError> {
        let url = self.url(&["v1", "jobs", &job.to_string()]);
        self.send(self.request(Method::DELETE, url, Duration::ZERO)).await.map(drop)
    }

    /// The caller as the server knows it, its limits, and how much of them is left.
    ///
    /// # Errors
    /// [`ClientError`]: the key is none, or the server is away.
    pub(crate) async fn whoami(&self) -> Result<Whoami, ClientError> {
        self.send(self.request(Method::GET, self.url(&["v1", "whoami"]), Duration::ZERO)).await?.json()
    }

    /// Sends `body`, of [`ECHO_BYTES_MAX`](crate::api::ECHO_BYTES_MAX) at most, there and back. Nothing is done with it.
    ///
    /// # Errors
    /// [`ClientError`]: the key is none, or the server is away.
    pub(crate) async fn echo(&self, body: Bytes) -> Result<Bytes, ClientError> {
        let request = self.request(Method::POST, self.url(&["v1", "echo"]), Duration::ZERO);
        self.send(request.timeout(ECHO_MAX).body(body)).await.map(|answer| answer.body)
    }

    /// The server's address, as it was given.
    #[must_use]
    pub(crate) fn server(&self) -> &Url {
        &self.server
    }

    /// A page of the caller's results, oldest first.
    ///
    /// # Errors
    /// [`ClientError`]: a cursor that is not the caller's, or the server is away.
    pub(crate) async fn page(&self, filter: &ResultsFilter) -> Result<ResultsPage, ClientError> {
        let mut url = self.url(&["v1", "results"]);
        let wait = filter.wait.min(WAIT_MAX);
        let given = [
            Some(("limit", filter.limit.to_string())),
            filter.after.clone().map(|after| ("after", after)),
            filter.queue.as_ref().map(|queue| ("queue", queue.to_string())),
            filter.key_prefix.clone().map(|prefix| ("key_prefix", prefix)),
            (!wait.is_zero()).then(|| ("wait", DurationText(wait).to_string())),
        ];
        url.query_pairs_mut().extend_pairs(given.into_iter().flatten());
        self.send(self.request(Method::GET, url, wait)).await?.json()
    }

    pub(super) fn url(&self, path: &[&str]) -> Url {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    pub(super) fn request(&self, method: Method, url: Url, wait: Duration) -> RequestBuilder {
        let mut request = self.pool.now().request(method, url).timeout(ANSWER_MAX + wait);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(client) = &self.client {
            request = request.header(header::CLIENT, client.as_str());
        }
        request
    }

    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Answer, ClientError> {
        let sent = request.send().await.map_err(|error| self.unsent(&error))?;
        let answer = Answer::read(sent).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(answer.refusal()) }
    }

    fn unsent(&self, error: &reqwest::Error) -> ClientError {
        if error.is_builder() {
            return ClientError::Invalid(chain(error));
        }
        if error.is_connect() {
            return ClientError::Unreachable {
                server: without_passwords(self.server.as_str()).into_owned(),
                detail: cause(error),
            };
        }
        ClientError::Interrupted(chain(error))
    }
}

/// An answer that was read to its end.
pub(super) struct Answer {
    status: StatusCode,
    headers: reqwest::header::HeaderMap,
    body: Bytes,
}

impl Answer {
    async fn read(mut response: Response) -> Result<Self, ClientError> {
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| ClientError::Interrupted(chain(&error)))? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                let detail = format!("the answer is larger than {ANSWER_BYTES_MAX} bytes");
                return Err(ClientError::NotRelay { status: status.as_u16(), detail, retry_after: None });
            }
        }
        Ok(Self { status, headers, body: body.into() })
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| self.not_relay(format!("the body can't be read: {error}")))
    }

    fn result(self) -> Result<RunResult, ClientError> {
        Ok(RunResult {
            job_id: self.parsed(header::JOB_ID)?,
            run_id: self.parsed(header::RUN_ID)?,
            key: self.text(header::IDEMPOTENCY_KEY).and_then(|text| IdempotencyKey::from_header(text).ok()),
            meta: self.meta(),
            outcome: self.parsed(header::OUTCOME)?,
            attempt: self.parsed(header::ATTEMPT)?,
            replayed: self.text(header::IDEMPOTENCY_REPLAYED) == Some("true"),
            content_type: self.text(CONTENT_TYPE.as_str()).unwrap_or_default().to_owned(),
            cursor: self.text(header::CURSOR).map(str::to_owned),
            payload: self.body,
        })
    }

    fn meta(&self) -> BTreeMap<String, String> {
        let named = self.headers.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix(header::META_PREFIX)?;
            Some((name.to_owned(), value.to_str().ok()?.to_owned()))
        });
        named.collect()
    }

    /// The place to which the answer sends its client, as servers in front do that serve by TLS alone.
    fn leads_to(&self) -> Option<String> {
        let place = self.headers.get(LOCATION).filter(|_| self.status.is_redirection())?;
        Some(place.to_str().ok()?.chars().take(LOCATION_SHOWN).collect())
    }

    fn refusal(&self) -> ClientError {
        match problem(&self.body) {
            Some(problem) => {
                let retry_after = problem.retry_after.map(|after| after.0).or_else(|| self.retry_after());
                ClientError::Refused { problem: Box::new(problem), retry_after }
            }
            None => self.not_relay(match self.leads_to() {
                Some(place) => format!("it leads to {place}"),
                None => "without a problem that relay would have described".to_owned(),
            }),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        self.text(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()).map(Duration::from_secs)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn parsed<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, ClientError> {
        let value = self.text(name).and_then(|text| text.parse().ok());
        value.ok_or_else(|| self.not_relay(format!("the header {name} is missing or can't be read")))
    }

    fn not_relay(&self, detail: String) -> ClientError {
        ClientError::NotRelay { status: self.status.as_u16(), detail, retry_after: self.retry_after() }
    }
}

/// A problem document. A slug of a newer server is judged by its `retry`, and named in the detail; a word for that which is not known means no.
fn problem(body: &[u8]) -> Option<Problem> {
    let mut document: Value = serde_json::from_slice(body).ok()?;
    let slug = document.get("slug")?.as_str()?.to_owned();
    if slug.parse::<Slug>().is_err() {
        let detail = document.get("detail").and_then(Value::as_str).unwrap_or_default();
        document["detail"] = format!("{slug}: {detail}").into();
        document["slug"] = Slug::Internal.as_str().into();
    }
    if Retry::deserialize(document.get("retry")?).is_err() {
        document["retry"] = Retry::No.as_str().into();
    }
    serde_json::from_value(document).ok()
}
