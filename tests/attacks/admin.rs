//! Peers of the admin port and of the port for health checks: they keep no probe waiting, and lists read no payloads.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::time::Duration;

use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, Outcome};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::leasing::{LeaseRequest, Leasing as _};
use relay_bridge::settlement::Settlement;
use relay_remote::{Remote, RemoteConfig};
use serde_json::Value;

use crate::support::{Attacked, connections, get, new_key, request};

const MIB: usize = 1024 * 1024;
/// As many connections as the admin port serves at a time.
const ADMIN_SLOTS: usize = 256;
/// More than the port for health checks serves at a time.
const PROBES: usize = 200;
/// Silent peers: some times as many as there are places, so that whoever waits for all of them waits for half a minute.
const SILENT: usize = 1_000;
/// How long a scrape of Prometheus waits by itself.
const SCRAPE: Duration = Duration::from_secs(10);
/// How long a probe waits at most: far longer than a peer that reads nothing keeps its place.
const PATIENT: Duration = Duration::from_secs(60);

fn address(attacked: &Attacked, which: &str) -> String {
    attacked.server.ready["listening"][which].as_str().unwrap().to_owned()
}

/// The status line of the answer to a probe, or why there is none.
fn probe(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// The status line of the answer to a request on a connection that goes on.
fn ask_again(mut stream: &TcpStream, path: &str) -> std::io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    stream.read_exact(&mut vec![0; length.parse().unwrap()])?;
    Ok(head.lines().next().unwrap_or_default().to_owned())
}

/// Peers that ask for pages until nothing more is taken, and read nothing.
fn deaf(address: &str, count: usize) -> Vec<TcpStream> {
    let page = "GET /dashboard.js HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1_000);
    let ask = |_| {
        let mut peer = TcpStream::connect(address).unwrap();
        peer.set_nonblocking(true).unwrap();
        // Its answers are far larger than what the sockets hold.
        while peer.write(page.as_bytes()).is_ok() {}
        peer
    };
    (0..count).map(ask).collect()
}

#[test]
fn peers_that_read_nothing_lose_their_places_and_probes_are_answered() {
    let (attacked, _) = Attacked::start(&["shop"], &["--admin", "127.0.0.1:0"]);
    let admin = address(&attacked, "admin");
    let deaf = deaf(&admin, ADMIN_SLOTS);
    assert_eq!(probe(&admin, "/livez").expect("a probe is answered"), "HTTP/1.1 200 OK");
    drop(deaf);
}

#[test]
fn silent_peers_of_the_admin_port_keep_no_scrape_waiting() {
    let (attacked, _) = Attacked::start(&["shop"], &["--admin", "127.0.0.1:0"]);
    let admin = address(&attacked, "admin");
    let silent: Vec<_> = (0..connections(SILENT)).map(|_| TcpStream::connect(&admin).unwrap()).collect();
    let scrape = TcpStream::connect(&admin).unwrap();
    scrape.set_read_timeout(Some(SCRAPE)).unwrap();
    assert_eq!(ask_again(&scrape, "/metrics").expect("a scrape is answered"), "HTTP/1.1 200 OK");
    drop(silent);
}

#[test]
fn an_operator_that_was_let_in_keeps_its_connection_in_a_flood_of_strangers() {
    let (attacked, _) = Attacked::start(&["shop"], &["--admin", "127.0.0.1:0"]);
    let admin = address(&attacked, "admin");
    let operator = TcpStream::connect(&admin).unwrap();
    operator.set_read_timeout(Some(PATIENT)).unwrap();
    assert_eq!(ask_again(&operator, "/v1/queues").unwrap(), "HTTP/1.1 200 OK");
    let mut strangers: Vec<_> = (0..connections(SILENT)).map(|_| TcpStream::connect(&admin).unwrap()).collect();
    // The oldest of them made room, so all that came before it would have.
    strangers[0].set_read_timeout(Some(PATIENT)).unwrap();
    assert_eq!(strangers[0].read(&mut [0]).unwrap(), 0);
    assert_eq!(ask_again(&operator, "/v1/queues").unwrap(), "HTTP/1.1 200 OK");
}

#[test]
fn a_full_admin_port_keeps_no_health_probe_waiting() {
    let (attacked, _) = Attacked::start(&["shop"], &["--admin", "127.0.0.1:0", "--health", "127.0.0.1:0"]);
    let (admin, health) = (address(&attacked, "admin"), address(&attacked, "health"));
    let deaf = deaf(&admin, ADMIN_SLOTS);
    for path in ["/livez", "/readyz"] {
        assert_eq!(probe(&health, path).unwrap(), "HTTP/1.1 200 OK");
    }
    drop(deaf);
}

#[test]
fn peers_that_never_finish_a_head_keep_no_health_probe_waiting() {
    let (attacked, _) = Attacked::start(&["shop"], &["--health", "127.0.0.1:0"]);
    let health = address(&attacked, "health");
    let begin = |_| {
        let mut peer = TcpStream::connect(&health).unwrap();
        peer.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: ").unwrap();
        peer.set_read_timeout(Some(PATIENT)).unwrap();
        peer
    };
    let mut slow: Vec<_> = (0..PROBES).map(begin).collect();
    assert_eq!(probe(&health, "/livez").unwrap(), "HTTP/1.1 200 OK");
    // The oldest made room.
    let mut nothing = Vec::new();
    assert!(slow[0].read_to_end(&mut nothing).is_err() || nothing.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_dead_letters_asked_for_at_once_read_no_payloads() {
    const LETTERS: usize = 40;
    const LISTS: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let client = new_key(dir.path(), &["shop"]);
    let worker = new_key(dir.path(), &["worker", "--role", "worker"]);
    let attacked = Attacked::start_in(dir, &["--admin", "127.0.0.1:0", "--payload-max", "4MiB"]);
    let body = "x".repeat(4 * MIB);
    let config =
        RemoteConfig { key: Some(worker), ..RemoteConfig::new(attacked.server.workers(), "w".parse().unwrap()) };
    let remote = Remote::connect(config).await.unwrap();
    for _ in 0..LETTERS {
        let mut stream = TcpStream::connect(attacked.address()).unwrap();
        let submission =
            request("POST /v1/queues/default/jobs", &client, &body).replacen("\r\n", "\r\nconnection: close\r\n", 1);
        stream.write_all(submission.as_bytes()).unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        let lease = LeaseRequest {
            worker: "w".parse().unwrap(),
            queues: vec!["default".parse().unwrap()],
            max: NonZeroU32::MIN,
            wait: Duration::from_secs(30),
        };
        let delivery = remote.lease(&lease).await.unwrap().remove(0);
        let (job, attempt, at) = (delivery.job, 1, delivery.leased_at);
        let failure = Failure::new("exit-code", "exit status: 64");
        let end = End { attempt, started_at: Some(at), finished_at: at };
        let result = JobResult::unsuccessful(&job, Outcome::Failed, end, failure.clone());
        let letter = DeadLetter { job, outcome: Outcome::Failed, attempt, failure, at, extra: Default::default() };
        remote.dead_letter(&letter).await.unwrap();
        remote.record(&result).await.unwrap();
        remote.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
    }
    let (before, admin) = (attacked.peak(), address(&attacked, "admin"));
    std::thread::scope(|scope| {
        for _ in 0..LISTS {
            scope.spawn(|| {
                let listed: Value = serde_json::from_str(&get(&admin, "/v1/dead?limit=500")).unwrap();
                let letters = listed["letters"].as_array().unwrap();
                assert_eq!(letters.len(), LETTERS);
                assert!(letters.iter().all(|letter| letter["size"] == 4 * MIB && letter["payload_base64"].is_null()));
            });
        }
    });
    let more = attacked.peak().saturating_sub(before);
    assert!(more < 32 * MIB, "{} MiB more", more / MIB);
}
