//! Requests that two programs on the way could read in two ways, results that are web pages, and a listener in the open.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::cli_support::{Running, run_with, stdout};
use crate::support::Attacked;

/// Sends `bytes` on a connection of their own, and gives the first answer: its head, and as much of its body as came.
fn ask(address: SocketAddr, bytes: &str) -> String {
    let mut peer = TcpStream::connect(address).unwrap();
    peer.write_all(bytes.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    // The end of the head is enough: a problem's body is written with it.
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = peer.read(&mut part).unwrap();
        assert!(read > 0, "closed without an answer to {bytes:?}: {:?}", String::from_utf8_lossy(&answer));
        answer.extend(&part[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Holds an answer against a refusal of the request as malformed.
fn is_malformed(answer: &str, request: &str) {
    assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
    assert!(answer.contains("\"malformed-request\""), "{request:?}: {answer}");
}

#[test]
fn a_request_with_no_host_or_with_two_is_malformed() {
    let (attacked, keys) = Attacked::start(&["acme"], &["--queue", "mail"]);
    let key = &keys[0];
    for hosts in ["", "host: relay\r\nhost: relay\r\n", "host: relay\r\nHost: other.example\r\n"] {
        let request = format!("GET /v1/whoami HTTP/1.1\r\n{hosts}authorization: Bearer {key}\r\n\r\n");
        is_malformed(&ask(attacked.address(), &request), &request);
    }
    let whole = format!("GET /v1/whoami HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {key}\r\n\r\n");
    assert!(ask(attacked.address(), &whole).starts_with("HTTP/1.1 200 "));
    attacked.server.stop();
}

#[test]
fn a_transfer_coding_other_than_chunked_alone_is_refused_and_nothing_is_submitted() {
    let (attacked, keys) = Attacked::start(&["acme"], &["--queue", "mail"]);
    let key = &keys[0];
    let submit = |codings: &str| {
        format!(
            "POST /v1/queues/mail/jobs HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {key}\r\n{codings}\r\n\
             5\r\nhello\r\n0\r\n\r\n"
        )
    };
    for codings in [
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: identity, chunked\r\n",
        "transfer-encoding: xchunked, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked;q=1, chunked\r\n",
    ] {
        let request = submit(codings);
        is_malformed(&ask(attacked.address(), &request), &request);
    }
    let jobs = format!("GET /v1/jobs HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {key}\r\n\r\n");
    assert!(ask(attacked.address(), &jobs).contains("\"jobs\":[]"), "nothing was submitted");
    assert!(ask(attacked.address(), &submit("transfer-encoding: Chunked\r\n")).starts_with("HTTP/1.1 202 "));
    attacked.server.stop();
}

#[test]
fn a_result_that_is_a_web_page_runs_nothing_in_a_browser() {
    let dev = Running::dev(&[], "printf '<script>alert(1)</script>'");
    let url = dev.url();
    let done = run_with(["submit", "--wait", "--server", &url, "--key", "page"], b"x");
    assert_eq!(stdout(&done), "<script>alert(1)</script>");
    let listed = run_with(["jobs", "list", "--server", &url, "--json"], b"");
    let job: serde_json::Value = serde_json::from_str(stdout(&listed).lines().next().unwrap()).unwrap();
    let job = job["job_id"].as_str().unwrap();
    let address = url.trim_start_matches("http://").parse().unwrap();
    let answer = ask(address, &format!("GET /v1/jobs/{job}/result HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let head = answer.to_ascii_lowercase();
    assert!(head.contains("\r\ncontent-security-policy: sandbox\r\n"), "{answer}");
    assert!(head.contains("\r\nx-content-type-options: nosniff\r\n"), "{answer}");
    dev.stop();
}
