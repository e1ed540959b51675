//! Keeps one connection up: dials, says hello, runs it, and dials again with backoff and full jitter.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::RemoteConfig;
use super::connection::{Call, Connection, Leased};
use super::stream::{FrameReader, ReadError, write_out};
use super::tls;
use relay_bridge::backoff::random;
use relay_bridge::contract::envelope::{self, WireVersion};
use relay_bridge::contract::wire::{
    FRAME_MAX, FRAME_MAX_LEAST, FromServer, FromWorker, HELLO_FRAME_MAX, Hello, Request, Response, Role, VERSION_MAX,
    VERSION_MIN, Welcome,
};
use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};
use relay_bridge::leasing::Receipt;
use relay_bridge::settlement::Settlement;

/// State that requests, the connection's task and orphaned deliveries share.
pub(super) struct Link {
    pub(super) config: RemoteConfig,
    state: watch::Sender<LinkState>,
    /// Ends the connection for good.
    pub(super) close: CancellationToken,
    /// The supervisor and the writer.
    pub(super) tasks: TaskTracker,
    /// Deliveries on their way back.
    pub(super) orphans: TaskTracker,
    /// A request other than a lease waits for a connection: it is of a job that is held, whose lease goes on meanwhile.
    wanted: Notify,
    runtime: tokio::runtime::Handle,
}

#[derive(Clone)]
enum LinkState {
    Up(Arc<Connection>),
    /// With what the last attempt to connect said.
    Down(Option<(Kind, String)>),
    Closed,
}

/// The two halves of a connection, with TLS or without.
type Reads = Box<dyn AsyncRead + Send + Unpin>;
type Writes = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection that was welcomed and is not yet run.
pub(super) struct Established {
    connection: Arc<Connection>,
    from: FrameReader<Reads>,
    to: Writes,
}

impl Link {
    pub(super) fn new(config: RemoteConfig, first: &Established) -> Self {
        Self {
            config,
            state: watch::Sender::new(LinkState::Up(Arc::clone(&first.connection))),
            close: CancellationToken::new(),
            tasks: TaskTracker::new(),
            orphans: TaskTracker::new(),
            wanted: Notify::new(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// The connection that is up now.
    pub(super) fn up(&self) -> Option<Arc<Connection>> {
        match &*self.state.borrow() {
            LinkState::Up(connection) => Some(Arc::clone(connection)),
            LinkState::Down(_) | LinkState::Closed => None,
        }
    }

    /// A connection that is up, and the right to begin one request on it, by `deadline`.
    pub(super) async fn ready(
        &self,
        operation: &'static str,
        lease: bool,
        deadline: Instant,
    ) -> Result<(Arc<Connection>, OwnedSemaphorePermit), BrokerError> {
        let mut state = self.state.subscribe();
        loop {
            let settled = |state: &LinkState| match state {
                LinkState::Up(connection) => connection.takes(lease),
                LinkState::Down(why) => {
                    if !lease {
                        self.wanted.notify_one();
                    }
                    why.as_ref().is_some_and(|(kind, _)| !may_pass(*kind))
                }
                LinkState::Closed => true,
            };
            let Ok(Ok(found)) =
                time::timeout_at(deadline, state.wait_for(settled)).await.map(|found| found.map(|s| s.clone()))
            else {
                let why = match &*self.state.borrow() {
                    LinkState::Down(Some((_, why))) => why.clone(),
                    LinkState::Up(_) => "the server is stopping".to_owned(),
                    LinkState::Down(None) | LinkState::Closed => "the connection was lost".to_owned(),
                };
                let detail = format!("not connected to {}: {why}", self.config.address);
                return Err(BrokerError::new(Kind::Unavailable, operation, detail));
            };
            let connection = match found {
                LinkState::Up(connection) => connection,
                LinkState::Down(Some((kind, why))) => return Err(BrokerError::new(kind, operation, why)),
                LinkState::Down(None) => continue,
                LinkState::Closed => return Err(BrokerError::new(Kind::Unavailable, operation, "it was closed")),
            };
            match time::timeout_at(deadline, Arc::clone(&connection.permits).acquire_owned()).await {
                Ok(Ok(permit)) => return Ok((connection, permit)),
                // The connection ended while this waited.
                Ok(Err(_)) => {}
                Err(_) => {
                    let detail = "as many requests as the server takes at a time are unanswered";
                    return Err(BrokerError::new(Kind::Unavailable, operation, detail));
                }
            }
        }
    }

    /// Sends a request other than a lease and waits for its answer.
    pub(super) async fn call(
        &self,
        operation: &'static str,
        request: impl Fn(WireVersion) -> Request + Send,
    ) -> Result<Response, BrokerError> {
        let deadline = Instant::now() + self.config.request_timeout;
        loop {
            let (connection, permit) = self.ready(operation, false, deadline).await?;
            if let Some(call) = connection.begin(request(connection.envelope), Some(permit))? {
                return answer(&connection, call, operation, deadline).await;
            }
        }
    }

    /// Hands deliveries that nobody waits for back without spending an attempt, one at a time, in a task of its own.
    /// The permit of the request that brought them bounds how many such tasks there are.
    pub(super) fn hand_back(self: &Arc<Self>, leased: Leased, after: Duration) {
        if leased.deliveries.is_empty() {
            return;
        }
        let receipts: Vec<Receipt> = leased.deliveries.into_iter().map(|delivery| delivery.receipt).collect();
        let (link, permit) = (Arc::clone(self), leased.permit);
        self.orphans.spawn_on(
            async move {
                for receipt in receipts {
                    let settle = |_| Request::Settle(receipt.clone(), Settlement::HandBack(after));
                    if let Err(error) = link.give_back(settle).await {
                        tracing::warn!(job_id = %receipt.job_id, %error, "a delivery goes back when its lease ends");
                    }
                }
                drop(permit);
            },
            &self.runtime,
        );
    }

    /// Under the permit that the caller holds where it can be, since all others may be taken by waiting leases.
    async fn give_back(&self, request: impl Fn(WireVersion) -> Request + Send) -> Result<Response, BrokerError> {
        let up = self.up();
        let deadline = Instant::now() + self.config.request_timeout;
        if let Some(connection) = up
            && let Some(call) = connection.begin(request(connection.envelope), None)?
        {
            match answer(&connection, call, "settle", deadline).await {
                Err(error) if error.is_transient() => {}
                other => return other,
            }
        }
        self.call("settle", request).await
    }
}

async fn answer(
    connection: &Connection,
    call: Call,
    operation: &'static str,
    deadline: Instant,
) -> Result<Response, BrokerError> {
    match time::timeout_at(deadline, call.reply).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(BrokerError::new(Kind::Ambiguous, operation, "the connection to relay was lost")),
        Err(_) => Err(connection.give_up(call.id, operation)),
    }
}

/// Runs the first connection and every one after it, until the link is closed.
pub(super) async fn supervise(link: Arc<Link>, first: Established) {
    let mut next = Some(first);
    let mut failures = 0;
    loop {
        if let Some(established) = next.take() {
            let began = Instant::now();
            run(&link, established).await;
            link.state.send_replace(LinkState::Down(None));
            if began.elapsed() > SETTLED {
                failures = 0;
            }
        }
        let wait = backoff(failures, link.config.backoff_max);
        failures = failures.saturating_add(1);
        let established = tokio::select! {
            () = link.close.cancelled() => break,
            established = async {
                tokio::select! {
                    () = time::sleep(wait) => {}
                    () = async {
                        link.wanted.notified().await;
                        time::sleep(backoff(failures, WANTED_WITHIN.min(link.config.backoff_max))).await;
                    } => {}
                }
                establish(&link.config).await
            } => established,
        };
        match established {
            Ok(established) => {
                tracing::info!(address = link.config.address, "connected again");
                link.state.send_replace(LinkState::Up(Arc::clone(&established.connection)));
                next = Some(established);
            }
            Err(error) => {
                tracing::debug!(address = link.config.address, %error, "could not connect");
                link.state.send_replace(LinkState::Down(Some((error.kind(), error.detail().to_owned()))));
            }
        }
    }
    link.state.send_replace(LinkState::Closed);
}

async fn run(link: &Arc<Link>, established: Established) {
    let Established { connection, mut from, to } = established;
    let orphans = |leased| link.hand_back(leased, Duration::ZERO);
    let writer = link.tasks.spawn({
        let (connection, close) = (Arc::clone(&connection), link.close.clone());
        async move { connection.write(to, close).await }
    });
    tokio::pin!(writer);
    let why = tokio::select! {
        why = connection.read(&mut from, orphans) => why,
        why = &mut writer => {
            connection.end("closed", orphans);
            return tracing::debug!(?why, "the writer ended");
        }
    };
    tracing::debug!(address = link.config.address, why, "the connection ended");
    connection.end(&why, orphans);
    if let Err(error) = writer.await {
        tracing::error!(%error, "the writer failed");
    }
}

/// Dials, says hello and waits for the welcome.
pub(super) async fn establish(config: &RemoteConfig) -> Result<Established, BrokerError> {
    let late = || {
        let detail = format!("no answer from {} in {:?}", config.address, config.connect_timeout);
        BrokerError::new(Kind::Unavailable, "connect", detail)
    };
    time::timeout(config.connect_timeout, greet(config)).await.unwrap_or_else(|_| Err(late()))
}

async fn greet(config: &RemoteConfig) -> Result<Established, BrokerError> {
    let unavailable = |error: std::io::Error| {
        let asks_for_tls = config.tls.is_none() && error.kind() == std::io::ErrorKind::UnexpectedEof;
        let hint = if asks_for_tls { ": if the listener speaks TLS, write tls:// in front of its address" } else { "" };
        let detail = format!("{}: {error}{hint}", config.address);
        BrokerError::new(tls::kind(&error), "connect", detail).with_source(error)
    };
    let stream = TcpStream::connect(&config.address).await.map_err(unavailable)?;
    stream.set_nodelay(true).map_err(unavailable)?;
    let (from, mut to): (Reads, Writes) = match &config.tls {
        None => {
            let (from, to) = stream.into_split();
            (Box::new(from), Box::new(to))
        }
        Some(tls) => {
            let secured = Box::pin(tls.connect(&config.address, stream)).await;
            let secured = secured.map_err(|(kind, why)| BrokerError::new(kind, "connect", why))?;
            let (from, to) = tokio::io::split(secured);
            (Box::new(from), Box::new(to))
        }
    };
    let mut hello = BytesMut::new();
    let frame_max = config.frame_max.clamp(FRAME_MAX_LEAST, FRAME_MAX);
    FromWorker::Hello(Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        envelope_max: envelope::NEWEST,
        role: Role::Worker,
        worker: config.worker.clone(),
        key: config.key.clone(),
        build: config.build.clone(),
        frame_max,
    })
    .encode(&mut hello);
    write_out(&mut to, &hello).await.map_err(unavailable)?;
    let mut from = FrameReader::new(from, HELLO_FRAME_MAX);
    let frame = from.next().await.map_err(|error| match error {
        ReadError::Broken(error) => unavailable(error),
        ReadError::Frame(error) => foreign(config, &error.to_string()),
    })?;
    let frame = frame.ok_or_else(|| unavailable(std::io::ErrorKind::UnexpectedEof.into()))?;
    match FromServer::decode(&frame) {
        Ok(FromServer::Welcome(welcome)) => {
            let envelope = understood(config, &welcome)?;
            from.set_frame_max(frame_max);
            let connection = Connection::new(&welcome, config.requests_max, frame_max, envelope);
            Ok(Established { connection: Arc::new(connection), from, to })
        }
        Ok(FromServer::Error { error, .. }) => Err(error.into_broker_error("connect")),
        Ok(_) => Err(foreign(config, "it did not answer the hello")),
        Err(error) => Err(foreign(config, &error.to_string())),
    }
}

/// The envelope version to write, if the welcome is one that this build can work with.
fn understood(config: &RemoteConfig, welcome: &Welcome) -> Result<WireVersion, BrokerError> {
    if !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version) {
        let kind = Kind::NewerVersion { found: welcome.version, newest: VERSION_MAX };
        return Err(BrokerError::new(kind, "connect", "the server chose a protocol version that was not offered"));
    }
    match welcome.envelope_max {
        0 => Err(foreign(config, "it reads no envelope")),
        1 => Ok(WireVersion::V1),
        _ => Ok(WireVersion::V2),
    }
}

fn foreign(config: &RemoteConfig, why: &str) -> BrokerError {
    let detail = format!("{} is not a worker listener of relay: {why}", config.address);
    BrokerError::new(Kind::Invalid, "connect", detail)
}

/// Whether an attempt to connect that failed so may succeed later without anybody's doing.
fn may_pass(kind: Kind) -> bool {
    !matches!(kind, Kind::Unauthorized | Kind::NewerVersion { .. } | Kind::Invalid)
}

/// A random part of an exponentially growing wait: full jitter, so that a fleet does not come back all at once.
fn backoff(failures: u32, max: Duration) -> Duration {
    let ceiling = BACKOFF_BASE.saturating_mul(1 << failures.min(16)).min(max);
    ceiling.mul_f64(random())
}

const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// The longest wait between two attempts to connect while a request of a job that is held waits for it.
const WANTED_WITHIN: Duration = Duration::from_millis(250);
/// A connection that held this long was a good one: the next backoff begins anew.
const SETTLED: Duration = Duration::from_secs(5);
