//! A client's requests, each on a connection of its own; streams of events, read as they come; a worker that does jobs.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::contract::JobResult;
use relay_bridge::contract::result::End;
use relay_bridge::leasing::{Delivery, LeaseRequest, Leasing as _};
use relay_bridge::settlement::Settlement;
use relay_remote::{Remote, RemoteConfig};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::Attacked;

/// An answer of the server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The status line and the headers, in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A field of the body as text; empty if it is not there.
    pub(crate) fn field(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_default().to_owned()
    }

    /// All that a refusal says, but for the request's own id.
    pub(crate) fn said(&self) -> (u16, String, String) {
        (self.status, self.field("slug"), self.field("detail"))
    }
}

/// A request whose answer is read to its end.
pub(crate) struct Asked {
    stream: TcpStream,
    /// Bytes that nobody asked for yet.
    read: Vec<u8>,
}

impl Asked {
    /// Sends `line` with `key`; `headers` are lines without their ends.
    pub(crate) async fn send(attacked: &Attacked, key: &str, line: &str, headers: &[&str], body: &str) -> Self {
        let mut stream = TcpStream::connect(attacked.address()).await.unwrap();
        let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = body.len();
        let text = format!(
            "{line} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
             content-length: {length}\r\n{more}\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Reads on until `text` came, and gives everything up to its end.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(text.len()).position(|bytes| bytes == text.as_bytes()) {
                let before: Vec<_> = self.read.drain(..at + text.len()).collect();
                return String::from_utf8(before).unwrap();
            }
            let more = self.stream.read_buf(&mut self.read).await.unwrap();
            assert!(more > 0, "it ended without {text:?}: {}", String::from_utf8_lossy(&self.read));
        }
    }

    /// The rest, to the end of the connection.
    pub(crate) async fn rest(mut self) -> String {
        self.stream.read_to_end(&mut self.read).await.unwrap();
        String::from_utf8_lossy(&self.read).into_owned()
    }

    pub(crate) async fn answer(self) -> Answer {
        Answer::read(&self.rest().await)
    }
}

/// One request and its answer.
pub(crate) async fn ask(attacked: &Attacked, key: &str, line: &str, headers: &[&str], body: &str) -> Answer {
    Asked::send(attacked, key, line, headers, body).await.answer().await
}

/// Submits `body` under an idempotency key, none if it is empty, and gives the job's id.
pub(crate) async fn submit(attacked: &Attacked, key: &str, queue: &str, named: &str, body: &str) -> String {
    let header = format!("idempotency-key: {named}");
    let headers = if named.is_empty() { vec![] } else { vec![header.as_str()] };
    let answer = ask(attacked, key, &format!("POST /v1/queues/{queue}/jobs"), &headers, body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.field("job_id")
}

/// Opens a stream of events and reads its beginning.
pub(crate) async fn stream(attacked: &Attacked, key: &str, path: &str) -> Asked {
    let line = format!("GET {path}");
    let mut asked = Asked::send(attacked, key, &line, &["accept: text/event-stream"], "").await;
    let beginning = asked.until("retry:").await;
    assert!(beginning.starts_with("HTTP/1.1 200"), "{beginning}");
    asked
}

/// A worker that does what it is told.
pub(crate) struct Hands(Remote);

impl Hands {
    pub(crate) async fn connect(attacked: &Attacked, key: &str) -> Self {
        let mut config = RemoteConfig::new(attacked.server.workers(), "hands".parse().unwrap());
        config.key = Some(key.to_owned());
        Self(Remote::connect(config).await.unwrap())
    }

    /// Waits for a job of `queue`.
    pub(crate) async fn take(&self, queue: &str) -> Delivery {
        let (worker, queues) = ("hands".parse().unwrap(), vec![queue.parse().unwrap()]);
        let request = LeaseRequest { worker, queues, max: NonZeroU32::MIN, wait: Duration::from_secs(20) };
        self.0.lease(&request).await.unwrap().pop().expect("a job")
    }

    /// Takes a job of `queue` and finishes it with this result.
    pub(crate) async fn work(&self, queue: &str, result: &str) {
        let delivery = self.take(queue).await;
        let at = delivery.leased_at;
        let end = End { attempt: delivery.attempt, started_at: Some(at), finished_at: at };
        let result = JobResult::succeeded(&delivery.job, end, "text/plain", Bytes::from(result.to_owned()));
        self.0.record(&result).await.unwrap();
        self.0.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    }
}
