//! The scaler: an answer at depth, the cost of being polled, and how soon the first job is told.
//!
//! `cargo bench --bench scaler`, or with the names of some parts: `cargo bench --bench scaler -- activation`. The broker is
//! embedded, on a disk; for the activation it is a NATS server of one node with two processes, and the job comes through either.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use relay::scaler::proto::{GetMetricsRequest, GetMetricsResponse, IsActiveResponse, ScaledObjectRef};
use relay::scaler::{Looks, serve};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::Submission;
use relay_bridge::policy::QueuePolicy;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings};
use support::cpu;
use support::store::open;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

const ASKED: usize = 2_000;
const QUEUES: usize = 100;

#[tokio::main]
async fn main() {
    let named: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runs = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    if runs("depth") {
        depth().await;
    }
    if runs("polled") {
        polled().await;
    }
    if runs("activation") {
        activation().await;
    }
}

fn queue(number: usize) -> String {
    format!("bench-{number}")
}

fn policy() -> QueuePolicy {
    let mut policy = QueuePolicy::default();
    policy.client_defaults.max_queued = u64::MAX >> 1;
    policy
}

async fn add_queues(broker: &Broker, count: usize) {
    for number in 0..count {
        broker.policies.put_policy(&queue(number).parse().unwrap(), &policy(), None).await.unwrap();
    }
}

async fn submit(broker: &Broker, number: usize, count: usize) {
    submit_within(broker, number, count, Duration::ZERO).await;
}

/// Jobs that are due at even distances until `within` is over.
async fn submit_within(broker: &Broker, number: usize, count: usize, within: Duration) {
    let jobs = futures_util::stream::iter(0..count).map(|nth| {
        let (client, queue) = ("bench".parse().unwrap(), queue(number).parse().unwrap());
        let plain = Submission::plain(client, queue, "text/plain", Bytes::new());
        let delay = within.mul_f64((nth + 1) as f64 / count as f64);
        broker.jobs.enqueue(Submission { delay, ..plain }.accept(&policy(), Clock::system().now()))
    });
    jobs.buffer_unordered(256)
        .for_each(|done| {
            done.unwrap();
            std::future::ready(())
        })
        .await;
}

/// A scaler, its address and its task.
async fn scaler(broker: &Broker, tasks: &mut JoinSet<()>, stop: &CancellationToken) -> (SocketAddr, Arc<Looks>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let looks = Looks::new(broker, Clock::system());
    let (served, measured, stopped) = (Arc::clone(&looks), Arc::clone(&looks), stop.clone());
    tasks.spawn({
        let stop = stop.clone();
        async move { serve(listener, None, served, stop).await.unwrap() }
    });
    tasks.spawn(async move { measured.measure(stopped).await });
    (address, looks)
}

async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

fn object(number: usize, lead: usize) -> ScaledObjectRef {
    let metadata = [("queue", queue(number)), ("leadSeconds", lead.to_string())];
    let scaler_metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    ScaledObjectRef { scaler_metadata, ..ScaledObjectRef::default() }
}

async fn metrics(channel: &Channel, object: ScaledObjectRef) -> f64 {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let message = GetMetricsRequest { scaled_object_ref: Some(object), metric_name: String::new() };
    let codec = ProstCodec::<GetMetricsRequest, GetMetricsResponse>::default();
    let path = "/externalscaler.ExternalScaler/GetMetrics".parse().unwrap();
    grpc.unary(Request::new(message), path, codec).await.unwrap().into_inner().metric_values[0].metric_value_float
}

fn percentile(times: &mut [Duration], of: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * of / 100).min(times.len() - 1)]
}

/// `GetMetrics` with 100 jobs and with a million, in line and parked. Every call looks: figures are older than a second.
async fn depth() {
    depth_of("in line", Duration::ZERO).await;
    depth_of("parked", Duration::from_secs(24 * 3_600)).await;
}

async fn depth_of(kind: &str, within: Duration) {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    let broker = store.broker();
    add_queues(&broker, 1).await;
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let (address, _) = scaler(&broker, &mut tasks, &stop).await;
    let channel = channel(address).await;
    let mut medians = Vec::new();
    let mut there = 0;
    for jobs in [100, 1_000_000] {
        submit_within(&broker, 0, jobs - there, within).await;
        there = jobs;
        let mut times = Vec::with_capacity(ASKED);
        for asked in 0..ASKED {
            // Another lead than those of the last calls: nothing is answered from memory.
            let began = Instant::now();
            metrics(&channel, object(0, asked % 16)).await;
            times.push(began.elapsed());
        }
        let (median, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
        println!("GetMetrics with {jobs} {kind}: median {median:?}, p99 {p99:?} (bound 50 ms)");
        medians.push(median.as_secs_f64());
    }
    println!("a million / a hundred {kind}: {:.2} (bound 1.5)", medians[1] / medians[0]);
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    store.close().await;
}

/// 100 queues, each asked by `GetMetrics` and `IsActive` every 5 s, for 20 s.
async fn polled() {
    const FOR: Duration = Duration::from_secs(20);
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    let broker = store.broker();
    add_queues(&broker, QUEUES).await;
    submit(&broker, 0, 1_000).await;
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let (address, _) = scaler(&broker, &mut tasks, &stop).await;
    let channel = channel(address).await;
    let (before, began) = (cpu(), Instant::now());
    while began.elapsed() < FOR {
        let round = Instant::now();
        for number in 0..QUEUES {
            metrics(&channel, object(number, 30)).await;
            metrics(&channel, object(number, 30)).await;
            tokio::time::sleep_until((round + Duration::from_millis(50) * u32::try_from(number).unwrap()).into()).await;
        }
        tokio::time::sleep_until((round + Duration::from_secs(5)).into()).await;
    }
    let part = (cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!(
        "{QUEUES} queues polled every 5 s: {:.2} % of a core, the poller's part included (bound 2 %)",
        part * 100.0
    );
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    store.close().await;
}

/// From the submission of a first job through one of two processes until KEDA, connected to one of them, is told.
async fn activation() {
    const ROUNDS: usize = 100;
    let server = NatsServer::start().await;
    let open =
        || async { Nats::connect(NatsConfig::new([server.url()]), Wait::Forever, Settings::default()).await.unwrap() };
    let nats = [open().await, open().await];
    let brokers = nats.each_ref().map(Nats::broker);
    let wanted = relay_bridge::provision::Wanted {
        queue: queue(0).parse().unwrap(),
        policy: QueuePolicy::default(),
        seen: None,
    };
    brokers[0].provision.apply(&[wanted], false).await.unwrap();
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let (address, looks) = scaler(&brokers[0], &mut tasks, &stop).await;
    let mut grpc = Grpc::new(channel(address).await);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        grpc.ready().await.unwrap();
        let path = "/externalscaler.ExternalScaler/StreamIsActive".parse().unwrap();
        let codec = ProstCodec::<ScaledObjectRef, IsActiveResponse>::default();
        let mut stream = grpc.server_streaming(Request::new(object(0, 30)), path, codec).await.unwrap().into_inner();
        while stream.next().await.unwrap().unwrap().result {}
        // At any moment between two looks of the stream.
        tokio::time::sleep(Duration::from_millis(600 + 37 * round as u64 % 500)).await;
        let began = Instant::now();
        submit(&brokers[round % 2], 0, 1).await;
        if round % 2 == 0 {
            looks.came(&queue(0).parse().unwrap());
        }
        while !stream.next().await.unwrap().unwrap().result {}
        times.push(began.elapsed());
        drop(stream);
        empty(&brokers[0]).await;
    }
    let (median, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    println!("activation on NATS, two scalers: median {median:?} (bound 300 ms), p99 {p99:?} (bound 1 s)");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    for nats in nats {
        nats.close().await;
    }
}

/// Cancels what waits.
async fn empty(broker: &Broker) {
    let client = "bench".parse().unwrap();
    let state = Some(relay_bridge::contract::JobState::Queued);
    let filter = relay_bridge::job_queue::JobFilter { queues: None, state, key_prefix: None, after: None, limit: 100 };
    for job in broker.jobs.list(&client, &filter).await.unwrap().jobs {
        broker.jobs.cancel(&client, job.job_id).await.unwrap();
    }
}
