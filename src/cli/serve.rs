//! `relay serve`: takes jobs over HTTP, keeps them in a store, hands them to workers.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use serde_json::json;
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::admin::AdminArgs;
use super::config::warn_of_unknown_variables;
use super::exit::{CliError, Exit};
use super::nats::{NOT_KEPT, NatsArgs, NatsListenArgs, StreamArgs, without_nats};
use super::policy::PolicyArgs;
use super::signals::Signals;
use super::sqs::{OthersArgs, SqsArgs};
use super::traces::TracesArgs;
use super::values;
use crate::app::{App, AppError, Config, Ended, Listeners, LocalWorker, NatsDoor};
use crate::auth::Authenticator;
use crate::broker::{BrokerConfig, NatsBroker};
use crate::ingress::http::Limits;

/// The database file's name in `--data DIR`.
pub(crate) const STORE_FILE: &str = "relay.db";

/// Where to listen, where to keep jobs, who may call.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  relay keys new orders > orders.key
  relay serve --data ./data --keys keys.toml --worker-listen 127.0.0.1:7411
  relay serve --memory --no-auth                  for trying things out on this machine
  relay serve --nats nats://nats:4222 --keys keys.toml             after `relay provision`
  relay serve --sqs --keys keys.toml                               with DynamoDB
  relay serve --config relay.toml --listen 127.0.0.1:0             a flag counts instead of the file
  relay serve --data ./data --keys keys.toml --nats-listen nats://nats:4222 --nats-creds relay.creds

SIGTERM or SIGINT drains: requests in flight finish, workers hand their jobs back, the store is
closed. Another signal, half a second later or more, forces. With --json the addresses are one line
of JSON on stdout, as soon as the server is ready:
  {\"listening\":{\"http\":\"127.0.0.1:7410\",\"workers\":null,\"admin\":null}}")]
pub(crate) struct ServeArgs {
    /// Read settings and queues from this file; what a flag or a variable says counts instead. See `relay config`
    #[arg(long, value_name = "FILE", env = "RELAY_CONFIG", help_heading = "Configuration")]
    config: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    listen: ListenArgs,
    /// Where workers of other processes connect, such as 127.0.0.1:7411; port 0 takes a free one. Off unless given
    #[arg(long, value_name = "ADDR", env = "RELAY_WORKER_LISTEN", help_heading = "Listening")]
    worker_listen: Option<SocketAddr>,
    #[command(flatten)]
    nats_listen: NatsListenArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    traces: TracesArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    sqs: SqsArgs,
    #[command(flatten)]
    others: OthersArgs,
    /// Create what is missing on NATS or AWS and change what differs, as `relay provision` does. Without it what is missing
    /// is an error
    #[arg(long, env = "RELAY_PROVISION", help_heading = "NATS streams")]
    provision: bool,
    #[command(flatten)]
    streams: StreamArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
#[group(id = "store", required = true, multiple = false, args = ["data", "memory", "nats", "sqs"])]
struct StoreArgs {
    /// Keep jobs and results in this directory; it is created if it is not there
    #[arg(long, value_name = "DIR", env = "RELAY_DATA")]
    data: Option<PathBuf>,
    /// Keep jobs and results in memory: they end with this process
    #[arg(long, env = "RELAY_MEMORY")]
    memory: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
#[group(required = true, multiple = false)]
struct AccessArgs {
    /// Let in whoever has a key of this file; `relay keys new` makes one
    #[arg(long, value_name = "FILE", env = "RELAY_KEYS")]
    keys: Option<PathBuf>,
    /// Let in everybody, for development: only on this machine's loopback addresses
    #[arg(long, env = "RELAY_NO_AUTH")]
    no_auth: bool,
}

/// Where clients connect, and how the server ends.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Listening")]
pub(crate) struct ListenArgs {
    /// Where clients connect; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "RELAY_LISTEN", default_value = "127.0.0.1:7410")]
    listen: SocketAddr,
    /// Streams of events that clients may hold open, all of them together; more are answered 503
    #[arg(long, value_name = "N", env = "RELAY_FOLLOWERS", default_value = "10000", value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    followers: u32,
    /// How long a stream of events lasts before it ends on purpose, within a fifth; clients then resume by its last cursor
    #[arg(long, value_name = "DURATION", env = "RELAY_FOLLOW_FOR", default_value = "5m", value_parser = values::duration)]
    follow_for: Duration,
    /// How often a stream of events without any says that it is there: less than what idle connections are given on the way
    #[arg(long, value_name = "DURATION", env = "RELAY_PING_EVERY", default_value = "15s", value_parser = values::duration)]
    ping_every: Duration,
    /// Hang up on a client that asks for nothing, or does not read its answer, for this long
    #[arg(long, value_name = "DURATION", env = "RELAY_IDLE", default_value = "2m", value_parser = values::duration)]
    idle: Duration,
    /// How long requests and handlers in flight may take once the server is asked to stop
    #[arg(long, value_name = "DURATION", env = "RELAY_DRAIN", default_value = "30s", value_parser = values::duration)]
    drain: Duration,
    /// How long /readyz fails before anything is stopped, so that load balancers send no more
    #[arg(long, value_name = "DURATION", env = "RELAY_DRAIN_DELAY", default_value = "0s", value_parser = values::duration)]
    drain_delay: Duration,
    /// Print the addresses as one line of JSON on stdout as soon as the server is ready
    #[arg(long)]
    json: bool,
}

impl ListenArgs {
    /// Where clients shall connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listen
    }

    /// The limits on clients' requests.
    fn limits(&self) -> Result<Limits, CliError> {
        let usual = Limits::default();
        let second = Duration::from_secs(1);
        if self.follow_for < second || self.ping_every < second {
            return Err(CliError::usage("--follow-for and --ping-every must be at least 1s"));
        }
        if self.ping_every >= self.idle {
            let idle = values::show_duration(self.idle);
            return Err(CliError::usage(format!(
                "--ping-every must be less than --idle ({idle}), after which relay itself hangs up"
            )));
        }
        let followers = usize::try_from(self.followers).unwrap_or(usize::MAX);
        let Self { follow_for, ping_every, idle, .. } = *self;
        // Over HTTP/1.1 each has a connection, and must not take the others' places.
        let connections = (usual.connections - usual.followers).saturating_add(followers);
        Ok(Limits { followers, connections, follow_for, ping_every, idle, ..usual })
    }

    /// How long the drain may take.
    pub(crate) fn drain(&self) -> Duration {
        self.drain
    }
}

impl ServeArgs {
    /// Its queues.
    pub(crate) fn policy(&mut self) -> &mut PolicyArgs {
        &mut self.policy
    }
}

/// Each connection is an open file, and many systems allow a process no more than 1,024 unless it asks for more. Handlers
/// would inherit it, so that only a process without any does this.
fn allow_open_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!(%error, "the limit of open files stays as it is: it may be reached before those of connections");
    }
}

/// `relay serve`
pub(crate) async fn run(args: ServeArgs) -> Result<Exit, CliError> {
    warn_of_unknown_variables();
    allow_open_files();
    let clock = Clock::system();
    let authenticator = match args.access.keys {
        Some(file) => Authenticator::keys(file, clock.clone())
            .map_err(|error| CliError::from(error).hint("`relay keys new NAME` makes the first key and the file"))?,
        None => {
            no_auth_only_on_loopback("--listen", args.listen.listen)?;
            warn!("no authentication: whoever can reach this machine's loopback addresses may do everything");
            Authenticator::development()
        }
    };
    if let Some(address) = args.worker_listen
        && !address.ip().is_loopback()
    {
        return Err(CliError::usage(format!("--worker-listen {address}: only loopback addresses are possible"))
            .hint("worker connections are not encrypted yet: run workers on this machine, or through a tunnel"));
    }
    if args.provision && !args.nats.is_broker() && !args.sqs.is_broker() {
        return Err(without_nats("--provision", NOT_KEPT));
    }
    let (broker, nats) = match args.sqs.resolve(args.others)? {
        Some(config) => {
            args.streams.refuse()?;
            let (_, door) = args.nats_listen.resolve(args.nats)?;
            (BrokerConfig::Sqs { config: Box::new(config), provision: args.provision }, door)
        }
        None => choose(args.store.data, args.nats, args.nats_listen, args.streams, args.provision)?,
    };
    let serving = Serving {
        broker,
        authenticator,
        worker_listen: args.worker_listen,
        nats,
        listen: args.listen,
        admin: args.admin,
        traces: args.traces,
        policy: args.policy,
        worker: None,
        first_try: None,
        clock,
    };
    Box::pin(serving.run()).await
}

/// The parts that `serve` and `dev` have in common.
pub(crate) struct Serving {
    pub(crate) broker: BrokerConfig,
    pub(crate) authenticator: Authenticator,
    pub(crate) worker_listen: Option<SocketAddr>,
    pub(crate) nats: Option<NatsDoor>,
    pub(crate) listen: ListenArgs,
    pub(crate) admin: AdminArgs,
    pub(crate) traces: TracesArgs,
    pub(crate) policy: PolicyArgs,
    pub(crate) worker: Option<LocalWorker>,
    /// A queue to suggest a first job for.
    pub(crate) first_try: Option<QueueName>,
    pub(crate) clock: Clock,
}

impl Serving {
    /// Binds, opens, says where it listens, serves until a signal.
    pub(crate) async fn run(self) -> Result<Exit, CliError> {
        let queues = self.policy.resolve()?;
        let limits = self.listen.limits()?;
        let admin = self.admin.resolve()?;
        let traces = self.traces.start()?;
        // Before anything else: a signal during the start must drain as well.
        let signals =
            Signals::watch().map_err(|error| CliError::failed(format!("cannot watch for stop signals: {error}")))?;
        let http = bind("--listen", self.listen.listen).await?;
        let workers = match self.worker_listen {
            Some(address) => Some(bind("--worker-listen", address).await?),
            None => None,
        };
        let (admin, admin_token) = match admin {
            Some((address, token)) => (Some(bind_admin(address).await?), token),
            None => (None, None),
        };
        let config = Config {
            broker: self.broker,
            queues,
            authenticator: Arc::new(self.authenticator),
            limits,
            nats: self.nats,
            worker: self.worker,
            traces,
            admin_token,
            drain_delay: self.listen.drain_delay,
            drain: self.listen.drain,
            clock: self.clock,
        };
        let app = tokio::select! {
            app = App::build(config, Listeners { http, workers, admin }) => app?,
            // Of a broker that is still waited for.
            () = signals.stop.drain.cancelled() => return Err(CliError::interrupted()),
        };
        // A reader of the addresses may ask at once.
        app.serves_until(&signals.stop);
        announce(&app, self.listen.json);
        if let (Some(queue), Some(address)) = (self.first_try, app.http_address()) {
            info!("try: echo hello | relay submit --wait --server http://{address} --queue {queue}");
        }
        match app.run(signals.stop.clone()).await? {
            Ended::Drained => Ok(Exit::Done),
            Ended::Forced => Ok(Exit::Interrupted),
        }
    }
}

/// The first thing that is said: where clients and workers connect, which only the system knows for port 0.
fn announce(app: &App, json: bool) {
    let (http, workers, admin) = (app.http_address(), app.workers_address(), app.admin_address());
    if let Some(http) = http {
        info!("relay listens on http://{http}");
    }
    if let Some(workers) = workers {
        info!("workers connect to {workers}");
    }
    if json {
        // A reader that went away does not stop a server.
        let line = json!({ "listening": { "http": http, "workers": workers, "admin": admin } });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).ok();
    }
}

/// Refuses `--no-auth` where somebody else could connect.
pub(crate) fn no_auth_only_on_loopback(flag: &str, address: SocketAddr) -> Result<(), CliError> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(CliError::usage(format!("{flag} {address}: without authentication only loopback addresses are possible"))
        .hint("listen on 127.0.0.1, or make keys with `relay keys new` and start `relay serve` with --keys"))
}

/// The broker that was asked for: NATS, a store on disk, or one in memory. And where clients are served over NATS.
pub(crate) fn choose(
    data: Option<PathBuf>,
    nats: NatsArgs,
    listen: NatsListenArgs,
    streams: StreamArgs,
    provision: bool,
) -> Result<(BrokerConfig, Option<NatsDoor>), CliError> {
    let (nats, door) = listen.resolve(nats)?;
    let broker = match nats {
        Some(config) => BrokerConfig::Nats(Box::new(NatsBroker { config, streams: streams.resolve()?, provision })),
        None => {
            streams.refuse()?;
            BrokerConfig::Embedded(data.map(prepare_store).transpose()?)
        }
    };
    Ok((broker, door))
}

/// The database file in `data`, which is created with access for this user only.
pub(crate) fn prepare_store(data: PathBuf) -> Result<PathBuf, CliError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&data)
        .map_err(|error| CliError::usage(format!("cannot create {}: {error}", data.display())))?;
    Ok(data.join(STORE_FILE))
}

/// The admin port is there before the broker is, so it is said at once where.
pub(crate) async fn bind_admin(address: SocketAddr) -> Result<TcpListener, CliError> {
    let listener = bind("--admin", address).await?;
    if let Ok(address) = listener.local_addr() {
        info!("operators ask http://{address}");
    }
    Ok(listener)
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|error| {
        let told = CliError::usage(format!("{flag} {address}: {error}"));
        if error.kind() == std::io::ErrorKind::AddrInUse {
            told.hint("something listens there already: stop it, or choose another port")
        } else {
            told
        }
    })
}

impl From<AppError> for CliError {
    fn from(error: AppError) -> Self {
        match &error {
            AppError::Store(broker) if broker.is_transient() => Self::unavailable(error.to_string()),
            AppError::Store(_) => Self::usage(error.to_string()),
            AppError::Unprovisioned(_) => Self::usage(error.to_string()).hint(
                "`relay provision` with the same broker and --queue creates it, and --dry-run shows it first; \
                 or add --provision",
            ),
            AppError::Destructive(_) => {
                Self::usage(error.to_string()).hint("add --force if that is meant, or leave the flag out")
            }
            AppError::TooLarge { fix, .. } => Self::usage(error.to_string()).hint(fix.clone()),
            AppError::Nats(_) => Self::usage(error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}
