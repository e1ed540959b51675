//! `/readyz` and its metrics on a real NATS server: an outage is named, and withdraws no process.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_conformance::testing::NatsServer;
use serde_json::Value;

use crate::cli_support::{Running, code, relay, run_with};

const SERVE: [&str; 8] =
    ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json", "--provision"];

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The refusals that `/readyz` names. They are no reason not to be ready, and the metrics agree.
fn refused(admin: &str) -> Vec<Value> {
    // Between the two something may have changed.
    loop {
        let (status, body) = get(admin, "/readyz");
        let text = get(admin, "/metrics").1;
        assert_eq!((status, text.contains("relay_ready 1\n")), (200, true), "{body}\n{text}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["ready"], &body["reasons"]), (&true.into(), &Value::Array(Vec::new())), "{body}");
        let refusing = body["refusing"].as_array().unwrap();
        let agree = ["broker", "storage", "queue", "newer-version"].iter().all(|what| {
            let named = refusing.iter().any(|refused| refused["what"] == *what);
            text.contains(&format!("relay_refusing{{what=\"{what}\"}} {}\n", u8::from(named)))
        });
        if agree {
            return refusing.clone();
        }
    }
}

/// The same once `what` is refused, and nothing else: the dashboard's stream tells of each look.
fn until_refused(admin: &str, what: &[&str]) -> Vec<Value> {
    let is_wanted = |all: &[Value]| all.iter().map(|one| one["what"].as_str().unwrap()).eq(what.iter().copied());
    let mut stream = TcpStream::connect(admin).unwrap();
    write!(stream, "GET /v1/live HTTP/1.1\r\nHost: {admin}\r\n\r\n").unwrap();
    for line in BufReader::new(stream).lines() {
        let Some(data) = line.unwrap().strip_prefix("data: ").map(|data| serde_json::from_str::<Value>(data).unwrap())
        else {
            continue;
        };
        if data["sampled"] == true && is_wanted(data["refusing"].as_array().unwrap()) {
            let refused = refused(admin);
            if is_wanted(&refused) {
                return refused;
            }
        }
    }
    panic!("the stream ended before {what:?} was refused");
}

fn admin_of(running: &Running, of: &str) -> String {
    running.ready[of]["admin"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_and_a_worker_whose_nats_was_killed_stay_ready_and_name_it_until_it_is_back() {
    let mut nats = NatsServer::start().await;
    let server = Running::start(SERVE.iter().copied().chain(["--nats", &nats.url()]));
    let args = ["worker", "--json", "--nats", &nats.url(), "--admin", "127.0.0.1:0", "--", "cat"];
    let worker = Running::start(args);
    let admins = [admin_of(&server, "listening"), admin_of(&worker, "worker")];
    admins.iter().for_each(|admin| drop(until_refused(admin, &[])));
    nats.kill();
    for admin in &admins {
        let named = until_refused(admin, &["broker"]);
        assert!(!named[0]["detail"].as_str().unwrap().is_empty(), "{named:?}");
        let asked = get(admin, "/readyz?broker");
        assert!(asked.0 == 503 && asked.1.contains("\"reason\":\"broker\""), "for those who ask: {asked:?}");
        assert_eq!(get(admin, "/readyz").0, 200);
    }
    // Clients are told their own answer, not a balancer's.
    let submitted = run_with(["submit", "--server", &server.url(), "--retry-for", "0s"], b"x");
    assert_ne!(code(&submitted), 0);
    nats.restart().await;
    admins.iter().for_each(|admin| drop(until_refused(admin, &[])));
    assert!(admins.iter().all(|admin| get(admin, "/readyz?broker").0 == 200));
    let submitted = run_with(["submit", "--server", &server.url(), "--wait=60s"], b"x");
    assert_eq!(code(&submitted), 0, "{submitted:?}");
    worker.stop();
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_missing_is_named_and_the_server_stays_ready() {
    let nats = NatsServer::start().await;
    let args = SERVE.iter().copied().chain(["--queue", "mail", "--queue", "other", "--nats"]);
    let url = nats.url();
    let server = Running::start(args.chain([url.as_str()]));
    let admin = admin_of(&server, "listening");
    until_refused(&admin, &[]);
    let jetstream = async_nats::jetstream::new(async_nats::connect(&url).await.unwrap());
    for stream in ["relay-jobs-mail", "relay-results"] {
        jetstream.delete_stream(stream).await.unwrap();
        let named = until_refused(&admin, &["queue"]);
        assert!(named[0]["detail"].as_str().unwrap().contains(stream.trim_start_matches("relay-jobs-")), "{named:?}");
        // A caller that may do so mends the stream, under the running server.
        let args = ["provision", "--nats", &url, "--queue", "mail", "--queue", "other"];
        assert_eq!(code(&crate::cli_support::run(args)), 0);
        until_refused(&admin, &[]);
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_there_at_the_start_and_was_not_named_is_named_once_its_stream_is_gone() {
    let nats = NatsServer::start().await;
    let url = nats.url();
    assert_eq!(code(&crate::cli_support::run(["provision", "--nats", &url, "--queue", "mail"])), 0);
    let args = SERVE.iter().copied().filter(|arg| *arg != "--provision").chain(["--nats", url.as_str()]);
    let server = Running::start(args);
    let admin = admin_of(&server, "listening");
    until_refused(&admin, &[]);
    let jetstream = async_nats::jetstream::new(async_nats::connect(&url).await.unwrap());
    for stream in ["relay-jobs-mail", "relay-results"] {
        jetstream.delete_stream(stream).await.unwrap();
        let named = until_refused(&admin, &["queue"]);
        assert!(named[0]["detail"].as_str().unwrap().contains(stream.trim_start_matches("relay-jobs-")), "{named:?}");
        assert_eq!(code(&crate::cli_support::run(["provision", "--nats", &url, "--queue", "mail"])), 0);
        until_refused(&admin, &[]);
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_not_ready_before_it_has_reached_its_broker_nor_after_sigterm() {
    let mut nats = NatsServer::start().await;
    nats.kill();
    let args = SERVE.iter().copied().chain(["--drain-delay", "1h", "--nats"]);
    let url = nats.url();
    let mut server = relay(args.chain([url.as_str()])).spawn().unwrap();
    let mut said = BufReader::new(server.stderr.take().unwrap());
    let mut until = |text: &str| {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ended without {text:?}");
        }
        line
    };
    let admin = until("operators ask http://").trim().rsplit_once("http://").unwrap().1.to_owned();
    let is_unready = |reason: &str| {
        let (status, body) = get(&admin, "/readyz");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["ready"], &body["reasons"][0]["reason"]), (503, &false.into(), &reason.into()));
        assert!(get(&admin, "/metrics").1.contains("relay_ready 0\n"));
    };
    is_unready("starting");
    until("waiting for NATS");
    is_unready("starting");

    nats.restart().await;
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    until_refused(&admin, &[]);
    nats.kill();
    until_refused(&admin, &["broker"]);

    let pid = Pid::from_raw(server.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    until("stopping: ");
    is_unready("draining");
    server.kill().unwrap();
    server.wait().unwrap();
}
