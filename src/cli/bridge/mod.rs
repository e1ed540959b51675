//! `relay bridge`: forwards jobs from one relay to another and brings the results back; turns messages of existing streams
//! and queues into jobs.
//!
//! One bridge is typed; several, and those of foreign messages, stand in a file.

mod open;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use open::Open;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName};
use relay_nats::config::{Credentials, NatsConfig, Secret};
use serde_json::json;
use tokio::task::JoinSet;

use super::admin::{Access, files};
use super::exit::{CliError, Exit};
use super::output;
use super::secured;
use super::signals::{Hangup, Signals};
use crate::admin::Port;
use crate::bridge::config::{self, BridgeConfig, Destination, Origin, RelaySource};
use crate::bridge::metrics::{self, Counted};
use crate::config::settings::{Settings, TLS_SCHEME};
use crate::ingress::nats::RELAY_INBOX;
use crate::telemetry::Telemetry;

/// From where, to where, and which jobs.
#[derive(Debug, Args)]
#[command(after_help = "\
The bridge is a worker where the jobs come from, and a client where they go: each job is submitted
there under the id of its run as key, so that any number of replicas make one job of it, and its
run ends as it ended there. It needs a worker's rights at the one side and a server's at the
other.

Examples:
  relay bridge --from-tcp 127.0.0.1:7411 --queue orders --nats nats://inner:4222
  relay bridge --from-nats nats://outer:4222 --from-nats-creds bridge.creds --slots 200 \\
      --queue orders=orders-eu --nats tls://inner:4222 --nats-creds relay.creds
  relay bridge --from-tcp 127.0.0.1:7411 --queue orders --sqs --sqs-region eu-central-1
  relay bridge --config relay.toml         several, and messages of existing streams

The bridge waits for a side that is not there, at the start and later. SIGTERM or SIGINT drains:
jobs in hand go back to their queue without spending an attempt, and the target continues with
them.")]
pub(crate) struct BridgeArgs {
    #[arg(skip)]
    bridges: Vec<BridgeConfig>,
    /// Take jobs from this server: the address of its `relay serve --worker-listen`, with tls:// in front where it speaks TLS
    #[arg(long, value_name = "ADDR", conflicts_with = "from_nats", required_unless_present_any = ["from_nats", "config"])]
    from_tcp: Option<String>,
    /// The bridge's key as a worker of that server; one without authentication needs none
    #[arg(long, value_name = "KEY", env = "RELAY_WORKER_KEY", hide_env_values = true)]
    from_key: Option<String>,
    /// PEM file of the authorities that may have signed that server's certificate, where its address has tls:// in front
    /// [default: the system's]
    #[arg(long, value_name = "FILE", requires = "from_tcp")]
    from_ca: Option<PathBuf>,
    /// Show that server this certificate (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["from_tcp", "from_certificate_key"])]
    from_certificate: Option<PathBuf>,
    /// The private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "from_certificate")]
    from_certificate_key: Option<PathBuf>,
    /// Take jobs that are kept on these NATS servers, of one cluster: nats://HOST[:PORT] or tls://HOST[:PORT]
    #[arg(long, value_name = "URL[,URL]", value_delimiter = ',')]
    from_nats: Vec<String>,
    /// Credentials file of the bridge's user there, as `nsc` writes it; other credentials are in --config
    #[arg(long, value_name = "FILE", requires = "from_nats")]
    from_nats_creds: Option<PathBuf>,
    /// PEM file of the authorities that may have signed those servers' certificate [default: the system's]
    #[arg(long, value_name = "FILE", requires = "from_nats")]
    from_nats_ca: Option<PathBuf>,
    /// A queue whose jobs are to be done at the target, and the queue there if it has another name; repeat it for more
    #[arg(long = "queue", value_name = "NAME[=TARGET]", default_value = "default")]
    queues: Vec<BridgedQueue>,
    /// The client that owns the jobs at the target [default: the same client's as at the source]
    #[arg(long, value_name = "NAME")]
    client: Option<ClientId>,
    /// Jobs in hand at once: submitted, and waited for
    #[arg(long, value_name = "N", default_value_t = config::SLOTS)]
    slots: NonZeroU32,
    /// The bridge's name in logs, and its user on --from-nats
    #[arg(long, value_name = "NAME", default_value = "bridge")]
    name: ClientId,
    /// The [[bridge]] tables of this configuration file, instead of one bridge that is typed
    #[arg(
        long, value_name = "FILE",
        conflicts_with_all = ["from_tcp", "from_nats", "from_nats_creds", "from_nats_ca", "queues", "client", "slots", "name"]
    )]
    config: Option<PathBuf>,
    /// Print one line of JSON on stdout when all sides are connected
    #[arg(long)]
    json: bool,
}

/// A queue at the source, and the one at the target.
#[derive(Clone, Debug)]
struct BridgedQueue {
    from: QueueName,
    to: QueueName,
}

impl FromStr for BridgedQueue {
    type Err = relay_bridge::contract::ids::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, to) = text.split_once('=').unwrap_or((text, text));
        Ok(Self { from: from.parse()?, to: to.parse()? })
    }
}

/// `relay bridge`
pub(crate) async fn run(args: BridgeArgs, settings: Settings) -> Result<Exit, CliError> {
    let json = args.json;
    let admin = settings.admin_addresses()?;
    let bridges = args.resolve(&settings)?;
    let signals =
        Signals::watch().map_err(|error| CliError::failed(format!("cannot watch for stop signals: {error}")))?;
    let port = match admin.are_any() {
        true => {
            let tls = secured::of_admin(&settings)?;
            let (listeners, operators) = admin.bind(tls.as_ref()).await?;
            let tokens = operators.as_ref().map(Access::tokens);
            let mut port = Port::open(listeners, tokens, Telemetry::new(Clock::system(), None));
            if let Some(files) = files(tls, operators) {
                signals.at_hangup(Hangup::Reload(Arc::clone(&files)));
                port.reads_again(files);
            }
            Some(port)
        }
        false => None,
    };
    let mut opening = JoinSet::new();
    for (bridge, to) in bridges {
        let name = bridge.name.clone();
        opening.spawn(async move { (name, Box::pin(Open::open(bridge, to)).await) });
    }
    let mut opened = Vec::new();
    loop {
        let next = tokio::select! {
            next = opening.join_next() => next,
            () = signals.stop.drain.cancelled() => return Err(CliError::interrupted()),
        };
        match next {
            None => break,
            Some(Ok((name, Ok(open)))) => opened.push((name, open)),
            Some(Ok((name, Err(error)))) => return Err(error.in_front(&format!("bridge {name}"))),
            Some(Err(error)) => return Err(CliError::failed(format!("a bridge did not start: {error}"))),
        }
    }
    let names: Vec<_> = opened.iter().map(|(name, _)| name.clone()).collect();
    tracing::info!(bridges = ?names, "bridging");
    if let Some(port) = &port {
        let counted = |(name, open): &(ClientId, Open)| Counted { name: name.clone(), counters: open.counters() };
        let counted: Vec<_> = opened.iter().map(counted).collect();
        port.admin().collect(move |text| metrics::report(text, &counted));
        port.admin().serves_until(signals.stop.drain.clone());
    }
    if json {
        let (admin, health) = (port.as_ref().and_then(Port::address), port.as_ref().and_then(Port::health_address));
        output::json(&json!({ "bridges": names, "admin": admin, "health": health }))?;
    }
    let mut running = JoinSet::new();
    for (name, open) in opened {
        running.spawn(open.run(name, signals.stop.drain.clone()));
    }
    let ended = async {
        while let Some(ended) = running.join_next().await {
            ended.map_err(|error| CliError::failed(format!("a bridge failed: {error}")))?;
        }
        if let Some(port) = port {
            port.close().await;
        }
        Ok(Exit::Done)
    };
    tokio::select! {
        ended = ended => ended,
        () = signals.stop.force.cancelled() => Ok(Exit::Interrupted),
    }
}

/// The same place, under a name of its own in lists of connections.
fn named(to: Destination, name: String) -> Destination {
    match to {
        Destination::Nats(to) => Destination::Nats(Box::new(NatsConfig { name, ..*to })),
        to => to,
    }
}

impl BridgeArgs {
    /// Gives it the bridges of the configuration file.
    pub(crate) fn set_bridges(&mut self, bridges: Vec<BridgeConfig>) {
        self.bridges = bridges;
    }

    /// Every bridge, with where it goes.
    fn resolve(mut self, settings: &Settings) -> Result<Vec<(BridgeConfig, Destination)>, CliError> {
        let nats = settings.nats.broker("relay-bridge", RELAY_INBOX)?;
        let to = match (settings.sqs.own()?, nats) {
            (Some(sqs), _) => Some(Destination::Sqs(Box::new(sqs))),
            (None, nats) => nats.map(|nats| Destination::Nats(Box::new(nats))),
        };
        let bridges = match self.config {
            Some(_) => std::mem::take(&mut self.bridges),
            None => vec![self.typed()?],
        };
        if bridges.is_empty() {
            return Err(CliError::usage("there is no bridge in the file").hint("docs/bridge.md has examples"));
        }
        let mut resolved = Vec::with_capacity(bridges.len());
        for mut bridge in bridges {
            let name = format!("relay-{}", bridge.name);
            let own = bridge.to.take();
            let to = own.or_else(|| to.clone().map(|to| named(to, name))).ok_or_else(|| {
                CliError::usage(format!("bridge {}: the target is not configured", bridge.name))
                    .hint("name the NATS servers of the other side with --nats, or add --sqs; in the file, to.nats or to.relay_sqs")
            })?;
            if let Some(queue) = bridge.from.leads_back_to(&to) {
                return Err(CliError::usage(format!(
                    "bridge {}: {queue} is the same queue at both sides",
                    bridge.name
                ))
                .hint("name another queue of the target, as in --queue NAME=TARGET, or other servers"));
            }
            resolved.push((bridge, to));
        }
        Ok(resolved)
    }

    /// The one bridge that was typed.
    fn typed(self) -> Result<BridgeConfig, CliError> {
        let source = match self.from_tcp {
            Some(address)
                if !address.starts_with(TLS_SCHEME) && (self.from_ca.is_some() || self.from_certificate.is_some()) =>
            {
                let what = format!("--from-tcp {address}: certificates are of no use without TLS");
                return Err(CliError::usage(what).hint("write tls:// in front of the address, or leave them out"));
            }
            Some(address) => RelaySource::Tcp {
                address,
                key: self.from_key.map(Secret::Value),
                ca: self.from_ca,
                identity: self.from_certificate.zip(self.from_certificate_key),
            },
            None => {
                let creds = self.from_nats_creds.map(|file| Credentials::Creds(Secret::File(file)));
                let mut config = NatsConfig {
                    credentials: creds.unwrap_or_default(),
                    name: format!("relay-{}", self.name),
                    ..NatsConfig::new(self.from_nats)
                };
                config.tls.ca = self.from_nats_ca;
                config.check().map_err(|invalid| {
                    let problems = invalid.problems().iter().map(|problem| format!("--from-nats: {problem}"));
                    CliError::usage(problems.collect::<Vec<_>>().join("; "))
                })?;
                RelaySource::Nats(Box::new(config))
            }
        };
        let queues = self.queues.into_iter().map(|queue| (queue.from, queue.to)).collect();
        let from = Origin::Relay { source, queues, client: self.client };
        Ok(BridgeConfig { name: self.name, slots: self.slots, from, to: None })
    }
}
