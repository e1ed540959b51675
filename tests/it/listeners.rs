//! Several listeners of one server, each with a way in of its own, from outside.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use relay_bridge::contract::wire::{FRAME_MAX, FromServer, FromWorker, Hello as WorkerHello};
use relay_remote::stream::FrameReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cli_support::{Running, relay as command};
use crate::tls_support::{Authority, Files, ask, connect, over};
use crate::worker_protocol::hello as worker_hello;

const WHOAMI: &str = "/v1/whoami";
/// A header of a balancer: a client at 10.1.1.1, through an endpoint.
const HEADER: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20\x0a\x01\x01\x01\x0a\0\0\x02\x80\0\0\x50\xea\0\x11\x01vpce-0a1b2c3d4e5";

/// The address of a listener, as the server said it when it was ready.
pub(crate) fn address(relay: &Running, name: &str) -> SocketAddr {
    relay.ready["listening"]["listeners"][name]["address"].as_str().unwrap_or_else(|| panic!("{name}")).parse().unwrap()
}

/// A server whose file has these tables.
pub(crate) fn serving(files: &Files, tables: &str) -> Running {
    let (cert, key) = (files.files.certificate.display(), files.files.key.display());
    let text = format!(
        "[store]\nmemory = true\n[access]\nno_auth = true\n[listen]\ntls_cert = \"{cert}\"\ntls_key = \"{key}\"\n{tables}"
    );
    let file = files.write("relay.toml", &text);
    Running::start(["serve", "--json", "--config", file.to_str().unwrap()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_behind_a_balancer_stands_beside_one_for_the_cluster_and_one_for_workers() {
    let (files, authority) = (Files::new(), Authority::new("a"));
    let ca = files.write("clients.pem", authority.pem());
    let tables = format!(
        "[[client_ca]]\nfile = \"{}\"\nnames = [\"spiffe://a.example/*\"]\n\
         [[listener]]\nname = \"nlb\"\naddress = \"127.0.0.1:0\"\nproxy = \"required\"\ntrusted = [\"127.0.0.1\"]\ntls = \"on\"\n\
         client_auth = \"optional\"\n\
         [[listener]]\nname = \"cluster\"\naddress = \"127.0.0.1:0\"\ntls = \"on\"\n\
         [[listener]]\nname = \"gpus\"\nprotocol = \"worker\"\naddress = \"127.0.0.1:0\"\ntls = \"on\"\n\
         [[listener]]\nname = \"here\"\naddress = \"127.0.0.1:0\"\n",
        ca.display()
    );
    let mut relay = serving(&files, &tables);
    let [nlb, cluster, gpus, here] = ["nlb", "cluster", "gpus", "here"].map(|name| address(&relay, name));
    for said in [
        format!("relay listens on https://{nlb}, behind a PROXY header, with a certificate or without"),
        format!("clients connect to relays://{nlb} as well, behind a PROXY header, with a certificate or without"),
        format!("relay listens on https://{cluster}"),
        format!("clients connect to relays://{cluster} as well"),
        format!("workers connect to tls://{gpus}"),
        format!("relay listens on http://{here}"),
    ] {
        relay.wait_for_line(&said);
    }
    assert_eq!(relay.ready["listening"]["http"], nlb.to_string(), "the first one for clients");
    let spoken = |name: &str| relay.ready["listening"]["listeners"][name]["protocols"].to_string();
    assert_eq!(spoken("cluster"), r#"["h2","http/1.1","relay/1"]"#);
    assert_eq!((&*spoken("here"), &*spoken("gpus")), (r#"["h2","http/1.1"]"#, r#"["relay/1"]"#));

    let client = files.client(&["http/1.1"], None);
    let mut balanced = TcpStream::connect(nlb).await.unwrap();
    balanced.write_all(HEADER).await.unwrap();
    let text = ask(&mut over(balanced, &client).await.unwrap(), WHOAMI).await.unwrap();
    assert!(text.contains("vpce-0a1b2c3d4e5"), "{text}");
    assert!(connect(nlb, &client).await.is_err(), "without the header");

    let text = ask(&mut connect(cluster, &client).await.unwrap(), WHOAMI).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && !text.contains("vpce-"), "{text}");
    let mut with_header = TcpStream::connect(cluster).await.unwrap();
    with_header.write_all(HEADER).await.unwrap();
    assert!(over(with_header, &client).await.is_err(), "a header is no handshake there");

    let mut worker = connect(gpus, &files.client(&["relay/1"], None)).await.unwrap();
    let mut hello = BytesMut::new();
    FromWorker::Hello(WorkerHello { key: None, ..worker_hello() }).encode(&mut hello);
    worker.write_all(&hello).await.unwrap();
    let welcome = FrameReader::new(&mut worker, FRAME_MAX).next().await.unwrap().unwrap();
    assert!(matches!(FromServer::decode(&welcome), Ok(FromServer::Welcome(_))));
    assert!(connect(gpus, &client).await.is_err(), "HTTP is not spoken there");

    let mut plain = TcpStream::connect(here).await.unwrap();
    plain.write_all(b"GET /v1/whoami HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    plain.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    drop(worker);
    relay.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_given_beside_the_listeners_of_a_file_is_one_more() {
    let files = Files::new();
    let tables = "http = \"127.0.0.1:0\"\n[[listener]]\nname = \"cluster\"\naddress = \"127.0.0.1:0\"\ntls = \"on\"\n";
    let relay = serving(&files, tables);
    for name in ["http", "cluster"] {
        let mut stream = connect(address(&relay, name), &files.client(&["http/1.1"], None)).await.unwrap();
        assert!(ask(&mut stream, WHOAMI).await.unwrap().starts_with("HTTP/1.1 200 "), "{name}");
    }
    relay.stop();
}

#[test]
fn a_health_check_may_begin_with_a_header_that_means_nothing_where_that_is_asked_for() {
    use std::io::{Read as _, Write as _};
    let asked = |relay: &Running, header: &[u8]| {
        let mut check = std::net::TcpStream::connect(relay.ready["listening"]["health"].as_str().unwrap()).unwrap();
        check.write_all(&[header, b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"].concat()).unwrap();
        let mut text = String::new();
        // Bytes that come after the end are answered by a reset.
        check.read_to_string(&mut text).ok();
        text
    };
    let args = ["serve", "--json", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--health", "127.0.0.1:0"];
    let relay = Running::start(args.iter().chain(&["--health-proxy", "accept"]));
    for header in [&b""[..], HEADER] {
        assert!(asked(&relay, header).starts_with("HTTP/1.1 200 "), "{header:?}");
    }
    assert_eq!(asked(&relay, b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0"), "", "another version");
    relay.stop();
    let relay = Running::start(args);
    assert!(!asked(&relay, HEADER).starts_with("HTTP/1.1 200 "), "nobody asked for it");
    relay.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_says_that_a_peer_speaks_tls_to_a_port_without_it_and_the_reverse() {
    let files = Files::new();
    let args =
        ["serve", "--json", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"];
    for (which, offered) in [("http", "http/1.1"), ("workers", "relay/1")] {
        let mut relay = Running::start(args);
        assert!(connect(address(&relay, which), &files.client(&[offered], None)).await.is_err());
        relay.wait_for_line("a peer speaks TLS, and this port does not");
        relay.stop();
    }
    let mut relay = serving(&files, "http = \"127.0.0.1:0\"\nworkers = \"127.0.0.1:0\"\nworker_tls = \"on\"\n");
    for (which, sent, told) in [
        ("http", &b"GET / HTTP/1.1\r\n\r\n"[..], true),
        ("workers", b"POST / HTTP/1.1\r\n\r\n", true),
        ("workers", b"\0\0\0\x05hello", false),
    ] {
        let mut plain = TcpStream::connect(address(&relay, which)).await.unwrap();
        plain.write_all(sent).await.unwrap();
        let mut text = Vec::new();
        // Bytes that nobody read are answered by a reset.
        plain.read_to_end(&mut text).await.ok();
        assert_eq!(text.starts_with(b"HTTP/1.1 400 "), told, "{which}: {text:?}");
    }
    relay.wait_for_line("the peer does not speak TLS, and this port does");
    relay.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_within_a_week_is_warned_of_and_shown_with_its_time() {
    let mut files = Files::new();
    let soon = files.server.signs_for(&["localhost"], 1, Some(Duration::from_secs(3 * 24 * 3_600 + 60)));
    fs::write(&files.files.certificate, soon.certificate).unwrap();
    fs::write(&files.files.key, soon.key).unwrap();
    let authority = Authority::new("a");
    files.trust(&authority, &["spiffe://a.example/*"], Some(&authority.revokes(&[], 2096)));
    let of = &files.files.authorities[0];
    let tables = format!(
        "http = \"127.0.0.1:0\"\nclient_auth = \"optional\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[[client_ca]]\nfile = \"{}\"\n\
         names = [\"spiffe://a.example/*\"]\ncrl = \"{}\"\n",
        of.file.display(),
        of.crl.as_ref().unwrap().display()
    );
    let mut relay = serving(&files, &tables);
    let warned = relay.wait_for_line("the server's certificate expires");
    assert!(warned.contains("days=3"), "{warned}");
    let admin = relay.ready["listening"]["admin"].as_str().unwrap();
    let text = reqwest::get(format!("http://{admin}/metrics")).await.unwrap().text().await.unwrap();
    let shown: Vec<_> = text.lines().filter(|line| line.starts_with("relay_tls_expiry_timestamp_seconds{")).collect();
    assert_eq!(shown.len(), 3, "{shown:?}");
    // The end of the list: the beginning of 2096-12-31.
    assert!(shown.iter().any(|line| line.contains("kind=\"crl\"") && line.ends_with(" 4007750400")), "{shown:?}");
    relay.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_for_clients_over_tcp_has_tls_and_the_header_of_a_balancer() {
    use relay_bridge::contract::wire::client::{FromClient, Hello, Request, ToClient};
    let files = Files::new();
    let tables = "http = \"127.0.0.1:0\"\n[[listener]]\nname = \"fast\"\nprotocol = \"relay\"\naddress = \"127.0.0.1:0\"\n\
                  tls = \"on\"\nproxy = \"required\"\ntrusted = [\"127.0.0.1\"]\n";
    let mut relay = serving(&files, tables);
    let fast = address(&relay, "fast");
    relay.wait_for_line(&format!("clients connect to relays://{fast}, behind a PROXY header"));
    assert_eq!(relay.ready["listening"]["tcp"], fast.to_string());
    let client = files.client(&["relay/1"], None);
    assert!(connect(fast, &client).await.is_err(), "without the header");
    let mut balanced = TcpStream::connect(fast).await.unwrap();
    balanced.write_all(HEADER).await.unwrap();
    let mut stream = over(balanced, &client).await.unwrap();
    let mut sent = BytesMut::new();
    let (client, key, build) = (Some("acme".parse().unwrap()), None, String::new());
    FromClient::Hello(Hello { version_min: 1, version_max: 1, client, key, build, frame_max: FRAME_MAX })
        .encode(&mut sent);
    FromClient::Request { id: 1, request: Request::Whoami }.encode(&mut sent);
    stream.write_all(&sent).await.unwrap();
    let mut from = FrameReader::new(stream, FRAME_MAX);
    let mut next = async || ToClient::decode(&from.next().await.unwrap().unwrap()).unwrap();
    assert!(matches!(next().await, ToClient::Welcome(welcome) if welcome.client.as_str() == "acme"));
    let ToClient::Whoami { document, .. } = next().await else { panic!("not whoami") };
    let who: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&who["vpc_endpoint_id"], &who["source"]), (&"vpce-0a1b2c3d4e5".into(), &"10.1.1.1".into()));
    relay.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_submits_and_reads_over_tcp_with_tls_as_over_https() {
    let files = Files::new();
    let ca = files.write("ca.pem", files.server.pem());
    let tables = "http = \"127.0.0.1:0\"\n[[queue]]\nname = \"mail\"\n";
    let server = serving(&files, tables);
    let url = format!("relays://localhost:{}", address(&server, "http").port());
    let run = |args: &[&str]| {
        let all = args.iter().copied().chain(["--server", &url, "--ca", ca.to_str().unwrap()]);
        let output = command(all).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout).trim().to_owned(), text(output.stderr))
    };
    let payload = files.write("job", "hello");
    let (code, job, told) = run(&["submit", "--queue", "mail", payload.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{told}");
    let (code, shown, told) = run(&["whoami"]);
    assert!(code == Some(0) && shown.contains("dev"), "{shown}{told}");
    assert!(shown.contains("(TLS with h2, http/1.1, relay/1)"), "{shown}");
    assert_eq!(run(&["result", &job]).0, Some(75), "it has no result yet");
    assert_eq!(run(&["jobs", "cancel", &job]).0, Some(0));
    let (code, results, told) = run(&["results"]);
    assert!(code == Some(0) && results.contains(&job) && results.contains("cancelled"), "{results}{told}");
    let (code, _, told) = run(&["jobs", "list"]);
    assert_eq!(code, Some(2));
    assert!(told.contains("no call for this: jobs") && told.contains("https://"), "{told}");
    let plain = command(["whoami", "--server", &url]).output().unwrap();
    assert!(!plain.status.success(), "nobody trusts the server's authority without --ca");
    server.stop();
}
