//! Calls a service for each job: the payload in a POST, the result from the response.
//!
//! # Request
//!
//! The body is the payload, `Content-Type` and `Content-Encoding` are the job's, and `Idempotency-Key` is the run id, so
//! that a service that keeps it does a run's work once. `Relay-Job-Id`, `Relay-Run-Id`, `Relay-Generation`,
//! `Relay-Client`, `Relay-Queue`, `Relay-Attempt`, `Relay-Max-Attempts`, `Relay-Accepted-At`, `Relay-Expires-At`,
//! `Relay-Deadline`, and where the job has them `Relay-Idempotency-Key` (the client's own), `Relay-Meta-*`,
//! `traceparent` and `tracestate` tell about the job.
//!
//! # How it ends
//!
//! | the service | attempt | reason |
//! | --- | --- | --- |
//! | answers 2xx | done: the body with its content type is the result | |
//! | answers 2xx with more than `response_max` or the queue's `result_max` | rejected for good | `result-too-large` |
//! | answers 408, 409, 425, 429 or 5xx | retry, not before `Retry-After` (seconds, at most `retry_after_max`) | `http-status` |
//! | answers any other 4xx | rejected for good | `http-status` |
//! | answers 3xx: no redirect is followed | rejected for good | `http-redirect` |
//! | can't be reached: it refuses connections, its name is unknown, its certificate is wrong | handed back, [`Attempt::NotStarted`] | `http-failed` |
//! | breaks off | retry | `http-failed` |
//! | takes longer than `timeout` | retry | `timeout` |
//! | resolves to refused addresses only | handed back, [`Attempt::NotStarted`] | `address-refused` |
//! | is still at it when the attempt is cancelled | retry | `cancelled` |
//!
//! 409 is a retry, because services that keep idempotency keys answer it while the first request is being processed.
//!
//! # Where it connects
//!
//! To the configured host only: no redirects and no proxy from the environment. Link-local and metadata addresses are
//! refused, whether the URL names them or a name resolves to them, so that a job can't be turned into the credentials of
//! the machine it runs on.

pub mod address;
mod status;

use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::contract::{Failure, Job};
use relay_bridge::rules::record::CONTENT_TYPE_BYTES_MAX;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url};

use tokio::time::{Instant, sleep, timeout_at};

use self::address::{Guarded, REFUSED, refused_host};
use self::status::Verdict;
use super::{Attempt, Context, Handler, Output, metadata};

/// How much of an unsuccessful response is kept for the failure, in bytes.
const EXCERPT_BYTES_MAX: usize = 2 * 1024;
/// How much later than its longest wait for a connection a call counts as connected.
const CONNECT_MARGIN: Duration = Duration::from_secs(1);
/// The longest wait for a response: longer than any lease.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The content type of a response that names none.
const NO_CONTENT_TYPE: &str = "application/octet-stream";

/// The configuration of the service handler.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where to post: `http://` or `https://`.
    pub url: String,
    /// The longest one attempt may take, connecting included. Default 5 min; the queue's `lease_max` also holds.
    pub timeout: Duration,
    /// The longest to wait for a connection, and never longer than half of `timeout`: a service that can't be reached must
    /// not look like one that takes too long. Default 5 s.
    pub connect_timeout: Duration,
    /// The most bytes of a response kept in memory, beside the queue's `result_max`. Default 64 MiB, as much as any broker
    /// takes.
    pub response_max: usize,
    /// The longest `Retry-After` that is honoured; a longer one is cut. Default 1 h.
    pub retry_after_max: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(5),
            response_max: 64 * 1024 * 1024,
            retry_after_max: Duration::from_secs(3600),
        }
    }
}

/// The configuration is not one to call a service with.
#[derive(Debug, thiserror::Error)]
pub enum InvalidHttp {
    /// The text is not a URL, or not of a web server.
    #[error("`{0}` is not a URL that starts with http:// or https:// and names a host")]
    Url(String),
    /// The URL names a link-local or metadata address.
    #[error("`{0}` is a link-local or metadata address, which jobs may not reach")]
    Refused(String),
    /// The client could not be made, for instance because the machine has no TLS roots.
    #[error("the HTTP client could not be made")]
    Client(#[source] reqwest::Error),
}

/// The service handler. Connections are kept and shared by all attempts.
#[derive(Debug)]
pub struct Http {
    client: Client,
    url: Url,
    config: HttpConfig,
}

impl Http {
    /// A handler that posts to `config.url`. Whether the service is there shows at the first job.
    ///
    /// # Errors
    /// [`InvalidHttp`].
    pub fn new(mut config: HttpConfig) -> Result<Self, InvalidHttp> {
        config.connect_timeout = config.connect_timeout.min(config.timeout / 2);
        let invalid = || InvalidHttp::Url(config.url.clone());
        let url: Url = config.url.parse().map_err(|_| invalid())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid());
        }
        let host = url.host_str().ok_or_else(invalid)?;
        // A literal address is never resolved, so the resolver would not see it.
        if refused_host(host) {
            return Err(InvalidHttp::Refused(host.to_owned()));
        }
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(config.connect_timeout)
            .dns_resolver(Guarded);
        // Without TLS no roots are needed: a machine that has none can still call a local service.
        if url.scheme() == "http" {
            builder = builder.tls_certs_only(std::iter::empty());
        }
        let client = builder.build().map_err(InvalidHttp::Client)?;
        Ok(Self { client, url, config })
    }

    async fn call(&self, job: &Job, context: &Context) -> Attempt {
        let request = self.client.post(self.url.clone()).headers(headers(job, context)).body(job.payload.clone());
        // Not the client's own limit, which it asks about first: where both waits are over, the one for a connection counts.
        let until = Instant::now() + self.config.timeout.min(TIMEOUT_MAX);
        match timeout_at(until, request.send()).await {
            // One that is answered has started, and its body may take long.
            Ok(Ok(response)) => {
                context.started();
                self.read(response, until, context).await
            }
            Ok(Err(error)) => failed(&error),
            Err(_) => too_late(),
        }
    }

    async fn read(&self, mut response: Response, until: Instant, context: &Context) -> Attempt {
        let status = response.status();
        let verdict = status::verdict(status, response.headers(), self.config.retry_after_max);
        if verdict != Verdict::Done {
            let excerpt = timeout_at(until, body(&mut response, EXCERPT_BYTES_MAX)).await;
            let (excerpt, _) = excerpt.ok().and_then(Result::ok).unwrap_or_default();
            return status::refused(status, verdict, &excerpt);
        }
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.filter(|text| text.len() <= CONTENT_TYPE_BYTES_MAX).unwrap_or(NO_CONTENT_TYPE);
        let content_type = content_type.to_owned();
        let max = usize::try_from(context.result_max).unwrap_or(usize::MAX).min(self.config.response_max);
        match timeout_at(until, body(&mut response, max)).await {
            Ok(Ok((payload, true))) => Attempt::Done(Output::new(content_type, payload)),
            Ok(Ok((_, false))) => {
                Attempt::reject("result-too-large", format!("the service answered more than {max} bytes"))
            }
            Ok(Err(error)) => failed(&error),
            Err(_) => too_late(),
        }
    }
}

#[async_trait]
impl Handler for Http {
    async fn handle(&self, job: &Job, context: &Context) -> Attempt {
        let cancelled = context.cancelled();
        let call = self.call(job, context);
        // After this long there is a connection, or the call has failed: its own wait for one begins later than this.
        let connected = sleep(self.config.connect_timeout + CONNECT_MARGIN);
        tokio::pin!(call, connected);
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                attempt = &mut call => return attempt,
                () = cancelled.cancelled() => return Attempt::retry("cancelled", "the request was dropped"),
                () = &mut connected, if !told => {
                    context.started();
                    told = true;
                }
            }
        }
    }
}

/// The body up to `max` bytes, and whether that was all of it. No more than that and one chunk is held.
async fn body(response: &mut Response, max: usize) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = max - bytes.len();
        if chunk.len() > room {
            bytes.extend_from_slice(&chunk[..room]);
            return Ok((bytes, false));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, true))
}

/// The request's headers. A value that no header can hold is left out: clients choose some of them.
fn headers(job: &Job, context: &Context) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut put = |name: String, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    };
    for (name, value) in metadata::meta(job) {
        put(format!("relay-meta-{name}"), value);
    }
    for (name, value) in metadata::trace(job) {
        put(name.to_owned(), value);
    }
    for (name, value) in metadata::fields(job, context) {
        let whole = [CONTENT_TYPE.as_str(), CONTENT_ENCODING.as_str()].contains(&name);
        put(if whole { name.to_owned() } else { format!("relay-{name}") }, &value);
    }
    put("idempotency-key".to_owned(), &job.run_id.to_string());
    // A result has a content type and no encoding.
    put("accept-encoding".to_owned(), "identity");
    headers
}

/// The attempt that an error makes. Its text does not name the URL, which is none of the client's business.
fn failed(error: &reqwest::Error) -> Attempt {
    let mut below: Option<&dyn std::error::Error> = std::error::Error::source(error);
    let mut cause = String::new();
    for _ in 0..8 {
        let Some(source) = below else { break };
        cause = source.to_string();
        if cause == REFUSED {
            return Attempt::NotStarted { failure: Failure::new("address-refused", REFUSED) };
        }
        below = source.source();
    }
    if error.is_connect() {
        let detail = format!("the service can't be reached: {cause}");
        return Attempt::NotStarted { failure: Failure::new("http-failed", detail) };
    }
    if error.is_timeout() {
        return too_late();
    }
    Attempt::retry("http-failed", format!("the request broke off: {cause}"))
}

fn too_late() -> Attempt {
    Attempt::retry("timeout", "the service did not answer in time")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::future::join_all;
    use futures_util::poll;
    use relay_bridge::contract::{Submission, Timestamp};
    use relay_bridge::policy::QueuePolicy;
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::decide::Ending;
    use crate::starts::{StartGate, StartReport};
    use crate::stats::WorkerStats;

    /// A listener whose line is full: it refuses nobody and lets nobody in. And where it is.
    async fn silent() -> (TcpListener, TcpStream, String) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let only = TcpStream::connect(address).await.unwrap();
        (listener, only, format!("http://{address}/"))
    }

    fn job() -> Job {
        let submission = Submission {
            client: "acme".parse().unwrap(),
            queue: "work".parse().unwrap(),
            key: None,
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: "in".into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        submission.accept(&QueuePolicy::default(), Timestamp::from_millis(1_790_000_000_000))
    }

    fn context() -> Context {
        Context::detached(1, &QueuePolicy::default(), Duration::from_secs(600), CancellationToken::new())
    }

    #[tokio::test]
    async fn a_service_that_lets_nobody_in_is_never_taken_for_one_that_was_reached() {
        let (_listener, _only, url) = silent().await;
        let connect_timeout = Duration::from_millis(50);
        let http = Http::new(HttpConfig { url, connect_timeout, ..HttpConfig::default() }).unwrap();
        let stats = Arc::new(WorkerStats::default());
        let gate = Arc::new(StartGate::new(Arc::clone(&stats)));
        let failure = Failure::new("http-failed", "it was not reached");
        StartReport::new(Arc::clone(&gate)).ended(&Ending::Returned(Attempt::NotStarted { failure }));
        // Many, each of which has its own small gap between the two waits.
        let probes = join_all((0..64).map(|_| async {
            let context = context().reporting(StartReport::new(Arc::clone(&gate)));
            let attempt = http.handle(&job(), &context).await;
            (attempt, stats.report().starts_failing)
        }));
        for (attempt, failing) in probes.await {
            assert!(matches!(attempt, Attempt::NotStarted { .. }), "{attempt:?}");
            assert_eq!(failing, 1, "a probe that failed was told as a start that worked");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_lets_nobody_in_costs_no_attempt_however_short_the_timeout_is() {
        let (_listener, _only, url) = silent().await;
        let timeout = Duration::from_millis(200);
        let http = Http::new(HttpConfig { url, timeout, ..HttpConfig::default() }).unwrap();
        let (job, context) = (job(), context());
        let mut attempt = http.handle(&job, &context);
        assert!(poll!(&mut attempt).is_pending());
        // The worker gets no processor until both waits are over: the one for a connection was over first.
        tokio::time::advance(Duration::from_secs(1)).await;
        let attempt = attempt.await;
        assert!(matches!(attempt, Attempt::NotStarted { .. }), "{attempt:?}");
    }
}
