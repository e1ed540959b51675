//! `relay provision`: creates or updates what relay needs on NATS, or on SQS and DynamoDB. It shows what would change first, and refuses what
//! would shorten what clients rely on.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use relay_bridge::broker::Broker;
use relay_bridge::contract::{ClientId, QueueName};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::provision::{Change, Wanted, provision_queues};
use relay_nats::connection::Wait;
use relay_nats::{Estimate, ExpectedLoad, Nats, estimate};
use serde_json::json;

use super::exit::{CliError, Exit};
use super::policy::PolicyArgs;
use super::sqs::{RoleArg, SqsConfig, iam};
use super::{output, values};
use crate::app::QueueSetup;
use crate::config::settings::Settings;
use crate::ingress::nats::RELAY_INBOX;

/// The setup to provide.
#[derive(Debug, Args)]
#[command(after_help = "\
Creates and updates what relay needs and the policies of its queues; repeating it is harmless. A
change that shortens what clients rely on, such as a smaller retention, needs --force. `relay serve`
and `relay worker` then need no right to create anything.

Examples:
  relay provision --nats nats://nats:4222 --queue orders --nats-replicas 3 --dry-run
  relay provision --nats nats://nats:4222 --nats-creds relay.creds --queue orders --client shop
  relay provision --sqs --queue orders --dry-run
  relay provision --sqs --print-iam serving
  relay provision --sqs --queue orders --sqs-share shop-results.fifo=receive:111122223333
  relay provision --nats nats://nats:4222 --expected-rate 100/s --expected-payload 4KiB --dry-run")]
pub(crate) struct ProvisionArgs {
    /// Read settings and queues from this file; flags and variables take precedence. See `relay config`
    #[arg(long, value_name = "FILE", env = "RELAY_CONFIG", help_heading = "Configuration")]
    config: Option<PathBuf>,
    /// Print the least that relay needs as an IAM policy, and do nothing else
    #[arg(long, value_enum, value_name = "ROLE", help_heading = "SQS")]
    print_iam: Option<RoleArg>,
    /// The AWS account that stands in that policy
    #[arg(long, value_name = "ID", default_value = "*", requires = "print_iam", help_heading = "SQS")]
    account: String,
    #[command(flatten)]
    policy: PolicyArgs,
    /// A client that gets a lane of its own in each queue before its first job; repeat it for more
    #[arg(long = "client", value_name = "NAME", help_heading = "Queues")]
    clients: Vec<ClientId>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Estimate memory and disk for so many jobs a second, minute, hour or day in each queue: `100/s`, `5000/h`
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = "Estimate")]
    expected_rate: Option<f64>,
    /// The mean payload of these jobs
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = values::size, help_heading = "Estimate")]
    expected_payload: u64,
    /// The mean result of these jobs
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = values::size, help_heading = "Estimate")]
    expected_result: u64,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

impl ProvisionArgs {
    /// Its queues.
    pub(crate) fn policy(&mut self) -> &mut PolicyArgs {
        &mut self.policy
    }
}

/// `relay provision`
pub(crate) async fn run(args: ProvisionArgs, settings: Settings) -> Result<Exit, CliError> {
    let sqs = settings.sqs.broker()?;
    if let Some(role) = args.print_iam {
        let Some(config) = &sqs else {
            return Err(CliError::usage("--print-iam without --sqs: jobs are not kept on SQS")
                .hint("leave it out, or add --sqs"));
        };
        output::line(format_args!("{:#}", iam(config, role, &args.account)))?;
        return Ok(Exit::Done);
    }
    let setup = args.policy.resolve()?;
    if let Some(config) = sqs {
        if args.expected_rate.is_some() {
            return Err(CliError::usage(
                "--expected-rate: there is no estimate for SQS: `docs/sqs.md` lists the costs",
            ));
        }
        let done = provision_sqs(config, &setup, &args.clients, args.dry_run).await?;
        return report(done, None, args.json);
    }
    let config = settings.nats.broker("relay-provision", RELAY_INBOX)?.ok_or_else(|| {
        CliError::usage("no broker is configured")
            .hint("name NATS with --nats or RELAY_NATS, or add --sqs; the embedded store needs no `relay provision`")
    })?;
    let settings = relay_nats::Settings { streams: settings.streams.settings(), ..relay_nats::Settings::default() };
    let nats = Nats::connect(config, PATIENCE, settings).await.map_err(from_broker)?;
    let ended = provision(&nats.broker(), &setup, &args.clients, args.dry_run).await;
    nats.close().await;
    let done = ended?;
    let estimated = args.expected_rate.map(|rate| {
        let load = |policy: &QueuePolicy| ExpectedLoad {
            rate,
            // The most that it can be: every job has a key.
            keyed: 1.0,
            payload_bytes: args.expected_payload.min(policy.payload_max),
            result_bytes: args.expected_result.min(policy.result_max),
            in_flight: IN_FLIGHT,
        };
        done.wanted
            .iter()
            .map(|wanted| estimate(&wanted.policy, &load(&wanted.policy)))
            .fold(Estimate::default(), Estimate::plus)
    });
    report(done, estimated, args.json)
}

/// Says what was changed, or would be.
fn report(done: Provisioned, estimated: Option<Estimate>, json: bool) -> Result<Exit, CliError> {
    if json {
        output::json(&json!({
            "changes": done.changes.iter().map(|change| json!({
                "queue": change.queue, "what": change.what, "destructive": change.destructive,
            })).collect::<Vec<_>>(),
            "applied": done.applied,
            "estimate": estimated.map(|estimate| json!({
                "records": estimate.records, "results": estimate.results,
                "ram_bytes_least": estimate.ram_bytes[0], "ram_bytes_most": estimate.ram_bytes[1],
                "disk_bytes": estimate.disk_bytes,
            })),
        }))?;
    } else {
        for change in &done.changes {
            let force = if change.destructive { "  (needs --force)" } else { "" };
            output::line(format_args!("{}: {}{force}", change.queue, change.what))?;
        }
        if let Some(estimate) = estimated {
            output::line(format_args!("at the expected rate, if every job has a key: {estimate}"))?;
        }
        match (done.changes.len(), done.applied) {
            (0, _) => output::note("nothing to change"),
            (changes, true) => output::note(format_args!("done: {changes} changes")),
            (changes, false) => output::note(format_args!("{changes} changes; nothing was changed yet")),
        }
    }
    match done.refused {
        None => Ok(Exit::Done),
        Some(refused) => {
            Err(CliError::usage(refused).hint("add --force if that is meant; --dry-run only shows what would change"))
        }
    }
}

/// The outcome of provisioning.
struct Provisioned {
    wanted: Vec<Wanted>,
    changes: Vec<Change>,
    applied: bool,
    /// Why nothing was changed, if it should have been.
    refused: Option<String>,
}

async fn provision(
    broker: &Broker,
    setup: &QueueSetup,
    clients: &[ClientId],
    dry_run: bool,
) -> Result<Provisioned, CliError> {
    let merge = |queue: &QueueName, stored: QueuePolicy| {
        let mut policy = (setup.policy)(queue, stored);
        for client in clients {
            let defaults = policy.client_defaults.clone();
            policy.clients.entry(client.clone()).or_insert(defaults);
        }
        policy
    };
    setup.fits(&broker.capabilities)?;
    let wanted = Wanted::read(broker, &setup.queues, &merge).await.map_err(from_broker)?;
    let mut changes = broker.provision.plan(&wanted).await.map_err(from_broker)?;
    let destructive = changes.iter().filter(|change| change.destructive).count();
    let refused = (destructive > 0 && !setup.force && !dry_run)
        .then(|| format!("{destructive} of these changes shorten what clients rely on; nothing was changed"));
    let applied = !dry_run && refused.is_none() && !changes.is_empty();
    if applied {
        // Read and merged anew: a setting that somebody else changed since the plan stays.
        changes = provision_queues(broker, &setup.queues, &merge, setup.force).await.map_err(from_broker)?;
    }
    Ok(Provisioned { wanted, changes, applied, refused })
}

async fn provision_sqs(
    config: SqsConfig,
    setup: &QueueSetup,
    clients: &[ClientId],
    dry_run: bool,
) -> Result<Provisioned, CliError> {
    use relay_sqs::{Settings, Sqs};
    let sqs = Sqs::connect(config, Settings::default()).await.map_err(from_broker)?;
    let ended = provision(&sqs.broker(), setup, clients, dry_run).await;
    sqs.close().await;
    ended
}

pub(crate) fn from_broker(error: relay_bridge::error::BrokerError) -> CliError {
    use relay_bridge::error::BrokerErrorKind as Kind;
    match error.kind() {
        Kind::Unavailable | Kind::Ambiguous => CliError::unavailable(error.to_string())
            .hint("is the broker there, and may relay's user use it? The same command is safe to repeat"),
        _ if error.is_transient() => CliError::unavailable(error.to_string()),
        _ => CliError::usage(error.to_string()),
    }
}

/// Reads `100/s`, `6000/min`, `1.5/s`, `20000/h`, `1000000/d` as jobs a second.
fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no rate: write it as `100/s`, `5000/h` or `100000/d`");
    let (count, span) = text.split_once('/').ok_or_else(wrong)?;
    let seconds = match span {
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let count: f64 = count.parse().map_err(|_| wrong())?;
    if !count.is_finite() || count < 0.0 || count / seconds > 1e9 {
        return Err(wrong());
    }
    Ok(count / seconds)
}

/// How long a person waits for a server that is not there.
const PATIENCE: Wait = Wait::AtMost(Duration::from_secs(10));
/// How long a job is assumed to wait and run.
const IN_FLIGHT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_span() {
        assert_eq!(rate("100/s"), Ok(100.0));
        assert_eq!(rate("7200/h"), Ok(2.0));
        assert_eq!(rate("1.5/s"), Ok(1.5));
        for text in ["100", "/s", "-1/s", "100/y", "inf/s", "x/s"] {
            assert!(rate(text).unwrap_err().contains("100/s"), "{text}");
        }
    }
}
