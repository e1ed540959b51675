//! Calls over HTTP. With one call in flight each connection speaks HTTP/1.1; with more, HTTP/2.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::pushed::Pushed;
use super::{Access, Answered, Failure, Who, Width, finished};
use crate::api::header;
use crate::cli::bench::target::Target;
use crate::cli::bench::workload::{Operation, Workload};

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The largest answer, and the largest event of a stream, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Connections, each a client of its own so that there are as many as were asked for.
pub(super) struct Http {
    connections: Vec<reqwest::Client>,
    server: Url,
    key: Option<String>,
    client: Option<String>,
    wait: Duration,
}

/// The part of a problem that is counted.
#[derive(Deserialize)]
struct Problem {
    slug: String,
    #[serde(default)]
    detail: String,
}

/// The part of a batch's answer that is counted.
#[derive(Deserialize)]
struct BatchAnswer {
    accepted: u64,
    entries: Vec<BatchItem>,
}

#[derive(Deserialize)]
struct BatchItem {
    problem: Option<Problem>,
}

/// The part of a result that is counted.
#[derive(Deserialize)]
struct ResultView {
    key: Option<String>,
    outcome: String,
}

/// The end of a page of results.
#[derive(Deserialize)]
struct Page {
    next: String,
}

impl Http {
    pub(super) fn new(target: &Target, access: &Access, width: Width) -> Result<Self, Failure> {
        let connection = || {
            let mut builder = reqwest::Client::builder()
                .connect_timeout(CONNECT_MAX)
                .redirect(reqwest::redirect::Policy::none())
                .pool_max_idle_per_host(1)
                .tcp_nodelay(true)
                // The addresses that were judged, and no others.
                .no_proxy()
                .resolve_to_addrs(&target.host, &target.addresses)
                .user_agent(concat!("relay-bench/", env!("CARGO_PKG_VERSION")));
            builder = match (width.in_flight > 1, target.tls) {
                (false, _) => builder.http1_only(),
                (true, false) => builder.http2_prior_knowledge(),
                (true, true) => builder,
            };
            builder = if target.tls {
                access.tls.build(builder).map_err(|error| Failure::new("tls", error.to_string()))?
            } else {
                builder.tls_certs_only(std::iter::empty())
            };
            builder.build().map_err(|error| Failure::new("tls", told(&error)))
        };
        let connections = (0..width.connections).map(|_| connection()).collect::<Result<_, _>>()?;
        let client = access.client.as_ref().map(ToString::to_string);
        let wait = (width.timeout / 2).max(Duration::from_secs(1));
        Ok(Self { connections, server: target.url.clone(), key: access.key.clone(), client, wait })
    }

    pub(super) async fn who(&self) -> Result<Who, Failure> {
        read(&good(self.send(self.asked(0, &["v1", "whoami"], &[])).await?).await?)
    }

    pub(super) async fn call(&self, slot: usize, workload: &Workload, number: u64) -> Result<Answered, Failure> {
        if workload.operation == Operation::Batch {
            return self.batch(slot, workload, number).await;
        }
        let mut request = self.posted(slot, &["v1", "queues", workload.queue.as_str(), "jobs"]);
        request = request
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(header::IDEMPOTENCY_KEY, workload.key(number))
            .body(workload.payload(number));
        let waits = workload.operation == Operation::Wait;
        if waits {
            request = request.header(header::PREFER, format!("wait={}", self.wait.as_secs()));
        }
        let response = self.send(request).await?;
        let outcome = response.headers().get(header::OUTCOME).map(|value| value.to_str().unwrap_or("").to_owned());
        good(response).await?;
        match outcome {
            Some(outcome) if waits => finished(&outcome),
            None if waits => Err(Failure::no_result()),
            _ => Ok(Answered::one()),
        }
    }

    async fn batch(&self, slot: usize, workload: &Workload, number: u64) -> Result<Answered, Failure> {
        let mut body = Vec::new();
        for entry in 0..workload.batch {
            let job = number * workload.batch + entry;
            let payload = workload.payload(job);
            let text = String::from_utf8_lossy(&payload);
            let entry = json!({ "key": workload.key(job), "text": text });
            serde_json::to_writer(&mut body, &entry).map_err(|error| Failure::not_relay(error.to_string()))?;
            body.push(b'\n');
        }
        let request = self
            .posted(slot, &["v1", "queues", workload.queue.as_str(), "batch"])
            .header(CONTENT_TYPE, "application/x-ndjson")
            .body(body);
        let answer: BatchAnswer = read(&good(self.send(request).await?).await?)?;
        let refused = answer.entries.into_iter().filter_map(|entry| entry.problem);
        let refused = refused.map(|problem| Failure::new(problem.slug, problem.detail)).collect();
        Ok(Answered { jobs: answer.accepted, refused })
    }

    /// Reads the stream of results, and begins again behind the last one where the server ends it.
    pub(super) async fn follow(
        &self,
        workload: &Workload,
        pushed: &Pushed,
        ready: &CancellationToken,
    ) -> Result<(), Failure> {
        let request = self.asked(0, &["v1", "results"], &[("after", "now"), ("limit", "1")]);
        let page: Page = read(&good(self.send(request).await?).await?)?;
        let mut after = page.next;
        ready.cancel();
        loop {
            let request = self
                .asked(0, &["v1", "results"], &[("after", after.as_str()), ("key_prefix", workload.prefix())])
                .header(ACCEPT, "text/event-stream");
            let mut response = self.send(request).await?;
            if response.status() != StatusCode::OK {
                good(response).await?;
                return Err(Failure::not_relay("a stream of results did not begin"));
            }
            let mut buffer = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| Failure::interrupted(told(&error)))? {
                buffer.extend_from_slice(&chunk);
                while let Some(event) = next_event(&mut buffer) {
                    match event.name.as_str() {
                        "result" => {
                            let result: ResultView = read(event.data.as_bytes())?;
                            pushed.announce(workload, result.key.as_deref(), &result.outcome);
                            after = event.id.unwrap_or(after);
                        }
                        "problem" => {
                            let problem: Problem = read(event.data.as_bytes())?;
                            return Err(Failure::new(problem.slug, problem.detail));
                        }
                        _ => {}
                    }
                }
                if buffer.len() > ANSWER_BYTES_MAX {
                    return Err(Failure::not_relay("an event of the stream has no end"));
                }
            }
        }
    }

    fn posted(&self, slot: usize, path: &[&str]) -> RequestBuilder {
        self.request(slot, Method::POST, self.url(path))
    }

    fn asked(&self, slot: usize, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.request(slot, Method::GET, url)
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    fn request(&self, slot: usize, method: Method, url: Url) -> RequestBuilder {
        let mut request = self.connections[slot % self.connections.len()].request(method, url);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(client) = &self.client {
            request = request.header(header::CLIENT, client);
        }
        request
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        request.send().await.map_err(|error| {
            if error.is_connect() { Failure::unreachable(told(&error)) } else { Failure::interrupted(told(&error)) }
        })
    }
}

/// The whole body of a good answer.
async fn good(mut response: Response) -> Result<Bytes, Failure> {
    let status = response.status();
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::interrupted(told(&error)))? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(Failure::not_relay(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
        }
    }
    if status.is_success() {
        return Ok(body.freeze());
    }
    Err(match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => Failure::new(problem.slug, problem.detail),
        Err(_) => {
            Failure { away: matches!(status.as_u16(), 502..=504), ..Failure::not_relay(format!("status {status}")) }
        }
    })
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::not_relay(format!("an answer can't be read: {error}")))
}

/// The innermost reason: reqwest alone says that it could not send.
fn told(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), told)
}

/// One event of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    id: Option<String>,
    data: String,
}

/// Takes the next whole event out of `buffer`. Events end with an empty line.
fn next_event(buffer: &mut BytesMut) -> Option<Event> {
    let end = buffer.windows(2).position(|window| window == b"\n\n")? + 2;
    let text = buffer.split_to(end);
    let mut event = Event::default();
    for line in String::from_utf8_lossy(&text).lines() {
        match line.split_once(':') {
            Some(("event", name)) => name.trim().clone_into(&mut event.name),
            Some(("id", id)) => event.id = Some(id.trim().to_owned()),
            Some(("data", data)) => event.data.push_str(data.trim_start()),
            _ => {}
        }
    }
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_whole_however_they_arrive() {
        let mut buffer = BytesMut::from(&b": hello\n\nevent: result\nid: c1\ndata: {\"a\":1}\n\nevent: res"[..]);
        assert_eq!(next_event(&mut buffer), Some(Event::default()), "a comment is no event that anybody knows");
        let event = next_event(&mut buffer).unwrap();
        assert_eq!(
            (event.name.as_str(), event.id.as_deref(), event.data.as_str()),
            ("result", Some("c1"), "{\"a\":1}")
        );
        assert_eq!(next_event(&mut buffer), None);
        buffer.extend_from_slice(b"et\n\n");
        assert_eq!(next_event(&mut buffer).unwrap().name, "reset");
    }
}
