//! `relay serve --clients` from outside: it starts without an issuer, says every mistake, and names an endpoint that is new.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use relay_bridge::clock::Clock;
use serde_json::json;

use crate::cli_support::{Running, code, run, stderr, stdout};

const CLIENTS: &str = r#"
[[client]]
name = "batch"
any = [[{ jwt = { issuer = "https://issuer.example", subject = "submitter" } }], ["nats"]]

[[client]]
name = "globex"
any = [["key", { vpce = ["vpce-0a1b2c3d"] }]]

[[issuer]]
url = "https://issuer.example"
audience = "relay"
algorithms = ["ES256"]
"#;

/// A folder with `clients.toml`, whose issuer's keys are where `keys` says.
fn folder(keys: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let set = json!({ "keys": [Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()] });
    fs::write(dir.path().join("jwks.json"), set.to_string()).unwrap();
    fs::write(dir.path().join("clients.toml"), format!("{CLIENTS}{keys}\n")).unwrap();
    let now = Clock::system().now().as_millis() / 1_000;
    let claims =
        json!({ "iss": "https://issuer.example", "sub": "submitter", "aud": "relay", "iat": now, "exp": now + 600 });
    let token = encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap();
    (dir, token)
}

fn serve(dir: &Path, more: &[&str]) -> Running {
    let clients = dir.join("clients.toml");
    let args = ["serve", "--memory", "--json", "--listen", "127.0.0.1:0", "--clients", clients.to_str().unwrap()];
    Running::start(args.iter().chain(more))
}

/// The answer to `GET /v1/whoami` with `bearer`, behind the bytes in `first`.
fn ask(server: &Running, first: &[u8], bearer: &str) -> String {
    let mut peer = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    let head = format!(
        "GET /v1/whoami HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {bearer}\r\n\r\n"
    );
    peer.write_all(&[first, head.as_bytes()].concat()).unwrap();
    let mut text = String::new();
    peer.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn whoami_of_the_command_line_shows_the_token_that_it_was_given_as_a_key() {
    let (dir, token) = folder("file = \"jwks.json\"");
    let server = serve(dir.path(), &[]);
    let who = run(["whoami", "--server", &server.url(), "--api-key", &token]);
    assert_eq!(code(&who), 0, "{}", stderr(&who));
    for line in ["batch", "token https://issuer.example submitter", "127.0.0.1"] {
        assert!(stdout(&who).contains(line), "{}", stdout(&who));
    }
    server.stop();
}

#[test]
fn a_server_starts_without_its_issuer_and_answers_its_tokens_503_and_others_as_ever() {
    let (dir, token) = folder("jwks_url = \"https://127.0.0.1:9/keys\"");
    let keys = dir.path().join("keys.toml");
    let made = run(["keys", "new", "shop", "--file", keys.to_str().unwrap()]);
    let mut server = serve(dir.path(), &["--keys", keys.to_str().unwrap()]);
    server.wait_for_line("can't be fetched");
    let answer = ask(&server, b"", &token);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"slug\":\"issuer-unavailable\""), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("retry-after: 60"), "{answer}");
    let answer = ask(&server, b"", stdout(&made).trim());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop();
}

#[test]
fn an_endpoint_that_is_not_in_a_clients_list_is_in_the_log_with_what_to_add() {
    let (dir, _) = folder("file = \"jwks.json\"");
    let keys = dir.path().join("keys.toml");
    let made = run(["keys", "new", "globex", "--file", keys.to_str().unwrap()]);
    let proxy = ["--keys", keys.to_str().unwrap(), "--proxy", "required", "--proxy-trusted", "127.0.0.1"];
    let mut server = serve(dir.path(), &proxy);
    let through = |endpoint: &str| {
        let mut block = vec![10, 1, 1, 1, 10, 0, 0, 2, 0x80, 0, 0, 80, 0xEA, 0];
        block.extend([u8::try_from(endpoint.len() + 1).unwrap(), 1]);
        block.extend(endpoint.as_bytes());
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length[..], &block].concat()
    };
    let key = stdout(&made).trim().to_owned();
    assert!(ask(&server, &through("vpce-0a1b2c3d"), &key).starts_with("HTTP/1.1 200"));
    assert!(ask(&server, &through("vpce-0f0e0d0c"), &key).starts_with("HTTP/1.1 403"));
    let line = server.wait_for_line("not in its list");
    for part in ["globex", "endpoint=\"vpce-0f0e0d0c\"", "vpce = [\\\"vpce-0f0e0d0c\\\"]"] {
        assert!(line.contains(part) || line.contains(&part.replace('\\', "")), "{part}: {line}");
    }
    assert!(!line.contains(&key[20..40]), "{line}");
    server.stop();
}

#[test]
fn a_file_with_three_mistakes_is_refused_with_all_of_them_and_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clients.toml");
    let text = "[[client]]\nname = \"acme\"\nany = [[{ vpce = [\"vpce-0a1b2c3d\"] }]]\n[[client]]\nname = \"Shop\"\nany = \
                [[\"key\"]]\nqueue = [\"mail\"]\n";
    fs::write(&file, text).unwrap();
    let refused = run(["serve", "--memory", "--clients", file.to_str().unwrap()]);
    assert_eq!(code(&refused), 2);
    let told = stderr(&refused);
    for part in
        ["3 mistakes", "clients.toml:3: a VPC endpoint alone", "clients.toml:5: `Shop`", "clients.toml:7: client has"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn nobody_is_asked_for_credentials_and_for_factors_at_once() {
    let refused = run(["serve", "--memory", "--clients", "clients.toml", "--no-auth"]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("--no-auth"), "{}", stderr(&refused));
}
