//! `relay bridge` from the outside: its refusals, and its end. Kills are in `tests/kill/bridge.rs`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use relay_conformance::testing::NatsServer;
use serde_json::Value;

use crate::cli_support::{Running, code, json_lines, run, run_with, stderr, stdout};

fn provision(nats: &NatsServer, queue: &str) {
    let provisioned = run(["provision", "--nats", &nats.url(), "--queue", queue]);
    assert_eq!(code(&provisioned), 0, "{provisioned:?}");
}

fn source() -> Running {
    let args =
        ["serve", "--no-auth", "--memory", "--json", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"];
    Running::start(args)
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn status(server: &Running, job: &str) -> Value {
    let answer = run(["jobs", "show", "--json", "--server", &server.url(), job]);
    assert_eq!(code(&answer), 0, "{answer:?}");
    json_lines(&answer).remove(0)
}

#[tokio::test]
async fn a_job_is_done_in_the_mapped_queue_at_the_other_side_and_its_result_comes_back() {
    let (source, inner) = (source(), NatsServer::start().await);
    provision(&inner, "orders-eu");
    let mapped = ["--queue", "default=orders-eu", "--client", "outer", "--admin", "127.0.0.1:0"];
    let to = ["bridge", "--json", "--from-tcp", &source.workers(), "--nats", &inner.url()];
    let bridge = Running::start(to.iter().chain(&mapped));
    let script = r#"printf '%s %s ' "$RELAY_CLIENT" "$RELAY_QUEUE"; tr a-z A-Z"#;
    let args = ["worker", "--json", "--nats", &inner.url(), "--queue", "orders-eu", "--", "sh", "-c", script];
    let worker = Running::start(args);

    let submitted = run_with(["submit", "--server", &source.url(), "--wait=30s"], b"hello");
    assert_eq!((code(&submitted), stdout(&submitted)), (0, "outer orders-eu HELLO"), "{submitted:?}");
    let metrics = get(bridge.ready["admin"].as_str().unwrap(), "/metrics");
    for line in [
        r#"relay_bridge_submissions_total{bridge="bridge",job="created"} 1"#,
        r#"relay_bridge_deliveries_total{bridge="bridge",end="succeeded"} 1"#,
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    bridge.stop();
    worker.stop();
    source.stop();
}

#[tokio::test]
async fn a_bridge_that_is_stopped_hands_back_without_spending_an_attempt() {
    let (source, inner) = (source(), NatsServer::start().await);
    provision(&inner, "default");
    let to = ["bridge", "--json", "--from-tcp", &source.workers(), "--nats", &inner.url(), "--log", "debug"];
    let mut bridge = Running::start(to);
    let submitted = run_with(["submit", "--json", "--server", &source.url()], b"hello");
    let job = json_lines(&submitted)[0]["job_id"].as_str().unwrap().to_owned();
    bridge.wait_for_line("attempt started");
    bridge.stop();
    let found = status(&source, &job);
    assert_eq!((found["state"].as_str(), found["attempt"].as_u64()), (Some("queued"), Some(0)), "{found}");
    source.stop();
}

#[test]
fn every_mistake_in_a_file_of_bridges_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bridges.toml");
    let to = "to.nats = { servers = [\"nats://127.0.0.1:1\"] }\n";
    for (text, parts) in [
        (String::new(), &["no bridge in the file"][..]),
        (
            format!("[[bridge]]\nname = \"a\"\nslot = 1\n{to}"),
            &["bridges.toml:3", "bridge.a.slot: there is no such setting", "did you mean `slots`?"],
        ),
        (
            format!("[[bridge]]\nname = \"a\"\nfrom = {{}}\n{to}\n[[bridge]]\nname = \"b\"\nfrom = {{}}\n{to}"),
            &[
                "has 2 mistakes",
                "bridges.toml:3: bridge.a.from: it comes from nowhere",
                "bridges.toml:8: bridge.b.from",
            ],
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = run(["bridge", "--config", file.to_str().unwrap()]);
        assert_eq!(code(&refused), 2, "{refused:?}");
        for part in parts {
            assert!(stderr(&refused).contains(part), "{part}: {}", stderr(&refused));
        }
    }
}

#[tokio::test]
async fn a_bridge_of_the_file_goes_to_the_files_nats_unless_it_says_otherwise() {
    let (source, inner) = (source(), NatsServer::start().await);
    provision(&inner, "default");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    let text = format!(
        "[nats]\nservers = [\"{}\"]\n[[bridge]]\nname = \"edge\"\nfrom.relay = {{ address = \"{}\" }}\nqueues = {{ default = \"default\" }}\n",
        inner.url(),
        source.workers()
    );
    std::fs::write(&file, text).unwrap();
    let bridge = Running::start(["bridge", "--json", "--config", file.to_str().unwrap()]);
    let worker = Running::start(["worker", "--json", "--nats", &inner.url(), "--", "tr", "a-z", "A-Z"]);
    let submitted = run_with(["submit", "--server", &source.url(), "--wait=30s"], b"hello");
    assert_eq!((code(&submitted), stdout(&submitted)), (0, "HELLO"), "{submitted:?}");
    bridge.stop();
    worker.stop();
    source.stop();
}

#[tokio::test]
async fn a_bridge_says_what_is_missing_before_it_takes_a_job() {
    let nats = NatsServer::start().await;
    let url = nats.url();
    for (args, part) in [
        (&["--from-tcp", "127.0.0.1:1"][..], "--nats"),
        (&["--nats", &url][..], "--from-tcp"),
        (&["--from-tcp", "127.0.0.1:1", "--nats", &url, "--queue", "nowhere"][..], "relay provision"),
        (&["--from-nats", &url, "--nats", &url][..], "the same queue at both sides"),
    ] {
        let refused = run(["bridge"].iter().chain(args));
        assert_eq!(code(&refused), 2, "{refused:?}");
        assert!(stderr(&refused).contains(part), "{part}: {}", stderr(&refused));
    }
}
