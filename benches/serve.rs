//! `relay serve` as a process: resident memory, and the time from its start to its first answer, with nothing waiting
//! and with a million jobs waiting; memory and processor time of streams of results that wait, and of connections over TCP that
//! follow or do nothing.
//!
//! `cargo bench --bench serve`, or `cargo bench --bench serve -- peers` for those alone. `RELAY_BENCH_JOBS` sets another number of waiting jobs than a million. Jobs are of 256
//! bytes. Files are in the page cache, as after a restart of the process and not of the machine.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_bridge::contract::wire::client::{Follow, FromClient, Hello, Request};
use relay_bridge::contract::wire::{FRAME_MAX, VERSION_MAX, VERSION_MIN};
use relay_bridge::leasing::Leasing;
use relay_remote::{Remote, RemoteConfig};
use support::store::{WORKERS, open, produce, work};
use support::{cpu_of, median, resident};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const WAITING: u64 = 1_000_000;
const STARTS: usize = 5;
/// Submissions, and jobs finished, before memory is looked at again.
const TRAFFIC: u64 = 2_000;
const CONNECTIONS: u64 = 16;
/// As many as a server takes connections.
const FOLLOWERS: usize = 10_000;
/// Two pings of each.
const FOLLOWED: Duration = Duration::from_secs(30);
/// The memory that a server has allocated for its start is touched by then.
const IDLE: Duration = Duration::from_secs(2);

fn main() {
    let runtime = Runtime::new().unwrap();
    let folder = TempDir::new().unwrap();
    let (fresh, deep) = (folder.path().join("fresh"), folder.path().join("deep"));
    std::fs::create_dir(&fresh).unwrap();
    if std::env::args().any(|argument| argument == "peers") {
        return peers(&runtime, &fresh);
    }
    let waiting = std::env::var("RELAY_BENCH_JOBS").ok().map_or(WAITING, |jobs| jobs.parse().unwrap());
    std::fs::create_dir(&deep).unwrap();
    for (data, jobs) in [(&fresh, 0), (&deep, waiting)] {
        runtime.block_on(fill(data, jobs));
    }

    let (idle, after) = memory(&runtime, &fresh);
    line("resident memory, fresh store, idle", idle, "MiB", "goal <= 40");
    line(&format!("resident memory, fresh store, after {TRAFFIC} jobs"), after, "MiB", "for comparison");

    let starts: Vec<f64> = (0..STARTS).map(|_| start_and_stop(&deep)).collect();
    let (fastest, slowest) = starts.iter().fold((f64::MAX, 0_f64), |(low, high), t| (low.min(*t), high.max(*t)));
    let range = format!("[{fastest:.1}-{slowest:.1}], {STARTS} starts, goal <= 100");
    line(&format!("start to first answer, {waiting} waiting"), median(starts), "ms ", &range);

    let (idle_deep, after_deep) = memory(&runtime, &deep);
    line(&format!("resident memory, {waiting} waiting, idle"), idle_deep, "MiB", "goal <= 40");
    let flat = format!("goal: flat, {:.2} of a fresh store's", after_deep / after);
    line(&format!("resident memory, {waiting} waiting, after {TRAFFIC} jobs"), after_deep, "MiB", &flat);
    line(
        &format!("start to first answer, {waiting} waiting, killed before"),
        start_and_stop(&deep),
        "ms ",
        "goal <= 100",
    );
    peers(&runtime, &fresh);
}

/// Peers that wait for what does not come.
fn peers(runtime: &Runtime, data: &Path) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    followers(runtime, data);
    over_tcp(runtime, data, false);
    over_tcp(runtime, data, true);
}

/// Connections of clients over TCP which do nothing, or follow results.
fn over_tcp(runtime: &Runtime, data: &Path, follows: bool) {
    let server = Server::start(data);
    let pid = server.child.id();
    runtime.block_on(async { tokio::time::sleep(IDLE).await });
    let without = resident(pid);
    let build = "bench".to_owned();
    let (version_min, version_max) = (VERSION_MIN, VERSION_MAX);
    let hello = Hello { version_min, version_max, client: None, key: None, build, frame_max: FRAME_MAX };
    let follow =
        Follow { after: Some("now".to_owned()), queue: None, key_prefix: None, results: 100, bytes: 1024 * 1024 };
    let follow = FromClient::Request { id: 1, request: Request::Follow(follow) };
    let hello = FromClient::Hello(hello);
    let connections: Vec<TcpStream> = (0..FOLLOWERS)
        .map(|_| {
            let mut connection = TcpStream::connect(server.tcp).unwrap();
            // Answered by the welcome, and by the place where it stands.
            for message in [Some(&hello), follows.then_some(&follow)].into_iter().flatten() {
                let mut frame = BytesMut::new();
                message.encode(&mut frame);
                connection.write_all(&frame).unwrap();
                let mut length = [0; 4];
                connection.read_exact(&mut length).unwrap();
                let mut answer = vec![0; u32::from_be_bytes(length).try_into().unwrap()];
                connection.read_exact(&mut answer).unwrap();
            }
            connection
        })
        .collect();
    let each = resident(pid).saturating_sub(without) as f64 / connections.len() as f64 / 1e3;
    let before = cpu_of(pid);
    runtime.block_on(async { tokio::time::sleep(FOLLOWED).await });
    let cpu = (cpu_of(pid) - before).as_secs_f64() / FOLLOWED.as_secs_f64() * 100.0;
    let (what, goal) = if follows { ("followers", "goal <= 15") } else { ("connections", "goal <= 10") };
    line(&format!("resident memory of each of {} idle {what}, TCP", connections.len()), each, "KB ", goal);
    line(&format!("{} idle {what}, TCP, pings included", connections.len()), cpu, "%  ", "of one processor, goal <= 1");
}

/// Streams of results that wait for one.
fn followers(runtime: &Runtime, data: &Path) {
    let server = Server::start(data);
    let pid = server.child.id();
    let request = b"GET /v1/results?after=now HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    let streams: Vec<TcpStream> = (0..FOLLOWERS)
        .map(|_| {
            let mut stream = TcpStream::connect(server.http).unwrap();
            stream.write_all(request).unwrap();
            let (mut buffer, mut filled) = ([0; 4096], 0);
            while !buffer[..filled].windows(6).any(|window| window == b"retry:") {
                filled += stream.read(&mut buffer[filled..]).unwrap();
            }
            stream
        })
        .collect();
    let memory = resident(pid) as f64 / 1_048_576.0;
    let before = cpu_of(pid);
    runtime.block_on(async { tokio::time::sleep(FOLLOWED).await });
    let cpu = (cpu_of(pid) - before).as_secs_f64() / FOLLOWED.as_secs_f64() * 100.0;
    line(&format!("resident memory, {} idle followers", streams.len()), memory, "MiB", "goal <= 260");
    line(
        &format!("{} idle followers, pings included", streams.len()),
        cpu,
        "%  ",
        "of one processor, goal: next to none",
    );
}

fn line(what: &str, figure: f64, unit: &str, goal: &str) {
    println!("{what:57} {figure:>8.1} {unit} ({goal})");
}

async fn fill(data: &Path, jobs: u64) {
    let store = open(&data.join("relay.db")).await;
    let mut producers = JoinSet::new();
    produce(&mut producers, &store.broker(), 0, jobs);
    producers.join_all().await;
    store.close().await;
}

/// Resident memory in MiB, idle and after some jobs went through. The server is killed in the end: it is dropped.
fn memory(runtime: &Runtime, data: &Path) -> (f64, f64) {
    let server = Server::start(data);
    let mib = |server: &Server| resident(server.child.id()) as f64 / 1_048_576.0;
    runtime.block_on(async { tokio::time::sleep(IDLE).await });
    let idle = mib(&server);
    submit(server.http);
    runtime.block_on(finish(server.workers));
    let after = mib(&server);
    (idle, after)
}

/// Milliseconds from the start of the process to its first answer.
fn start_and_stop(data: &Path) -> f64 {
    let start = Instant::now();
    let mut server = Server::start(data);
    let mut connection = loop {
        if let Ok(connection) = TcpStream::connect(server.http) {
            break connection;
        }
    };
    exchange(&mut connection, b"GET /v1/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let took = start.elapsed();
    drop(connection);
    kill(Pid::from_raw(server.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.child.wait().unwrap().success());
    took.as_secs_f64() * 1e3
}

struct Server {
    child: Child,
    http: SocketAddr,
    tcp: SocketAddr,
    workers: SocketAddr,
}

impl Server {
    /// Starts it and waits for the line that says where it listens.
    fn start(data: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_")) {
            command.env_remove(name);
        }
        command.args([
            "serve",
            "--no-auth",
            "--drain-delay",
            "0s",
            "--json",
            "--listen",
            "127.0.0.1:0",
            "--worker-listen",
            "127.0.0.1:0",
            "--tcp",
            "127.0.0.1:0",
        ]);
        command.arg("--data").arg(data).args(["--log", "error"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |of: &str| ready["listening"][of].as_str().unwrap().parse().unwrap();
        let (http, tcp, workers) = (address("http"), address("tcp"), address("workers"));
        Self { child, http, tcp, workers }
    }
}

impl Drop for Server {
    /// A benchmark that panics leaves no server behind.
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn submit(address: SocketAddr) {
    thread::scope(|threads| {
        for _ in 0..CONNECTIONS {
            threads.spawn(|| {
                let mut connection = TcpStream::connect(address).unwrap();
                connection.set_nodelay(true).unwrap();
                let mut request =
                    b"POST /v1/queues/work/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 256\r\n\r\n".to_vec();
                request.extend_from_slice(&[b'x'; 256]);
                for _ in 0..TRAFFIC / CONNECTIONS {
                    exchange(&mut connection, &request);
                }
            });
        }
    });
}

/// Leases and finishes jobs over the workers' protocol.
async fn finish(address: SocketAddr) {
    let remote = Remote::connect(RemoteConfig::new(address.to_string(), "bench".parse().unwrap())).await.unwrap();
    let (leasing, done): (Arc<dyn Leasing>, _) = (Arc::new(remote), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(Arc::clone(&leasing), Arc::clone(&done), TRAFFIC));
    }
    workers.join_all().await;
}

/// Sends one request and reads its answer, which must be a good one with a `content-length`.
fn exchange(connection: &mut TcpStream, request: &[u8]) {
    connection.write_all(request).unwrap();
    let (mut buffer, mut filled) = ([0; 8192], 0);
    loop {
        let read = connection.read(&mut buffer[filled..]).unwrap();
        assert!(read > 0, "the server closed the connection");
        filled += read;
        let Some(head) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head]).unwrap();
        assert!(text.starts_with("HTTP/1.1 20"), "{}", String::from_utf8_lossy(&buffer[..filled]));
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |l| l.parse().unwrap());
        if filled == head + 4 + length {
            return;
        }
    }
}
