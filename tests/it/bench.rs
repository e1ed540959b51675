//! `relay bench`: its figures agree with the server's own, a stall is seen by those who were due, and it loads nobody's server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_conformance::testing::NatsServer;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::cli_support::{Running, code, json_lines, nobody, relay, run, stderr, stdout};
use crate::listeners::{address, serving};
use crate::tls_support::Files;

/// A server for the queue `bench`, with all of its doors open.
fn serve(broker: &[&str]) -> Running {
    let args = ["serve", "--no-auth", "--json", "--queue", "bench", "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0"];
    let more = ["--worker-listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    Running::start(args.iter().chain(&more).chain(broker))
}

fn listening(server: &Running, which: &str) -> String {
    server.ready["listening"][which].as_str().unwrap().to_owned()
}

/// Runs `relay bench` without a warm-up, and gives what it printed as JSON.
fn bench(args: &[&str]) -> Value {
    let output = bench_output(args);
    assert_eq!(code(&output), 0, "{}\n{}", stderr(&output), stdout(&output));
    json_lines(&output).remove(0)
}

fn bench_output(args: &[&str]) -> Output {
    let duration = if args.contains(&"--duration") { &[][..] } else { &["--duration", "400ms"] };
    run(["bench", "--json", "--warm-up", "0s"].iter().chain(duration).chain(args))
}

/// The jobs that the server says it accepted.
fn accepted(server: &Running) -> u64 {
    let mut stream = TcpStream::connect(listening(server, "admin")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("relay_jobs_submitted_total{queue=\"bench\"} "));
    line.map_or(0, |count| count.trim().parse().unwrap())
}

/// The sum of the histogram, of latencies of at least so many milliseconds.
fn at_least(report: &Value, millis: u64) -> u64 {
    let pairs = report["measured"]["histogram_us"].as_array().unwrap();
    let slow = pairs.iter().filter(|pair| pair[0].as_u64().unwrap() >= millis * 1_000);
    slow.map(|pair| pair[1].as_u64().unwrap()).sum()
}

/// Closed and open loops at `url`, whose jobs `server` must have accepted, each of them.
fn agrees(server: &Running, url: &str) {
    let before = accepted(server);
    let closed = bench(&["--server", url, "--connections", "3"]);
    let jobs = closed["measured"]["jobs"].as_u64().unwrap();
    assert!(jobs > 0, "{closed}");
    assert_eq!((&closed["measured"]["errors"], &closed["rate"]), (&0.into(), &Value::Null), "{closed}");
    assert_eq!((at_least(&closed, 0), accepted(server) - before), (jobs, jobs), "{closed}");

    let before = accepted(server);
    let open = bench(&["--server", url, "--rate", "100", "--connections", "2", "--size", "0..2KiB"]);
    assert_eq!((&open["measured"]["jobs"], &open["measured"]["errors"]), (&40.into(), &0.into()), "{open}");
    assert_eq!(accepted(server) - before, 40);
    assert_eq!((&open["ended"], &open["size_most"]), (&"done".into(), &2_048.into()));
}

#[test]
fn figures_over_http_agree_with_the_servers_own() {
    let server = serve(&["--memory"]);
    agrees(&server, &server.url());
    let http2 = bench(&["--server", &server.url(), "--connections", "1", "--in-flight", "4"]);
    assert!(http2["measured"]["jobs"].as_u64() > Some(0) && http2["measured"]["errors"] == 0, "{http2}");
    server.stop();
}

#[test]
fn figures_over_tcp_agree_with_the_servers_own() {
    let server = serve(&["--memory"]);
    agrees(&server, &format!("relay://{}", listening(&server, "tcp")));
    server.stop();
}

#[tokio::test]
async fn figures_over_nats_agree_with_the_servers_own() {
    let nats = NatsServer::start().await;
    let server = serve(&["--provision", "--nats", &nats.url()]);
    let (url, worker) = (nats.url(), listening(&server, "workers"));
    agrees(&server, &url);
    for operation in ["wait", "follow"] {
        let report = bench(&["--nats", &url, "--operation", operation, "--worker", &worker, "--rate", "50"]);
        assert_eq!((&report["measured"]["jobs"], &report["measured"]["errors"]), (&20.into(), &0.into()), "{report}");
    }
    let batch = bench_output(&["--server", &url, "--operation", "batch"]);
    assert_eq!(code(&batch), 2, "{batch:?}");
    assert!(stderr(&batch).contains("no batches"), "{batch:?}");
    server.stop();
}

#[test]
fn a_server_with_tls_is_judged_by_its_certificate_over_http_and_over_tcp() {
    let files = Files::new();
    let tables = "http = \"127.0.0.1:0\"\n[[listener]]\nname = \"fast\"\nprotocol = \"relay\"\naddress = \"127.0.0.1:0\"\n\
                  tls = \"on\"\n";
    let server = serving(&files, tables);
    let ca = files.write("server-ca.pem", files.server.pem());
    let ca = ca.to_str().unwrap();
    let (https, relays) = (address(&server, "http").port(), address(&server, "fast").port());
    for url in [format!("https://localhost:{https}"), format!("relays://localhost:{relays}")] {
        let args = ["--server", &url, "--queue", "default", "--ca", ca, "--rate", "50"];
        let report = bench(&args);
        assert_eq!((&report["measured"]["jobs"], &report["measured"]["errors"]), (&20.into(), &0.into()), "{report}");
        let distrusted = bench_output(&["--server", &url, "--queue", "default"]);
        assert_ne!(code(&distrusted), 0, "{distrusted:?}");
        assert_eq!(stdout(&distrusted), "", "{distrusted:?}");
    }
    let http2 = bench(&[
        "--server",
        &format!("https://localhost:{https}"),
        "--queue",
        "default",
        "--ca",
        ca,
        "--in-flight",
        "4",
    ]);
    assert_eq!(http2["measured"]["errors"], 0, "{http2}");
    server.stop();
}

#[test]
fn every_operation_is_timed_over_http_and_over_tcp() {
    let server = serve(&["--memory"]);
    let worker = listening(&server, "workers");
    for url in [server.url(), format!("relay://{}", listening(&server, "tcp"))] {
        for operation in ["wait", "follow"] {
            let args = ["--server", &url, "--operation", operation, "--worker", &worker, "--rate", "50"];
            let report = bench(&args);
            assert_eq!(
                (&report["measured"]["jobs"], &report["measured"]["errors"]),
                (&20.into(), &0.into()),
                "{report}"
            );
        }
        let before = accepted(&server);
        let report = bench(&["--server", &url, "--operation", "batch", "--batch", "7", "--rate", "50"]);
        assert_eq!((&report["measured"]["calls"], &report["measured"]["jobs"]), (&20.into(), &140.into()), "{report}");
        assert_eq!(accepted(&server) - before, 140);
    }
    server.stop();
}

#[test]
fn refusals_are_counted_by_their_slug_and_a_run_without_a_good_answer_fails() {
    let server = serve(&["--memory", "--payload-max", "1KiB"]);
    let output = bench_output(&["--server", &server.url(), "--size", "4KiB", "--rate", "50"]);
    assert_eq!(code(&output), 1, "{output:?}");
    let report = &json_lines(&output)[0];
    assert_eq!(report["measured"]["errors_by_slug"]["payload-too-large"]["count"], 20, "{report}");
    assert_eq!(report["measured"]["latency_ms"], Value::Null);
    let table = run(["bench", "--warm-up", "0s", "--duration", "200ms", "--server", &server.url(), "--size", "4KiB"]);
    assert!(stdout(&table).contains("payload-too-large"), "{table:?}");
    server.stop();
}

#[cfg(target_os = "linux")]
#[test]
fn the_servers_cores_and_memory_are_beside_the_figures() {
    let server = serve(&["--memory"]);
    let report = bench(&["--server", &server.url()]);
    assert_eq!(report["measured"]["server"]["pid"], server.id(), "{report}");
    assert!(report["measured"]["server"]["memory_bytes"].as_u64() > Some(1_000_000), "{report}");
    assert!(report["measured"]["bench"]["cores"].as_f64() > Some(0.0), "{report}");
    server.stop();
}

#[test]
fn a_server_is_started_for_the_run_and_gone_afterwards() {
    let report = bench(&["--local", "embedded", "--over", "tcp", "--operation", "wait", "--rate", "50"]);
    let measured = &report["measured"];
    assert_eq!((&measured["jobs"], &measured["errors"]), (&20.into(), &0.into()), "{report}");
    assert!(measured["stored_bytes"].is_u64(), "{report}");
    let address = report["url"].as_str().unwrap().strip_prefix("relay://").unwrap();
    assert!(TcpStream::connect(address).is_err(), "nobody listens there any more");
}

#[test]
fn a_server_of_others_is_refused_before_anything_is_sent() {
    for url in ["http://192.0.2.7:7410", "relay://192.0.2.7:7413", "nats://192.0.2.7:4222", "https://[2001:db8::1]"] {
        let output = bench_output(&["--server", url]);
        assert_eq!((code(&output), stdout(&output)), (2, ""), "{output:?}");
        assert!(stderr(&output).contains("not this machine"), "{output:?}");
        assert!(stderr(&output).contains("hint: add --i-own-this"), "{output:?}");
    }
    let output = bench_output(&["--server", "http://127.0.0.1:1", "--worker", "192.0.2.7:7411"]);
    assert!(code(&output) == 2 && stderr(&output).contains("not this machine"), "{output:?}");
}

#[test]
fn what_is_out_of_bounds_is_wrong_usage() {
    for (args, fix) in [
        (&["--duration", "2h"][..], "1h"),
        (&["--duration", "2m", "--find-max", "p99<1s"], "1m"),
        (&["--rate", "0"], "0.01"),
        (&["--rate", "NaN"], "0.01"),
        (&["--find-max", "p99"], "p99<50ms"),
        (&["--connections", "1024", "--in-flight", "4096"], "16384"),
        (&["--size", "16MiB", "--connections", "1000"], "1GiB"),
        (&["--server", "ftp://127.0.0.1"], "http://HOST:PORT"),
        (&["--local", "embedded", "--over", "nats"], "--local nats"),
    ] {
        let output = run(["bench"].iter().chain(args));
        assert_eq!(code(&output), 2, "{args:?}: {output:?}");
        assert!(stderr(&output).contains(fix), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_server_that_is_not_there_is_said_with_what_to_do() {
    let (_held, url) = nobody();
    for url in [url.clone(), url.replace("http://", "relay://")] {
        let output = bench_output(&["--server", &url]);
        assert_eq!((code(&output), stdout(&output)), (69, ""), "{output:?}");
        assert!(stderr(&output).contains("hint: start a server"), "{output:?}");
    }
}

/// The conduct of a scripted server.
#[derive(Clone, Copy)]
enum Script {
    /// Answers at once, but nothing from one second after the first job until two seconds after it.
    Stalls,
    /// Answers each job so much later.
    Slow(Duration),
    /// Answers so many jobs, and then leaves: its connections and its port.
    Leaves(usize),
}

/// A server that speaks just enough HTTP. It tells of each job.
struct Scripted {
    url: String,
    jobs: mpsc::Receiver<()>,
    _tasks: JoinSet<()>,
}

impl Scripted {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let (tell, jobs) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_scripted(listener, script, tell));
        Self { url: format!("http://{address}"), jobs, _tasks: tasks }
    }
}

/// When the first job came, and how many have come.
type Came = Arc<Mutex<(Option<Instant>, usize)>>;

async fn serve_scripted(listener: TcpListener, script: Script, tell: mpsc::Sender<()>) {
    let came = Came::default();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                connections.spawn(answer(stream, script, Arc::clone(&came), tell.clone()));
            }
            Some(ended) = connections.join_next() => if ended.unwrap() {
                return;
            },
        }
    }
}

/// Answers the requests of one connection. `true` if the server is to leave.
async fn answer(stream: tokio::net::TcpStream, script: Script, came: Came, tell: mpsc::Sender<()>) -> bool {
    let mut stream = tokio::io::BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if stream.read_line(&mut first).await.unwrap_or(0) == 0 {
            return false;
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        if first.starts_with("POST") {
            tell.try_send(()).ok();
            let (begun, number) = {
                let mut came = came.lock().await;
                came.1 += 1;
                (*came.0.get_or_insert_with(Instant::now), came.1)
            };
            match script {
                Script::Stalls if begun.elapsed() >= Duration::from_secs(1) => {
                    sleep_until(begun + Duration::from_secs(2)).await;
                }
                Script::Slow(by) => sleep_until(Instant::now() + by).await,
                Script::Leaves(after) if number > after => return true,
                _ => {}
            }
        }
        let body = r#"{"client":"dev","version":"0","durability":"none"}"#;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.get_mut().write_all(format!("{head}{body}").as_bytes()).await.is_err() {
            return false;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_counts_for_every_call_that_was_due_in_it_and_not_for_the_few_that_were_under_way() {
    let server = Scripted::start(Script::Stalls).await;
    let url = server.url.clone();
    let args = ["--server", &url, "--rate", "100", "--connections", "4", "--duration", "3s"];
    let report = bench(&args);
    assert_eq!((&report["measured"]["calls"], &report["measured"]["errors"]), (&300.into(), &0.into()), "{report}");
    // Those that were due in the first half of the stall waited for half a second at least. Four were under way.
    assert!(at_least(&report, 500) >= 45, "{report}");
    assert!(report["measured"]["latency_ms"]["p99"].as_f64() > Some(900.0), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_search_ends_where_no_rate_holds_and_tells_of_each() {
    let server = Scripted::start(Script::Slow(Duration::from_millis(20))).await;
    let url = server.url.clone();
    let args = ["--server", &url, "--find-max", "p50<5ms", "--rate", "16", "--duration", "100ms"];
    let report = bench(&args);
    let steps = report["find_max"]["steps"].as_array().unwrap();
    let rates: Vec<_> = steps.iter().map(|step| step["rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [16.0, 8.0, 4.0, 2.0, 1.0], "{report}");
    assert_eq!((&report["find_max"]["rate"], &report["find_max"]["limit"]), (&Value::Null, &"p50<5ms".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_ends_the_run_with_the_figures_so_far_and_a_hint() {
    let server = Scripted::start(Script::Leaves(20)).await;
    let url = server.url.clone();
    let output = bench_output(&["--server", &url, "--duration", "1h", "--connections", "1"]);
    assert_eq!(code(&output), 69, "{output:?}");
    assert!(stderr(&output).contains("nobody is at the server's address any more"), "{output:?}");
    let report = &json_lines(&output)[0];
    assert_eq!((&report["ended"], &report["measured"]["calls"]), (&"away".into(), &20.into()), "{report}");
    assert!(report["measured"]["errors_by_slug"]["unreachable"]["count"].as_u64() >= Some(10), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_run_with_the_figures_so_far() {
    let mut server = Scripted::start(Script::Slow(Duration::ZERO)).await;
    let args = ["bench", "--json", "--warm-up", "0s", "--duration", "1h", "--server", &server.url];
    let mut child = relay(args).spawn().unwrap();
    for _ in 0..3 {
        server.jobs.recv().await.unwrap();
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let report: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(report["ended"], "interrupted", "{report}");
    assert!(report["measured"]["calls"].as_u64() > Some(0), "{report}");
}
