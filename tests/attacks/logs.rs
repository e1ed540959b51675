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
fn strangers_who_break_the_rules_of_http_2_fill_no_log() {
    let (attacked, _) = Attacked::start(&["acme"], &["--queue", "mail"]);
    let Attacked { server, dir } = attacked;
    let mut peer = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    // Answers to pings that nobody sent, and then a ping.
    let answers = h2_frame(6, 1, 0, b"nobodys!").repeat(300);
    peer.write_all(&[H2_BEGIN, &answers, &h2_frame(6, 0, 0, b"and mine")].concat()).unwrap();
    let mut told = Vec::new();
    while !told.ends_with(b"and mine") {
        let mut some = [0; 512];
        let read = peer.read(&mut some).unwrap();
        assert!(read > 0, "the connection ended");
        told.extend_from_slice(&some[..read]);
    }
    for _ in 0..40 {
        let mut peer = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
        // Requests that are taken back at once.
        let taken_back = |id| [h2_frame(1, 5, id, &[0x82, 0x86, 0x84]), h2_frame(3, 0, id, &[0, 0, 0, 8])].concat();
        let all: Vec<_> = (0..100).flat_map(|at| taken_back(2 * at + 1)).collect();
        peer.write_all(&[H2_BEGIN, &all].concat()).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        peer.read_to_end(&mut told).ok();
    }
    server.signal(Signal::SIGTERM);
    let (ended, log) = server.wait();
    assert_eq!(ended, Some(0), "{log}");
    assert!(log.lines().count() < 40, "{log}");
    drop(dir);
}

/// The beginning of a connection over HTTP/2, with empty settings.
const H2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of HTTP/2.
fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
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
