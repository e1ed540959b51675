//! Mistakes that operators make, from outside: none is taken in silence, and what is said of each says what to do.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::cli_support::Running;
use nix::sys::signal::Signal;

#[test]
fn a_log_that_nobody_reads_holds_up_no_request_and_no_end_and_says_later_what_it_lost() {
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--log", "debug"];
    for format in ["text", "json"] {
        let mut server = Running::start(serve.iter().chain(&["--log-format", format]));
        let address = server.url().trim_start_matches("http://").to_owned();
        // Each is a line of the log, and together they are more than a pipe holds.
        let ask = || {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let path = "x".repeat(4_000);
            write!(stream, "GET /{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        };
        (0..40).for_each(|_| ask());
        // With some room for what comes. Each of these lines has two places of sixteen.
        (0..4).for_each(|_| drop(server.wait_for_line("request answered")));
        ask();
        server.signal(Signal::SIGTERM);
        let (code, text) = server.wait();
        assert_eq!(code, Some(0), "{text}");
        let lost = text.lines().find(|line| line.contains("lines of the log before this one are lost")).unwrap();
        if format == "json" {
            let lost: serde_json::Value = serde_json::from_str(lost).unwrap();
            assert!(lost["level"] == "WARN" && lost["lines"].as_u64() > Some(0), "{lost}");
        }
    }
}
