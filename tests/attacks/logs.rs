//! Logs that strangers would fill, and passwords in them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use nix::sys::signal::Signal;

use crate::cli_support::{Running, code, nobody, relay, run, stderr};
use crate::support::Attacked;

#[test]
fn strangers_fill_no_log() {
    let (attacked, _) = Attacked::start(&["acme"], &["--queue", "mail"]);
    let Attacked { server, dir } = attacked;
    for at in 0..300 {
        // The fifth 401 would close it.
        let mut peer = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
        let request = format!("GET /v1/whoami HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer none.{at}\r\n\r\n");
        peer.write_all(request.as_bytes()).unwrap();
        let mut status = [0; 12];
        peer.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 401");
    }
    for _ in 0..30 {
        let mut worker = TcpStream::connect(server.workers()).unwrap();
        worker.write_all(b"\0\0\0\x02{}").unwrap();
        let mut told = Vec::new();
        worker.read_to_end(&mut told).ok();
    }
    for _ in 0..3 {
        let refused = run(["worker", "--connect", &server.workers(), "--key", "none.none", "--", "cat"]);
        assert_eq!(code(&refused), 2, "{}", stderr(&refused));
    }
    server.signal(Signal::SIGTERM);
    let (ended, log) = server.wait();
    assert_eq!(ended, Some(0), "{log}");
    for kind in ["requests without a valid key were refused", "workers were refused"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(kind)).collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert!(lines[0].contains("count=1"), "{}", lines[0]);
    }
    assert!(log.lines().count() < 60, "{log}");
    drop(dir);
}

#[test]
fn no_password_of_a_url_is_logged_or_printed() {
    let (_held, away) = nobody();
    let with_password = away.replace("http://", "http://u:hush@");
    for format in ["text", "json"] {
        let args =
            ["dev", "--listen", "127.0.0.1:0", "--json", "--log-format", format, "--otlp-endpoint", &with_password];
        let mut dev = Running::start(args.iter().chain(&["--", "cat"]));
        let line = dev.wait_for_line("traces go to");
        assert!(line.contains("http://u:***@127.0.0.1") && !line.contains("hush"), "{line}");
        dev.stop();
    }
    for args in [
        &["submit", "--retry-for", "0s", "--json", "--server", &with_password][..],
        &["submit", "--json", "--server", "http://u:hush@"],
        &["worker", "--http", "http://u:hush@[bad", "--connect", "127.0.0.1:1"],
        &["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--otlp-endpoint", "http://u:hush@[bad"],
        &["worker", "--nats", "nats://u:hush@127.0.0.1:1", "--", "cat"],
        &["bridge", "--from-nats", "nats://u:hush@127.0.0.1:1", "--nats", "nats://127.0.0.1:1"],
        &["worker", "--sqs", "--sqs-endpoint", "http://u:hush@[bad", "--", "cat"],
    ] {
        let told = relay(args).output().unwrap();
        assert_ne!(code(&told), 0);
        let all = format!("{}{}", stderr(&told), String::from_utf8_lossy(&told.stdout));
        assert!(!all.contains("hush"), "{args:?}: {all}");
    }
}
