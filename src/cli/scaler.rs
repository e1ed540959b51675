//! `relay scaler`: answers KEDA, and nothing else, for a broker that several servers share.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use relay_bridge::clock::Clock;
use serde_json::json;
use tokio::time::Instant;
use tracing::info;

use super::exit::{CliError, Exit};
use super::secured;
use super::serve::{bind, choose};
use super::signals::{Hangup, Signals};
use crate::admin::Port;
use crate::admin::sampler::Watched;
use crate::app::{AppError, QueueSetup};
use crate::broker::Opened;
use crate::config::settings::Settings;
use crate::reload::Reload;
use crate::scaler::{Looks, serve};
use crate::telemetry::Telemetry;

/// How long the broker may take to be closed.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Where to listen, and which broker to look at.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  relay scaler --nats nats://nats:4222 --scaler 0.0.0.0:7414 --tls-cert tls.crt --tls-key tls.key
  relay scaler --sqs --scaler 0.0.0.0:7414 --scaler-tls off --admin 127.0.0.1:7412

It takes no jobs and has no workers. Servers answer KEDA as well, with --scaler: this is for a
Deployment of its own. Any number of them give the same figures.")]
pub(crate) struct ScalerArgs {
    /// Read settings from this file; flags and variables take precedence. See `relay config`
    #[arg(long, value_name = "FILE", env = "RELAY_CONFIG", help_heading = "Configuration")]
    config: Option<PathBuf>,
    /// Print the addresses as one line of JSON on stdout as soon as it is ready
    #[arg(long)]
    json: bool,
}

/// `relay scaler`
pub(crate) async fn run(args: ScalerArgs, settings: Settings) -> Result<Exit, CliError> {
    let clock = Clock::system();
    let admin = settings.admin_addresses()?;
    let (config, _) = choose(&settings, false)?;
    let (tls, secured) = secured::of_scaler(&settings.listen, &settings.scaler)?.unzip();
    let admin_tls = secured::of_admin(&settings)?;
    let address = settings.scaler.listen.ok_or_else(|| CliError::usage("--scaler is not given"))?;
    let signals =
        Signals::watch().map_err(|error| CliError::failed(format!("cannot watch for stop signals: {error}")))?;
    let stop = signals.stop.drain.clone();
    let listener = bind("--scaler", address).await?;
    let address = listener.local_addr().ok();
    let (listeners, operators) = admin.bind(admin_tls.as_ref()).await?;
    let reload: Arc<Reload> = Arc::default();
    if let Some(tls) = tls {
        reload.register("scaler", tls.paths(), move || tls.reload().map_err(Into::into));
    }
    if let Some(tls) = admin_tls {
        reload.register("certificates", tls.paths(), move || tls.reload().map_err(Into::into));
    }
    operators.iter().for_each(|operators| operators.register(&reload));
    signals.at_hangup(Hangup::Reload(Arc::clone(&reload)));
    let telemetry = Telemetry::new(clock.clone(), None);
    let tokens = operators.map(|operators| operators.tokens);
    let mut port = listeners.are_any().then(|| Port::open(listeners, tokens, telemetry.clone()));
    let all = QueueSetup {
        queues: Vec::new(),
        are_named: false,
        policy: Box::new(|_, stored| stored),
        sizes: Vec::new(),
        force: false,
    };
    let open = async {
        let opened = Opened::open(config, &clock).await.map_err(AppError::Store)?;
        match opened.prepare(&all).await {
            Ok(queues) => Ok((opened, queues)),
            Err(error) => {
                opened.close(Instant::now()).await;
                Err(CliError::from(error))
            }
        }
    };
    let (opened, queues) = tokio::select! {
        opened = open => opened?,
        () = stop.cancelled() => return Err(CliError::interrupted()),
    };
    let broker = telemetry.broker(opened.broker());
    let looks = Looks::new(&broker, clock);
    if let Some(port) = &mut port {
        port.admin().reloads(Arc::clone(&reload));
        port.admin().scales(Arc::clone(&looks));
        opened.describe(port.admin());
        port.watch(Watched::Broker { broker, check: opened.check(&all), queues });
        port.admin().serves_until(stop.clone());
    }
    announce(&args, address, port.as_ref());
    let watching = stop.run_until_cancelled(reload.watch());
    let served = serve(listener, secured, Arc::clone(&looks), stop.clone());
    let exit = tokio::select! {
        (served, (), _) = async { tokio::join!(served, looks.measure(stop.clone()), watching) } => {
            served.map(|()| Exit::Done).map_err(|error| CliError::failed(format!("the scaler's listener failed: {error}")))
        }
        () = signals.stop.force.cancelled() => Ok(Exit::Interrupted),
    };
    tokio::time::timeout(CLOSE_MAX, opened.close(Instant::now())).await.ok();
    if let Some(port) = port {
        port.close().await;
    }
    exit
}

fn announce(args: &ScalerArgs, scaler: Option<std::net::SocketAddr>, port: Option<&Port>) {
    if let Some(scaler) = scaler {
        info!("KEDA asks {scaler}");
    }
    if args.json {
        let (admin, health) = (port.and_then(Port::address), port.and_then(Port::health_address));
        let line = json!({ "listening": { "scaler": scaler, "admin": admin, "health": health } });
        // A reader that went away does not stop it.
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).ok();
    }
}
