//! A scripted server over relay's TCP protocol: one connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay::api::{JobView, Receipt, ResultView};
use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::contract::wire::client::{
    Follow, FromClient, Request, Submit, ToClient, Welcome, WireProblem, WireReceipt, WireResult,
};
use relay_bridge::contract::wire::error::Retry;
use relay_bridge::contract::wire::{FRAME_MAX, WireError};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::result_log::Reset;
use relay_remote::stream::FrameReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::scenario::{Cut, Name, Other, Step, Trouble};
use super::script::{Answer, Asked, Script, cursor, document};

/// The sending half of a connection, and its end.
#[derive(Clone)]
struct Line {
    script: Arc<Script>,
    at: usize,
    to: Arc<Mutex<OwnedWriteHalf>>,
    ended: CancellationToken,
}

/// Serves a connection to the address `at` until its peer, or the script, ends it.
pub(super) async fn serve(script: Arc<Script>, at: usize, stream: TcpStream) {
    let (from, to) = stream.into_split();
    let line = Line { script, at, to: Arc::new(Mutex::new(to)), ended: CancellationToken::new() };
    let mut from = FrameReader::new(from, FRAME_MAX);
    tokio::select! {
        _ = line.converse(&mut from) => {}
        () = line.ended.cancelled() => {}
    }
}

impl Line {
    /// `None` at the end of the connection.
    async fn converse(&self, from: &mut FrameReader<OwnedReadHalf>) -> Option<()> {
        let hello = from.next().await.ok()??;
        let Ok(FromClient::Hello(hello)) = FromClient::decode(&hello) else { panic!("the first message is no hello") };
        self.welcome(hello.key).await?;
        let (mut follows, mut tasks) = (HashMap::new(), JoinSet::new());
        let mut first = if self.script.may_cut_request() { Some(self.first(from.inner_mut()).await?) } else { None };
        loop {
            let frame = match first.take() {
                Some(frame) => frame,
                None => from.next().await.ok()??,
            };
            match FromClient::decode(&frame).unwrap() {
                FromClient::Request { id, request: Request::Follow(follow) } => {
                    let (_, answer) = self.script.begin(self.at, Asked::new(Name::Results));
                    self.script.end();
                    if let Answer::Problem(trouble) = answer {
                        self.send(&problem(id, &trouble)).await?;
                        continue;
                    }
                    let mut follower = self.follow(id, &follow).await?;
                    self.push(id, &mut follower).await?;
                    follows.insert(id, follower);
                }
                FromClient::Request { id, request } => {
                    let (step, answer) = self.script.begin(self.at, asked(request));
                    let line = self.clone();
                    tasks.spawn(async move { line.answer(id, step, answer).await });
                }
                FromClient::Credit { id, results, bytes } => {
                    if let Some(follower) = follows.get_mut(&id) {
                        follower.results += u64::from(results);
                        follower.bytes += bytes;
                        self.push(id, follower).await?;
                    }
                }
                FromClient::Stop { id } => {
                    if let Some(follower) = follows.remove(&id) {
                        let cursor = Some(cursor(follower.next - 1));
                        self.send(&ToClient::Followed { id, cursor, reason: "stopped".to_owned() }).await?;
                    }
                }
                FromClient::Ping(number) => self.send(&ToClient::Pong(number)).await?,
                FromClient::Pong(_) => {}
                other => panic!("the library sends no {other:?}"),
            }
        }
    }

    async fn welcome(&self, token: Option<String>) -> Option<()> {
        let wanted = self.script.server.welcome.clone();
        let refused = {
            let mut state = self.script.state();
            state.hellos += 1;
            state.tokens.extend(token);
            wanted.refused.as_ref().filter(|refused| state.hellos <= refused.times)
        };
        if let Some(refused) = refused {
            self.send(&ToClient::Error(Box::new(error(&refused.problem)))).await?;
            self.ended.cancel();
            return None;
        }
        let message = ToClient::Welcome(Box::new(Welcome {
            version: wanted.version,
            frame_max: wanted.frame_max,
            requests_max: wanted.requests_max,
            bytes_max: 1 << 30,
            wait_max: Duration::from_secs(55),
            ping: Duration::from_secs(20),
            client: "dev".parse().unwrap(),
            server_time: self.script.now(),
            build: "scripted".to_owned(),
        }));
        self.write(frame(&message, wanted.unknown_fields), Some(Cut::Welcome), None).await
    }

    /// The first request where it may be cut: its frame, or `None` if it was.
    async fn first(&self, from: &mut OwnedReadHalf) -> Option<Bytes> {
        let (mut read, most) = (Vec::new(), self.script.cut_at);
        loop {
            let whole = read.first_chunk().map(|length| 4 + u32::from_be_bytes(*length) as usize);
            if whole == Some(read.len()) {
                self.script.cuts(Cut::Request, read.len());
                return Some(Bytes::from(read).slice(4..));
            }
            if read.len() == most {
                self.script.cuts(Cut::Request, usize::MAX);
                return None;
            }
            // Neither more than the frame nor more than is wanted.
            let end = whole.unwrap_or(4).min(most);
            let mut chunk = vec![0; end - read.len()];
            let count = from.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
            read.extend_from_slice(&chunk[..count]);
        }
    }

    async fn answer(&self, id: u64, step: Step, answer: Answer) -> Option<()> {
        self.script.hold(&step).await;
        let id = if step.other == Some(Other::Request) { id + 1_000 } else { id };
        let message = match answer {
            Answer::Never => return None,
            Answer::Untaken => panic!("streams are refused over HTTP/2"),
            Answer::Lost => {
                self.script.end();
                self.ended.cancel();
                return None;
            }
            Answer::Raw(bytes) => {
                self.script.end();
                let bytes: Vec<_> = (0..bytes.len()).step_by(2).map(|at| hex(&bytes[at..at + 2])).collect();
                return self.write(bytes[..].into(), None, None).await;
            }
            Answer::Receipt(receipt) => ToClient::Receipt { id, receipt: Box::new(wire_receipt(*receipt)) },
            Answer::Result { view, payload } => {
                ToClient::Result { id, replayed: false, result: Box::new(wire_result(*view, payload)) }
            }
            Answer::Job(view) | Answer::Open(view) => ToClient::Job { id, document: json(&view) },
            Answer::Whoami(document) => ToClient::Whoami { id, document },
            Answer::Problem(trouble) => problem(id, &trouble),
        };
        if step.unknown_message {
            // {"type": "novel"}
            self.write(b"\0\0\0\x0c\x81\xa4type\xa5novel"[..].into(), None, None).await?;
        }
        if step.leaves {
            let within = Duration::from_secs(30);
            self.send(&ToClient::GoAway { reason: "draining".to_owned(), within }).await?;
        }
        // A client may ask on as soon as it has read the answer.
        self.script.end();
        self.write(frame(&message, step.unknown_fields), Some(Cut::Answer), step.bytes_every_ms).await
    }

    async fn send(&self, message: &ToClient) -> Option<()> {
        self.write(frame(message, false), None, None).await
    }

    async fn write(&self, bytes: BytesMut, cut: Option<Cut>, every_ms: Option<u64>) -> Option<()> {
        let cut = cut.and_then(|cut| self.script.cuts(cut, bytes.len()));
        let mut to = self.to.lock().await;
        let bytes = &bytes[..cut.unwrap_or(bytes.len())];
        match every_ms {
            None => to.write_all(bytes).await.ok()?,
            Some(every) => {
                for byte in bytes {
                    tokio::time::sleep(Duration::from_millis(every)).await;
                    to.write_all(&[*byte]).await.ok()?;
                }
            }
        }
        if cut.is_some() {
            self.ended.cancel();
        }
        Some(())
    }

    async fn follow(&self, id: u64, follow: &Follow) -> Option<Follower> {
        let (first, reset) = self.script.behind(follow.after.as_deref());
        let passed = self.script.passes(first);
        let next = passed.unwrap_or(first);
        if reset {
            self.send(&ToClient::Reset { id, reason: Reset::OlderThanRetention }).await?;
        }
        if passed.is_some() || next > self.script.server.results.count {
            self.send(&ToClient::Position { id, cursor: cursor(next - 1) }).await?;
        }
        Some(Follower { next, results: u64::from(follow.results), bytes: follow.bytes })
    }

    /// Pushes as long as there is credit.
    async fn push(&self, id: u64, follower: &mut Follower) -> Option<()> {
        let kept = &self.script.server.results;
        while follower.next <= kept.count && (kept.overrun || follower.results > 0 && follower.bytes > 0) {
            let result = wire_result(self.script.kept(follower.next), vec![b'x'; kept.bytes].into());
            follower.next += 1;
            follower.results = follower.results.saturating_sub(1);
            follower.bytes = follower.bytes.saturating_sub(kept.bytes as u64);
            self.script.seen.send_modify(|seen| (seen.pushed, seen.is_spent) = (seen.pushed + 1, false));
            self.send(&ToClient::Result { id, replayed: false, result: Box::new(result) }).await?;
        }
        self.script.seen.send_modify(|seen| seen.is_spent = true);
        Some(())
    }
}

struct Follower {
    next: u32,
    results: u64,
    bytes: u64,
}

fn asked(request: Request) -> Asked {
    match request {
        Request::Submit(submit) => {
            let Submit { queue, key, payload, .. } = *submit;
            let key = key.map(|key| key.parse().unwrap());
            Asked { queue: queue.parse().ok(), key, bytes: payload.len(), ..Asked::new(Name::Submit) }
        }
        Request::Wait { job, .. } => Asked::of(Name::Wait, job),
        Request::Status(job) => Asked::of(Name::Status, job),
        Request::Cancel(job) => Asked::of(Name::Cancel, job),
        Request::Rerun { job, .. } => Asked::of(Name::Rerun, job),
        Request::Whoami => Asked::new(Name::Whoami),
        Request::Follow(_) => Asked::new(Name::Results),
    }
}

fn frame(message: &ToClient, unknown_fields: bool) -> BytesMut {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    if unknown_fields {
        // One field more in the map, at its end: {..., "novel": {"a": [1]}}
        let more = b"\xa5novel\x81\xa1a\x91\x01";
        assert!((0x80..0x8f).contains(&bytes[4]), "the map is a short one");
        bytes[4] += 1;
        bytes.extend_from_slice(more);
        let length = u32::try_from(bytes.len() - 4).unwrap();
        bytes[..4].copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

fn hex(text: &str) -> u8 {
    u8::from_str_radix(text, 16).unwrap()
}

fn json(view: &JobView) -> String {
    serde_json::to_string(view).unwrap()
}

fn wire_receipt(receipt: Receipt) -> WireReceipt {
    WireReceipt {
        job: receipt.job_id,
        run: receipt.run_id,
        generation: receipt.generation,
        client: receipt.client,
        queue: receipt.queue,
        key: receipt.key,
        meta: receipt.meta,
        state: receipt.state,
        replayed: receipt.replayed,
        accepted_at: receipt.accepted_at,
        expires_at: receipt.expires_at.unwrap(),
    }
}

fn wire_result(view: ResultView, payload: Bytes) -> WireResult {
    WireResult {
        cursor: view.cursor,
        job: view.job_id,
        run: view.run_id,
        generation: view.generation,
        queue: view.queue,
        key: view.key,
        meta: view.meta,
        outcome: view.outcome,
        attempt: view.attempt,
        content_type: view.content_type,
        payload: Body::Here(payload),
        failure: view.failure,
        accepted_at: view.accepted_at,
        started_at: view.started_at,
        finished_at: view.finished_at,
        traceparent: None,
    }
}

fn problem(id: u64, trouble: &Trouble) -> ToClient {
    let document = document(trouble);
    let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    let problem = WireProblem {
        slug: text("slug"),
        retry: Retry::from_word(&text("retry")),
        detail: text("detail"),
        instance: String::new(),
        retry_after: trouble.retry_after_ms.map(Duration::from_millis),
        limit: None,
        actual: None,
        job: None,
        first_at: None,
        outcome: None,
        finished_at: None,
    };
    ToClient::Problem { id, problem: Box::new(problem) }
}

fn error(trouble: &Trouble) -> WireError {
    let document = document(trouble);
    let retry = Retry::from_word(document["retry"].as_str().unwrap());
    let retry_after = trouble.retry_after_ms.map(Duration::from_millis);
    WireError { retry, retry_after, ..WireError::new(BrokerErrorKind::Invalid, "as the scenario wants") }
        .with_slug(&trouble.slug)
}
