//! `relay serve` of this tree beside that of another one, on the embedded store and on NATS: what a job costs.
//!
//! `RELAY_BESIDE=/path/to/the/other/relay cargo bench --bench beside`, or with some figures: `-- embedded nats-wait`. One
//! pair is both binaries, one after the other on a fresh store or a fresh nats-server; the first of a pair takes turns.
//! CPU is that of the server and of nats-server; the load and the worker are in this process, alike for both. Two sides are
//! told apart where a two-sided sign test over the pairs gives p < 0.05: for 15 pairs, the same sign in 12 of them.
//!
//! A binary that cargo builds for a bench has the features that tests switch on: `RELAY_OURS` names this tree's relay
//! as `cargo build --release` makes it, to compare like with like.
//!
//! With `RELAY_BENCH_COUNT=1` and valgrind it counts the server's instructions instead, in thousands a job, which is alike
//! on a busy machine: three pairs will do. The kernel's and nats-server's are not in it, nor is any time.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use relay_bridge::leasing::Leasing;
use relay_conformance::testing::NatsServer;
use relay_remote::{Remote, RemoteConfig};
use support::load::{Connection, submit};
use support::served::{Served, counts};
use support::store::{WORKERS, work};
use support::{Sample, cpu_of, median, pairs};
use tokio::task::JoinSet;

/// Jobs of one run that are submitted, and that go through the whole cycle.
const JOBS: u64 = 20_000;
/// Round trips of one run with `Prefer: wait`.
const WAITS: u64 = 3_000;
/// Before a run, so that both are warm: a share of its jobs.
const WARM_UP: u64 = 10;

#[derive(Clone, Copy)]
enum Figure {
    Submit,
    Wait,
    Cycle,
}

const FIGURES: [(&str, bool, Figure); 6] = [
    ("embedded-submit", false, Figure::Submit),
    ("embedded-wait", false, Figure::Wait),
    ("embedded-cycle", false, Figure::Cycle),
    ("nats-submit", true, Figure::Submit),
    ("nats-wait", true, Figure::Wait),
    ("nats-cycle", true, Figure::Cycle),
];

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Ok(other) = std::env::var("RELAY_BESIDE") else {
        println!("beside: RELAY_BESIDE names no other relay, so there is nothing to compare with");
        return;
    };
    let ours = std::env::var("RELAY_OURS").unwrap_or_else(|_| env!("CARGO_BIN_EXE_relay").to_owned());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (name, nats, figure) in FIGURES {
        if !names.is_empty() && !names.iter().any(|wanted| name.starts_with(wanted.as_str())) {
            continue;
        }
        let mut taken = Vec::new();
        for pair in 0..pairs() {
            let run = |relay: &str| runtime.block_on(measured(relay, nats, figure));
            let first = (pair % 2 == 0).then(|| run(&ours));
            let theirs = run(&other);
            taken.push((first.unwrap_or_else(|| run(&ours)), theirs));
        }
        report(name, &taken);
    }
}

/// Prints both sides' medians, and what this tree takes of the other's: median, range, and in how many pairs it took more.
fn report(name: &str, taken: &[(Sample, Sample)]) {
    let of = |figure: fn(&(Sample, Sample)) -> f64| median(taken.iter().map(figure).collect());
    let (what, unit) = if counts() { ("instructions", "k") } else { ("CPU", "us") };
    print!(
        "{name:16} {what} {:>6.1} {unit} | other {:>6.1} {unit} | {:>7.0}/s | other {:>7.0}/s",
        of(|(ours, _)| ours.cpu_us()),
        of(|(_, theirs)| theirs.cpu_us()),
        of(|(ours, _)| ours.rate()),
        of(|(_, theirs)| theirs.rate())
    );
    let ratios: [Vec<f64>; 2] = [
        taken.iter().map(|(ours, theirs)| ours.cpu_us() / theirs.cpu_us()).collect(),
        taken.iter().map(|(ours, theirs)| theirs.rate() / ours.rate()).collect(),
    ];
    for (what, ratios) in [what, "time"].iter().zip(ratios) {
        let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(low, high), r| (low.min(*r), high.max(*r)));
        let more = ratios.iter().filter(|ratio| **ratio > 1.0).count();
        let told = if told_apart(more, ratios.len()) { "" } else { ", not told apart" };
        print!(
            " | {what} {:.3} [{low:.2}-{high:.2}], more in {more} of {}{told}",
            median(ratios.clone()),
            ratios.len()
        );
    }
    println!();
}

/// Whether `more` of `pairs` with one sign is unlikely for two sides that are alike.
fn told_apart(more: usize, pairs: usize) -> bool {
    // Of all ways in which `pairs` coins can fall, those with `of` heads.
    let ways = |of: usize| (0..of).fold(1.0, |ways, at| ways * (pairs - at) as f64 / (at + 1) as f64);
    2.0 * (0..=more.min(pairs - more)).map(ways).sum::<f64>() / 2_f64.powi(pairs as i32) < 0.05
}

async fn measured(relay: &str, nats: bool, figure: Figure) -> Sample {
    let nats = if nats { Some(NatsServer::start().await) } else { None };
    let server = Served::start(relay, nats.as_ref());
    let mut pids = vec![server.pid()];
    pids.extend(nats.as_ref().map(|nats| nats.pid().unwrap()));
    let jobs = if matches!(figure, Figure::Wait) { WAITS } else { JOBS };
    let jobs = if counts() { jobs / 5 } else { jobs };
    let mut idle = JoinSet::new();
    if matches!(figure, Figure::Wait) {
        idle.spawn(work(worker(&server).await, Arc::default(), u64::MAX));
    }
    load(&server, figure, jobs / WARM_UP, 0).await;
    let mut counted = 0;
    let mut spent = || {
        if counts() {
            counted += server.instructions();
            return Duration::from_nanos(counted);
        }
        pids.iter().map(|pid| cpu_of(*pid)).sum::<Duration>()
    };
    let before = spent();
    let start = Instant::now();
    load(&server, figure, jobs, jobs).await;
    let wall = start.elapsed();
    Sample { operations: jobs, wall, cpu: spent().saturating_sub(before) }
}

async fn worker(server: &Served) -> Arc<dyn Leasing> {
    let config = RemoteConfig::new(server.workers.to_string(), "bench".parse().unwrap());
    Arc::new(Remote::connect(config).await.unwrap())
}

/// Does `jobs` jobs under keys that are numbered from `first`.
async fn load(server: &Served, figure: Figure, jobs: u64, first: u64) {
    match figure {
        Figure::Submit => submit(server.http, true, jobs, first).await,
        Figure::Wait => {
            let mut connection = Connection::open(server.http).await;
            for number in first..first + jobs {
                let headers = format!("prefer: wait=20\r\nidempotency-key: key-{number}\r\n");
                assert_eq!(connection.submit(&headers).await, 200, "the result came in time");
            }
        }
        Figure::Cycle => {
            let (leasing, done) = (worker(server).await, Arc::new(AtomicU64::new(0)));
            let mut workers = JoinSet::new();
            for _ in 0..WORKERS {
                workers.spawn(work(Arc::clone(&leasing), Arc::clone(&done), jobs));
            }
            tokio::join!(submit(server.http, true, jobs, first), workers.join_all());
        }
    }
}
