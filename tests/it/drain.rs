//! A stop behind a load balancer, of the built binary: clients are told to go elsewhere before anything is closed, and no request
//! that was written stays unanswered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;

use crate::cli_support::Running;

const SERVE: [&str; 6] = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json"];

/// A connection that is kept, with one request after the other.
struct Kept {
    reader: BufReader<TcpStream>,
    address: String,
}

impl Kept {
    fn open(address: &str) -> Self {
        Self { reader: BufReader::new(TcpStream::connect(address).unwrap()), address: address.to_owned() }
    }

    /// Sends a request; the status of its answer, and whether it says that it was the last one. `None` if there was no answer.
    fn ask(&mut self, path: &str) -> Option<(u16, bool)> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.address);
        self.reader.get_mut().write_all(request.as_bytes()).ok()?;
        self.answer()
    }

    /// The same of a request that is written.
    fn answer(&mut self) -> Option<(u16, bool)> {
        let (mut status, mut length, mut is_last) = (0, 0, false);
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            }
            if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().unwrap();
            }
            is_last |= line == "connection: close";
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).ok()?;
        Some((status, is_last))
    }
}

#[test]
fn no_request_that_was_written_on_200_busy_connections_stays_unanswered_through_a_stop() {
    const BUSY: usize = 200;
    let mut relay = Running::start(SERVE.iter().chain(&["--drain-delay", "3s"]));
    let address = relay.ready["listening"]["http"].as_str().unwrap().to_owned();
    let (begun, told) = (Barrier::new(BUSY + 1), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for at in 0..BUSY {
            let (address, begun, told) = (&address, &begun, &told);
            scope.spawn(move || {
                let mut kept = Kept::open(address);
                kept.ask("/v1/whoami").unwrap();
                begun.wait();
                let mut asked = 0;
                loop {
                    let answer = kept.ask("/v1/whoami");
                    asked += 1;
                    let (status, is_last) = answer.unwrap_or_else(|| panic!("request {asked} of {at} has no answer"));
                    assert_eq!(status, 200, "request {asked} of {at}");
                    if is_last {
                        break;
                    }
                }
                told.fetch_add(1, Ordering::SeqCst);
            });
        }
        begun.wait();
        relay.signal(Signal::SIGTERM);
        relay.wait_for_line("clients are told to go elsewhere");
    });
    assert_eq!(told.load(Ordering::SeqCst), BUSY, "every one was told");
    let (code, text) = relay.wait();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("no connection came after the signal"), "{text}");
}

#[test]
fn a_connection_that_comes_late_is_served_and_told_after_100_requests_and_the_log_says_that_it_came() {
    let mut relay = Running::start(SERVE.iter().chain(&["--drain-delay", "10s"]));
    let address = relay.ready["listening"]["http"].as_str().unwrap().to_owned();
    relay.signal(Signal::SIGTERM);
    relay.wait_for_line("clients are told to go elsewhere");
    let mut late = Kept::open(&address);
    let answers: Vec<_> = (0..100).map(|_| late.ask("/v1/whoami").unwrap()).collect();
    assert!(answers[..99].iter().all(|answer| *answer == (200, false)), "{answers:?}");
    assert_eq!(answers[99], (200, true));
    let (code, text) = relay.wait();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the last connection came so long after the signal"), "{text}");
}

#[test]
fn a_wait_that_fits_into_the_delay_is_not_cut_and_a_worker_is_told_to_go_and_may_come_back() {
    let mut relay = Running::start(SERVE.iter().chain(&["--drain-delay", "3s", "--worker-listen", "127.0.0.1:0"]));
    let args = ["worker", "--connect", &relay.workers(), "--json", "--", "sh", "-c", "sleep 1; echo done"];
    let mut worker = Running::start(args);
    let url = relay.url();
    let submitted = std::thread::scope(|scope| {
        let waits = scope.spawn(|| crate::cli_support::run_with(["submit", "--wait=20s", "--server", &url], b"x"));
        relay.wait_for_line("a worker connected");
        relay.signal(Signal::SIGTERM);
        worker.wait_for_line("the server stops soon");
        waits.join().unwrap()
    });
    assert_eq!(crate::cli_support::stdout(&submitted), "done\n", "{submitted:?}");
    relay.wait_for_line("a worker connected");
    let (code, text) = relay.wait();
    assert_eq!(code, Some(0), "{text}");
    worker.stop();
}

#[test]
fn workers_are_told_to_stop_although_a_client_takes_its_time_with_a_request() {
    let args = ["--drain-delay", "0s", "--drain", "20s", "--worker-listen", "127.0.0.1:0"];
    let mut relay = Running::start(SERVE.iter().chain(&args));
    let mut worker = Running::start(["worker", "--connect", &relay.workers(), "--json", "--", "cat"]);
    relay.wait_for_line("a worker connected");
    let mut slow = Kept::open(relay.ready["listening"]["http"].as_str().unwrap());
    let head = format!("POST /v1/queues/default/jobs HTTP/1.1\r\nhost: {}\r\ncontent-length: 2\r\n\r\nx", slow.address);
    slow.reader.get_mut().write_all(head.as_bytes()).unwrap();
    // Its answer says that the request before it is known: they come on the same loop.
    assert_eq!(Kept::open(&slow.address).ask("/v1/whoami"), Some((200, false)));
    relay.signal(Signal::SIGTERM);
    worker.wait_for_line("the server stops soon");
    slow.reader.get_mut().write_all(b"y").unwrap();
    assert_eq!(slow.answer(), Some((202, true)), "the request is answered when the worker is gone");
    assert_eq!(relay.wait().0, Some(0));
    worker.stop();
}

#[test]
fn a_second_signal_ends_a_delay() {
    let mut relay = Running::start(SERVE.iter().chain(&["--drain-delay", "1h"]));
    relay.signal(Signal::SIGTERM);
    relay.wait_for_line("clients are told to go elsewhere");
    assert_eq!(relay.force(Signal::SIGTERM).0, Some(130));
}

#[test]
fn a_stream_ends_with_its_cursor_while_the_server_goes_on() {
    let mut relay = Running::start(SERVE.iter().chain(&["--drain-delay", "4s"]));
    let address = relay.ready["listening"]["http"].as_str().unwrap().to_owned();
    let mut stream = BufReader::new(TcpStream::connect(&address).unwrap());
    let request = format!("GET /v1/results HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let mut read_to = |text: &str| {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0, "it ended without {text:?}");
        }
    };
    read_to("id: ");
    relay.signal(Signal::SIGTERM);
    read_to("the end of this connection, not of the stream");
    assert_eq!(Kept::open(&address).ask("/v1/whoami").unwrap().0, 200);
    relay.wait_for_line("the HTTP ingress drains");
    assert_eq!(relay.wait().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_2_a_connection_is_told_at_once_and_each_of_its_requests_is_answered_or_known_not_to_be_served() {
    let relay = Running::start(SERVE.iter().chain(&["--drain-delay", "4s"]));
    let address = relay.ready["listening"]["http"].as_str().unwrap().to_owned();
    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let mut driving = tokio::task::JoinSet::new();
    driving.spawn(connection);
    relay.signal(Signal::SIGTERM);
    let mut answered = 0;
    // Until the client may begin no request any more.
    while let Ok(mut ready) = client.clone().ready().await {
        let request = http::Request::get(format!("http://{address}/v1/whoami")).body(()).unwrap();
        let Ok((response, _)) = ready.send_request(request, true) else { break };
        match response.await {
            Ok(response) => assert_eq!(response.status(), 200),
            // It left the client behind the client's answer to the ping that follows GOAWAY: the server has seen nothing of it.
            Err(error) => {
                assert!(error.is_go_away() && error.is_remote(), "{error}");
                assert_eq!(error.reason(), Some(h2::Reason::NO_ERROR));
                break;
            }
        }
        answered += 1;
    }
    assert!(answered > 0);
    driving.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(Kept::open(&address).ask("/v1/whoami").unwrap().0, 200, "the server goes on");
    assert_eq!(relay.wait().0, Some(0));
}
