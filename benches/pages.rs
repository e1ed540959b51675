//! A page of `GET /v1/jobs` of a client with many records beside one of a client with few, on the embedded store and on
//! NATS: each asks for 100 jobs, so it should cost alike.
//!
//! `cargo bench --bench pages`, or with some brokers: `-- nats`. Both servers run all the time; one pair is one page of
//! each, the first of a pair takes turns. Every figure is of the answer's time at the client and of CPU of the server and
//! of nats-server, over [`READS`] reads of one page.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::time::{Duration, Instant};

use relay_conformance::testing::NatsServer;
use serde_json::Value;
use support::load::{BATCH, Connection, submit_batches};
use support::served::Served;
use support::{Sample, cpu_of, median, pairs};

/// Records of the two clients.
const SIZES: [u64; 2] = [1_000, 100_000];
/// How often a page is read for one figure.
const READS: u64 = 20;
/// Pages: the newest jobs, those of one queue, and those in a state that no job of them has.
const PAGES: [(&str, &str); 4] =
    [("first", "limit=100"), ("queue", "limit=100&queue=work"), ("none", "limit=100&state=succeeded"), ("middle", "")];

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (broker, nats) in [("embedded", false), ("nats", true)] {
        if names.is_empty() || names.iter().any(|name| name == broker) {
            runtime.block_on(compare(broker, nats));
        }
    }
}

async fn compare(broker: &str, nats: bool) {
    let mut sides = Vec::new();
    for size in SIZES {
        sides.push(Side::filled(nats, size).await);
    }
    for (page, query) in PAGES {
        let mut taken = Vec::new();
        for pair in 0..pairs() {
            let mut samples = [None; 2];
            for at in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
                let side = &mut sides[at];
                let query = if page == "middle" { side.middle.clone() } else { query.to_owned() };
                samples[at] = Some(side.read(&query).await);
            }
            taken.push((samples[0].unwrap(), samples[1].unwrap()));
        }
        report(&format!("{broker}, {page}"), &taken);
    }
}

/// Prints the medians of both, and what the large one takes of the small one.
fn report(name: &str, taken: &[(Sample, Sample)]) {
    let ms = |sample: &Sample| 1e3 / sample.rate();
    let of = |figure: &dyn Fn(&(Sample, Sample)) -> f64| median(taken.iter().map(figure).collect());
    let ratios: Vec<f64> = taken.iter().map(|(few, many)| ms(many) / ms(few)).collect();
    let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(low, high), r| (low.min(*r), high.max(*r)));
    println!(
        "{name:16} {:>6.2} ms with {} | {:>6.2} ms with {} | ratio {:.2} [{low:.2}-{high:.2}], by CPU {:.2} (goal <= 1.50, {} pairs)",
        of(&|(few, _)| ms(few)),
        SIZES[0],
        of(&|(_, many)| ms(many)),
        SIZES[1],
        median(ratios.clone()),
        of(&|(few, many)| many.cpu_us() / few.cpu_us()),
        taken.len(),
    );
}

/// A server with one client's jobs.
struct Side {
    server: Served,
    nats: Option<NatsServer>,
    connection: Connection,
    /// The query of the page that begins after half of the jobs.
    middle: String,
}

impl Side {
    async fn filled(nats: bool, jobs: u64) -> Self {
        let nats = if nats { Some(NatsServer::start().await) } else { None };
        let server = Served::start(env!("CARGO_BIN_EXE_relay"), nats.as_ref());
        submit_batches(server.http, jobs / BATCH).await;
        let mut connection = Connection::open(server.http).await;
        let mut middle = "limit=500".to_owned();
        for _ in 0..jobs / 500 / 2 {
            let page: Value = serde_json::from_slice(connection.get(&format!("/v1/jobs?{middle}")).await).unwrap();
            middle = format!("limit=500&after={}", page["next"].as_str().unwrap());
        }
        let middle = middle.replace("limit=500", "limit=100");
        Self { server, nats, connection, middle }
    }

    async fn read(&mut self, query: &str) -> Sample {
        let path = format!("/v1/jobs?{query}");
        let pids: Vec<u32> =
            [Some(self.server.pid()), self.nats.as_ref().and_then(NatsServer::pid)].into_iter().flatten().collect();
        let spent = || pids.iter().map(|pid| cpu_of(*pid)).sum::<Duration>();
        let (start, before) = (Instant::now(), spent());
        for _ in 0..READS {
            self.connection.get(&path).await;
        }
        Sample { operations: READS, wall: start.elapsed(), cpu: spent().saturating_sub(before) }
    }
}
