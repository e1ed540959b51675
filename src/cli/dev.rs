//! `relay dev`: server and worker in one process, without authentication, on loopback.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use relay_bridge::clock::Clock;
use relay_bridge::contract::ids::InvalidId;

use super::exit::{CliError, Exit};
use super::listening;
use super::policy::PolicyArgs;
use super::serve::{Serving, choose};
use super::worker::{default_slots, worker_config};
use crate::api::DurationText;
use crate::app::LocalWorker;
use crate::auth::Authenticator;
use crate::config::settings::{AuditLevel, Order, Settings};

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
    /// Handlers at work at once [default: the number of processors]
    #[arg(long, value_name = "N")]
    slots: Option<NonZeroU32>,
    /// Print the addresses as one line of JSON on stdout as soon as the server is ready
    #[arg(long, help_heading = "Listening")]
    json: bool,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl DevArgs {
    /// Its queues.
    pub(crate) fn policy(&mut self) -> &mut PolicyArgs {
        &mut self.policy
    }
}

/// `relay dev`
pub(crate) async fn run(args: DevArgs, mut settings: Settings) -> Result<Exit, CliError> {
    listening::judge(&settings.listeners, true)?;
    // Before anything is created or opened.
    let handler = settings.worker.handler(settings.sqs.enabled)?;
    tracing::warn!("no authentication: for development on this machine only");
    // Everybody is `dev`.
    settings.audit.level = AuditLevel::Off;
    // And no balancer is in front.
    settings.listen.drain_delay.get_or_insert(DurationText(Duration::ZERO));
    // For trying things out: nobody runs `relay provision` first.
    let (broker, nats) = choose(&settings, true)?;
    let queues = args.policy.queues().into_iter().map(|queue| (queue, NonZeroU32::MIN)).collect();
    let first_try = args.policy.queues().into_iter().next();
    let slots = args.slots.unwrap_or_else(default_slots);
    let id = "dev".parse().map_err(|error: InvalidId| CliError::failed(error.to_string()))?;
    let config = worker_config(id, queues, Order::Weighted, slots, settings.listen.drain.0);
    let serving = Serving {
        broker,
        authenticator: Authenticator::development(),
        nats,
        settings,
        json: args.json,
        policy: args.policy,
        authorities: Vec::new(),
        worker: Some(LocalWorker { handler, config }),
        first_try,
        clock: Clock::system(),
    };
    Box::pin(serving.run()).await
}
