//! The embedded broker beside a bare SQLite loop that writes the same rows, and beside itself at depth.
//!
//! `cargo bench --bench embedded`. Both sides: 128 producers that wait for the durable answer, 16 workers that lease 16
//! at a time, payloads of 256 bytes, one writer thread, one commit for whatever waits. With `-- tcp` only submissions
//! over TCP, beside such a loop and beside HTTP; `RELAY_OURS` names another relay than the one that cargo builds for benches.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking and prints its figures"
)]

mod bare;
mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use relay_bridge::leasing::LeaseRequest;
use support::load::CONNECTIONS;
use support::served::Served;
use support::store::{LEASED_AT_ONCE, PRODUCERS, WORKERS, open, produce, work};
use support::{Sample, cpu_of, frames, load, measure, median, pairs, report};
use tempfile::TempDir;
use tokio::task::JoinSet;

const JOBS: u64 = 40_000;

/// Submissions without an answer, of each connection over TCP: with all connections 512, as many as the bare loop has in flight.
const IN_FLIGHT: u64 = 8;

#[tokio::main]
async fn main() {
    if std::env::args().any(|argument| argument == "tcp") {
        return tcp().await;
    }
    let mut cycles = Vec::new();
    for _ in 0..pairs() {
        let ours = ours(JOBS).await;
        cycles.push((ours, bare::cycle(JOBS, PRODUCERS, WORKERS, LEASED_AT_ONCE).await));
    }
    report("full cycle through the seam / bare SQLite", 0.6, &cycles);
    tcp().await;
    backlog().await;
}

/// Submissions over TCP: relay is a process of its own, whose CPU counts; the bare loop has neither clients nor sockets.
async fn tcp() {
    let (mut bare, mut http) = (Vec::new(), Vec::new());
    for _ in 0..pairs() {
        let over_tcp = submissions(true).await;
        bare.push((over_tcp, bare::cycle(JOBS, CONNECTIONS * IN_FLIGHT, 0, 0).await));
        http.push((over_tcp, submissions(false).await));
    }
    report("submit over TCP, 64 connections x 8 / bare SQLite", 0.7, &bare);
    report("submit over TCP, 64 connections x 8 / over HTTP, 64", 2.0, &http);
}

async fn submissions(over_tcp: bool) -> Sample {
    let relay = std::env::var("RELAY_OURS").unwrap_or_else(|_| env!("CARGO_BIN_EXE_relay").to_owned());
    let server = Served::start_with_tcp(&relay, None);
    let submit = async |jobs, first| match over_tcp {
        true => frames::submit(server.tcp.unwrap(), CONNECTIONS, IN_FLIGHT, jobs, first).await,
        false => load::submit(server.http, true, jobs, first).await,
    };
    submit(JOBS / 10, 0).await;
    let (start, before) = (Instant::now(), cpu_of(server.pid()));
    submit(JOBS, JOBS).await;
    let wall = start.elapsed();
    Sample { operations: JOBS, wall, cpu: cpu_of(server.pid()).saturating_sub(before) }
}

async fn ours(jobs: u64) -> Sample {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    let broker = store.broker();
    let done = Arc::new(AtomicU64::new(0));
    let sample = measure(async {
        let mut tasks = JoinSet::new();
        produce(&mut tasks, &broker, 0, jobs);
        for _ in 0..WORKERS {
            tasks.spawn(work(Arc::clone(&broker.leasing), Arc::clone(&done), jobs));
        }
        tasks.join_all().await;
        jobs
    })
    .await;
    store.close().await;
    sample
}

/// Enqueueing and leasing with little waiting and with a million.
async fn backlog() {
    const STRETCH: u64 = 50_000;
    const DEEP: u64 = 1_000_000;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let broker = store.broker();
    let fill = async |from: u64, jobs: u64| {
        measure(async {
            let mut tasks = JoinSet::new();
            produce(&mut tasks, &broker, from, jobs);
            tasks.join_all().await;
            jobs
        })
        .await
    };
    let drain = async |jobs: u64| {
        let mut rates = Vec::new();
        let request = LeaseRequest {
            worker: "w".parse().unwrap(),
            queues: vec!["work".parse().unwrap()],
            max: NonZeroU32::MIN,
            wait: Duration::ZERO,
        };
        for _ in 0..5 {
            let sample = measure(async {
                let mut tasks = JoinSet::new();
                for _ in 0..WORKERS {
                    let (broker, request) = (broker.clone(), request.clone());
                    tasks.spawn(async move {
                        for _ in 0..jobs / WORKERS {
                            broker.leasing.lease(&request).await.unwrap();
                        }
                    });
                }
                tasks.join_all().await;
                jobs
            })
            .await;
            rates.push(sample.rate());
        }
        median(rates)
    };
    let shallow = fill(0, STRETCH).await;
    let shallow_lease = drain(2_000).await;
    let mut fills = vec![shallow];
    for filled in (STRETCH..DEEP).step_by(STRETCH as usize) {
        fills.push(fill(filled, STRETCH).await);
    }
    let deep_lease = drain(2_000).await;
    let ends = |figure: fn(&Sample) -> f64| {
        let of = |samples: &[Sample]| median(samples.iter().map(figure).collect());
        (of(&fills[..4]), of(&fills[fills.len() - 4..]))
    };
    let ((shallow, deep), (shallow_cpu, deep_cpu)) = (ends(Sample::rate), ends(Sample::cpu_us));
    println!(
        "enqueue, first and last 200,000 of a million        {shallow:>9.0}/s {deep:>9.0}/s | ratio {:.2}, by CPU {:.2} (goal >= 0.70)",
        deep / shallow,
        shallow_cpu / deep_cpu
    );
    println!(
        "lease one at a time, 40,000 and 990,000 waiting     {shallow_lease:>9.0}/s {deep_lease:>9.0}/s | ratio {:.2} (goal: within noise of 1)",
        deep_lease / shallow_lease
    );
    println!(
        "resident memory with a million waiting             {:>9.1} MiB",
        support::resident(std::process::id()) as f64 / 1048576.0
    );
    store.close().await;
    let start = Instant::now();
    let store = open(&path).await;
    println!("open with a million stored                         {:>9.1} ms", start.elapsed().as_secs_f64() * 1e3);
    store.close().await;
}
