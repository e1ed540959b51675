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
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::exit::{CliError, Exit};
use super::limits;
use super::listening::{self, Sockets};
use super::nats::broker_and_clients;
use super::policy::PolicyArgs;
use super::proxied;
use super::secured;
use super::signals::{Hangup, Signals};
use crate::admin;
use crate::app::{App, AppError, Config, Ended, Listeners, LocalWorker, NatsIngress};
use crate::auth::{Authenticator, Files};
use crate::broker::{BrokerConfig, NatsBroker};
use crate::config::listeners::Listener;
use crate::config::settings::{Listen, ProxyHeader, Settings, TlsOf};
use crate::reload::Reload;
use crate::tls::AuthorityFiles;

/// The database file's name in `--data DIR`.
pub(crate) const STORE_FILE: &str = "relay.db";

/// Where to listen, where to keep jobs, who may call.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  relay keys new orders --out orders.key
  relay serve --data ./data --keys keys.toml --worker-listen 127.0.0.1:7411
  relay serve --data ./data --keys keys.toml --listen 0.0.0.0:7410 --tls-cert c.pem --tls-key c.key
  relay serve --memory --no-auth                  for trying things out on this machine
  relay serve --nats nats://nats:4222 --keys keys.toml             after `relay provision`
  relay serve --sqs --keys keys.toml                               with DynamoDB
  relay serve --config relay.toml --listen 127.0.0.1:0             a flag counts instead of the file
  relay serve --data ./data --keys keys.toml --nats-listen nats://nats:4222 --nats-creds relay.creds

SIGTERM or SIGINT drains: for --drain-delay clients are told to connect elsewhere, then requests
in flight finish, workers hand their jobs back, the store is closed. Another signal, half a second
later or more, forces. SIGHUP has keys and tokens read again and the audit's file opened anew.
With --json the addresses are one line of JSON on stdout, as soon as the server is ready:
  {\"listening\":{\"http\":\"127.0.0.1:7410\",\"tcp\":null,\"workers\":null,\"admin\":null,\"health\":null,
    \"scaler\":null,\"listeners\":{\"http\":{\"address\":\"127.0.0.1:7410\",\"protocol\":\"http\",
    \"protocols\":[\"h2\",\"http/1.1\"],\"tls\":false}}}}")]
pub(crate) struct ServeArgs {
    /// Read settings and queues from this file; flags and variables take precedence. See `relay config`
    #[arg(long, value_name = "FILE", env = "RELAY_CONFIG", help_heading = "Configuration")]
    config: Option<PathBuf>,
    /// Print the addresses as one line of JSON on stdout as soon as the server is ready
    #[arg(long, help_heading = "Listening")]
    json: bool,
    #[command(flatten)]
    policy: PolicyArgs,
    /// The authorities of the configuration file.
    #[arg(skip)]
    authorities: Vec<AuthorityFiles>,
}

impl ServeArgs {
    /// Gives it the authorities of the configuration file.
    pub(crate) fn set_authorities(&mut self, authorities: Vec<AuthorityFiles>) {
        self.authorities = authorities;
    }

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
pub(crate) async fn run(args: ServeArgs, settings: Settings) -> Result<Exit, CliError> {
    allow_open_files();
    let clock = Clock::system();
    let Settings { listeners, access, .. } = &settings;
    listening::judge(listeners, access.no_auth)?;
    let authenticator = if access.no_auth {
        warn!("no authentication: everybody who can reach this machine's loopback addresses may do everything");
        Authenticator::development()
    } else {
        const FIRST: &str = "`relay keys new NAME` makes the first key and the file";
        match (&access.keys, &access.clients) {
            (Some(keys), None) => {
                Authenticator::keys(keys.clone(), clock.clone()).map_err(|error| match keys.try_exists() {
                    Ok(false) => CliError::from(error).hint(FIRST),
                    _ => error.into(),
                })?
            }
            (keys, clients) => {
                let files = Files { keys: keys.clone(), clients: clients.clone() };
                Authenticator::open(files, clock.clone()).map_err(|mistakes| CliError::usage(mistakes.to_string()))?
            }
        }
    };
    let (broker, nats) = choose(&settings, settings.streams.provision)?;
    // Over NATS its permissions tell clients apart.
    if let Some(file) = access.keys.as_ref().filter(|_| nats.is_none() && authenticator.clients() == Some(0)) {
        let file = file.display();
        warn!(
            "{file} has no key of a client, and every request is refused: `relay keys new NAME --file {file}` makes one"
        );
    }
    let serving = Serving {
        broker,
        authenticator,
        nats,
        settings,
        json: args.json,
        policy: args.policy,
        authorities: args.authorities,
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
    pub(crate) nats: Option<NatsIngress>,
    pub(crate) settings: Settings,
    pub(crate) json: bool,
    pub(crate) policy: PolicyArgs,
    /// The authorities that sign clients' certificates.
    pub(crate) authorities: Vec<AuthorityFiles>,
    pub(crate) worker: Option<LocalWorker>,
    /// A queue to suggest a first job for.
    pub(crate) first_try: Option<QueueName>,
    pub(crate) clock: Clock,
}

impl Serving {
    /// Binds, opens, says where it listens, serves until a signal.
    pub(crate) async fn run(self) -> Result<Exit, CliError> {
        let admin_addresses = self.settings.admin_addresses()?;
        let Settings { listen, listeners, limits, admin, audit, scaler, telemetry, .. } = self.settings;
        let queues = self.policy.resolve()?;
        let authenticator = Arc::new(self.authenticator);
        proxied::warnings(&listeners).iter().for_each(|warning| warn!("{warning}"));
        let bounds = limits::Bounded { listen: &listen, listeners: &listeners, bounds: &limits, admin: &admin };
        let (limits, worker_limits, caps) = limits::of(&bounds, self.nats.as_ref(), &authenticator)?;
        let tls = secured::of(&listen, self.authorities)?;
        let (scaler_tls, scaler_secured) = secured::of_scaler(&listen, &scaler)?.unzip();
        let audit = audit.start(&self.clock)?;
        let traces = telemetry.start()?;
        // Before anything else: a signal during the start must drain as well.
        let signals =
            Signals::watch().map_err(|error| CliError::failed(format!("cannot watch for stop signals: {error}")))?;
        let mut sockets = Sockets::bind(&listeners, tls.as_ref()).await?;
        let (http, tcp) = (std::mem::take(&mut sockets.http), std::mem::take(&mut sockets.tcp));
        let workers = std::mem::take(&mut sockets.workers);
        let scaler = match scaler.listen {
            Some(address) => Some((bind("--scaler", address).await?, scaler_secured)),
            None => None,
        };
        let (admin, operators) = admin_addresses.bind(tls.as_ref()).await?;
        let admin = admin::Listeners { caps, ..admin };
        let reload: Arc<Reload> = Arc::default();
        if !authenticator.is_development() {
            // Keys, the identity file and the keys of issuers in files: valid together, or none of them is taken.
            let (read, held) = (Arc::clone(&authenticator), Arc::clone(&authenticator));
            let again = move || read.reload().map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect());
            reload.register_watched("keys", again, move || held.is_up_to_date());
        }
        if let Some(tls) = tls.clone() {
            reload.register("certificates", tls.paths(), move || tls.reload().map_err(Into::into));
        }
        if let Some(tls) = scaler_tls {
            reload.register("scaler", tls.paths(), move || tls.reload().map_err(Into::into));
        }
        operators.iter().for_each(|operators| operators.register(&reload));
        if let Some(audit) = audit.clone().filter(|audit| audit.has_file()) {
            reload.register("audit", Vec::new(), move || audit.reopen());
        }
        signals.at_hangup(match self.worker {
            // `relay dev`, which somebody tries out at a terminal.
            Some(_) => Hangup::Drain,
            None => Hangup::Reload(Arc::clone(&reload)),
        });
        let config = Config {
            broker: self.broker,
            queues,
            authenticator,
            limits,
            nats: self.nats,
            worker_limits,
            worker: self.worker,
            traces,
            admin_tokens: operators.map(|operators| operators.tokens),
            audit,
            tls,
            reload,
            drain_delay: drain_delay(&listen, &listeners),
            drain: listen.drain.0,
            clock: self.clock,
        };
        let app = tokio::select! {
            app = App::build(config, Listeners { http, tcp, workers, admin, scaler }) => app?,
            // Of a broker that is still waited for.
            () = signals.stop.drain.cancelled() => return Err(CliError::interrupted()),
        };
        // A reader of the addresses may ask at once.
        app.serves_until(&signals.stop);
        let said = sockets.say(&listeners);
        if let Some(scaler) = app.scaler_address() {
            info!("KEDA asks {scaler}");
        }
        if self.json {
            announce(&app, said);
        }
        if let (Some(queue), Some(address)) = (self.first_try, app.http_address()) {
            let scheme = listeners.first().map_or("http", |one| if one.tls == TlsOf::On { "https" } else { "http" });
            info!("try: echo hello | relay submit --wait --server {scheme}://{address} --queue {queue}");
        }
        match app.run(signals.stop.clone()).await? {
            Ended::Drained => Ok(Exit::Done),
            Ended::Forced => Ok(Exit::Interrupted),
        }
    }
}

/// How long balancers have to notice that the process goes. A network load balancer still sends new connections for two minutes
/// and more after its checks fail.
fn drain_delay(listen: &Listen, listeners: &[Listener]) -> Duration {
    let balanced = listeners.iter().any(|one| one.proxy == ProxyHeader::Required);
    match (&listen.drain_delay, balanced) {
        (Some(given), _) => given.0,
        (None, true) => Duration::from_secs(180),
        (None, false) => Duration::from_secs(5),
    }
}

/// The addresses for programs, which only the system knows for port 0. A reader that went away does not stop a server.
fn announce(app: &App, listeners: Value) {
    let (http, tcp, workers) = (app.http_address(), app.tcp_address(), app.workers_address());
    let (admin, health) = (app.admin_address(), app.health_address());
    let scaler = app.scaler_address();
    let listening = json!({ "http": http, "tcp": tcp, "workers": workers, "admin": admin, "health": health, "scaler": scaler,
        "listeners": listeners });
    let line = json!({ "listening": listening });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

/// Refuses `--no-auth` where somebody else could connect.
pub(crate) fn no_auth_only_on_loopback(called: &str, address: SocketAddr) -> Result<(), CliError> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(CliError::usage(format!("{called}: without authentication only loopback addresses are possible"))
        .hint("listen on 127.0.0.1, or make keys with `relay keys new` and start `relay serve` with --keys"))
}

/// The broker that was asked for: SQS, NATS, a store on disk, or one in memory. And where clients are served over NATS.
pub(crate) fn choose(settings: &Settings, provision: bool) -> Result<(BrokerConfig, Option<NatsIngress>), CliError> {
    let sqs = settings.sqs.broker()?;
    let (nats, ingress) = broker_and_clients(&settings.nats, &settings.listen)?;
    let broker = match (sqs, nats) {
        (Some(config), _) => BrokerConfig::Sqs { config: Box::new(config), provision },
        (None, Some(config)) => {
            let streams = settings.streams.settings();
            BrokerConfig::Nats(Box::new(NatsBroker { config, streams, provision }))
        }
        (None, None) => {
            let data = settings.store.data.clone().filter(|_| !settings.store.memory);
            let path = data.map(prepare_store).transpose()?;
            BrokerConfig::Embedded { path, disk_reserve: settings.store.disk_reserve }
        }
    };
    Ok((broker, ingress))
}

/// The database file in `data`, which is created with access for this user only.
pub(crate) fn prepare_store(data: PathBuf) -> Result<PathBuf, CliError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&data).map_err(|error| {
        match data.ancestors().find(|path| path.is_file()) {
            Some(file) => CliError::usage(format!("--data {}: {} is a file", data.display(), file.display()))
                .hint(format!("name a folder, in which relay keeps {STORE_FILE}")),
            None => CliError::usage(format!("--data {}: can't create the folder: {error}", data.display()))
                .hint("name a folder where this user may write"),
        }
    })?;
    Ok(data.join(STORE_FILE))
}

pub(super) async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, CliError> {
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
