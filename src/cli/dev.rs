//! `relay dev`: server and worker in one process, without authentication, on loopback.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use relay_bridge::clock::Clock;
use relay_bridge::contract::ids::InvalidId;

use super::admin::AdminArgs;
use super::exit::{CliError, Exit};
use super::handler::HandlerArgs;
use super::nats::{NatsArgs, NatsListenArgs, StreamArgs};
use super::policy::PolicyArgs;
use super::serve::{ListenArgs, Serving, choose, no_auth_only_on_loopback};
use super::traces::TracesArgs;
use super::worker::{OrderArg, default_slots, worker_config};
use crate::app::LocalWorker;
use crate::auth::Authenticator;

/// Where to listen and what to run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  relay dev -- sha256sum
  relay dev --data ./data --queue orders -- python3 handle.py
  relay dev --http http://127.0.0.1:3000/jobs
  relay dev --nats nats://127.0.0.1:4222 -- sha256sum              what is missing there is created

Then, in another terminal:
  curl -H 'Prefer: wait=10' --data-binary @FILE http://127.0.0.1:7410/v1/queues/default/jobs")]
pub(crate) struct DevArgs {
    /// Keep jobs and results in this directory; without it they are in memory and end with this process
    #[arg(long, value_name = "DIR", env = "RELAY_DATA", conflicts_with = "nats")]
    data: Option<PathBuf>,
    /// Handlers at work at once [default: the number of processors]
    #[arg(long, value_name = "N")]
    slots: Option<NonZeroU32>,
    #[command(flatten)]
    handler: HandlerArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    traces: TracesArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    nats_listen: NatsListenArgs,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    streams: StreamArgs,
}

/// `relay dev`
pub(crate) async fn run(args: DevArgs) -> Result<Exit, CliError> {
    no_auth_only_on_loopback("--listen", args.listen.address())?;
    // Before anything is created or opened.
    let handler = args.handler.resolve()?;
    tracing::warn!("no authentication: for development on this machine only");
    // For trying things out: nobody runs `relay provision` first.
    let (broker, nats) = choose(args.data, args.nats, args.nats_listen, args.streams, true)?;
    let queues = args.policy.queues().into_iter().map(|queue| (queue, NonZeroU32::MIN)).collect();
    let first_try = args.policy.queues().into_iter().next();
    let slots = args.slots.unwrap_or_else(default_slots);
    let id = "dev".parse().map_err(|error: InvalidId| CliError::failed(error.to_string()))?;
    let config = worker_config(id, queues, OrderArg::Weighted, slots, args.listen.drain());
    let serving = Serving {
        broker,
        authenticator: Authenticator::development(),
        worker_listen: None,
        nats,
        listen: args.listen,
        admin: args.admin,
        traces: args.traces,
        policy: args.policy,
        worker: Some(LocalWorker { handler, config }),
        first_try,
        clock: Clock::system(),
    };
    Box::pin(serving.run()).await
}
