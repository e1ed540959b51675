//! `relay serve`, `relay worker` and `relay dev` with NATS as the broker.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use relay_conformance::testing::{NatsCluster, NatsServer};
use serde_json::Value;

use crate::cli_support::{Running, code, json_lines, relay, run, run_with, stderr, stdout};

/// The arguments of `relay serve` in these tests, beside the address of NATS.
const SERVE: [&str; 6] = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--provision"];

fn serve(nats: &str, more: &[&str]) -> Running {
    Running::start(SERVE.iter().copied().chain(["--nats", nats]).chain(more.iter().copied()))
}

fn worker(nats: &str, command: &str) -> Running {
    Running::start(["worker", "--json", "--slots", "2", "--nats", nats, "--", "sh", "-c", command])
}

fn submit(server: &Running, key: &str, payload: &[u8]) -> std::process::Output {
    run_with(["submit", "--server", &server.url(), "--key", key, "--wait=30s"], payload)
}

/// Asks over HTTP, for what the command line does not show.
pub(crate) fn http(server: &Running, method: &str, path: &str, body: &str) -> String {
    let address = server.ready["listening"]["http"].as_str().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn json(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn a_job_is_run_by_a_worker_that_takes_it_from_nats_itself() {
    let nats = NatsServer::start().await;
    let server = serve(&nats.url(), &[]);
    let worker = worker(&nats.url(), "tr a-z A-Z");

    let first = submit(&server, "k", b"hello");
    assert_eq!((code(&first), stdout(&first)), (0, "HELLO"), "{first:?}");
    let again = submit(&server, "k", b"hello");
    assert_eq!((code(&again), stdout(&again)), (0, "HELLO"), "{again:?}");

    worker.stop();
    server.stop();
}

#[tokio::test]
async fn whoami_says_what_an_accepted_job_survives() {
    let nats = NatsServer::start().await;
    for (more, durability) in [(&[][..], "process-crash"), (&["--nats-sync-always"][..], "power-loss")] {
        let server = serve(&nats.url(), more);
        assert_eq!(json(&http(&server, "GET", "/v1/whoami", ""))["durability"], durability);
        server.stop();
    }
    let cluster = NatsCluster::start(3).await;
    let server = serve(&cluster.url(), &["--nats-replicas", "3"]);
    assert_eq!(json(&http(&server, "GET", "/v1/whoami", ""))["durability"], "replicated");
    server.stop();
    // It is what streams are like that counts, not what new ones would be.
    let url = cluster.url();
    let server = Running::start(SERVE.iter().copied().filter(|arg| *arg != "--provision").chain(["--nats", &url]));
    assert_eq!(json(&http(&server, "GET", "/v1/whoami", ""))["durability"], "replicated");
    server.stop();
}

#[tokio::test]
async fn while_nats_is_away_a_submission_is_refused_at_once_and_afterwards_it_is_taken() {
    let mut nats = NatsServer::start().await;
    // The ingress's connection says the same of itself, perhaps before the broker's one knows.
    let mut server = serve(&nats.url(), &["--no-nats-listen"]);
    let worker = worker(&nats.url(), "cat");
    assert_eq!(code(&submit(&server, "before", b"1")), 0);

    nats.kill();
    server.wait_for_line("NATS is away");
    let refused = http(&server, "POST", "/v1/queues/default/jobs", "2");
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.to_ascii_lowercase().contains("\r\nretry-after: "), "{refused}");
    let problem = json(&refused);
    assert_eq!((&problem["slug"], &problem["retry"]), (&"broker-unavailable".into(), &"safe".into()));
    // Replays, results and listings are refused alike: relay does not deny what it can't look up.
    let unknown = http(&server, "GET", "/v1/results", "");
    assert!(unknown.starts_with("HTTP/1.1 503 "), "{unknown}");

    nats.restart().await;
    server.wait_for_line("NATS is back");
    let after = submit(&server, "after", b"3");
    assert_eq!((code(&after), stdout(&after)), (0, "3"), "{after:?}");
    // A job that was accepted before is still known, and is not run again.
    let before = submit(&server, "before", b"1");
    assert_eq!((code(&before), stdout(&before)), (0, "1"), "{before:?}");
    worker.stop();
    server.stop();
}

#[tokio::test]
async fn a_server_that_is_started_before_nats_waits_and_says_so() {
    let mut nats = NatsServer::start().await;
    nats.kill();
    let mut waiting = relay(SERVE.iter().copied().chain(["--nats", &nats.url()])).spawn().unwrap();
    let mut said = std::io::BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waiting for NATS") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0);
    }
    assert!(line.contains(&nats.url()) && line.contains("refused"), "{line}");

    nats.restart().await;
    let mut ready = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(waiting.stdout.take().unwrap()), &mut ready).unwrap();
    assert!(ready.contains("listening"), "{ready}");
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}

#[tokio::test]
async fn a_server_that_waits_for_nats_ends_when_it_is_asked_to() {
    let mut nats = NatsServer::start().await;
    nats.kill();
    for args in
        [&SERVE[..], &["worker", "--json", "--", "true"], &["dev", "--json", "--listen", "127.0.0.1:0", "--", "true"]]
    {
        let separator = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
        let url = nats.url();
        let args = [&args[..separator], &["--nats", url.as_str()], &args[separator..]].concat();
        let mut child = relay(&args).spawn().unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("waiting for NATS") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "{args:?}");
        }
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}");
    }
}

#[tokio::test]
async fn what_was_not_provisioned_is_named_with_the_command_that_creates_it() {
    let nats = NatsServer::start().await;
    let url = nats.url();
    let served = run(["serve", "--no-auth", "--listen", "127.0.0.1:0", "--nats", &url, "--queue", "orders"]);
    let worked = run(["worker", "--nats", &url, "--queue", "orders", "--", "true"]);
    for refused in [served, worked] {
        assert_eq!(code(&refused), 2, "{refused:?}");
        assert!(stderr(&refused).contains("orders") && stderr(&refused).contains("relay provision"), "{refused:?}");
    }

    assert_eq!(code(&run(["provision", "--nats", &url, "--queue", "orders"])), 0);
    let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--nats", &url, "--queue", "orders"];
    Running::start(args).stop();

    // A policy that was given and does not hold is not passed over.
    let differs = run(args.iter().chain(&["--lease", "7s"]));
    assert_eq!(code(&differs), 2, "{differs:?}");
    assert!(stderr(&differs).contains("lease") && stderr(&differs).contains("--provision"), "{differs:?}");
}

#[tokio::test]
async fn without_a_queue_that_is_named_every_queue_that_is_provisioned_is_served_now_or_later() {
    let nats = NatsServer::start().await;
    let url = nats.url();
    let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--nats", &url];
    let refused = run(args);
    assert_eq!(code(&refused), 2, "{refused:?}");
    assert!(stderr(&refused).contains("relay provision"), "{refused:?}");

    let provision = |queue| assert_eq!(code(&run(["provision", "--nats", &url, "--queue", queue])), 0);
    provision("orders");
    let server = Running::start(args);
    provision("mail");
    let queues = ["--queue", "orders", "--queue", "mail"];
    let worker = ["worker", "--json", "--nats", &url].into_iter().chain(queues).chain(["--", "cat"]);
    let worker = Running::start(worker);
    for queue in ["orders", "mail"] {
        let submitted = ["submit", "--server", &server.url(), "--queue", queue, "--key", "k", "--wait=60s"];
        let submitted = run_with(submitted, queue.as_bytes());
        assert_eq!((code(&submitted), stdout(&submitted)), (0, queue), "{submitted:?}");
    }
    let unknown = http(&server, "POST", "/v1/queues/default/jobs", "x");
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
    worker.stop();
    server.stop();

    // A policy that was given and does not hold is not passed over.
    let differs = run(args.iter().chain(&["--lease", "7s"]));
    assert_eq!(code(&differs), 2, "{differs:?}");
    for text in ["mail", "orders", "lease", "--provision"] {
        assert!(stderr(&differs).contains(text), "{text}: {differs:?}");
    }
}

#[tokio::test]
async fn a_server_without_any_queue_serves_and_says_that_there_is_none() {
    let nats = NatsServer::start().await;
    let url = nats.url();
    assert_eq!(code(&run(["provision", "--nats", &url, "--queue", "orders"])), 0);
    let jetstream = async_nats::jetstream::new(async_nats::connect(&url).await.unwrap());
    jetstream.delete_stream("relay-jobs-orders").await.unwrap();
    let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--nats", &url];
    let mut server = Running::start(args);
    let said = server.wait_for_line("no queue is provisioned");
    assert!(said.contains("WARN") && said.contains("relay provision"), "{said}");
    server.stop();
}

#[tokio::test]
async fn development_creates_what_it_needs() {
    let nats = NatsServer::start().await;
    let dev = Running::dev(&["--nats", &nats.url()], "cat");
    let output = run_with(["submit", "--server", &dev.url(), "--wait=30s", "--json"], b"x");
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(json_lines(&output)[0]["outcome"], "succeeded");
    dev.stop();
}

#[tokio::test]
async fn a_password_reaches_nats_from_a_file_or_the_environment_and_is_never_shown() {
    let config = "authorization { users: [{ user: relay, password: hush4711 }] }";
    let nats = NatsServer::builder().config(config).start().await;
    let url = nats.url();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "hush4711\n").unwrap();
    let args = ["provision", "--nats", &url, "--nats-user", "relay"];

    let by_file = run(args.iter().copied().chain(["--nats-password-file", file.to_str().unwrap()]));
    assert_eq!(code(&by_file), 0, "{by_file:?}");
    let by_variable = relay(args).env("RELAY_NATS_PASSWORD", "hush4711").output().unwrap();
    assert_eq!(code(&by_variable), 0, "{by_variable:?}");
    let wrong = relay(args).env("RELAY_NATS_PASSWORD", "loud4711").output().unwrap();
    assert_eq!(code(&wrong), 69, "{wrong:?}");
    assert!(stderr(&wrong).contains("check the user and the secret"), "{wrong:?}");
    for output in [by_file, by_variable, wrong] {
        assert!(!stderr(&output).contains("4711") && !stdout(&output).contains("4711"), "{output:?}");
    }
}
