//! HTTP submit, durable, beside an axum handler that does nothing.
//!
//! `cargo bench --bench http`. Both servers are processes of their own, started from this binary; the load comes from 64
//! keep-alive connections, 256-byte payloads, one request at a time each, from this process on the same cores. CPU is
//! the server's alone.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use relay::auth::Authenticator;
use relay::ingress::http::{Ingress, Limits, serve};
use relay_bridge::clock::Clock;
use relay_bridge::embedded::{Embedded, EmbeddedConfig};
use relay_bridge::policy::QueuePolicy;
use support::{Sample, cpu_of, pairs, report};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const CONNECTIONS: u64 = 64;
const REQUESTS: u64 = 60_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match arguments.next().as_deref() {
        Some("serve-relay") => runtime.block_on(serve_relay()),
        Some("serve-nothing") => runtime.block_on(serve_nothing()),
        _ => runtime.block_on(compare()),
    }
}

async fn compare() {
    for (what, keyed) in
        [("HTTP submit without keys / axum no-op", false), ("HTTP submit under keys / axum no-op", true)]
    {
        let mut measured = Vec::new();
        for _ in 0..pairs() {
            let ours = load("serve-relay", keyed).await;
            measured.push((ours, load("serve-nothing", keyed).await));
        }
        report(what, 0.5, &measured);
    }
}

async fn load(server: &str, keyed: bool) -> Sample {
    let (mut child, address) = start(server);
    exchange(address, keyed, REQUESTS / 10, 0).await;
    let (start, before) = (Instant::now(), cpu_of(child.id()));
    exchange(address, keyed, REQUESTS, REQUESTS).await;
    let sample = Sample { operations: REQUESTS, wall: start.elapsed(), cpu: cpu_of(child.id()).saturating_sub(before) };
    child.kill().unwrap();
    child.wait().unwrap();
    sample
}

fn start(server: &str) -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap()).arg(server).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().parse().unwrap())
}

async fn exchange(address: SocketAddr, keyed: bool, requests: u64, first: u64) {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut request, mut answer) = (Vec::new(), vec![0; 8192]);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    break;
                }
                request.clear();
                write!(
                    request,
                    "POST /v1/queues/work/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                )
                .unwrap();
                if keyed {
                    write!(request, "idempotency-key: key-{}\r\n", first + number).unwrap();
                }
                write!(request, "content-length: 256\r\n\r\n").unwrap();
                request.extend_from_slice(&[b'x'; 256]);
                stream.write_all(&request).await.unwrap();
                read_answer(&mut stream, &mut answer).await;
            }
        });
    }
    tasks.join_all().await;
}

/// Reads one answer: a head, and as much body as its `content-length` says.
async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await.unwrap();
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

async fn serve_relay() {
    // The process is killed, so nothing is tidied up at its end: the next one begins by that. Not in the folder for
    // temporary files, which may be in memory, where a flush costs nothing.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-http");
    std::fs::remove_dir_all(&folder).ok();
    let config = EmbeddedConfig { path: Some(folder.join("relay.db")), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default()).await.unwrap();
    let listener = listen().await;
    let ingress = Ingress::new(store.broker(), Authenticator::development(), Limits::default(), Clock::system());
    serve(listener, ingress, CancellationToken::new(), Duration::ZERO).await.unwrap();
}

async fn serve_nothing() {
    use axum::routing::post;
    let app = axum::Router::new()
        .route("/v1/queues/{queue}/jobs", post(async |_: bytes::Bytes| axum::http::StatusCode::ACCEPTED));
    axum::serve(listen().await, app).await.unwrap();
}

async fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    listener
}
