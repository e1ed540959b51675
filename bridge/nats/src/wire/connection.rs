//! One connection to NATS that comes back for ever, and its state for the rest of relay: whether it is up, since when,
//! why not, and when messages may have been missed.
//!
//! While the connection is down nothing is handed to the client library: it would queue the command and send it later,
//! long after the caller was told that it failed. A command that was handed over and not answered is in doubt, never
//! refused.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{AccountErrorKind, ContextBuilder};
use async_nats::{AuthError, Client, ConnectOptions};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Credentials, NatsConfig};
use crate::wire::link::Shared;
use crate::wire::version::Version;
use relay_bridge::backoff::{away, random};
use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};

pub use crate::wire::link::{Counts, Link};

/// How long [`Connection::open`] waits for a broker that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it comes: for processes that are started in any order.
    Forever,
    /// At most this long: for commands that a person waits for.
    AtMost(Duration),
}

/// The use of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// JetStream has to answer.
    Broker,
    /// Core messages only.
    Messages,
}

/// A connection. Clones share it; it is closed by [`Connection::close`], or with the last clone.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    context: Context,
    config: NatsConfig,
    shared: Arc<Shared>,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Connection {
    /// Connects and sees that JetStream answers. A server that is not there yet is waited for, and the log says so.
    ///
    /// # Errors
    /// `Invalid` for a configuration that can't be, with all that is wrong, and for a server that is older than 2.12;
    /// `Unavailable` if `wait` is over, with what the last attempt said.
    pub async fn open(config: NatsConfig, wait: Wait) -> Result<Self, BrokerError> {
        Self::open_for(config, wait, Purpose::Broker).await
    }

    /// Opens a connection for core messages, without JetStream: subscriptions and replies, such as an ingress needs.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_core(config: NatsConfig, wait: Wait) -> Result<Self, BrokerError> {
        Self::open_for(config, wait, Purpose::Messages).await
    }

    async fn open_for(config: NatsConfig, wait: Wait, purpose: Purpose) -> Result<Self, BrokerError> {
        let checked = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || config.check()).await
        };
        let checked = checked.map_err(|error| unavailable("interrupted").with_source(error))?;
        checked.map_err(|problems| BrokerError::new(Kind::Invalid, OPERATION, problems.to_string()))?;
        let patience = match wait {
            Wait::Forever => FOREVER,
            Wait::AtMost(most) => most,
        };
        let mut last = "there was no answer".to_owned();
        // Boxed: it is large, and every caller's future would be.
        match timeout(patience, Box::pin(Self::attempts(&config, purpose, &mut last))).await {
            Ok(opened) => opened,
            Err(_) => Err(unavailable(format!("{}: {last}", config.servers.join(", ")))),
        }
    }

    /// Tries until a connection is made, or fails for a reason that waiting does not mend. `last` says why the last
    /// attempt failed.
    async fn attempts(config: &NatsConfig, purpose: Purpose, last: &mut String) -> Result<Self, BrokerError> {
        let servers = config.servers.join(", ");
        let (mut attempt, mut told) = (0_u32, None::<Instant>);
        loop {
            let why = match Self::attempt(config, purpose).await {
                Ok(connection) => {
                    let info = connection.0.client.server_info();
                    tracing::info!(server = %info.server_name, version = %info.version, name = config.name, "connected to NATS");
                    return Ok(connection);
                }
                Err(error) if error.kind() != Kind::Unavailable => return Err(error),
                Err(error) => error.detail().to_owned(),
            };
            attempt += 1;
            if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) || why != *last {
                tracing::warn!(%servers, attempt, "waiting for NATS: {why}");
                told = Some(Instant::now());
            }
            *last = why;
            sleep(away(attempt)).await;
        }
    }

    async fn attempt(config: &NatsConfig, purpose: Purpose) -> Result<Self, BrokerError> {
        let shared = Arc::new(Shared::new());
        let connected = options(config, &shared).connect(config.addresses()).await;
        let client = connected.map_err(|error| {
            let what_to_do = match error.kind() {
                async_nats::ConnectErrorKind::AuthorizationViolation => {
                    "; check the user and the secret, or that the server knows them"
                }
                async_nats::ConnectErrorKind::Tls => "; check the addresses and the authorities of the TLS setting",
                _ => "",
            };
            unavailable(format!("{error}{what_to_do}"))
        })?;
        let info = client.server_info();
        Version::accept(&info.version).map_err(|why| {
            BrokerError::new(Kind::Invalid, OPERATION, format!("server `{}` {why}", info.server_name))
        })?;
        if let Some(why) = Version::warning(&info.version) {
            tracing::warn!(server = %info.server_name, "this NATS server {why}");
        }
        if config.credentials.reveals()
            && !info.tls_required
            && !config.addresses().iter().all(|address| config.tls.covers(address))
        {
            tracing::warn!(
                "the password or token for NATS travels in the clear: use TLS, an NKey or a credentials file"
            );
        }
        let context = ContextBuilder::new().timeout(config.request_timeout);
        let context = match &config.domain {
            Some(domain) => context.domain(domain).build(client.clone()),
            None => context.build(client.clone()),
        };
        if purpose == Purpose::Broker {
            jetstream_answers(&context, config.domain.as_deref()).await?;
        }
        shared.watch(client.statistics());
        shared.up();
        let inner = Arc::new(Inner {
            client,
            context,
            config: config.clone(),
            shared,
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        inner.tasks.spawn(keep(Arc::downgrade(&inner), Arc::clone(&inner.shared), inner.closing.clone()));
        Ok(Self(inner))
    }

    /// The client, for core messages. See [`Self::up`] before anything is sent.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// JetStream, in the configured domain.
    #[must_use]
    pub fn jetstream(&self) -> &Context {
        &self.0.context
    }

    /// The configuration with which it was opened.
    #[must_use]
    pub fn config(&self) -> &NatsConfig {
        &self.0.config
    }

    /// Changes when the connection is lost or back, and when announcements may have been missed: see [`Link::epoch`].
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.0.shared.subscribe()
    }

    /// Changes when announcements may have been missed, and not when the connection is lost: see [`Link::epoch`].
    #[must_use]
    pub fn missed(&self) -> watch::Receiver<u64> {
        self.0.shared.missed()
    }

    /// Counts of failures, since it was opened.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.shared.counts()
    }

    /// Runs a task that [`Self::close`] waits for; it has to end when [`Self::closing`] says so.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(task);
    }

    /// Cancelled when the connection is being closed.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.0.closing
    }

    /// Whether a call may be begun now.
    ///
    /// # Errors
    /// `Unavailable` while the connection is down, at once: nothing was sent.
    pub fn up(&self, operation: &'static str) -> Result<(), BrokerError> {
        let why = match self.0.shared.down() {
            Some(why) => why,
            None if self.0.client.connection_state() == State::Connected => return Ok(()),
            None => "the connection was lost".to_owned(),
        };
        Err(BrokerError::new(Kind::Unavailable, operation, format!("NATS is away: {why}")))
    }

    /// Resolves when the server refuses a publish whose subject ends with `subject`. It says so to the connection, and not
    /// in an answer.
    pub(crate) async fn refused_publish(&self, subject: &str) {
        self.0.shared.refused_publish(subject).await;
    }

    /// The error for a call that was sent and got no answer: `Ambiguous`, because the call may still take effect. It
    /// names a permission that the server refused lately, because a missing permission shows as silence.
    #[must_use]
    pub fn unanswered(&self, operation: &'static str) -> BrokerError {
        let detail = match self.0.shared.lately_refused() {
            Some(refused) => format!("NATS did not answer; it refused lately: {refused}"),
            None => "NATS did not answer in time".to_owned(),
        };
        BrokerError::new(Kind::Ambiguous, operation, detail)
    }

    /// Sends the messages that are still to be sent and closes the connection. Calls that wait for an answer do not get
    /// one.
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        if self.0.client.connection_state() == State::Connected {
            // Bounded, because a server that hangs reads nothing.
            timeout(CLOSE_MAX, self.0.client.flush()).await.ok();
            timeout(CLOSE_MAX, self.0.client.drain()).await.ok();
        }
        self.0.shared.closed();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

fn options(config: &NatsConfig, shared: &Arc<Shared>) -> ConnectOptions {
    let credentials = config.credentials.clone();
    let mut options = match credentials {
        Credentials::None => ConnectOptions::new(),
        credentials => ConnectOptions::with_auth_callback(move |nonce| {
            let credentials = credentials.clone();
            async move {
                credentials.sign(&nonce).await.map_err(|why| {
                    tracing::error!("the secret for NATS can't be used: {why}");
                    AuthError::new(why)
                })
            }
        }),
    };
    let events = Arc::clone(shared);
    options = options
        .name(&config.name)
        .ping_interval(config.ping_interval)
        .request_timeout(Some(config.request_timeout))
        .max_reconnects(None)
        .reconnect_delay_callback(|attempt| away(u32::try_from(attempt).unwrap_or(u32::MAX)))
        .require_tls(config.tls.required)
        .event_callback(move |event| {
            events.event(event);
            std::future::ready(())
        });
    if config.tls.first {
        options = options.tls_first();
    }
    if let Some(ca) = &config.tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some(client) = &config.tls.client {
        options = options.add_client_certificate(client.cert.clone(), client.key.clone());
    }
    if let Some(prefix) = &config.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    if config.ignore_discovered_servers {
        options = options.ignore_discovered_servers();
    }
    options
}

async fn jetstream_answers(context: &Context, domain: Option<&str>) -> Result<(), BrokerError> {
    let Err(error) = context.query_account().await else { return Ok(()) };
    Err(unavailable(match (error.kind(), domain) {
        (AccountErrorKind::TimedOut, domain) => {
            let api = domain.map_or_else(|| "$JS.API.>".to_owned(), |domain| format!("$JS.{domain}.API.>"));
            format!(
                "connected, but JetStream does not answer; may relay's user publish to `{api}` and subscribe to its inbox?"
            )
        }
        (AccountErrorKind::JetStreamUnavailable, None) => {
            "connected, but JetStream is not enabled: start the server with `--jetstream`".to_owned()
        }
        (AccountErrorKind::JetStreamUnavailable, Some(domain)) => {
            format!(
                "connected, but nothing here serves the JetStream domain `{domain}`: is it spelt as in the servers' configuration?"
            )
        }
        (AccountErrorKind::JetStream(error), _) => format!("connected, but JetStream says: {error}"),
        (AccountErrorKind::Other, _) => format!("connected, but JetStream can't be asked: {error}"),
    }))
}

/// Looks after the connection until it is closed: moves away from a server that is about to stop, refuses one that is
/// too old, and catches up with events that the client library dropped, because it keeps only so many.
async fn keep(inner: Weak<Inner>, shared: Arc<Shared>, closing: CancellationToken) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut judged = None;
    loop {
        let lame = tokio::select! {
            () = closing.cancelled() => return,
            () = shared.lame_duck() => true,
            _ = tick.tick() => false,
        };
        if lame {
            // Not all clients of the server at once.
            let wait = MOVE_WITHIN.mul_f64(random());
            tokio::select! {
                () = closing.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
        let Some(inner) = inner.upgrade() else { return };
        let (client, info) = (inner.client.clone(), inner.client.server_info());
        drop(inner);
        let connected = client.connection_state() == State::Connected;
        shared.reconcile(connected);
        if lame && connected && has_another(&client).await {
            tracing::info!(server = %info.server_name, "the NATS server is about to stop: moving to another");
            timeout(CLOSE_MAX, client.force_reconnect()).await.ok();
        }
        if connected && judged.as_ref() != Some(&info.server_id) {
            match Version::accept(&info.version) {
                Ok(()) => shared.accept(),
                Err(why) => {
                    tracing::error!(server = %info.server_name, "NATS is of no use: it {why}");
                    shared.refuse(format!("server `{}` {why}", info.server_name));
                    // The one from before may come back, and is to be accepted anew.
                    judged = None;
                    timeout(CLOSE_MAX, client.force_reconnect()).await.ok();
                    continue;
                }
            }
            judged = Some(info.server_id);
        }
    }
}

/// Whether there is somewhere to move to. A single address that is a name may lead to another server, too.
async fn has_another(client: &Client) -> bool {
    let pool = timeout(CLOSE_MAX, client.server_pool()).await;
    let pool = pool.ok().and_then(Result::ok).unwrap_or_default();
    pool.len() > 1 || pool.iter().any(|server| server.addr.host().parse::<std::net::IpAddr>().is_err())
}

fn unavailable(detail: impl Into<String>) -> BrokerError {
    BrokerError::new(Kind::Unavailable, OPERATION, detail)
}

const OPERATION: &str = "connect to NATS";
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// How often the log repeats what is waited for.
const TELL_EVERY: Duration = Duration::from_secs(15);
/// How often the connection is looked at beside its events.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Within which clients move away from a server that is about to stop: it waits at least 10 s itself.
const MOVE_WITHIN: Duration = Duration::from_secs(2);
const CLOSE_MAX: Duration = Duration::from_secs(2);
