//! The client over HTTP: one method per call, one try each. [`Patience`](super::retry::Patience) repeats them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::contract::{ClientId, IdempotencyKey, JobId, JobState, Outcome, QueueName, RunId};
use relay_bridge::support::without_passwords;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::error::{ClientError, cause, chain};
use super::tls::ClientTls;
use crate::api::{DurationText, JobView, JobsPage, Problem, Receipt, ResultsPage, Whoami, header};

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take, beyond the wait that was asked for.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long a body may take there and back.
const ECHO_MAX: Duration = Duration::from_secs(10);
/// The longest wait that one call asks for: what relay grants at most.
pub const WAIT_MAX: Duration = Duration::from_secs(55);
/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Calls one relay. Cloning is cheap and shares the connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    server: Url,
    key: Option<String>,
    client: Option<ClientId>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key, nor a password.
        f.debug_struct("Client").field("server", &without_passwords(self.server.as_str())).finish_non_exhaustive()
    }
}

/// A job to submit.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// To which queue.
    pub queue: QueueName,
    /// The key that makes a retry the same job. Without it every submission is a job of its own and is not repeated.
    pub key: Option<IdempotencyKey>,
    /// The payload's content type; it reaches the handler unchanged.
    pub content_type: String,
    /// Opaque bytes.
    pub payload: Bytes,
    /// No attempt before this long after acceptance.
    pub delay: Option<Duration>,
    /// The job expires this long after its delay.
    pub expires_in: Option<Duration>,
    /// `Relay-Meta-*` headers by the part of the name behind the prefix; they reach the handler.
    pub meta: BTreeMap<String, String>,
}

/// Which jobs to list.
#[derive(Clone, Debug)]
pub struct JobsFilter {
    /// Of this queue only.
    pub queue: Option<QueueName>,
    /// In this state only.
    pub state: Option<JobState>,
    /// Only jobs whose key begins so. A page may then be short, or empty, and have a `next`.
    pub key_prefix: Option<String>,
    /// Behind this job: the last page's `next`.
    pub after: Option<JobId>,
    /// How many at most, 1 to 500.
    pub limit: u32,
}

/// Which results to read.
#[derive(Clone, Debug)]
pub struct ResultsFilter {
    /// Behind this cursor, or from `now`; `None` begins at the oldest result that is kept.
    pub after: Option<String>,
    /// Of this queue only. A page may then be empty with a `next` that has moved on.
    pub queue: Option<QueueName>,
    /// Only of jobs whose key begins so, with pages as for `queue`.
    pub key_prefix: Option<String>,
    /// How many at most, 1 to 100.
    pub limit: u32,
    /// How long to wait for one if there are none, at most [`WAIT_MAX`].
    pub wait: Duration,
}

impl Default for ResultsFilter {
    /// The first hundred, at once.
    fn default() -> Self {
        Self { after: None, queue: None, key_prefix: None, limit: 100, wait: Duration::ZERO }
    }
}

/// The answer to a submission.
#[derive(Clone, Debug)]
pub enum Submitted {
    /// It is durable and in line, or finished already.
    Accepted(Box<Receipt>),
    /// It finished within the wait.
    Finished(Box<RunResult>),
}

impl Submitted {
    /// The job.
    #[must_use]
    pub fn job_id(&self) -> JobId {
        match self {
            Self::Accepted(receipt) => receipt.job_id,
            Self::Finished(result) => result.job_id,
        }
    }

    /// Whether an earlier request with the same key did the work.
    #[must_use]
    pub fn replayed(&self) -> bool {
        match self {
            Self::Accepted(receipt) => receipt.replayed,
            Self::Finished(result) => result.replayed,
        }
    }
}

/// How a run ended and what it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunResult {
    /// The job.
    pub job_id: JobId,
    /// The run; deduplicate on it.
    pub run_id: RunId,
    /// The idempotency key that the job was submitted under, if there is one.
    pub key: Option<IdempotencyKey>,
    /// The job's `Relay-Meta-*` headers by the part of the name behind the prefix, in lower case.
    pub meta: BTreeMap<String, String>,
    /// How it ended.
    pub outcome: Outcome,
    /// The attempt that ended it; 0 if no handler ever started.
    pub attempt: u32,
    /// Whether the submission that asked was a replay; `false` for other calls.
    pub replayed: bool,
    /// The payload's content type.
    pub content_type: String,
    /// The handler's output; for other outcomes than `succeeded` JSON `{reason, detail}`.
    pub payload: Bytes,
    /// Where it is in the client's results.
    pub cursor: Option<String>,
}

impl Client {
    /// A client of the relay at `server`, such as `https://relay.example:443`. `key` is the whole API key.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if `server` is not an `http` or `https` address, or TLS can't be set up.
    pub fn new(server: &str, key: Option<String>) -> Result<Self, ClientError> {
        Self::with_tls(server, key, &ClientTls::default())
    }

    /// The same, which trusts and shows `tls`.
    ///
    /// # Errors
    /// As [`Client::new`], and if a file of `tls` can't be read.
    pub fn with_tls(server: &str, key: Option<String>, tls: &ClientTls) -> Result<Self, ClientError> {
        let url = Url::parse(server).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let server = url.ok_or_else(|| {
            let server = without_passwords(server);
            ClientError::Invalid(format!("`{server}` is not a server address such as http://127.0.0.1:7410"))
        })?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("relay/", env!("CARGO_PKG_VERSION")));
        // A proxy from the environment is for the outside; this machine is reached without it.
        if is_loopback(&server) {
            builder = builder.no_proxy();
        }
        // Without TLS no roots are needed: a machine that has none can still reach its own relay.
        if server.scheme() == "http" {
            if *tls != ClientTls::default() && !is_loopback(&server) {
                let detail =
                    format!("`{server}` is an address without TLS, and certificates are given for it: write https://");
                return Err(ClientError::Invalid(detail));
            }
            builder = builder.tls_certs_only(std::iter::empty());
        } else {
            builder = tls.build(builder)?;
        }
        let http = builder.build().map_err(|error| ClientError::Invalid(chain(&error)))?;
        Ok(Self { http, server, key, client: None })
    }

    /// The same as client `client`. Heeded only by a server without authentication.
    #[must_use]
    pub fn named(mut self, client: ClientId) -> Self {
        self.client = Some(client);
        self
    }

    /// Submits a job. With `wait` (at most [`WAIT_MAX`]) the answer is its result if it comes in time.
    ///
    /// # Errors
    /// [`ClientError`]; see [`ClientError::may_repeat`].
    pub async fn submit(&self, job: &NewJob, wait: Option<Duration>) -> Result<Submitted, ClientError> {
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
        if let Some(wait) = wait {
            request = request.header(header::PREFER, format!("wait={}", seconds(wait.min(WAIT_MAX))));
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
    pub async fn result(&self, job: JobId, wait: Duration) -> Result<Option<RunResult>, ClientError> {
        let wait = wait.min(WAIT_MAX);
        let mut url = self.url(&["v1", "jobs", &job.to_string(), "result"]);
        if !wait.is_zero() {
            url.query_pairs_mut().append_pair("wait", &format!("{}s", seconds(wait)));
        }
        let answer = self.send(self.request(Method::GET, url, wait)).await?;
        if answer.status == StatusCode::ACCEPTED { Ok(None) } else { answer.result().map(Some) }
    }

    /// Where the job stands.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn status(&self, job: JobId) -> Result<JobView, ClientError> {
        let url = self.url(&["v1", "jobs", &job.to_string()]);
        self.send(self.request(Method::GET, url, Duration::ZERO)).await?.json()
    }

    /// Ends the job's run as `cancelled`, unless it ended before: the answer says how it ended.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn cancel(&self, job: JobId) -> Result<JobView, ClientError> {
        let url = self.url(&["v1", "jobs", &job.to_string(), "cancel"]);
        self.send(self.request(Method::POST, url, Duration::ZERO)).await?.json()
    }

    /// The job that was submitted to `queue` under `key`.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn by_key(&self, queue: &QueueName, key: &str) -> Result<JobView, ClientError> {
        let mut url = self.url(&["v1", "queues", queue.as_str(), "jobs"]);
        url.query_pairs_mut().append_pair("key", key);
        self.send(self.request(Method::GET, url, Duration::ZERO)).await?.json()
    }

    /// A page of the caller's jobs, newest first.
    ///
    /// # Errors
    /// [`ClientError`]: a job to begin behind that is not the caller's, or the server is away.
    pub async fn jobs(&self, filter: &JobsFilter) -> Result<JobsPage, ClientError> {
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
    pub async fn rerun(&self, job: JobId, from: u32) -> Result<Receipt, ClientError> {
        let mut url = self.url(&["v1", "jobs", &job.to_string(), "rerun"]);
        url.query_pairs_mut().append_pair("from", &from.to_string());
        self.send(self.request(Method::POST, url, Duration::ZERO)).await?.json()
    }

    /// Removes payload and result of a finished job.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, `state-conflict` if the job is open, or the server is away.
    pub async fn erase(&self, job: JobId) -> Result<(), ClientError> {
        let url = self.url(&["v1", "jobs", &job.to_string()]);
        self.send(self.request(Method::DELETE, url, Duration::ZERO)).await.map(drop)
    }

    /// The caller as the server knows it, its limits, and how much of them is left.
    ///
    /// # Errors
    /// [`ClientError`]: the key is none, or the server is away.
    pub async fn whoami(&self) -> Result<Whoami, ClientError> {
        self.send(self.request(Method::GET, self.url(&["v1", "whoami"]), Duration::ZERO)).await?.json()
    }

    /// Sends `body`, of [`ECHO_BYTES_MAX`](crate::api::ECHO_BYTES_MAX) at most, there and back. Nothing is done with it.
    ///
    /// # Errors
    /// [`ClientError`]: the key is none, or the server is away.
    pub async fn echo(&self, body: Bytes) -> Result<Bytes, ClientError> {
        let request = self.request(Method::POST, self.url(&["v1", "echo"]), Duration::ZERO);
        self.send(request.timeout(ECHO_MAX).body(body)).await.map(|answer| answer.body)
    }

    /// The server's address, as it was given.
    #[must_use]
    pub fn server(&self) -> &Url {
        &self.server
    }

    /// A page of the caller's results, oldest first.
    ///
    /// # Errors
    /// [`ClientError`]: a cursor that is not the caller's, or the server is away.
    pub async fn results(&self, filter: &ResultsFilter) -> Result<ResultsPage, ClientError> {
        let mut url = self.url(&["v1", "results"]);
        let wait = filter.wait.min(WAIT_MAX);
        let given = [
            Some(("limit", filter.limit.to_string())),
            filter.after.clone().map(|after| ("after", after)),
            filter.queue.as_ref().map(|queue| ("queue", queue.to_string())),
            filter.key_prefix.clone().map(|prefix| ("key_prefix", prefix)),
            (!wait.is_zero()).then(|| ("wait", format!("{}s", seconds(wait)))),
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
        let mut request = self.http.request(method, url).timeout(ANSWER_MAX + wait);
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
                return Err(ClientError::NotRelay { status: status.as_u16(), detail });
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

    fn refusal(&self) -> ClientError {
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(problem) => {
                let header =
                    self.text(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()).map(Duration::from_secs);
                let retry_after = problem.retry_after.map(|after| after.0).or(header);
                ClientError::Refused { problem: Box::new(problem), retry_after }
            }
            Err(_) => self.not_relay("without a problem that relay would have described".to_owned()),
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn parsed<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, ClientError> {
        let value = self.text(name).and_then(|text| text.parse().ok());
        value.ok_or_else(|| self.not_relay(format!("the header {name} is missing or can't be read")))
    }

    fn not_relay(&self, detail: String) -> ClientError {
        ClientError::NotRelay { status: self.status.as_u16(), detail }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whole seconds, rounded up: the unit of `Prefer: wait` (RFC 7240).
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
