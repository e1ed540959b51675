//! The resident memory of a server while peers attack it: answers that nobody reads, strangers with half a head, and workers
//! that lease and do not read.
//!
//! With `RELAY_BEFORE`, the path of another relay's binary, that one is attacked as well, in the same run.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use relay_bridge::contract::wire::{FRAME_MAX, FromWorker, Hello, Request, Role};
use relay_bridge::leasing::LeaseRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::server::{OURS, Server, head, streams};

/// When the memory is read, in seconds from the begin of the attack.
const AT: [f64; 8] = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0];
/// Connections of HTTP/2 that take no byte of their answers.
const DEAF: usize = 9;
/// Connections with a wrong key and half of the next head.
const STRANGERS: usize = 6_285;
/// Workers that lease, how often each of them asks, and for how many jobs.
const WORKERS: usize = 30;
const LEASES: u64 = 20;
const JOBS_ASKED: u32 = 1_024;
/// Jobs that wait for them, and the bytes of each.
const JOBS: usize = 90;
const JOB_BYTES: usize = 4 * 1024 * 1024;

#[derive(Clone, Copy, Debug)]
enum Attack {
    Answers,
    Strangers,
    Leases,
}

/// Prints the curves as a table, in MiB.
pub(crate) async fn print() {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let before = std::env::var("RELAY_BEFORE").ok();
    let at: Vec<String> = AT.iter().map(|at| format!("{at} s")).collect();
    println!("| attack | relay | {} | most |\n| --- | --- |{} --- |", at.join(" | "), " --- |".repeat(AT.len()));
    for attack in [Attack::Answers, Attack::Strangers, Attack::Leases] {
        for (name, binary) in before.iter().map(|before| ("before", before.as_str())).chain([("this", OURS)]) {
            let server = Server::start(binary);
            let curve = curve(&server, attack).await;
            let most = memory(server.child.id(), "VmHWM:");
            let curve: Vec<String> = curve.into_iter().map(|mib| mib.to_string()).collect();
            println!("| {attack:?} | {name} | {} | {most} |", curve.join(" | "));
        }
    }
}

/// The memory at each moment of [`AT`], in MiB.
async fn curve(server: &Server, attack: Attack) -> Vec<u64> {
    let job = server.done().await;
    if let Attack::Leases = attack {
        fill(server).await;
    }
    let mut peers = JoinSet::new();
    let begun = Instant::now();
    match attack {
        Attack::Answers => {
            for _ in 0..DEAF {
                let (http, key, path) = (server.http, server.keys[0].clone(), format!("/v1/jobs/{job}/result"));
                peers.spawn(async move { streams(http, &path, &key, 0).await });
            }
        }
        Attack::Strangers => {
            let text = head("GET", "/v1/whoami", "a.b") + "\r\nGET /v1/whoami HTTP/1.1\r\nhost: relay\r\nx-filler: ";
            let text = text + &"x".repeat(15_000);
            for _ in 0..STRANGERS {
                let (http, text) = (server.http, text.clone());
                peers.spawn(async move { hold(http, text.as_bytes()).await });
            }
        }
        Attack::Leases => {
            for number in 0..WORKERS {
                let (workers, bytes) = (server.workers.clone(), leases(&server.keys[2], number));
                peers.spawn(async move { hold(workers.parse().unwrap(), &bytes).await });
            }
        }
    }
    let mut curve = Vec::new();
    for at in AT {
        tokio::time::sleep_until((begun + Duration::from_secs_f64(at)).into()).await;
        curve.push(memory(server.child.id(), "VmRSS:"));
    }
    curve
}

/// A peer that says `text` and stays, and reads nothing.
async fn hold(address: std::net::SocketAddr, text: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    stream.write_all(text).await.ok();
    std::future::pending::<()>().await;
}

/// Jobs of the attacker that wait for a worker.
async fn fill(server: &Server) {
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let request =
        format!("{}content-length: {JOB_BYTES}\r\n\r\n", head("POST", "/v1/queues/default/jobs", &server.keys[0]));
    let body = vec![b'x'; JOB_BYTES];
    for _ in 0..JOBS {
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 202"), "{}", String::from_utf8_lossy(&answer));
    }
}

/// A hello and [`LEASES`] requests for jobs.
fn leases(key: &str, number: usize) -> BytesMut {
    let mut bytes = BytesMut::new();
    let worker = format!("deaf-{number}");
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        envelope_max: 2,
        role: Role::Worker,
        worker: worker.parse().unwrap(),
        key: Some(key.to_owned()),
        build: "bench".to_owned(),
        frame_max: FRAME_MAX,
    };
    FromWorker::Hello(hello).encode(&mut bytes);
    for id in 0..LEASES {
        let request = LeaseRequest {
            worker: worker.parse().unwrap(),
            queues: vec!["default".parse().unwrap()],
            max: JOBS_ASKED.try_into().unwrap(),
            wait: Duration::from_secs(30),
        };
        FromWorker::Request { id, request: Request::Lease(request) }.encode(&mut bytes);
    }
    bytes
}

/// The memory of a process, now (`VmRSS:`) or at most (`VmHWM:`), in MiB.
fn memory(process: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
}
