//! `relay whoami`: who a server thinks the caller is, what holds for it, and what is left.

use clap::Args;

use super::exit::{CliError, Exit};
use super::remote::ServerArgs;
use super::{output, values};
use crate::api::{FactorView, ListenerView, QueueLimits, Whoami};

/// Which server to ask.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  relay whoami                            with the current context
  relay whoami --context prod --json      everything that holds for a request, too")]
pub(crate) struct WhoamiArgs {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// `relay whoami`
pub(crate) async fn run(args: WhoamiArgs) -> Result<Exit, CliError> {
    let who = args.server.reader()?.whoami().await?;
    if args.json {
        output::json(&who)?;
        return Ok(Exit::Done);
    }
    let key = who.key_id.as_ref().map(|key| format!("{} {key}", who.authenticated_by));
    let shown = |factor: &FactorView| match &factor.credential {
        Some(credential) => format!("{} {credential}", factor.method),
        None => factor.method.clone(),
    };
    let authenticated_by = match who.factors.as_slice() {
        // A server of before.
        [] => key.unwrap_or_else(|| who.authenticated_by.clone()),
        factors => factors.iter().map(shown).collect::<Vec<_>>().join(", "),
    };
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let queues = who.queues.as_ref().map_or_else(
        || "all".to_owned(),
        |queues| queues.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    );
    for (name, value) in [
        ("client", who.client.to_string()),
        ("authenticated by", authenticated_by),
        ("VPC endpoint", or_none(&who.vpc_endpoint_id)),
        ("source", or_none(&who.source)),
        ("listeners", who.listeners.iter().map(listener).collect::<Vec<_>>().join(", ")),
        ("queues", queues),
        ("rights", who.rights.join(", ")),
        ("durability", who.durability.clone()),
        ("relay", who.version.clone()),
        ("server time", who.server_time.to_string()),
    ] {
        output::line(format_args!("{name:<17} {value}"))?;
    }
    if !who.queue_limits.is_empty() {
        output::line(format_args!("\n{}", limits(&who)))?;
    }
    Ok(Exit::Done)
}

/// An address of the server, and what is spoken there.
fn listener(one: &ListenerView) -> String {
    let tls = if one.tls { "TLS with " } else { "" };
    format!("{} ({tls}{})", one.address, one.protocols.join(", "))
}

fn limits(who: &Whoami) -> String {
    let header = ["queue", "waiting", "left", "kept", "rate", "payload max", "retention", ""];
    let or_unknown = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let rate = |of: &QueueLimits| match &of.rate {
        Some(rate) => format!("{}, {} of {} left", rate.limit, rate.left, rate.burst),
        None => "no limit".to_owned(),
    };
    let kept = |of: &QueueLimits| match (of.stored, of.max_stored) {
        (Some(stored), Some(max)) => format!("{} of {}", values::show_size(stored), values::show_size(max)),
        (Some(stored), None) => values::show_size(stored),
        (None, _) => "?".to_owned(),
    };
    let rows = who.queue_limits.iter().map(|of| {
        [
            of.queue.to_string(),
            or_unknown(of.queued),
            or_unknown(of.left),
            kept(of),
            rate(of),
            values::show_size(of.payload_max),
            of.retention.to_string(),
            if of.paused { "paused" } else { "" }.to_owned(),
        ]
    });
    output::table(&header, &[1, 2, 3, 5], rows)
}
