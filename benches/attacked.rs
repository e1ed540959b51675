//! A lone honest client beside one client that attacks: the time of its submissions, and how many of them were refused.
//!
//! `cargo bench --bench attacked`. For each attack of docs/security.md that aims at the ingress: rounds of `PER_ROUND` submissions
//! one after the other, alone and beside the attack by turns (`RELAY_BENCH_PAIRS` rounds of each). p99 in milliseconds, the
//! median of the rounds, and the ratio. The server is a process of its own with a store on disk.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use support::{median, pairs};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Submissions of one round.
const PER_ROUND: usize = 1_000;
/// Peers of an attack.
const PEERS: usize = 40;
/// Requests of one connection over HTTP/2.
const STREAMS: usize = 200;
/// The bytes of the result that attackers ask for.
const RESULT: usize = 1024 * 1024;

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
    let server = Server::start();
    let job = server.done().await;
    let alone_first = server.round().await;
    println!("{PER_ROUND} submissions alone: p99 {:.2} ms (not counted)", p99(alone_first.times));
    println!("| attack | alone, p99 ms | beside it, p99 ms | ratio | refused |\n| --- | --- | --- | --- | --- |");
    for attack in [Attack::Answers, Attack::Strangers, Attack::Bodies, Attack::Waits] {
        let (mut alone, mut beside, mut ratios, mut refused) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..pairs() {
            let quiet = server.round().await;
            let attackers = server.attack(attack, &job).await;
            let loud = server.round().await;
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

struct Server {
    child: Child,
    http: SocketAddr,
    workers: String,
    keys: [String; 3],
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Server {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let relay = || Command::new(env!("CARGO_BIN_EXE_relay"));
        let keys = dir.path().join("keys.toml");
        let key = |args: &[&str]| {
            let made = relay().args(["keys", "new", "--file"]).arg(&keys).args(args).output().unwrap();
            String::from_utf8(made.stdout).unwrap().trim().to_owned()
        };
        let keys_of = [key(&["attacker"]), key(&["honest"]), key(&["worker", "--role", "worker"])];
        let mut command = relay();
        command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"]);
        command.args(["--payload-max", "8MiB", "--result-max", "1MiB", "--log", "error", "--keys"]).arg(&keys);
        let mut child = command.arg("--data").arg(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |name: &str| ready["listening"][name].as_str().unwrap().to_owned();
        Self { child, http: address("http").parse().unwrap(), workers: address("workers"), keys: keys_of, dir }
    }

    /// A finished job of the attacker with a large result.
    async fn done(&self) -> String {
        let file = self.dir.path().join("worker.key");
        std::fs::write(&file, &self.keys[2]).unwrap();
        let mut worker = Command::new(env!("CARGO_BIN_EXE_relay"));
        worker.args(["worker", "--log", "error", "--connect", &self.workers, "--key-file"]).arg(&file);
        let mut worker = worker.args(["--", "head", "-c", &RESULT.to_string(), "/dev/zero"]).spawn().unwrap();
        let submit = format!(
            "{}prefer: wait=30\r\ncontent-length: 1\r\n\r\nx",
            head("POST", "/v1/queues/default/jobs", &self.keys[0])
        );
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(submit.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        worker.kill().unwrap();
        worker.wait().unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let id = text.lines().find_map(|line| line.strip_prefix("relay-job-id: "));
        id.unwrap_or_else(|| panic!("{text}")).to_owned()
    }

    /// Submissions of the honest client, one after the other, on connections that are kept.
    async fn round(&self) -> Round {
        let request =
            format!("{}content-length: 5\r\n\r\nhello", head("POST", "/v1/queues/default/jobs", &self.keys[1]));
        let (mut times, mut refused) = (Vec::new(), 0);
        let mut stream = TcpStream::connect(self.http).await.unwrap();
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
    async fn attack(&self, attack: Attack, job: &str) -> JoinSet<()> {
        let mut peers = JoinSet::new();
        let (http, key) = (self.http, self.keys[0].clone());
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
}

fn head(method: &str, path: &str, key: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {key}\r\n")
}

/// Connections that say `text` and stay, ten new ones a second of each peer.
async fn flood(http: SocketAddr, text: &str) {
    let mut held = Vec::new();
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        every.tick().await;
        if let Ok(mut stream) = TcpStream::connect(http).await {
            stream.write_all(text.as_bytes()).await.ok();
            held.push(stream);
        }
        if held.len() > 60 {
            held.remove(0);
        }
    }
}

/// A connection whose streams ask for `path`, and of which nothing is read beyond `window`; those that were refused ask again.
async fn streams(http: SocketAddr, path: &str, key: &str, window: u32) {
    loop {
        let Ok(stream) = TcpStream::connect(http).await else { continue };
        let builder = h2::client::Builder::new().initial_window_size(window).clone();
        let Ok((mut send, connection)) = builder.handshake::<_, Bytes>(stream).await else { continue };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let mut answers = Vec::new();
        for _ in 0..STREAMS {
            let request =
                http::Request::get(format!("http://relay{path}")).header("authorization", format!("Bearer {key}"));
            let Ok(ready) = send.clone().ready().await else { break };
            send = ready;
            let Ok((answer, _)) = send.send_request(request.body(()).unwrap(), true) else { break };
            answers.push(answer);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(answers);
    }
}
