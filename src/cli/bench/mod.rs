//! `relay bench`: loads a server as its clients do, and says how much it does, how fast, and what that costs it.
//!
//! # Layout
//!
//! - `args`: the flags. `target`: the server's address, which has to be this machine or somebody's own.
//! - `workload`: the jobs. `calls`: how they are submitted, over each protocol.
//! - `runs` with `knee`: a run, or the search for the highest rate. `engine` with `pacer`: a run as an open or a closed loop.
//!   `tally`: its count.
//! - `watch` with `process`: CPU time, memory and files of processes of this machine.
//! - `local`: a server and a worker for the run. `report`: what is printed.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::contexts::Contexts;
use super::exit::{CliError, Exit};
use super::{output, signals};
use crate::config::settings::Settings;

mod args;
mod calls;
mod engine;
mod knee;
mod local;
mod pacer;
mod process;
mod report;
mod runs;
mod tally;
mod target;
mod watch;
mod workload;

pub(crate) use args::BenchArgs;
use calls::{Access, Caller, Failure, NO_RESULT, Width};
use engine::{Arrivals, Ended, Plan};
use local::{Echo, Local};
use report::{Report, Setup};
use runs::Run;
use target::{Protocol, Target};
use watch::Watch;
use workload::{Operation, Workload};

/// Where a server listens that was told nothing else.
const SERVER_DEFAULT: &str = "http://127.0.0.1:7410";
/// The first rate of a search that was given none, in calls a second.
const RATE_FIRST: f64 = 100.0;

/// `relay bench`
pub(crate) async fn run(args: BenchArgs, settings: Settings) -> Result<Exit, CliError> {
    args.judge()?;
    let stop = CancellationToken::new();
    let mut watching = JoinSet::new();
    let signalled = stop.clone();
    watching.spawn(async move {
        signals::interrupted().await;
        signalled.cancel();
    });
    let local = match args.here.local {
        Some(broker) => Some(Local::start(broker, args.here.over, &args.queue).await?),
        None => None,
    };
    let ran = Box::pin(against(&args, settings, local.as_ref(), &stop)).await;
    if let Some(local) = local {
        local.stop().await?;
    }
    let report = ran?;
    if args.json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    ended(&args, &report)
}

/// The exit code of a run, and what to do about it.
fn ended(args: &BenchArgs, report: &Report) -> Result<Exit, CliError> {
    let nothing = report.measured.calls == 0;
    let no_result = report.measured.errors_by_slug.contains_key(NO_RESULT);
    match report.ended {
        "away" => Err(CliError::unavailable("nobody is at the server's address any more: the figures are those until then")
            .hint("look at the server's log and start it again, then bench again")),
        "interrupted" => Ok(Exit::Interrupted),
        _ if nothing && (no_result || args.operation == Operation::Follow) => Err(CliError::failed("no result came")
            .hint(format!(
                "a worker has to take the jobs of `{}`: run `relay worker`, or add --worker ADDR of the server's worker listener; \
                 over NATS results are pushed only where NATS is the broker",
                args.queue
            ))),
        _ if nothing => Err(CliError::failed("no call was answered well").hint("the errors above say why, by their slug")),
        _ => Ok(Exit::Done),
    }
}

/// Loads the server that is there, or the one that was started.
async fn against(
    args: &BenchArgs,
    settings: Settings,
    local: Option<&Local>,
    stop: &CancellationToken,
) -> Result<Report, CliError> {
    let (target, access) = reach(args, settings, local).await?;
    if target.protocol == Protocol::Nats && args.operation == Operation::Batch {
        return Err(CliError::usage("over NATS a request is one job, there are no batches")
            .hint("use --operation submit with more --in-flight"));
    }
    let one_by_one = target.protocol == Protocol::Http || args.operation == Operation::Batch;
    let in_flight = args.in_flight.unwrap_or(if one_by_one { 1 } else { 16 });
    let jobs_per_call = if args.operation == Operation::Batch { usize::from(args.batch) } else { 1 };
    let width = Width {
        connections: usize::from(args.connections),
        in_flight: usize::from(in_flight),
        jobs: usize::from(in_flight) * jobs_per_call,
        timeout: args.timeout,
    };
    if width.connections * width.in_flight > args::SLOTS_MAX {
        return Err(CliError::usage(format!("at most {} calls may be unanswered", args::SLOTS_MAX)));
    }
    let needs_worker = local.is_some() && matches!(args.operation, Operation::Wait | Operation::Follow);
    let worker = match &args.here.worker {
        Some(address) => {
            Target::find(&format!("relay://{address}"), args.server.i_own_this).await?;
            Some(address.as_str())
        }
        None => local.map(|local| local.workers.as_str()).filter(|_| needs_worker),
    };
    let echo = match worker {
        Some(address) => Some(Echo::start(address, &args.queue, args.here.slots).await?),
        None => None,
    };
    let called = Box::pin(call(args, &target, &access, width, local, stop)).await;
    if let Some(echo) = echo {
        echo.stop().await;
    }
    called
}

/// The server to call, and as whom.
async fn reach(args: &BenchArgs, mut settings: Settings, local: Option<&Local>) -> Result<(Target, Access), CliError> {
    let context = match (&args.server.server, local) {
        (None, None) if settings.nats.servers.is_empty() => {
            Contexts::read()?.pick(args.server.context.as_deref())?.cloned()
        }
        _ => None,
    };
    let context = context.unwrap_or_default();
    let stored = Some(context.server.clone()).filter(|server| !server.is_empty());
    let url = local.map(|local| local.url.clone()).or_else(|| args.server.server.clone());
    let url = url.or_else(|| settings.nats.servers.first().cloned()).or(stored);
    let url = url.unwrap_or_else(|| SERVER_DEFAULT.to_owned());
    let owned = args.server.i_own_this;
    let target = Target::find(&url, owned).await?;
    let (key, client) = match (&args.server.api_key, &args.server.client) {
        (None, None) => (context.api_key.clone(), context.client.clone()),
        (key, client) => (key.as_ref().map(|key| key.trim().to_owned()), client.clone()),
    };
    let nats = if target.protocol == Protocol::Nats {
        if args.server.server.is_some() || local.is_some() {
            settings.nats.servers = vec![url];
        }
        let mut judged = Vec::new();
        for server in settings.nats.servers {
            let found = Target::find(&server, owned).await?;
            // The addresses that were judged, where no certificate has to name the host.
            if found.tls || owned {
                judged.push(server);
            } else {
                judged.extend(found.addresses.iter().map(|address| format!("nats://{address}")));
            }
        }
        settings.nats.servers = judged;
        // Servers that NATS tells of were not judged.
        settings.nats.ignore_discovered |= !owned;
        let name = client.as_ref().map_or("dev", |client| client.as_str());
        settings.nats.broker("relay-bench", &format!("_INBOX_{name}"))?
    } else {
        None
    };
    Ok((target, Access { key, client, tls: args.server.tls.clone().over(&context), nats }))
}

/// Connects, and makes the calls.
async fn call(
    args: &BenchArgs,
    target: &Target,
    access: &Access,
    width: Width,
    local: Option<&Local>,
    stop: &CancellationToken,
) -> Result<Report, CliError> {
    let connected = tokio::select! {
        connected = Caller::connect(target, access, width) => connected,
        () = stop.cancelled() => return Err(CliError::interrupted()),
    };
    let (caller, server_says) = connected.map_err(|failure| unconnected(target, &failure))?;
    let workload = Workload::new(args.operation, args.queue.clone(), args.size, u64::from(args.batch));
    let run = Run {
        watch: watched(args, target, local),
        caller: Arc::new(caller),
        workload: Arc::new(workload),
        next: Arc::default(),
        plan: Plan {
            arrivals: args.rate.map_or(Arrivals::Closed, Arrivals::Open),
            slots: width.connections * width.in_flight,
            warm_up: args.warm_up,
            duration: args.duration,
            timeout: args.timeout,
        },
        stop: stop.child_token(),
    };
    let setup = Setup {
        url: target.url.to_string(),
        protocol: target.protocol.as_str(),
        operation: args.operation.to_string(),
        queue: args.queue.to_string(),
        rate: args.rate,
        connections: width.connections,
        in_flight: width.in_flight,
        size_least: args.size.least,
        size_most: args.size.most,
        jobs_per_call: run.workload.jobs_per_call(),
        warm_up_seconds: args.warm_up.as_secs_f64(),
        duration_seconds: args.duration.as_secs_f64(),
    };
    let follower = run.follow().await?;
    let (measured, ended, find_max) = match args.find_max {
        None => {
            let (figures, ended) = run.once(run.plan.arrivals).await;
            (figures, ended, None)
        }
        Some(limit) => run.search(limit, args.rate.unwrap_or(RATE_FIRST)).await,
    };
    let ended = if follower.is_lost() { Ended::Away } else { ended };
    follower.stop().await;
    run.caller.close().await;
    Ok(Report { setup, server_says, ended: report::word(ended), measured, find_max })
}

/// The processes that do the work.
fn watched(args: &BenchArgs, target: &Target, local: Option<&Local>) -> Watch {
    let at_address =
        || target.addresses.first().filter(|_| target.is_here()).and_then(|address| process::listener(*address));
    let over_nats = target.protocol == Protocol::Nats;
    match local {
        Some(local) => Watch {
            server: local.server_id(),
            broker: local.broker_id(),
            store: Some(local.store()),
            ..Watch::default()
        },
        None => Watch {
            server: args.here.pid.or_else(|| at_address().filter(|_| !over_nats)),
            broker: args.here.broker_pid.or_else(|| at_address().filter(|_| over_nats)),
            store: args.here.store.clone(),
            ..Watch::default()
        },
    }
}

/// A server that could not be connected to.
fn unconnected(target: &Target, failure: &Failure) -> CliError {
    let told = format!("{} ({}): {}", target.url, failure.slug, failure.detail);
    if failure.away || failure.slug == "interrupted" {
        return CliError::unavailable(told).hint(
            "start a server with `relay dev -- COMMAND`, name another with --server, or let --local embedded start one for the run",
        );
    }
    match failure.slug.as_str() {
        "unauthenticated" | "forbidden" => {
            CliError::usage(told).hint("give a key with --api-key, RELAY_API_KEY or a context")
        }
        "in-flight" => CliError::usage(told).hint("lower --in-flight, or --batch, and add --connections"),
        _ => CliError::failed(told),
    }
}
