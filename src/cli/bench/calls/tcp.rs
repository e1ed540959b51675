//! Calls over relay's TCP protocol: pipelined, on connections that are dialled again when they broke.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use relay_bridge::contract::wire::client::{Entry, Follow, FromClient, Hello, Request, Submit, ToClient, Welcome};
use relay_bridge::contract::wire::{FRAME_MAX, VERSION_MAX, VERSION_MIN};
use relay_remote::RemoteTls;
use relay_remote::stream::{FrameReader, write_out};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pushed::Pushed;
use super::{Access, Answered, Failure, Who, Width, finished};
use crate::cli::bench::target::Target;
use crate::cli::bench::workload::{Operation, Workload};

/// How long a connection and its welcome may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Messages that are written at once.
const WRITTEN_AT_ONCE: usize = 256;
/// Results that the server may push beyond those that were read, and bytes of theirs.
const CREDIT: u32 = 4_096;
const CREDIT_BYTES: u64 = 64 * 1024 * 1024;

type Reads = FrameReader<Box<dyn AsyncRead + Send + Unpin>>;
type Writes = Box<dyn AsyncWrite + Send + Unpin>;

/// Connections to one server.
pub(super) struct Tcp {
    dial: Dial,
    lines: Vec<tokio::sync::Mutex<Arc<Line>>>,
    wait: Duration,
}

/// How to connect.
struct Dial {
    addresses: Vec<SocketAddr>,
    /// For the name in the server's certificate.
    host: String,
    tls: Option<RemoteTls>,
    hello: Hello,
}

impl Tcp {
    pub(super) async fn connect(target: &Target, access: &Access, width: Width) -> Result<(Self, Who), Failure> {
        let tls = target.tls.then(|| RemoteTls { ca: access.tls.ca.clone(), identity: access.tls.identity.clone() });
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            client: access.client.clone(),
            key: access.key.clone(),
            build: concat!("relay-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
            frame_max: FRAME_MAX,
        };
        let dial = Dial { addresses: target.addresses.clone(), host: target.host.clone(), tls, hello };
        let mut lines = Vec::with_capacity(width.connections);
        for at in 0..width.connections {
            lines.push(tokio::sync::Mutex::new(Arc::new(Line::open(&dial, at, width.jobs).await?)));
        }
        let tcp = Self { dial, lines, wait: width.timeout / 2 };
        let who = match tcp.line(0).await?.ask(Request::Whoami).await? {
            ToClient::Whoami { document, .. } => serde_json::from_str(&document)
                .map_err(|error| Failure::not_relay(format!("whoami can't be read: {error}")))?,
            other => return Err(refused(other)),
        };
        Ok((tcp, who))
    }

    pub(super) async fn call(&self, slot: usize, workload: &Workload, number: u64) -> Result<Answered, Failure> {
        let line = self.line(slot).await?;
        if workload.operation == Operation::Batch {
            return self.batch(&line, workload, number).await;
        }
        let waits = workload.operation == Operation::Wait;
        let submit = Submit { wait: waits.then_some(self.wait), ..job(workload, number) };
        match line.ask(Request::Submit(Box::new(submit))).await? {
            ToClient::Result { result, .. } if waits => finished(result.outcome.as_str()),
            ToClient::Receipt { .. } if waits => Err(Failure::no_result()),
            ToClient::Receipt { .. } => Ok(Answered::one()),
            other => Err(refused(other)),
        }
    }

    async fn batch(&self, line: &Line, workload: &Workload, number: u64) -> Result<Answered, Failure> {
        let (mut entries, mut answers) = (Vec::new(), Vec::new());
        for entry in 0..workload.batch {
            let expected = line.expect();
            let submit = Ok(Box::new(job(workload, number * workload.batch + entry)));
            entries.push(Entry { id: expected.id, submit });
            answers.push(expected);
        }
        line.send(FromClient::SubmitMany(entries)).await?;
        let mut answered = Answered::default();
        for answer in answers {
            match answer.answer().await? {
                ToClient::Receipt { .. } => answered.jobs += 1,
                other => answered.refused.push(refused(other)),
            }
        }
        Ok(answered)
    }

    /// Follows results over a connection of its own.
    pub(super) async fn follow(
        &self,
        workload: &Workload,
        pushed: &Pushed,
        ready: &CancellationToken,
    ) -> Result<(), Failure> {
        let (mut from, mut to, _) = self.dial.greet(0).await?;
        let id = 1;
        let follow = Follow {
            after: Some("now".to_owned()),
            key_prefix: Some(workload.prefix().to_owned()),
            results: CREDIT,
            bytes: CREDIT_BYTES,
            ..Follow::default()
        };
        write(&mut to, &FromClient::Request { id, request: Request::Follow(follow) }).await?;
        let (mut results, mut bytes) = (0, 0);
        loop {
            match read(&mut from).await? {
                ToClient::Position { .. } => ready.cancel(),
                ToClient::Result { result, .. } => {
                    let key = result.key.as_ref().map(|key| key.as_str());
                    pushed.announce(workload, key, result.outcome.as_str());
                    results += 1;
                    if let relay_bridge::contract::wire::client::answer::Body::Here(payload) = &result.payload {
                        bytes += payload.len() as u64;
                    }
                    if results >= CREDIT / 4 || bytes >= CREDIT_BYTES / 4 {
                        write(&mut to, &FromClient::Credit { id, results, bytes }).await?;
                        (results, bytes) = (0, 0);
                    }
                }
                ToClient::Ping(number) => write(&mut to, &FromClient::Pong(number)).await?,
                ToClient::Pong(_) | ToClient::Reset { .. } | ToClient::GoAway { .. } => {}
                ToClient::Followed { reason, .. } => {
                    return Err(Failure::interrupted(format!("the server ended the follow: {reason}")));
                }
                other => return Err(refused(other)),
            }
        }
    }

    /// The connection of a slot, which is dialled again if it broke.
    async fn line(&self, slot: usize) -> Result<Arc<Line>, Failure> {
        let at = slot % self.lines.len();
        let mut line = self.lines[at].lock().await;
        if line.is_left() {
            let room = line.send.max_capacity();
            *line = Arc::new(Line::open(&self.dial, at, room).await?);
        }
        Ok(Arc::clone(&line))
    }

    pub(super) async fn close(&self) {
        for line in &self.lines {
            line.lock().await.closed.cancel();
        }
    }
}

fn job(workload: &Workload, number: u64) -> Submit {
    Submit {
        queue: workload.queue.to_string(),
        key: Some(workload.key(number)),
        payload: workload.payload(number),
        ..Submit::default()
    }
}

impl Dial {
    async fn greet(&self, at: usize) -> Result<(Reads, Writes, Welcome), Failure> {
        let greeted = tokio::time::timeout(CONNECT_MAX, self.try_greet(at)).await;
        greeted.unwrap_or_else(|_| Err(Failure::unreachable(format!("no welcome in {CONNECT_MAX:?}"))))
    }

    /// A connection to the address of number `at`, or to the next one that takes it.
    async fn stream(&self, at: usize) -> Result<(TcpStream, SocketAddr), Failure> {
        let mut refused = String::new();
        for offset in 0..self.addresses.len() {
            let address = self.addresses[(at + offset) % self.addresses.len()];
            match TcpStream::connect(address).await.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => refused = format!("{address}: {error}"),
            }
        }
        Err(Failure::unreachable(refused))
    }

    async fn try_greet(&self, at: usize) -> Result<(Reads, Writes, Welcome), Failure> {
        let (stream, address) = self.stream(at).await?;
        let (from, mut to): (Box<dyn AsyncRead + Send + Unpin>, Writes) = match &self.tls {
            None => {
                let (from, to) = stream.into_split();
                (Box::new(from), Box::new(to))
            }
            Some(tls) => {
                let name = format!("{}:{}", self.host, address.port());
                let secured = Box::pin(tls.connect(&name, stream)).await;
                let (from, to) = tokio::io::split(secured.map_err(|(_, why)| Failure::new("tls", why))?);
                (Box::new(from), Box::new(to))
            }
        };
        let mut from = FrameReader::new(from, FRAME_MAX);
        write(&mut to, &FromClient::Hello(self.hello.clone())).await?;
        match read(&mut from).await? {
            ToClient::Welcome(welcome) => Ok((from, to, *welcome)),
            other => Err(refused(other)),
        }
    }
}

/// One connection with any number of unanswered requests, which its callers bound.
struct Line {
    send: mpsc::Sender<FromClient>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
    closed: CancellationToken,
    _tasks: JoinSet<()>,
}

/// The requests that are unanswered, and whether the server wants no more of them.
#[derive(Default)]
struct Waiting {
    answers: Mutex<HashMap<u64, oneshot::Sender<ToClient>>>,
    left: AtomicBool,
}

impl Waiting {
    fn answers(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<ToClient>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }
}

impl Line {
    async fn open(dial: &Dial, at: usize, room: usize) -> Result<Self, Failure> {
        let (from, to, welcome) = dial.greet(at).await?;
        if room > welcome.requests_max as usize {
            let most = welcome.requests_max;
            return Err(Failure::new(
                "in-flight",
                format!("the server takes {most} unanswered submissions on a connection, and these would be {room}"),
            ));
        }
        let (send, messages) = mpsc::channel(room);
        let (waiting, closed) = (Arc::<Waiting>::default(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(closing(closed.clone(), Arc::clone(&waiting), write_all(to, messages, welcome.ping)));
        tasks.spawn(closing(closed.clone(), Arc::clone(&waiting), {
            let (waiting, send) = (Arc::clone(&waiting), send.clone());
            async move { read_all(from, &waiting, &send).await }
        }));
        Ok(Self { send, waiting, next: AtomicU64::new(1), closed, _tasks: tasks })
    }

    /// A new request.
    fn expect(&self) -> Expected<'_> {
        let (id, (tell, answer)) = (self.next.fetch_add(1, Ordering::Relaxed), oneshot::channel());
        self.waiting.answers().insert(id, tell);
        Expected { waiting: &self.waiting, id, answer }
    }

    async fn ask(&self, request: Request) -> Result<ToClient, Failure> {
        let expected = self.expect();
        self.send(FromClient::Request { id: expected.id, request }).await?;
        expected.answer().await
    }

    async fn send(&self, message: FromClient) -> Result<(), Failure> {
        let sent = self.send.send(message).await.map_err(|_| broken());
        if self.closed.is_cancelled() {
            // Perhaps after the answers of all others were given up.
            self.waiting.answers().clear();
        }
        sent
    }

    fn is_left(&self) -> bool {
        self.closed.is_cancelled() || self.waiting.left.load(Ordering::Acquire)
    }
}

/// A request and its answer. Nothing is kept of one that is dropped before, because its time is up.
struct Expected<'a> {
    waiting: &'a Waiting,
    id: u64,
    answer: oneshot::Receiver<ToClient>,
}

impl Expected<'_> {
    async fn answer(mut self) -> Result<ToClient, Failure> {
        (&mut self.answer).await.map_err(|_| broken())
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        // Otherwise the answer, or the end of the connection, has taken the entry.
        if matches!(self.answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            self.waiting.answers().remove(&self.id);
        }
    }
}

/// Runs one direction until it ends, or the other one does, and gives up what is unanswered then.
async fn closing(closed: CancellationToken, waiting: Arc<Waiting>, run: impl Future<Output = ()>) {
    tokio::select! {
        () = run => {}
        () = closed.cancelled() => {}
    }
    closed.cancel();
    waiting.answers().clear();
}

async fn write_all(mut to: Writes, mut messages: mpsc::Receiver<FromClient>, ping: Duration) {
    let mut pings = tokio::time::interval(ping.max(Duration::from_secs(1)));
    let (mut batch, mut bytes) = (Vec::new(), BytesMut::new());
    loop {
        tokio::select! {
            count = messages.recv_many(&mut batch, WRITTEN_AT_ONCE) => if count == 0 { return },
            _ = pings.tick() => batch.push(FromClient::Ping(0)),
        }
        for message in batch.drain(..) {
            message.encode(&mut bytes);
        }
        if write_out(&mut to, &bytes).await.is_err() {
            return;
        }
        bytes.clear();
    }
}

async fn read_all(mut from: Reads, waiting: &Waiting, send: &mpsc::Sender<FromClient>) {
    while let Ok(message) = read(&mut from).await {
        let id = match &message {
            ToClient::Receipt { id, .. }
            | ToClient::Result { id, .. }
            | ToClient::Job { id, .. }
            | ToClient::Whoami { id, .. }
            | ToClient::Problem { id, .. } => *id,
            ToClient::Ping(number) => {
                // Where there is no room, submissions are on their way, which say as much.
                send.try_send(FromClient::Pong(*number)).ok();
                continue;
            }
            ToClient::GoAway { .. } => {
                waiting.leave();
                continue;
            }
            ToClient::Error(_) => return,
            _ => continue,
        };
        let answer = waiting.answers().remove(&id);
        if let Some(answer) = answer {
            answer.send(message).ok();
        }
    }
}

async fn read(from: &mut Reads) -> Result<ToClient, Failure> {
    let frame = from.next().await.map_err(|error| Failure::interrupted(error.to_string()))?.ok_or_else(broken)?;
    ToClient::decode(&frame).map_err(|error| Failure::not_relay(error.to_string()))
}

async fn write(to: &mut Writes, message: &FromClient) -> Result<(), Failure> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    write_out(to, &bytes).await.map_err(|error| Failure::interrupted(error.to_string()))
}

fn broken() -> Failure {
    Failure::interrupted("the connection broke")
}

fn refused(answer: ToClient) -> Failure {
    match answer {
        ToClient::Problem { problem, .. } => Failure::new(problem.slug, problem.detail),
        ToClient::Error(error) => Failure::new(error.slug.clone(), error.detail.clone()),
        _ => Failure::not_relay("the answer is none to this request"),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_call_whose_time_is_up_leaves_nothing_behind() {
        let (send, _messages) = mpsc::channel(2);
        let (waiting, closed) = (Arc::<Waiting>::default(), CancellationToken::new());
        let line = Line { send, waiting, next: AtomicU64::new(1), closed, _tasks: JoinSet::new() };
        let mut call = Box::pin(line.ask(Request::Whoami));
        assert!(call.as_mut().now_or_never().is_none(), "nobody answers");
        assert_eq!(line.waiting.answers().len(), 1);
        drop(call);
        assert!(line.waiting.answers().is_empty());
    }
}
