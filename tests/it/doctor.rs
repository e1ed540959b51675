//! `relay doctor`, from outside: on a healthy relay every step passes, and with each step broken in turn that one fails, says what
//! to do, and leaves what lies behind it unreached.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_conformance::testing::NatsServer;

use crate::cli_support::{Running, code, json_lines, nobody, run, stdout};
use crate::tls_support::{Authority, Files};
use serde_json::{Value, json};

/// The exit code, and the verdict of each step with its detail.
fn examined(server: &str, more: &[&str]) -> (i32, BTreeMap<String, (String, String)>, Value) {
    doctor(&[&["--server", server], more].concat())
}

fn doctor(args: &[&str]) -> (i32, BTreeMap<String, (String, String)>, Value) {
    let output = run(["doctor", "--json"].iter().chain(args));
    let lines = json_lines(&output);
    let [line] = lines.as_slice() else { panic!("{output:?}") };
    let of = |step: &Value, field: &str| step[field].as_str().unwrap().to_owned();
    let steps = line["steps"].as_array().unwrap().iter();
    let steps = steps.map(|step| (of(step, "step"), (of(step, "verdict"), of(step, "detail"))));
    (code(&output), steps.collect(), line.clone())
}

/// The only step that failed, with its detail; a failed step has a hint.
fn failed(steps: &BTreeMap<String, (String, String)>, line: &Value) -> (String, String) {
    let failed: Vec<_> = steps.iter().filter(|(_, (verdict, _))| verdict == "failed").collect();
    let [(name, (_, detail))] = failed.as_slice() else { panic!("{line}") };
    let step = line["steps"].as_array().unwrap().iter().find(|step| step["step"] == name.as_str()).unwrap();
    assert!(step["hint"].as_str().is_some_and(|hint| hint.len() > 20), "{step}");
    assert_eq!(line["healthy"], false);
    (name.to_string(), detail.clone())
}

/// A server of one kind of answer: `answer` is given the path and the body of each request. It ends with the test.
fn server(answer: impl FnMut(&str, &[u8]) -> Option<(u16, Vec<u8>)> + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, answer) = (stream.unwrap(), answer.clone());
            std::thread::spawn(move || serve(stream, answer));
        }
    });
    address
}

fn serve(stream: TcpStream, mut answer: impl FnMut(&str, &[u8]) -> Option<(u16, Vec<u8>)>) {
    let (mut from, mut to) = (BufReader::new(stream.try_clone().unwrap()), stream);
    loop {
        let (mut path, mut length, mut line) = (String::new(), 0, String::new());
        while from.read_line(&mut line).is_ok_and(|read| read > 0) && !line.trim().is_empty() {
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            }
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if path.is_empty() || from.read_exact(&mut body).is_err() {
            return;
        }
        let Some((status, body)) = answer(&path, &body) else { return };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
        if to.write_all(&[head.as_bytes(), &body].concat()).is_err() {
            return;
        }
    }
}

/// The answer of a healthy relay to `whoami`.
fn whoami(dev: &Running) -> Value {
    json_lines(&run(["whoami", "--json", "--server", &dev.url()]))[0].clone()
}

#[test]
fn on_a_healthy_relay_every_step_passes_and_a_job_is_done() {
    let dev = Running::dev(&["--queue", "mail"], "cat");
    let (exit, steps, line) = examined(&dev.url(), &["--queue", "mail"]);
    assert_eq!((exit, &line["healthy"]), (0, &Value::Bool(true)), "{line}");
    let names = ["caller", "job", "name", "packets", "payload", "round-trip", "tcp"];
    assert_eq!(steps.keys().collect::<Vec<_>>(), names);
    assert!(steps["caller"].1.contains("`dev` (development), through no VPC endpoint"), "{line}");
    assert!(steps["job"].1.contains("12 B came back"), "{line}");
    let text = run(["doctor", "--server", &dev.url()]);
    assert_eq!(code(&text), 0);
    assert!(stdout(&text).lines().skip(1).all(|line| line.starts_with("ok ")), "{text:?}");
    dev.stop();
}

#[test]
fn a_healthy_relay_passes_over_relays_own_protocol_too() {
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--json"];
    let server = Running::start(serve.iter().chain(&["--queue", "mail"]));
    let address = format!("relay://{}", server.ready["listening"]["tcp"].as_str().unwrap());
    let (exit, steps, line) = examined(&address, &[]);
    assert_eq!((exit, &line["healthy"]), (0, &Value::Bool(true)), "{line}");
    assert!(steps["round-trip"].1.contains("20 times there and back"), "{line}");
    assert!(steps["packets"].1.contains("a step of addresses for HTTP"), "{line}");
    server.stop();
}

#[test]
fn a_name_that_nobody_knows_fails_first_and_nothing_else_is_tried() {
    let (exit, steps, line) = examined("http://relay.invalid", &[]);
    let (step, detail) = failed(&steps, &line);
    assert_eq!((exit, step.as_str()), (69, "name"), "{line}");
    assert!(detail.contains("relay.invalid can't be resolved"), "{line}");
    assert!(steps.iter().all(|(name, (verdict, _))| name == "name" || verdict == "not-reached"), "{line}");
}

#[test]
fn a_name_that_leads_to_the_internet_fails() {
    let (exit, steps, line) = examined("http://192.0.2.7:443", &[]);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (69, "name"), "{line}");
}

#[test]
fn a_port_at_which_nobody_listens_fails_with_the_places_to_look_at() {
    let (_held, server) = nobody();
    let (exit, steps, line) = examined(&server, &[]);
    let (step, detail) = failed(&steps, &line);
    assert_eq!((exit, step.as_str()), (69, "tcp"), "{line}");
    assert!(detail.contains("takes no connection") && line.to_string().contains("healthy target"), "{line}");
}

#[test]
fn a_server_that_is_no_relay_is_told_apart() {
    let web = server(|_, _| Some((200, b"<html>welcome</html>".to_vec())));
    let (exit, steps, line) = examined(&web, &[]);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (1, "caller"), "{line}");
    assert!(line.to_string().contains("another server answers"), "{line}");
}

#[test]
fn a_connection_that_is_closed_at_the_first_request_fails_with_what_does_that() {
    let closing = server(|_, _| None);
    let (exit, steps, line) = examined(&closing, &[]);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (1, "caller"), "{line}");
    assert!(line.to_string().contains("healthy targets"), "{line}");
}

#[test]
fn a_key_that_does_not_stand_fails_and_one_with_the_line_end_of_its_file_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, key) = (dir.path().join("keys.toml"), dir.path().join("key"));
    let keys = keys.to_str().unwrap();
    let made = run(["keys", "new", "acme", "--file", keys, "--out", key.to_str().unwrap()]);
    assert_eq!(code(&made), 0, "{made:?}");
    let server = Running::start(["serve", "--memory", "--keys", keys, "--listen", "127.0.0.1:0", "--json"]);
    let (exit, steps, line) = examined(&server.url(), &["--api-key", "abcdefgh.nothing"]);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (1, "caller"), "{line}");
    assert!(line.to_string().contains("give a key that stands"), "{line}");

    let text = std::fs::read_to_string(&key).unwrap();
    assert!(text.ends_with('\n'), "{text:?}");
    let (exit, _, line) = examined(&server.url(), &["--api-key", &text]);
    assert_eq!(exit, 0, "{line}");
    server.stop();
}

#[test]
fn a_clock_that_is_off_by_more_than_two_seconds_fails() {
    let dev = Running::dev(&[], "cat");
    let mut who = whoami(&dev);
    let late = server(move |_, _| {
        who["server_time"] = json!(Clock::system().now() + Duration::from_secs(3));
        Some((200, who.to_string().into_bytes()))
    });
    let (exit, steps, line) = examined(&late, &[]);
    let (step, detail) = failed(&steps, &line);
    assert_eq!((exit, step.as_str()), (1, "caller"), "{line}");
    assert!(detail.contains("s behind relay's"), "{line}");
    dev.stop();
}

#[test]
fn a_way_on_which_large_packets_are_lost_is_found_although_small_ones_pass() {
    let dev = Running::dev(&[], "cat");
    let answer = whoami(&dev).to_string().into_bytes();
    let lossy = server(move |path, body| match path {
        "/v1/echo" if body.len() > 1_400 => None,
        "/v1/echo" => Some((200, body.to_vec())),
        _ => Some((200, answer.clone())),
    });
    let (exit, steps, line) = examined(&lossy, &[]);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (1, "packets"), "{line}");
    assert_eq!(steps["round-trip"].0, "passed", "{line}");
    assert!(line.to_string().contains("ICMP type 3 code 4"), "{line}");
    dev.stop();
}

#[test]
fn something_between_that_changes_bodies_is_found() {
    let dev = Running::dev(&[], "cat");
    let answer = whoami(&dev).to_string().into_bytes();
    let changing =
        server(move |path, _| Some((200, if path == "/v1/echo" { b"hello".to_vec() } else { answer.clone() })));
    let (_, steps, line) = examined(&changing, &[]);
    assert_eq!(failed(&steps, &line).0, "packets", "{line}");
    assert!(line.to_string().contains("changes bodies"), "{line}");
    dev.stop();
}

#[test]
fn a_queue_that_is_not_there_and_a_handler_that_fails_are_told() {
    let dev = Running::dev(&["--queue", "mail", "--max-attempts", "1"], "exit 65");
    let (exit, steps, line) = examined(&dev.url(), &["--queue", "fax"]);
    assert_eq!((exit, steps["payload"].0.as_str(), steps["job"].0.as_str()), (1, "failed", "not-reached"), "{line}");
    assert!(steps["payload"].1.contains("it may use: mail"), "{line}");
    let (exit, steps, line) = examined(&dev.url(), &["--queue", "mail"]);
    let (step, detail) = failed(&steps, &line);
    assert_eq!((exit, step.as_str()), (1, "job"), "{line}");
    assert!(detail.contains("ended as failed"), "{line}");
    dev.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_examined_from_relays_side_and_nothing_in_it_is_changed() {
    let nats = NatsServer::start().await;
    let broker = ["--broker", "--nats", &nats.url()];
    let (exit, steps, line) = doctor(&broker);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (1, "provisioned"), "{line}");
    assert!(line.to_string().contains("relay provision --dry-run"), "{line}");

    let made = run(["provision", "--nats", &nats.url(), "--queue", "mail"]);
    assert_eq!(code(&made), 0, "{made:?}");
    let (exit, steps, line) = doctor(&broker);
    assert_eq!((exit, &line["healthy"]), (0, &Value::Bool(true)), "{line}");
    assert_eq!(steps.keys().collect::<Vec<_>>(), ["broker", "durability", "provisioned", "round-trip"]);
    assert!(steps["provisioned"].1.ends_with("queues: mail"), "{line}");
    let (exit, steps, line) = doctor(&[&broker, &["--queue", "fax"][..]].concat());
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (1, "provisioned"), "{line}");
    assert!(steps["provisioned"].1.contains("streams are missing"), "{line}");
}

#[test]
fn a_broker_that_is_not_there_fails_first_and_the_rest_is_not_reached() {
    let (_held, nobody) = nobody();
    let (exit, steps, line) = doctor(&["--broker", "--nats", &nobody.replace("http:", "nats:")]);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (69, "broker"), "{line}");
    assert_eq!(steps.values().filter(|(verdict, _)| verdict == "not-reached").count(), 3, "{line}");
    let embedded = run(["doctor", "--broker"]);
    assert_eq!(code(&embedded), 2, "{embedded:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_over_nats_is_examined_too_where_it_is_given() {
    let nats = NatsServer::start().await;
    let nats_args = ["--nats", &nats.url()];
    let alone = Running::dev(&[], "cat");
    let (exit, steps, line) = examined(&alone.url(), &nats_args);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (1, "nats"), "{line}");
    assert!(steps["nats"].1.contains("no relay listens"), "{line}");
    alone.stop();

    let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--queue", "mail", "--provision"];
    let mut relay = Running::start(args.iter().chain(&nats_args));
    relay.wait_for_line("the NATS ingress is open");
    let (exit, steps, line) = examined(&relay.url(), &nats_args);
    assert_eq!(exit, 0, "{line}");
    assert!(steps["nats"].1.contains("relay answered on relay.status.dev"), "{line}");
    relay.stop();
}

#[test]
fn a_way_past_the_balancer_is_right_if_nobody_is_answered_there() {
    let way = ["--proxy", "required", "--proxy-trusted", "10.9.8.7", "--drain-delay", "0s"];
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json"];
    let behind = Running::start(serve.iter().chain(&way));
    let (exit, steps, line) = examined(&behind.url(), &["--refused"]);
    assert_eq!((exit, &line["healthy"]), (0, &Value::Bool(true)), "{line}");
    assert!(steps["refused"].1.contains("says nothing"), "{line}");
    behind.stop();

    let open = Running::dev(&[], "cat");
    let (exit, steps, line) = examined(&open.url(), &["--refused"]);
    let (step, detail) = failed(&steps, &line);
    assert_eq!((exit, step.as_str()), (1, "refused"), "{line}");
    assert!(detail.contains("answers somebody who comes without a header"), "{line}");
    open.stop();
}

#[test]
fn where_nothing_listens_nothing_is_proven() {
    let (_held, server) = nobody();
    let (exit, steps, line) = examined(&server, &["--refused"]);
    let (step, detail) = failed(&steps, &line);
    assert_eq!((exit, step.as_str()), (1, "refused"), "{line}");
    assert!(detail.contains("can't be tried"), "{line}");
}

/// A server that speaks TLS with the certificate of `files`, its port, and the file with its authority.
fn secured(files: &Files, more: &[&str]) -> (Running, u16, String) {
    let (certificate, key) = (files.files.certificate.to_str().unwrap(), files.files.key.to_str().unwrap());
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--queue", "mail"];
    let running = Running::start(serve.iter().chain(&["--tls-cert", certificate, "--tls-key", key]).chain(more));
    let address: std::net::SocketAddr = running.ready["listening"]["http"].as_str().unwrap().parse().unwrap();
    let ca = files.write("server-ca.pem", files.server.pem());
    (running, address.port(), ca.to_str().unwrap().to_owned())
}

#[test]
fn the_certificate_of_a_server_is_told_with_its_names_its_authority_and_the_days_it_has_left() {
    let files = Files::new();
    let (running, port, ca) = secured(&files, &[]);
    let server = format!("https://localhost:{port}");
    let (exit, steps, line) = examined(&server, &["--ca", &ca, "--idle", "20ms", "--zone-id", "euw1-az2"]);
    assert_eq!((exit, &line["healthy"]), (0, &Value::Bool(true)), "{line}");
    let tls = &steps["tls"].1;
    assert!(tls.starts_with("TLS 1.3, h2; its certificate is for localhost, signed by CN=server"), "{line}");
    assert!(tls.contains("(a chain of 1), good until 40") && tls.ends_with(" days left"), "{line}");
    assert_eq!(steps["idle"].1, "a connection works after 20ms in which nothing was said", "{line}");
    assert!(steps["name"].1.contains("this host is in euw1-az2"), "{line}");
    running.stop();
}

#[test]
fn a_certificate_that_is_not_trusted_not_for_this_name_or_over_fails_and_says_which() {
    let files = Files::new();
    let (running, port, ca) = secured(&files, &[]);
    let other = files.write("other.pem", Authority::new("other").pem());
    let (localhost, address) = (format!("https://localhost:{port}"), format!("https://127.0.0.1:{port}"));
    for (server, ca, hint) in [
        (&localhost, other.to_str().unwrap(), "authority's certificate with --ca"),
        (&address, ca.as_str(), "use a name that is in the certificate"),
    ] {
        let (exit, steps, line) = examined(server, &["--ca", ca]);
        let (step, detail) = failed(&steps, &line);
        assert_eq!((exit, step.as_str()), (1, "tls"), "{line}");
        assert!(detail.contains("its certificate is for localhost, signed by CN=server"), "{line}");
        assert!(line.to_string().contains(hint), "{line}");
        assert_eq!(steps["caller"].0, "not-reached", "{line}");
    }
    running.stop();

    let short = files.server.signs_for(&["localhost"], 2, Some(Duration::ZERO));
    std::fs::write(&files.files.certificate, short.certificate).unwrap();
    std::fs::write(&files.files.key, short.key).unwrap();
    let (running, port, ca) = secured(&files, &[]);
    let server = format!("https://localhost:{port}");
    // It is over with the second in which it was made.
    let over = (0..100).map(|_| examined(&server, &["--ca", &ca])).find(|(exit, ..)| *exit != 0);
    let (_, steps, line) = over.unwrap();
    let (step, detail) = failed(&steps, &line);
    assert!(step == "tls" && detail.ends_with("which is over"), "{line}");
    assert!(line.to_string().contains("renew the server's certificate"), "{line}");
    running.stop();
}

#[test]
fn a_port_without_tls_fails_at_that_step() {
    let dev = Running::dev(&[], "cat");
    let (exit, steps, line) = examined(&dev.url().replace("http:", "https:"), &[]);
    assert_eq!((exit, failed(&steps, &line).0.as_str()), (1, "tls"), "{line}");
    assert!(line.to_string().contains("another protocol is spoken there"), "{line}");
    dev.stop();
}

#[test]
fn an_idle_connection_that_relay_closes_in_order_passes_and_one_that_is_cut_between_fails() {
    let files = Files::new();
    let (running, port, ca) = secured(&files, &["--idle", "2s", "--ping-every", "1s"]);
    let (exit, steps, line) = examined(&format!("https://localhost:{port}"), &["--ca", &ca, "--idle", "1m"]);
    assert_eq!(exit, 0, "{line}");
    assert!(steps["idle"].1.starts_with("relay closed a connection in order, after "), "{line}");
    running.stop();

    let dev = Running::dev(&[], "cat");
    let (answer, mut asked) = (whoami(&dev).to_string().into_bytes(), 0);
    // Nobody but this step asks twice on one connection.
    let forgetful = server(move |path, body| {
        if path == "/v1/echo" {
            return Some((200, body.to_vec()));
        }
        asked += 1;
        (asked < 2).then(|| (200, answer.clone()))
    });
    let (exit, steps, line) = examined(&forgetful, &["--idle", "10ms"]);
    let (step, detail) = failed(&steps, &line);
    assert_eq!((exit, step.as_str()), (1, "idle"), "{line}");
    assert!(detail.contains("at the next request, after 10ms"), "{line}");
    assert!(line.to_string().contains("keepalives"), "{line}");
    dev.stop();
    for wrong in [["--idle", "2h"], ["--zone-id", "eu-west-1b"]] {
        assert_eq!(code(&run(["doctor", "--server", "http://127.0.0.1:1"].iter().chain(&wrong))), 2, "{wrong:?}");
    }
}
