//! A scripted server over HTTP/1.1: one connection.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use relay::api::{ResultsPage, header};
use relay_bridge::contract::IdempotencyKey;
use relay_bridge::result_log::Reset;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::scenario::{Cut, Name, Step};
use super::script::{Answer, Asked, Script, cursor, document};

/// Serves a connection until its peer, or the script, ends it.
pub(super) async fn serve(script: Arc<Script>, stream: TcpStream) {
    Connection { script, stream, read: Vec::new() }.converse().await;
}

struct Connection {
    script: Arc<Script>,
    stream: TcpStream,
    read: Vec<u8>,
}

struct Requested {
    line: String,
    headers: Vec<(String, String)>,
    bytes: usize,
}

impl Requested {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

impl Connection {
    /// `None` at the end of the connection.
    async fn converse(&mut self) -> Option<()> {
        loop {
            let requested = self.requested().await?;
            let token = requested.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
            self.script.state().tokens.extend(token.map(str::to_owned));
            let (call, query) = asked(&requested);
            let wants_results = call.call == Name::Results;
            let (step, answer) = self.script.begin(call);
            self.script.hold(&step).await;
            let answer = match answer {
                Answer::Never => break,
                Answer::Lost => {
                    self.script.end();
                    return None;
                }
                Answer::Raw(text) => text.into_bytes(),
                Answer::Receipt(_) if wants_results => self.page(&step, &query),
                Answer::Receipt(receipt) => with_json("202 Accepted", &step, &*receipt),
                Answer::Open(view) => with_json("202 Accepted", &step, &*view),
                Answer::Job(view) => with_json("200 OK", &step, &*view),
                Answer::Whoami(text) => with_json("200 OK", &step, &serde_json::from_str::<Value>(&text).unwrap()),
                Answer::Problem(trouble) => {
                    let document = document(&trouble);
                    let after = trouble.retry_after_ms.map(|after| after.div_ceil(1_000));
                    let after = after.map(|after| format!("retry-after: {after}\r\n")).unwrap_or_default();
                    let status = document["status"].as_u64().unwrap();
                    with_json(&format!("{status} As It Is\r\n{after}x: y"), &step, &document)
                }
                Answer::Result { view, payload } => {
                    let head = format!(
                        "{}: {}\r\n{}: {}\r\n{}: {}\r\n{}: {}\r\n{}: {}\r\ncontent-type: {}",
                        header::JOB_ID,
                        view.job_id,
                        header::RUN_ID,
                        view.run_id,
                        header::OUTCOME,
                        view.outcome,
                        header::ATTEMPT,
                        view.attempt,
                        header::CURSOR,
                        view.cursor,
                        view.content_type
                    );
                    message(&format!("200 OK\r\n{head}"), &step, &payload)
                }
            };
            if step.unknown_message {
                self.stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </novel>\r\n\r\n").await.ok()?;
            }
            self.script.end();
            self.write(&answer, step.bytes_every_ms).await?;
            if step.leaves || step.raw.is_some() {
                self.stream.shutdown().await.ok()?;
                break;
            }
        }
        // Until the client has gone.
        while self.stream.read_buf(&mut self.read).await.is_ok_and(|count| count > 0) {}
        None
    }

    async fn requested(&mut self) -> Option<Requested> {
        let most = if self.script.may_cut_request() { self.script.cut_at } else { usize::MAX };
        loop {
            if let Some((requested, length)) = parse(&self.read) {
                if most < usize::MAX {
                    self.script.cuts(Cut::Request, length);
                }
                self.read.drain(..length);
                return Some(requested);
            }
            if self.read.len() >= most {
                self.script.cuts(Cut::Request, usize::MAX);
                return None;
            }
            let mut chunk = vec![0; (most - self.read.len()).min(64 * 1024)];
            let count = self.stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
            self.read.extend_from_slice(&chunk[..count]);
        }
    }

    async fn write(&mut self, bytes: &[u8], every_ms: Option<u64>) -> Option<()> {
        let cut = self.script.cuts(Cut::Answer, bytes.len());
        let bytes = &bytes[..cut.unwrap_or(bytes.len())];
        match every_ms {
            None => self.stream.write_all(bytes).await.ok()?,
            Some(every) => {
                for byte in bytes {
                    tokio::time::sleep(Duration::from_millis(every)).await;
                    self.stream.write_all(&[*byte]).await.ok()?;
                }
            }
        }
        cut.is_none().then_some(())
    }

    fn page(&self, step: &Step, query: &str) -> Vec<u8> {
        let value =
            |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name);
        let limit: u32 = value("limit").unwrap().1.parse().unwrap();
        let (first, reset) = self.script.behind(value("after").map(|(_, after)| after));
        let kept = &self.script.server.results;
        let places = first..=kept.count.min(first + limit - 1);
        let payload = STANDARD.encode(vec![b'x'; kept.bytes]);
        let mut page = ResultsPage {
            reset: reset.then_some(Reset::OlderThanRetention),
            entries: places.map(|place| self.script.kept(place)).collect(),
            next: cursor(first - 1),
        };
        for entry in &mut page.entries {
            entry.payload_base64 = Some(payload.clone());
            page.next = entry.cursor.clone();
        }
        let count = page.entries.len();
        self.script.seen.send_modify(|seen| (seen.pushed, seen.is_spent) = (seen.pushed + count, true));
        with_json("200 OK", step, &page)
    }
}

/// A whole request at the beginning of `read`, and how long it is.
fn parse(read: &[u8]) -> Option<(Requested, usize)> {
    let end = read.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&read[..end]).unwrap();
    let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
    let line = lines.next().unwrap().to_owned();
    let pairs = lines.map(|line| line.split_once(':').unwrap());
    let headers: Vec<_> = pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let mut requested = Requested { line, headers, bytes: 0 };
    requested.bytes = requested.header("content-length").map_or(0, |length| length.parse().unwrap());
    let length = end + requested.bytes;
    (read.len() >= length).then_some((requested, length))
}

/// The call that a request is, and its query.
fn asked(requested: &Requested) -> (Asked, String) {
    let mut words = requested.line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let of = |name, job: &str| Asked::of(name, job.parse().unwrap());
    let asked = match (method, path.split('/').skip(2).collect::<Vec<_>>().as_slice()) {
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

fn with_json<T: Serialize>(head: &str, step: &Step, value: &T) -> Vec<u8> {
    let mut value = serde_json::to_value(value).unwrap();
    if step.unknown_fields {
        value["novel"] = serde_json::json!({"a": [1]});
    }
    message(&format!("{head}\r\ncontent-type: application/json"), step, value.to_string().as_bytes())
}

fn message(head: &str, step: &Step, body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n", body.len());
    if step.unknown_fields {
        text += "relay-novel: 1\r\n";
    }
    if step.leaves {
        text += "connection: close\r\n";
    }
    [(text + "\r\n").as_bytes(), body].concat()
}
