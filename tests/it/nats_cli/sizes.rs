//! How large a payload may be where NATS takes less than what is asked for: refused, and never cut in silence.

use std::io::{BufRead as _, BufReader, Read as _};

use relay_conformance::testing::NatsServer;

use super::serving::{http, json};
use crate::cli_support::{Running, code, json_lines, relay, run, run_with, stderr};

const SERVE: [&str; 6] = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--nats"];
/// The server's limit without what relay's headers and envelopes take.
const TAKEN: u64 = 64 * 1024;

async fn small() -> NatsServer {
    NatsServer::builder().config("max_payload: 128KB").start().await
}

#[tokio::test]
async fn more_than_nats_takes_is_refused_at_the_start_with_both_numbers_and_what_to_do() {
    let nats = small().await;
    let url = nats.url();
    assert_eq!(code(&run(["provision", "--nats", &url])), 0);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    std::fs::write(&file, "[[queue]]\nname = \"default\"\npayload_max = \"64MiB\"\n").unwrap();
    let by_file = ["--config", file.to_str().unwrap()];
    for (more, named) in [
        (&["--payload-max", "64MiB"][..], "--payload-max"),
        (&["--payload-max", "64MiB", "--provision"], "--payload-max"),
        (&["--result-max", "64MiB"], "--result-max"),
        (&by_file, "`payload_max` of queue `default` (line 3)"),
    ] {
        let refused = run(SERVE.iter().chain(&[url.as_str()]).chain(more));
        assert_eq!(code(&refused), 2, "{refused:?}");
        for text in [named, "67108864", &TAKEN.to_string(), "`max_payload`"] {
            assert!(stderr(&refused).contains(text), "{text}: {refused:?}");
        }
        assert!(!stderr(&refused).contains("relay provision"), "it does not help: {refused:?}");
    }
}

#[tokio::test]
async fn without_a_flag_payloads_may_be_as_large_as_nats_takes() {
    let nats = small().await;
    let url = nats.url();
    let server = Running::start(SERVE.iter().chain(&[url.as_str(), "--provision"]));
    let whoami = json(&http(&server, "GET", "/v1/whoami", ""));
    assert_eq!(whoami["limits"]["payload_max"], TAKEN, "{whoami}");
    let limits = &whoami["queue_limits"][0];
    assert_eq!((&limits["payload_max"], &limits["result_max"]), (&TAKEN.into(), &TAKEN.into()), "{whoami}");
    server.stop();
    // The next start finds what the first one made.
    Running::start(SERVE.iter().chain(&[url.as_str()])).stop();
    let exact = format!("{TAKEN}B");
    Running::start(SERVE.iter().chain(&[url.as_str(), "--payload-max", &exact])).stop();
}

#[tokio::test]
async fn more_than_nats_takes_is_refused_once_nats_is_reached() {
    let mut nats = small().await;
    let url = nats.url();
    nats.kill();
    let mut waiting = relay(SERVE.iter().chain(&[url.as_str(), "--payload-max", "64MiB"])).spawn().unwrap();
    let mut said = BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waiting for NATS") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0);
    }
    nats.restart().await;
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(2), "{rest}");
    assert!(rest.contains("--payload-max") && rest.contains(&TAKEN.to_string()), "{rest}");
}

#[tokio::test]
async fn a_limit_that_falls_while_relay_runs_refuses_what_is_larger_and_nothing_else() {
    let mut nats = NatsServer::start().await;
    let url = nats.url();
    let mut server = Running::start(SERVE.iter().chain(&[url.as_str(), "--provision", "--no-nats-listen"]));
    nats.configure(NatsServer::builder().config("max_payload: 128KB"));
    nats.restart().await;
    server.wait_for_line("NATS is back");
    // The connection is there before its streams are led again: relay's client repeats what is refused until then.
    let first = run_with(["submit", "--server", &server.url(), "--key", "first"], b"x");
    assert_eq!(code(&first), 0, "{first:?}");
    let post = |bytes| http(&server, "POST", "/v1/queues/default/jobs", &"x".repeat(bytes));
    let refused = post(200 * 1024);
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    assert_eq!((&json(&refused)["slug"], &json(&refused)["retry"]), (&"payload-too-large".into(), &"no".into()));
    let taken = post(60 * 1024);
    assert!(taken.starts_with("HTTP/1.1 202 "), "{taken}");
    let worker = ["worker", "--json", "--nats", &url, "--", "head", "-c", "200000", "/dev/zero"];
    let worker = Running::start(worker);
    let failed = run_with(["submit", "--server", &server.url(), "--key", "k", "--wait=60s", "--json"], b"x");
    let result = &json_lines(&failed)[0];
    assert_eq!(
        (&result["outcome"], &result["failure"]["reason"]),
        (&"failed".into(), &"result-too-large".into()),
        "{result}"
    );
    worker.stop();
    server.stop();
}
