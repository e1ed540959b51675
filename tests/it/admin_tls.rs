//! The admin port over TLS, and its refusal in clear text where others can reach it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cli_support::{Running, code, relay, run, stderr};
use crate::tls_support::{Files, ask, connect};

const SERVE: [&str; 7] = ["serve", "--json", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--admin"];

fn shown(files: &Files) -> [&str; 4] {
    let [certificate, key] = [&files.files.certificate, &files.files.key].map(|file| file.to_str().unwrap());
    ["--tls-cert", certificate, "--tls-key", key]
}

fn admin(address: &Value) -> SocketAddr {
    address["admin"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_come_over_tls_with_either_http_and_clear_text_is_told_so() {
    let files = Files::new();
    let authority = files.write("ca.pem", files.server.pem());
    let mut relay = Running::start(SERVE.iter().chain(&["127.0.0.1:0", "--admin-tls", "on"]).chain(&shown(&files)));
    let address = admin(&relay.ready["listening"]);
    for protocols in [&["http/1.1"][..], &[]] {
        let mut stream = connect(address, &files.client(protocols, None)).await.unwrap();
        for path in ["/livez", "/metrics"] {
            let answer = ask(&mut stream, path).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{protocols:?} {path}: {answer}");
        }
    }
    assert!(connect(address, &files.client(&["relay/1"], None)).await.is_err(), "no common protocol");

    let root = reqwest::Certificate::from_pem(files.server.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([root]).resolve("localhost", address).build().unwrap();
    for path in ["/readyz", "/metrics", "/v1/queues"] {
        let url = format!("https://localhost:{}{path}", address.port());
        let (first, second) = tokio::join!(client.get(&url).send(), client.get(&url).send());
        for answer in [first.unwrap(), second.unwrap()] {
            assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2), "{path}");
        }
    }

    let server = format!("https://localhost:{}", address.port());
    let asked = run(["queues", "list", "--admin-server", &server, "--ca", authority.to_str().unwrap()]);
    assert_eq!(code(&asked), 0, "{}", stderr(&asked));
    let untrusted = run(["queues", "list", "--admin-server", &server]);
    assert_ne!(code(&untrusted), 0, "its authority is not the system's");
    assert!(stderr(&untrusted).contains("with --ca"), "{}", stderr(&untrusted));

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut told = String::new();
    plain.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("https://"), "{told}");
    relay.wait_for_line("TLS handshakes failed: the last is named");
    relay.stop();
}

#[test]
fn a_port_that_others_can_reach_is_refused_in_clear_text_unless_tls_ends_in_front_and_health_checks_are_not() {
    let files = Files::new();
    let token = files.write("token", "0123456789abcdef");
    let open = |more: &[&str]| {
        let token = ["0.0.0.0:0", "--admin-token-file", token.to_str().unwrap()];
        SERVE.iter().chain(&token).chain(more).map(|text| (*text).to_owned()).collect::<Vec<_>>()
    };
    let refused = run(open(&[]));
    assert_eq!(code(&refused), 2);
    let said = stderr(&refused);
    assert!(said.contains("clear text") && said.contains("--admin-tls terminated-in-front"), "{said}");
    let refused = run(open(&["--admin-tls", "on"]));
    assert!(code(&refused) == 2 && stderr(&refused).contains("there is no certificate"), "{}", stderr(&refused));
    let secured = ["--admin-tls", "on"].into_iter().chain(shown(&files)).collect::<Vec<_>>();
    for more in [
        &["--admin-tls", "terminated-in-front"][..],
        &secured,
        &["--health", "0.0.0.0:0", "--admin-tls", "terminated-in-front"],
    ] {
        Running::start(open(more)).stop();
    }
    // Workers have one of the same kind.
    let worker = ["worker", "--connect", "127.0.0.1:1", "--admin", "0.0.0.0:0", "--", "cat"];
    let refused = relay(worker).env("RELAY_ADMIN_TOKEN", "0123456789abcdef").output().unwrap();
    assert!(code(&refused) == 2 && stderr(&refused).contains("clear text"), "{}", stderr(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_shows_a_new_certificate_at_its_admin_port_once_the_file_changed() {
    let files = Files::new();
    let server = Running::start([
        "serve",
        "--json",
        "--memory",
        "--no-auth",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "127.0.0.1:0",
    ]);
    let workers = server.ready["listening"]["workers"].as_str().unwrap();
    let args = ["worker", "--json", "--connect", workers, "--admin", "127.0.0.1:0", "--admin-tls", "on"];
    let mut worker = Running::start(args.iter().chain(&shown(&files)).chain(&["--", "cat"]));
    let (address, client) = (admin(&worker.ready["worker"]), files.client(&["http/1.1"], None));
    let shown = async || {
        let stream = connect(address, &client).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = shown().await;
    files.renew();
    worker.wait_for_line("files were read again");
    let changed = async {
        while shown().await == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap();
    worker.stop();
    server.stop();
}
