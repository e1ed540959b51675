//! The parts of the benchmark, each relay beside its baseline.

use std::slice::from_ref;
use std::sync::Arc;
use std::time::Instant;

use async_nats::jetstream;
use futures_util::TryStreamExt as _;
use relay_bridge::leasing::Leasing;
use relay_conformance::testing::{NatsCluster, NatsServer};
use relay_remote::{Remote, RemoteConfig};

use crate::bare::{Ack, Bare, Shape, WINDOW};
use crate::figures::{Run, compare, compare_latencies, line};
use crate::ours::{self, Ours};
use crate::support::load::{CONNECTIONS, Server, submit};
use crate::support::served::Served;
use crate::support::{frames, pairs, resident};

/// HTTP requests of one run.
const REQUESTS: u64 = 60_000;
/// Jobs of one run of publishing, of the cycle, and of a worker over TCP.
const JOBS: u64 = 60_000;
/// Round trips of one run.
const ROUNDS: u64 = 2_000;
/// Jobs that are retained, with their results, before memory is looked at.
const RETAINED: u64 = 200_000;

/// Runs the parts with these names, or all.
pub(crate) async fn run(names: &[&str]) {
    let wanted = |name: &str| names.is_empty() || names.contains(&name);
    let nats = NatsServer::start().await;
    if wanted("submit") {
        submissions(&nats).await;
    }
    if wanted("publish") {
        publishing(&nats).await;
    }
    if wanted("cycle") {
        cycle(&nats).await;
    }
    if wanted("wait") {
        wait(&nats).await;
    }
    if wanted("tcp-submit") {
        tcp_submissions(&nats).await;
    }
    if wanted("tcp") {
        tcp_worker(&nats).await;
    }
    drop(nats);
    if wanted("memory") {
        memory().await;
    }
    if wanted("durability") {
        durability().await;
    }
}

async fn submissions(nats: &NatsServer) {
    let (mut plain, mut create) = (Vec::new(), Vec::new());
    for _ in 0..pairs() {
        let ours = load(nats, "serve-relay").await;
        plain.push((ours, load(nats, "serve-bare").await));
        create.push((ours, load(nats, "serve-bare-create").await));
    }
    compare("HTTP submit under keys / axum that awaits a publish", "goal >= 0.90, stretch 1.50", &plain);
    compare("HTTP submit under keys / axum that awaits a publish if absent", "for comparison", &create);
}

/// Over TCP, with as many in flight as the loop has, which has neither clients nor a socket of its own.
async fn tcp_submissions(nats: &NatsServer) {
    let relay = std::env::var("RELAY_OURS").unwrap_or_else(|_| env!("CARGO_BIN_EXE_relay").to_owned());
    let in_flight = WINDOW as u64 / CONNECTIONS;
    let (mut contract, mut http) = (Vec::new(), Vec::new());
    for _ in 0..pairs() {
        let server = Served::start_with_tcp(&relay, Some(nats));
        let pids = [server.pid()];
        let tcp = server.tcp.unwrap();
        frames::submit(tcp, CONNECTIONS, in_flight, JOBS / 10, 0).await;
        let over_tcp = frames::submit(tcp, CONNECTIONS, in_flight, JOBS, JOBS);
        let over_tcp = Run::measure(from_ref(nats), &pids, JOBS, over_tcp).await;
        let over_http = submit(server.http, true, JOBS, 3 * JOBS);
        http.push((over_tcp, Run::measure(from_ref(nats), &pids, JOBS, over_http).await));
        drop(server);
        clear(nats).await;
        let bare = Bare::create(&nats.url()).await;
        contract.push((over_tcp, here(nats, bare.publish_as(Shape::Contract, JOBS)).await));
        clear(nats).await;
    }
    compare("submit over TCP / publish what the contract needs, 512 in flight", "goal >= 0.90", &contract);
    compare("submit over TCP, 64 connections x 8 / over HTTP, 64", "goal >= 2", &http);
}

async fn load(nats: &NatsServer, server: &str) -> Run {
    // relay makes its own; the baseline's server only uses them.
    let bare = Bare::create(&nats.url()).await;
    let server = Server::start(&[server, &nats.url()]);
    submit(server.address, true, REQUESTS / 10, 0).await;
    let run =
        Run::measure(from_ref(nats), &[server.pid()], REQUESTS, submit(server.address, true, REQUESTS, REQUESTS)).await;
    drop((server, bare));
    clear(nats).await;
    run
}

async fn publishing(nats: &NatsServer) {
    let (mut plain, mut contract) = (Vec::new(), Vec::new());
    for _ in 0..pairs() {
        let ours = Ours::open(&nats.url()).await;
        ours.publish(JOBS, JOBS / 10).await;
        let run = here(nats, ours.publish(0, JOBS)).await;
        ours.close().await;
        clear(nats).await;
        let bare = Bare::create(&nats.url()).await;
        plain.push((run, here(nats, bare.publish(JOBS)).await));
        clear(nats).await;
        let bare = Bare::create(&nats.url()).await;
        contract.push((run, here(nats, bare.publish_as(Shape::Contract, JOBS)).await));
        clear(nats).await;
    }
    compare("enqueue through the seam / publish if absent, 512 in flight", "goal >= 0.70, stretch 1.30", &plain);
    compare("enqueue through the seam / publish what the contract needs", "for comparison", &contract);
}

async fn cycle(nats: &NatsServer) {
    let (mut sent, mut confirmed, mut contract) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs() {
        let relay = Ours::open(&nats.url()).await;
        let (begun, mut first) = (Instant::now(), JOBS);
        while begun.elapsed() < ours::WARM_UP {
            let leasing = Arc::clone(&relay.broker.leasing);
            tokio::join!(relay.publish(first, JOBS / 60), ours::work(leasing, JOBS / 60));
            first += JOBS / 60;
        }
        let work = async {
            tokio::join!(relay.publish(0, JOBS), ours::work(Arc::clone(&relay.broker.leasing), JOBS));
        };
        let run = here(nats, work).await;
        relay.close().await;
        clear(nats).await;
        sent.push((run, bare_cycle(nats, Shape::Plain, Ack::Sent).await));
        confirmed.push((run, bare_cycle(nats, Shape::Plain, Ack::Confirmed).await));
        contract.push((run, bare_cycle(nats, Shape::Contract, Ack::Confirmed).await));
    }
    compare("full cycle through the seam / bare loop", "goal >= 0.60, stretch 1.20", &sent);
    compare("full cycle through the seam / bare loop that confirms acks", "for comparison", &confirmed);
    compare("full cycle through the seam / loop of what the contract needs", "for comparison", &contract);
}

async fn bare_cycle(nats: &NatsServer, shape: Shape, ack: Ack) -> Run {
    let bare = Bare::create(&nats.url()).await;
    let work = async {
        tokio::join!(bare.publish_as(shape, JOBS), bare.work(shape, JOBS, ack));
    };
    let run = here(nats, work).await;
    clear(nats).await;
    run
}

async fn wait(nats: &NatsServer) {
    let (mut hops, mut over_http) = (Vec::new(), Vec::new());
    for _ in 0..pairs() {
        let ours = ours::round_trips(&nats.url(), ROUNDS).await;
        clear(nats).await;
        let bare = Bare::create(&nats.url()).await;
        hops.push((ours, bare.round_trips(&nats.url(), ROUNDS, ROUNDS).await));
        clear(nats).await;
        let bare = Bare::create(&nats.url()).await;
        over_http.push((ours, bare.round_trips_over_http(&nats.url(), ROUNDS, ROUNDS).await));
        clear(nats).await;
    }
    let what = "HTTP submit with `Prefer: wait`, idle worker / publish, deliver, publish, deliver";
    compare_latencies(what, "goal p50 <= 1.50, stretch 1.20", &hops);
    let what = "the same / axum that publishes, and answers with the reply";
    compare_latencies(what, "for comparison", &over_http);
}

/// Jobs that wait already are worked off, by a worker on NATS and by one that reaches it through relay.
async fn tcp_worker(nats: &NatsServer) {
    let mut runs = Vec::new();
    for _ in 0..pairs() {
        let relay = Ours::open(&nats.url()).await;
        relay.publish(0, JOBS).await;
        let server = Server::start(&["serve-workers", &nats.url()]);
        let config = RemoteConfig::new(server.address.to_string(), "bench".parse().unwrap());
        let remote: Arc<dyn Leasing> = Arc::new(Remote::connect(config).await.unwrap());
        let pids = [std::process::id(), server.pid()];
        let over_tcp = Run::measure(from_ref(nats), &pids, JOBS, ours::work(remote, JOBS)).await;
        drop(server);
        relay.publish(JOBS, JOBS).await;
        let direct = here(nats, ours::work(Arc::clone(&relay.broker.leasing), JOBS)).await;
        runs.push((over_tcp, direct));
        relay.close().await;
        clear(nats).await;
    }
    compare("worker over TCP through relay / worker on NATS", "for comparison", &runs);
}

/// Work of [`JOBS`] operations in this process.
async fn here<F: Future<Output = ()>>(nats: &NatsServer, work: F) -> Run {
    Run::measure(from_ref(nats), &[std::process::id()], JOBS, work).await
}

/// The space that the server takes for jobs that are kept with their results: in memory as it runs, after a restart,
/// and on disk.
async fn memory() {
    println!("kept for a job under a key and its result, {RETAINED} of them, bytes each");
    let ours = retained(async |url| {
        let relay = Ours::open(url).await;
        let leasing = Arc::clone(&relay.broker.leasing);
        tokio::join!(relay.publish(0, RETAINED), ours::work(leasing, RETAINED));
        relay.close().await;
    });
    println!("    relay     {}", ours.await);
    let bare = retained(async |url| {
        let bare = Bare::create(url).await;
        bare.publish(RETAINED).await;
        bare.publish_results(RETAINED).await;
    });
    println!("    baseline  {}", bare.await);
}

async fn retained(work: impl AsyncFnOnce(&str)) -> String {
    let mut nats = NatsServer::start().await;
    let rss = |nats: &NatsServer| resident(nats.pid().unwrap()) as f64;
    let before = rss(&nats);
    work(&nats.url()).await;
    let running = rss(&nats);
    let stored = nats.monitor("/jsz?acc=$G&streams=true").await.unwrap();
    nats.stop().await;
    nats.restart().await;
    let each = |bytes: f64| bytes / RETAINED as f64;
    format!(
        "RSS {:>5.0} as it runs, {:>5.0} after a restart; stored {:>5.0}",
        each(running - before),
        each(rss(&nats) - before),
        each(stored["storage"].as_f64().unwrap()),
    )
}

/// The cost of the server's own settings: publishing alone, without relay. The three nodes share this machine's cores.
async fn durability() {
    const DURABLE: u64 = 10_000;
    println!("publish if absent, 512 in flight, no relay");
    for (sync, when) in [("\"2m\"", "flushed every 2 min"), ("always", "flushed before the answer")] {
        let builder = NatsServer::builder().jetstream(&format!("sync_interval: {sync}"));
        let one = builder.clone().start().await;
        let three = NatsCluster::start_with(3, builder).await;
        for (nodes, what) in [(from_ref(&one), "one node"), (three.nodes(), "three replicas")] {
            let mut runs = Vec::new();
            for _ in 0..pairs() {
                let bare = Bare::create_replicated(&nodes[0].url(), nodes.len()).await;
                runs.push(Run::measure(nodes, &[std::process::id()], DURABLE, bare.publish(DURABLE)).await);
                clear(&nodes[0]).await;
            }
            line(&format!("{what}, {when}"), &runs);
        }
    }
}

/// Removes all streams.
async fn clear(nats: &NatsServer) {
    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    let names: Vec<String> = context.stream_names().try_collect().await.unwrap();
    for name in names {
        context.delete_stream(name).await.unwrap();
    }
}
