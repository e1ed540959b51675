//! How long a job waits until its handler begins, by the number of worker processes, on NATS: relay beside a plain pull
//! consumer of async-nats.
//!
//! `cargo bench --bench workers`, or with some cases: `-- nats-4 tcp-2-at-1`, or `-- plain` for the baseline alone.
//! Jobs come by a clock, 40 a second or one, and last up to 50 ms; each worker has 4 slots. One server takes the
//! submissions for workers that are on NATS themselves; a worker over TCP has a server of its own, and the first one
//! takes them. Handlers, submissions and the whole baseline are in this process.
//! `RELAY_BESIDE=/path/to/the/other/relay` measures another relay too, its server and its workers; `RELAY_OURS` names
//! this tree's as `cargo build --release` makes it. `doors` is the baseline with an HTTP submission and an HTTP
//! handler, as relay has them: the difference to it is relay's own cost. The sides of a case run one after the other,
//! each with a fresh nats-server; the first of them takes turns.
//!
//! At the end all cases are printed as a table, medians with their ranges. Before and after beside the baseline, in some ten
//! minutes: `RELAY_BESIDE=/path/to/the/relay/before RELAY_BENCH_SIDES=ours,other,plain RELAY_BENCH_PAIRS=5
//! RELAY_BENCH_SECONDS=3 cargo bench --bench workers -- nats-4 nats-16`.
//!
//! `RELAY_BENCH_SIDES=ours,plain` runs these sides alone. `RELAY_BENCH_SECONDS` sets how long jobs come at 40 a second (20; three times as long at one a second),
//! `RELAY_BENCH_PAIRS` how often each case runs (once). `RELAY_BENCH_API=1` counts calls of JetStream's API as well, by a
//! client that listens in and costs time: waits are measured without it. `RELAY_BENCH_NODES=3` has three servers that share
//! one JetStream.
//!
//! `-- mix` counts calls for a mix of jobs of eight clients, and for processes that have nothing to do. `-- healthy`
//! counts starts of handlers; `restart`, `hang` and `cancel` tell when they start while servers fail, and `cycle` how
//! fast a backlog is worked off. `waits` compares a result on the same request over both ingresses, `memory` says what
//! ten thousand waits take.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod asked;
mod faults;
mod jobs;
mod mix;
mod nodes;
mod plain;
mod relays;
#[path = "../support/mod.rs"]
mod support;
mod waits;

use std::sync::Arc;
use std::time::{Duration, Instant};

use asked::{Asked, Listener};
use jobs::{Jobs, Submitter};
use nodes::Nodes;
use support::{median, pairs};

/// Jobs that a worker has in hand at a time.
const SLOTS: usize = 4;
/// Jobs a second: many, of which the warm-up is, and few.
const RATES: [u64; 2] = [40, 1];
/// For how long jobs come that do not count, once every worker had one.
const WARM_UP: Duration = Duration::from_secs(2);
/// The longest wait until every worker had one.
const UP_WITHIN: Duration = Duration::from_secs(10);

/// A side of a case, with the relay that is started for it.
#[derive(Clone, Copy)]
enum Side<'a> {
    Nats(&'a str),
    Tcp(&'a str),
    /// The baseline, with HTTP before and behind it as relay has.
    Doors,
    Plain,
}

/// One run of one side.
struct Run {
    jobs: usize,
    /// The wait of half of the jobs at most, of 90 and 99 %, and the longest one, in milliseconds.
    waits: [f64; 4],
    /// CPU time of nats-server.
    server: Duration,
    asked: Option<Asked>,
}

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let ours = std::env::var("RELAY_OURS").unwrap_or_else(|_| env!("CARGO_BIN_EXE_relay").to_owned());
    let relays = [("ours", Some(ours)), ("other", std::env::var("RELAY_BESIDE").ok())];
    let relays = || relays.iter().filter_map(|(name, relay)| Some((*name, relay.as_deref()?)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut rows = Vec::new();
    println!(
        "p50, p90, p99 and longest wait in ms; p50 and p99 as so many times a baseline's; nats-server's CPU a job in us"
    );
    for (kind, processes) in [("nats", &[1, 2, 4, 16][..]), ("tcp", &[2]), ("plain", &[1, 2, 4, 16])] {
        let mut sides: Vec<(&str, Side<'_>)> = match kind {
            "nats" => relays().map(|(name, relay)| (name, Side::Nats(relay))).collect(),
            "tcp" => relays().map(|(name, relay)| (name, Side::Tcp(relay))).collect(),
            _ => Vec::new(),
        };
        sides.extend([("doors", Side::Doors), ("plain", Side::Plain)]);
        if let Ok(meant) = std::env::var("RELAY_BENCH_SIDES") {
            sides.retain(|(name, _)| meant.split(',').any(|meant| meant == *name));
        }
        for (processes, rate) in processes.iter().flat_map(|processes| RATES.map(|rate| (*processes, rate))) {
            let case = format!("{kind}-{processes}-at-{rate}");
            // By whole words: `nats-1` is not `nats-16`.
            let is_meant = names.iter().any(|name| case == *name || case.starts_with(&format!("{name}-")));
            // The baseline alone is for those who ask for it: it is beside all others.
            if !is_meant && (kind == "plain" || !names.is_empty()) {
                continue;
            }
            let mut runs: Vec<(&str, Vec<Run>)> = sides.iter().map(|(name, _)| (*name, Vec::new())).collect();
            for turn in 0..turns() {
                for at in (0..sides.len()).map(|at| (turn + at) % sides.len()) {
                    runs[at].1.push(runtime.block_on(measured(sides[at].1, processes, rate)));
                }
            }
            report(&case, processes, &runs);
            rows.extend(runs.iter().map(|(name, runs)| row(&case, name, runs)));
        }
    }
    if !rows.is_empty() {
        println!("\n| case | side | runs | p50 in ms | p90 | p99 | longest | nats-server's CPU a job in us |");
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |\n{}", rows.join("\n"));
    }
    // Some minutes each: for those who ask for them.
    for asked in &names {
        for (name, relay) in relays() {
            runtime.block_on(async {
                match asked.as_str() {
                    "mix" => mix::run(name, relay, seconds()).await,
                    "healthy" => faults::healthy(relay).await,
                    "restart" => faults::restart(relay).await,
                    "hang" => faults::hang(relay).await,
                    "cancel" => faults::cancel(relay).await,
                    "cycle" => faults::cycle(relay).await,
                    "waits" => waits::beside(relay).await,
                    "memory" => waits::memory(relay).await,
                    _ => {}
                }
            });
        }
    }
}

/// How often each case runs.
fn turns() -> usize {
    if std::env::var_os("RELAY_BENCH_PAIRS").is_some() { pairs() } else { 1 }
}

/// How many jobs come at this rate.
fn how_many(rate: u64) -> u64 {
    if rate == 1 { 3 * seconds() } else { rate * seconds() }
}

/// For how long jobs come.
fn seconds() -> u64 {
    std::env::var("RELAY_BENCH_SECONDS").ok().map_or(20, |seconds| seconds.parse().unwrap())
}

async fn measured(side: Side<'_>, processes: usize, rate: u64) -> Run {
    let (nats, jobs) = (Nodes::start().await, Arc::new(Jobs::new()));
    let (submitter, running) = match side {
        Side::Nats(relay) => relays::on_nats(relay, &nats, processes, &jobs).await,
        Side::Tcp(relay) => relays::over_tcp(relay, &nats, processes, &jobs).await,
        Side::Doors => plain::start_behind_doors(&nats, processes, &jobs).await,
        Side::Plain => plain::start(&nats, processes, &jobs).await,
    };
    let submitter = Arc::new(submitter);
    let first = warm_up(&submitter, &jobs, processes).await;
    let listener =
        if std::env::var_os("RELAY_BENCH_API").is_some() { Some(Listener::start(&nats).await) } else { None };
    let before = nats.cpu();
    jobs.come(&submitter, rate, first..first + how_many(rate)).await;
    jobs.all_begun(first + how_many(rate)).await;
    let server = nats.cpu().saturating_sub(before);
    let asked = listener.map(Listener::heard);
    let waits = jobs.waits_from(first);
    drop(running);
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    Run { jobs: waits.len(), waits: [0.5, 0.9, 0.99, 1.0].map(at), server, asked }
}

/// Jobs that do not count; gives the number of the first one that does.
async fn warm_up(submitter: &Arc<Submitter>, jobs: &Arc<Jobs>, processes: usize) -> u64 {
    let (begun, step) = (Instant::now(), RATES[0] / 4);
    let mut next = 0;
    while jobs.workers() < processes && begun.elapsed() < UP_WITHIN {
        jobs.come(submitter, RATES[0], next..next + step).await;
        next += step;
    }
    if jobs.workers() < processes {
        println!("    only {} of {processes} workers had a job within {UP_WITHIN:?}", jobs.workers());
    }
    let first = next + RATES[0] * WARM_UP.as_secs();
    jobs.come(submitter, RATES[0], next..first).await;
    jobs.all_begun(first).await;
    first
}

/// Prints a case: all sides that were run, beside those of the baselines that were; and their calls, if they were counted.
fn report(case: &str, processes: usize, sides: &[(&str, Vec<Run>)]) {
    let wait = |runs: &[Run], at: usize| median(runs.iter().map(|run| run.waits[at]).collect());
    let of = |side: &str| sides.iter().find(|(name, _)| *name == side).map(|(_, runs)| runs.as_slice());
    print!("{case:13} {processes:>2} processes, {} jobs", sides[0].1[0].jobs);
    for (name, runs) in sides {
        let [p50, p90, p99, longest] = [0, 1, 2, 3].map(|at| wait(runs, at));
        let (low, high) =
            runs.iter().fold((f64::MAX, 0_f64), |(low, high), run| (low.min(run.waits[0]), high.max(run.waits[0])));
        let range = if runs.len() > 1 { format!(" [{low:.1}-{high:.1}]") } else { String::new() };
        print!(" | {name} {p50:.1}{range} {p90:.1} {p99:.1} {longest:.1} ms");
        for base in ["plain", "doors"] {
            if let Some(waits) = of(base).filter(|_| *name != "plain" && *name != base) {
                print!(", {:.2} and {:.2} times {base}'s", p50 / wait(waits, 0), p99 / wait(waits, 2));
            }
        }
        print!(", {:.0} us", median(runs.iter().map(|run| run.server.as_secs_f64() * 1e6 / run.jobs as f64).collect()));
        if let Some((asked, jobs)) = asked_by(runs) {
            print!(", {}", asked.pulls_each(jobs));
        }
    }
    println!();
    for (name, runs) in sides {
        if let Some((asked, jobs)) = asked_by(runs) {
            println!("    {name:5} asks for {}", asked.calls_each(jobs));
        }
    }
}

/// A row of the table: what half of the runs had at most, and the range over all of them.
fn row(case: &str, side: &str, runs: &[Run]) -> String {
    let figure = |of: &dyn Fn(&Run) -> f64| {
        let mut of: Vec<f64> = runs.iter().map(of).collect();
        of.sort_by(f64::total_cmp);
        format!("{:.1} [{:.1}-{:.1}]", median(of.clone()), of[0], of[of.len() - 1])
    };
    let waits = [0, 1, 2, 3].map(|at| figure(&|run| run.waits[at])).join(" | ");
    let server = figure(&|run| run.server.as_secs_f64() * 1e6 / run.jobs as f64);
    format!("| {case} | {side} | {} | {waits} | {server} |", runs.len())
}

/// The calls of all runs together, and for how many jobs they were; if they were counted.
fn asked_by(runs: &[Run]) -> Option<(Asked, usize)> {
    let asked = runs.iter().filter_map(|run| run.asked.clone()).reduce(Asked::and)?;
    Some((asked, runs.iter().map(|run| run.jobs).sum()))
}
