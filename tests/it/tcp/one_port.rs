//! One port with TLS that serves HTTP/1.1, HTTP/2 and the client protocol, as the handshake says.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use relay::client::{Client, ClientTls, NewJob, Submitted};
use relay::ingress::front::Front;
use relay::ingress::proxy::{HeaderOutcome, Proxy};
use relay::ingress::tcp::client::ClientLimits;
use relay::tls::{ClientAuth, Secured, Tls};
use relay_bridge::contract::Outcome;
use relay_bridge::contract::wire::client::{FromClient, Hello, Request, Submit, ToClient};
use relay_bridge::contract::wire::{FromWorker, Hello as WorkerHello};
use reqwest::{Certificate, Version};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::{Door, Wire, hello, mail};
use crate::http::support::{Relay, Setup};
use crate::tls_support::{Authority, Files, Identity, ask, connect, over};
use crate::worker_protocol::hello as worker_hello;

const LONG: Duration = Duration::from_secs(60);

/// A relay with one port of all protocols.
async fn secured(files: &Files, clients: ClientAuth, mut setup: Setup) -> Relay {
    setup.front.tls = Some(Secured::clients(Tls::open(files.files.clone()).unwrap(), clients));
    setup.start().await
}

async fn plain(files: &Files) -> Relay {
    secured(files, ClientAuth::Off, Setup::default()).await
}

/// A connection that agreed on the client protocol.
async fn wire(relay: &Relay, files: &Files, identity: Option<&Identity>) -> Wire {
    Wire::over(connect(relay.address, &files.client(&["relay/1"], identity)).await.unwrap())
}

async fn welcomed(relay: &Relay, files: &Files) -> Wire {
    let mut wire = wire(relay, files, None).await;
    wire.welcomed(&hello()).await;
    wire
}

async fn whoami(wire: &mut Wire) -> Value {
    let ToClient::Whoami { document, .. } = wire.answer(900, Request::Whoami).await else { panic!("not whoami") };
    serde_json::from_str(&document).unwrap()
}

/// A client over HTTP, and the version that it is to agree on.
fn over_http(files: &Files, identity: Option<&Identity>) -> [(reqwest::Client, Version); 2] {
    [Version::HTTP_2, Version::HTTP_11].map(|version| {
        let ca = Certificate::from_pem(files.server.pem().as_bytes()).unwrap();
        let mut builder = reqwest::Client::builder().tls_certs_only([ca]).no_proxy();
        if version == Version::HTTP_11 {
            builder = builder.http1_only();
        }
        if let Some(Identity { certificate, key }) = identity {
            builder = builder.identity(
                reqwest::Identity::from_pem([certificate.as_bytes(), key.as_bytes()].concat().as_slice()).unwrap(),
            );
        }
        (builder.build().unwrap(), version)
    })
}

fn url(relay: &Relay, path: &str) -> String {
    format!("https://localhost:{}{path}", relay.address.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_job_over_each_protocol_of_one_port_and_a_client_that_offers_none_speaks_http() {
    let files = Files::new();
    let relay = plain(&files).await;
    let mut jobs = Vec::new();
    let clients = over_http(&files, None);
    for (client, version) in &clients {
        let submit = client.post(url(&relay, "/v1/queues/mail/jobs")).header("idempotency-key", "one").body("x");
        let answer = submit.header("content-type", "application/octet-stream").send().await.unwrap();
        assert_eq!(answer.version(), *version);
        let receipt: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        jobs.push(receipt["job_id"].as_str().unwrap().to_owned());
    }
    let mut wire = welcomed(&relay, &files).await;
    let receipt = wire.submit(1, Submit { key: Some("one".to_owned()), ..mail("x") }).await;
    assert!(receipt.replayed);
    jobs.push(receipt.job.to_string());
    assert!(jobs.iter().all(|job| *job == jobs[0]), "{jobs:?}");
    let mut silent = connect(relay.address, &files.client(&[], None)).await.unwrap();
    assert!(ask(&mut silent, "/v1/whoami").await.unwrap().starts_with("HTTP/1.1 200 "));
    let who = whoami(&mut wire).await;
    let listener = &who["listeners"][0];
    assert_eq!(listener["address"], relay.address.to_string());
    assert_eq!(
        (&listener["protocols"], &listener["tls"]),
        (&serde_json::json!(["h2", "http/1.1", "relay/1"]), &true.into())
    );
    assert_eq!(relay.clients.connections(), 1, "of the client protocol");
    assert_eq!(relay.ingress.connections(), (4, 0), "of all protocols");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_on_a_connection_that_agreed_on_the_client_protocol_is_told_so_in_one_line() {
    let files = Files::new();
    let relay = plain(&files).await;
    for request in [&b"GET /v1/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = connect(relay.address, &files.client(&["relay/1"], None)).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
        let line = text.split_once("\r\n\r\n").unwrap().1;
        assert!(
            line.starts_with("this connection agreed on relay/1 (ALPN) and speaks HTTP") && line.lines().count() == 1,
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_on_a_connection_that_agreed_on_http_or_on_nothing_are_a_bad_request() {
    let files = Files::new();
    let relay = plain(&files).await;
    let mut frame = BytesMut::new();
    FromClient::Hello(hello()).encode(&mut frame);
    for offered in [&["http/1.1"][..], &["h2"], &[]] {
        let mut stream = connect(relay.address, &files.client(offered, None)).await.unwrap();
        stream.write_all(&frame).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 400 "), "{offered:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_after_its_handshake_is_told_that_no_hello_came() {
    let files = Files::new();
    let mut setup = Setup::default();
    setup.limits.first_request = Duration::from_secs(2);
    let relay = secured(&files, ClientAuth::Off, setup).await;
    let mut silent = wire(&relay, &files, None).await;
    assert_eq!(&*silent.ended().await.slug, "request-timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_hello_is_told_of_the_worker_listener() {
    let files = Files::new();
    let relay = plain(&files).await;
    let mut frame = BytesMut::new();
    FromWorker::Hello(WorkerHello { key: None, ..worker_hello() }).encode(&mut frame);
    let mut wire = wire(&relay, &files, None).await;
    wire.write(&frame).await;
    let error = wire.ended().await;
    assert_eq!((&*error.kind, &*error.slug), ("invalid", "malformed-request"));
    assert!(
        error.detail.contains("workers connect to the worker listener, that of --worker-listen"),
        "{}",
        error.detail
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_has_clients_of_each_protocol_go_and_answers_what_is_open() {
    let files = Files::new();
    let mut relay = plain(&files).await;
    let mut wire = welcomed(&relay, &files).await;
    let job = wire.submit(1, mail("x")).await.job;
    wire.ask(2, Request::Wait { job, wait: LONG }).await;
    // The wait is begun before this is answered.
    assert!(whoami(&mut wire).await.is_object());
    let mut idle = welcomed(&relay, &files).await;
    relay.ingress.leave(Duration::from_millis(100)).await;
    for wire in [&mut wire, &mut idle] {
        match wire.next().await.unwrap() {
            ToClient::GoAway { reason, .. } => assert_eq!(reason, "draining"),
            other => panic!("{other:?}"),
        }
    }
    let other = idle.submit(3, mail("y")).await;
    assert!(!other.replayed, "until the end of the delay everything goes on");
    relay.shutdown.cancel();
    assert!(idle.next().await.is_none(), "nothing is open");
    assert!(matches!(wire.next().await, Some(ToClient::Job { id: 2, .. })), "a wait is answered early");
    assert!(wire.next().await.is_none());
    relay.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_hello_holds_a_place_of_strangers_and_makes_room_for_newer_ones() {
    let files = Files::new();
    let mut setup = Setup::default();
    setup.limits.unproven = 2;
    let relay = secured(&files, ClientAuth::Off, setup).await;
    let mut known = welcomed(&relay, &files).await;
    let mut silent = [wire(&relay, &files, None).await, wire(&relay, &files, None).await];
    assert_eq!(relay.ingress.connections(), (1, 2));
    let mut newer = connect(relay.address, &files.client(&["http/1.1"], None)).await.unwrap();
    assert!(ask(&mut newer, "/v1/whoami").await.unwrap().starts_with("HTTP/1.1 200 "));
    assert!(silent[0].is_over().await, "the oldest made room");
    silent[1].welcomed(&hello()).await;
    assert!(whoami(&mut known).await.is_object());
}

/// A header of a balancer for a client at 10.1.1.`last`, through the endpoint that ends in `endpoint`.
fn header(last: u8, endpoint: u8) -> Vec<u8> {
    let mut block = vec![10, 1, 1, last, 10, 0, 0, 2, 0x80, 0, 0, 80, 0xEA, 0, 14, 1];
    block.extend(format!("vpce-0000000{endpoint}").bytes());
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length[..], &block].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_its_bounds_whichever_port_and_protocol_it_comes_by() {
    let files = Files::new();
    let behind = || Some(Proxy::new(vec!["127.0.0.1".parse().unwrap()]));
    let mut setup = Setup::default();
    setup.front.proxy = behind();
    setup.limits.source_unproven = 1;
    setup.limits.endpoint_connections = 2;
    let relay = secured(&files, ClientAuth::Off, setup).await;
    let front = Front { proxy: behind(), tls: None };
    let door = Door::behind(&relay, front, ClientLimits::default(), LONG).await;
    let config = files.client(&["relay/1"], None);
    let beside_http = async |last, endpoint| {
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(&header(last, endpoint)).await.unwrap();
        over(stream, &config).await.ok().map(Wire::over)
    };
    let alone = async |last, endpoint| {
        let mut stream = TcpStream::connect(door.address).await.unwrap();
        stream.write_all(&header(last, endpoint)).await.unwrap();
        Wire::over(stream)
    };
    let count = |outcome| relay.ingress.proxy_headers().count(outcome);
    let mut first = beside_http(1, 1).await.unwrap();
    assert!(alone(1, 1).await.is_over().await, "its source has a stranger");
    assert_eq!(count(HeaderOutcome::SourceFull), 1);
    first.welcomed(&hello()).await;
    assert_eq!(whoami(&mut first).await["source"], "10.1.1.1");
    let mut second = alone(1, 1).await;
    second.welcomed(&hello()).await;
    assert!(beside_http(2, 1).await.is_none(), "its endpoint has two connections");
    assert!(alone(2, 1).await.is_over().await);
    assert_eq!(count(HeaderOutcome::EndpointFull), 2);
    let mut other = alone(1, 2).await;
    other.welcomed(&hello()).await;
    drop(second);
    // Its place is free once the server has seen its end.
    loop {
        let mut again = alone(1, 1).await;
        if again.try_welcomed(&hello()).await {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_client_makes_its_calls_over_the_port_of_https() {
    let files = Files::new();
    let relay = plain(&files).await;
    let tls = ClientTls { ca: Some(files.write("ca.pem", files.server.pem())), identity: None };
    for scheme in ["relays", "https"] {
        let client = Client::with_tls(&format!("{scheme}://localhost:{}", relay.address.port()), None, &tls).unwrap();
        assert_eq!(client.whoami().await.unwrap().listeners[0].protocols.len(), 3);
        let job = NewJob::new("mail".parse().unwrap(), scheme);
        let (ran, _) = tokio::join!(client.run(&job, LONG), relay.work("text/plain", "done"));
        let Submitted::Finished(result) = ran.unwrap() else { panic!("no result") };
        assert_eq!((result.outcome, &*result.payload), (Outcome::Succeeded, &b"done"[..]));
    }
    assert!(relay.clients.connections() <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_names_the_same_client_over_each_protocol() {
    let (files, a, authenticator) = Files::of_batch();
    let relay = secured(&files, ClientAuth::Required, Setup { authenticator, ..Setup::default() }).await;
    let (batch, other) = (a.signs(&["spiffe://a.example/batch"], 1), a.signs(&["spiffe://a.example/other"], 2));
    let mut seen = Vec::new();
    for (client, version) in over_http(&files, Some(&batch)) {
        let answer = client.get(url(&relay, "/v1/whoami")).send().await.unwrap();
        assert_eq!(answer.version(), version);
        seen.push(serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap());
    }
    let mut over_tcp = wire(&relay, &files, Some(&batch)).await;
    let said = over_tcp.welcomed(&Hello { client: None, ..hello() }).await;
    assert_eq!(said.client.as_str(), "batch");
    seen.push(whoami(&mut over_tcp).await);
    for who in &seen {
        assert_eq!((&who["client"], &who["factors"]), (&"batch".into(), &seen[0]["factors"]));
    }
    let mut refused = wire(&relay, &files, Some(&other)).await;
    refused.send(&FromClient::Hello(hello())).await;
    assert_eq!(&*refused.ended().await.slug, "forbidden");
    let (client, _) = &over_http(&files, Some(&other))[0];
    assert_eq!(client.get(url(&relay, "/v1/whoami")).send().await.unwrap().status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_places_are_taken_an_idle_session_makes_room_and_one_that_waits_does_not() {
    let files = Files::new();
    let mut setup = Setup::default();
    setup.limits.connections = 2;
    let relay = secured(&files, ClientAuth::Off, setup).await;
    let mut waiting = welcomed(&relay, &files).await;
    let job = waiting.submit(1, mail("x")).await.job;
    waiting.ask(2, Request::Wait { job, wait: LONG }).await;
    let mut idle = welcomed(&relay, &files).await;
    let mut newer = welcomed(&relay, &files).await;
    assert!(idle.next().await.is_none(), "it ends without a loss");
    assert!(whoami(&mut newer).await.is_object());
    relay.work("text/plain", "y").await;
    waiting.result(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_its_certificate_is_revoked() {
    let a = Authority::new("a");
    let mut files = Files::new();
    files.trust(&a, &["spiffe://a.example/*"], Some(&a.revokes(&[], 2096)));
    let tls = Tls::open(files.files.clone()).unwrap();
    let mut setup = Setup::default();
    setup.front.tls = Some(Secured::clients(Arc::clone(&tls), ClientAuth::Required));
    let relay = setup.start().await;
    let mut of = [7, 8].map(|serial| a.signs(&["spiffe://a.example/x"], serial)).into_iter();
    let mut revoked = wire(&relay, &files, of.next().as_ref()).await;
    let mut good = wire(&relay, &files, of.next().as_ref()).await;
    for wire in [&mut revoked, &mut good] {
        wire.welcomed(&hello()).await;
    }
    files.write("crl-0.pem", &a.revokes(&[7], 2096));
    tls.reload().unwrap();
    let error = revoked.ended().await;
    assert_eq!((&*error.kind, &*error.slug), ("unauthorized", "unauthenticated"));
    assert!(whoami(&mut good).await.is_object());
}
