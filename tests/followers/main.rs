//! A server, as a process, with as many followers as it takes by default, none of which ever reads.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests fail and speak as tests do")]

#[path = "../cli_support/mod.rs"]
mod cli_support;

use std::fs::read_to_string;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::cli_support::{Running, code, relay, run, run_with, stderr, stdout};
use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// The default of `--followers`.
const FOLLOWERS: usize = 10_000;
/// Files that test and server have open beside the followers' connections.
const OTHER_FILES: usize = 500;
/// How many connect together.
const BEGUN_AT_ONCE: usize = 100;
/// Results, and what each has in bytes: in their stream together more than the sockets of a follower hold between them.
const RESULTS: usize = 400;
const RESULT_BYTES: usize = 1024;
/// A follower costs some 21 KiB, and what was rendered for it and not taken: far from the 700 KiB of all results.
const BYTES_PER_FOLLOWER_MAX: usize = 150 * 1024;
/// The memory that the process has without any.
const BYTES_MAX: usize = 200 * 1024 * 1024;

/// How many followers this machine has open files for, after asking for as many as there may be.
fn followers() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let followers = usize::try_from(most).unwrap().saturating_sub(OTHER_FILES).min(FOLLOWERS);
    if followers < FOLLOWERS {
        eprintln!("{followers} followers instead of {FOLLOWERS}: no more than {most} files may be open");
    }
    followers
}

/// The same command, begun with the few open files that systems allow unless a process asks for more.
fn with_few_files(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -S -n 1024; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    for (name, _) in command.get_envs().filter(|(_, value)| value.is_none()) {
        shell.env_remove(name);
    }
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

async fn follow(server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // Small segments and a small buffer: the system must not hold hundreds of megabytes for this test.
    setsockopt(&socket, sockopt::TcpMaxSeg, &536).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(server).await.unwrap();
    let request = "GET /v1/results HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    // Its answer has begun to come.
    stream.readable().await.unwrap();
    stream
}

/// The most that a process ever had in memory, in bytes.
fn peak(process: u32) -> usize {
    let status = read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

async fn open_streams(client: &reqwest::Client, admin: &str) -> usize {
    let metrics = client.get(format!("http://{admin}/metrics")).send().await.unwrap().text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("relay_streams ")).unwrap();
    line.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_followers_that_never_read_hold_little_and_keep_nobody_out() {
    let count = followers();
    let serve = relay([
        "serve",
        "--memory",
        "--no-auth",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        // Longer than it takes to connect all of them: none is dropped, and none is sent away, before the last one is there.
        "--idle",
        "30m",
        "--follow-for",
        "30m",
    ]);
    let server = Running::start_command(with_few_files(&serve));
    let worker = Running::start(["worker", "--json", "--connect", &server.workers(), "--", "cat"]);
    let url = server.url();
    let line = format!("{{\"text\":\"{}\"}}\n", "x".repeat(RESULT_BYTES));
    let filled =
        run_with(["submit", "--ndjson", "--wait", "--json", "--server", &url], line.repeat(RESULTS).as_bytes());
    assert_eq!(code(&filled), 0, "{}", stderr(&filled));

    let address = url.trim_start_matches("http://").parse().unwrap();
    let mut readers = Vec::new();
    while readers.len() < count {
        let some = (0..BEGUN_AT_ONCE.min(count - readers.len())).map(|_| follow(address));
        readers.extend(join_all(some).await);
    }
    let admin = server.ready["listening"]["admin"].as_str().unwrap().to_owned();
    let client = reqwest::Client::new();
    assert_eq!(open_streams(&client, &admin).await, count, "all of them are open at once");
    // Everybody else is served as before, beside all of them.
    let output = run_with(["submit", "--wait", "--server", &url], b"hello");
    assert_eq!((code(&output), stdout(&output)), (0, "hello"), "{}", stderr(&output));
    assert_eq!(code(&run(["whoami", "--server", &url])), 0);

    let peak = peak(server.id());
    eprintln!("{count} followers; at most {} MiB in memory", peak >> 20);
    assert!(peak < BYTES_MAX + count * BYTES_PER_FOLLOWER_MAX, "{peak} bytes for {count} followers");
    worker.stop();
    // Killed: whatever else it would give them now is not what they were given without reading.
    drop(server);
    for reader in &mut readers {
        let mut told = Vec::new();
        // Ends with its last bytes, or is cut off.
        reader.read_to_end(&mut told).await.ok();
        assert!(told.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&told));
        assert!(told.len() < RESULTS * RESULT_BYTES, "it was given everything: {} bytes", told.len());
    }
}
