//! The broker as relay's own side sees it: whether it answers, whether all that relay needs is there, and what it promises.

use std::time::{Duration, Instant};

use relay_bridge::broker::Durability;
use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_nats::Nats;
use relay_nats::connection::Wait;
use tokio::time::timeout;

use super::step::{Failure, Report};
use crate::broker::{BrokerConfig, NatsBroker, Opened};
use crate::cli::exit::CliError;
use crate::config::settings::Settings;
use crate::ingress::nats::RELAY_INBOX;

/// Steps in their order.
pub(super) const STEPS: [&str; 4] = ["broker", "provisioned", "round-trip", "durability"];
/// How long the broker may take to be there, and for each further step.
const PATIENCE: Duration = Duration::from_secs(10);
/// Round trips that are measured.
const TRIPS: usize = 20;

/// The broker that the settings name, which is looked at and never changed.
///
/// # Errors
/// A usage error if they name none, or a wrong one.
pub(super) fn configured(settings: &Settings) -> Result<BrokerConfig, CliError> {
    if let Some(config) = settings.sqs.broker()? {
        return Ok(BrokerConfig::Sqs { config: Box::new(config), provision: false });
    }
    let config = settings.nats.broker("relay-doctor", RELAY_INBOX)?.ok_or_else(|| {
        CliError::usage("no broker is configured").hint(
            "name NATS with --nats or RELAY_NATS, or add --sqs; the embedded store is examined by `relay store check`",
        )
    })?;
    Ok(BrokerConfig::Nats(Box::new(NatsBroker { config, streams: settings.streams.settings(), provision: false })))
}

/// Takes the steps until one fails without which the next ones can't be taken. Whether the broker was reached.
pub(super) async fn examine(
    report: &mut Report,
    config: BrokerConfig,
    queue: Option<&QueueName>,
) -> Result<bool, CliError> {
    let Some(opened) = report.end("broker", open(config).await)? else { return Ok(false) };
    let ended = look(report, &opened, queue).await;
    opened.close(tokio::time::Instant::now()).await;
    ended.map(|()| true)
}

async fn look(report: &mut Report, opened: &Opened, queue: Option<&QueueName>) -> Result<(), CliError> {
    report.end("provisioned", provisioned(opened, queue).await)?;
    report.end("round-trip", round_trip(opened).await)?;
    report.end("durability", durability(opened))?;
    Ok(())
}

async fn open(config: BrokerConfig) -> Result<(Opened, String), Failure> {
    let begun = Instant::now();
    let (opened, what) = match config {
        // It says what its last attempt met.
        BrokerConfig::Nats(broker) => {
            let NatsBroker { config, streams, provision } = *broker;
            let settings = relay_nats::Settings { streams, ..relay_nats::Settings::default() };
            let nats = Nats::connect(config, Wait::AtMost(PATIENCE), settings).await.map_err(|error| failed(&error))?;
            let info = nats.connection().client().server_info();
            (Opened::Nats { nats, provision }, format!("nats-server {} ({})", info.version, info.server_name))
        }
        other => match timeout(PATIENCE, Opened::open(other, &Clock::system())).await {
            Ok(Ok(opened)) => (opened, "SQS with DynamoDB".to_owned()),
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(unanswered("a connection")),
        },
    };
    Ok((opened, format!("{what} answers, after {:.1} ms", ms(begun.elapsed()))))
}

/// Finds that the queues are there, and with them what all queues share.
async fn provisioned(opened: &Opened, queue: Option<&QueueName>) -> Result<((), String), Failure> {
    let checked = timeout(PATIENCE, async {
        let queues = match queue {
            Some(queue) => vec![queue.clone()],
            None => opened.broker().policies.policies().await?.into_iter().map(|(name, _)| name).collect(),
        };
        match opened {
            Opened::Nats { nats, .. } => nats.check_provisioned(&queues).await?,
            Opened::Sqs { sqs, .. } => sqs.check_provisioned(&queues).await?,
            Opened::Embedded(_) => {}
        }
        Ok::<_, BrokerError>(queues)
    });
    let provision =
        "`relay provision --dry-run` shows what it would create or change; run it with the rights that this takes";
    match checked.await {
        Ok(Ok(queues)) if queues.is_empty() => Err(Failure::new("there is no queue", provision)),
        Ok(Ok(queues)) => {
            let names = queues.iter().map(QueueName::to_string).collect::<Vec<_>>().join(", ");
            Ok(((), format!("all that relay needs is there; queues: {names}")))
        }
        Ok(Err(error)) if matches!(error.kind(), BrokerErrorKind::NotFound | BrokerErrorKind::StateConflict) => {
            Err(Failure::new(error.to_string(), provision))
        }
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(unanswered("the list of queues")),
    }
}

async fn round_trip(opened: &Opened) -> Result<((), String), Failure> {
    let broker = opened.broker();
    let mut took = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let begun = Instant::now();
        match timeout(PATIENCE, broker.policies.policies()).await {
            Ok(Ok(_)) => took.push(begun.elapsed()),
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(unanswered("a question")),
        }
    }
    took.sort_unstable();
    let at = |at: usize| took.get(at).copied().map_or(0.0, ms);
    Ok(((), format!("{TRIPS} questions: p50 {:.1} ms, longest {:.1} ms", at(TRIPS / 2), at(TRIPS - 1))))
}

/// Says what an accepted job survives.
fn durability(opened: &Opened) -> Result<((), String), Failure> {
    let capabilities = opened.broker().capabilities;
    let adapter = capabilities.adapter;
    match capabilities.durability {
        Durability::None => Err(Failure::new(
            format!("jobs on {adapter} are kept in the memory of one server, and end with it"),
            "keep the streams in files: `relay provision --nats-storage file` on new streams",
        )),
        durability => Ok(((), format!("an accepted job on {adapter} survives: {}", durability.as_str()))),
    }
}

fn unanswered(what: &str) -> Failure {
    Failure::new(
        format!("the broker leaves {what} unanswered for {} s", PATIENCE.as_secs()),
        "it is there and does not work: look at its own log, and on NATS whether JetStream has a leader (`nats server report jetstream`)",
    )
}

fn failed(error: &BrokerError) -> Failure {
    let hint = match error.kind() {
        BrokerErrorKind::Unavailable | BrokerErrorKind::Ambiguous => {
            "is the broker there, does its port take connections from here, and may relay's user use it? `relay nats permissions` \
             and `relay provision --print-iam` say what relay needs"
        }
        _ => "do what the message says",
    };
    Failure::new(error.to_string(), hint)
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1_000.0
}
