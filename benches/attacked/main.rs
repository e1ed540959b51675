//! A lone honest client beside one client that attacks: the time of its submissions, and how many of them were refused.
//!
//! `cargo bench --bench attacked`, or `cargo bench --bench attacked -- curves` for the server's memory while it is attacked
//! ([`curves`]). For each attack of docs/security.md that aims at the ingress: rounds of `PER_ROUND` submissions
//! one after the other, alone and beside the attack by turns (`RELAY_BENCH_PAIRS` rounds of each). p99 in milliseconds, the
//! median of the rounds, and the ratio. The server is a process of its own with a store on disk.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod curves;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use server::{Server, flood, head, streams};
use support::{median, pairs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Submissions of one round.
const PER_ROUND: usize = 1_000;
/// Peers of an attack.
const PEERS: usize = 40;

#[derive(Clone, Copy, Debug)]
enum Attack {
    /// Large answers over HTTP/2 that nobody reads.
    Answers,
    /// Connections with a wrong key and half a head, as fast as they are let in.
    Strangers,
    /// Announced bodies of which a byte comes, as fast as they are let in.
    Bodies,
    /// Requests that wait for a result that does not come.
    Waits,
}

#[tokio::main]
async fn main() {
    if std::env::args().any(|argument| argument == "curves") {
        return curves::print().await;
    }
    let server = Server::start(server::OURS);
    let job = server.done().await;
    let alone_first = round(&server).await;
    println!("{PER_ROUND} submissions alone: p99 {:.2} ms (not counted)", p99(alone_first.times));
    println!("| attack | alone, p99 ms | beside it, p99 ms | ratio | refused |\n| --- | --- | --- | --- | --- |");
    for attack in [Attack::Answers, Attack::Strangers, Attack::Bodies, Attack::Waits] {
        let (mut alone, mut beside, mut ratios, mut refused) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..pairs() {
            let quiet = round(&server).await;
            let attackers = begin(&server, attack, &job).await;
            let loud = round(&server).await;
            drop(attackers);
            refused += loud.refused;
            let (quiet, loud) = (p99(quiet.times), p99(loud.times));
            alone.push(quiet);
            beside.push(loud);
            ratios.push(loud / quiet);
        }
        println!("| {attack:?} | {:.2} | {:.2} | {:.2} | {refused} |", median(alone), median(beside), median(ratios));
    }
}

fn p99(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() * 99 / 100]
}

struct Round {
    times: Vec<f64>,
    refused: usize,
}

/// Submissions of the honest client, one after the other, on connections that are kept.
async fn round(server: &Server) -> Round {
    let request = format!("{}content-length: 5\r\n\r\nhello", head("POST", "/v1/queues/default/jobs", &server.keys[1]));
    let (mut times, mut refused) = (Vec::new(), 0);
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for _ in 0..PER_ROUND {
        let begun = Instant::now();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
        refused += usize::from(!answer.starts_with(b"HTTP/1.1 202"));
    }
    Round { times, refused }
}

/// The attack, at work until it is dropped.
async fn begin(server: &Server, attack: Attack, job: &str) -> JoinSet<()> {
    let mut peers = JoinSet::new();
    let (http, key) = (server.http, server.keys[0].clone());
    for _ in 0..PEERS {
        let (key, job) = (key.clone(), job.to_owned());
        peers.spawn(async move {
            match attack {
                Attack::Answers => streams(http, &format!("/v1/jobs/{job}/result"), &key, 0).await,
                Attack::Waits => {
                    let waits = format!("/v1/results?wait=50s&after=now&key_prefix={key}");
                    streams(http, &waits.replace(&key, "none"), &key, 65_535).await;
                }
                Attack::Strangers => {
                    let text = head("GET", "/v1/whoami", "a.b") + "\r\nGET /v1/whoami HTTP/1.1\r\nhost: relay\r\n";
                    flood(http, &text).await;
                }
                Attack::Bodies => {
                    let text = head("POST", "/v1/queues/default/jobs", &key) + "content-length: 8388608\r\n\r\nx";
                    flood(http, &text).await;
                }
            }
        });
    }
    // The first of them are at work.
    tokio::time::sleep(Duration::from_millis(500)).await;
    peers
}
