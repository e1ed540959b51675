//! Workers in other networks: the worker listener over TLS, with workers of this build and of another language, from outside.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use relay_bridge::clock::Clock;
use serde_json::json;

use crate::cli_support::{Running, code, relay, run, run_with, stderr, stdout};
use crate::tls_support::{Authority, Files, Identity};

/// A server with a key file, an identity file if there is one, and TLS for workers, who show certificates of `authority`.
struct Cluster {
    files: Files,
    server: Running,
    /// Of a client, and of a worker.
    keys: [String; 2],
}

impl Cluster {
    fn start(more: &str) -> Self {
        Self::with(Files::new(), more, &[])
    }

    fn with(files: Files, more: &str, flags: &[&str]) -> Self {
        let keys = files.write("keys.toml", "");
        let key = |name: &str, role: &str| {
            let output = run(["keys", "new", name, "--role", role, "--file", keys.to_str().unwrap()]);
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            stdout(&output).trim().to_owned()
        };
        let keys = [key("shop", "client"), key("gpus", "worker")];
        let (cert, tls_key) = (files.files.certificate.display(), files.files.key.display());
        let text = format!(
            "[store]\nmemory = true\n[access]\nkeys = \"keys.toml\"\n{more}\n[listen]\nhttp = \"127.0.0.1:0\"\n\
             workers = \"127.0.0.1:0\"\nworker_tls = \"on\"\ntls_cert = \"{cert}\"\ntls_key = \"{tls_key}\"\n\
             [[queue]]\nname = \"work\"\n"
        );
        let file = files.write("relay.toml", &text);
        files.write("ca.pem", files.server.pem());
        let args = ["serve", "--json", "--config", file.to_str().unwrap()];
        let server = Running::start(args.iter().chain(flags));
        Self { files, server, keys }
    }

    fn path(&self, name: &str) -> String {
        self.files.files.certificate.with_file_name(name).to_str().unwrap().to_owned()
    }

    /// The address of a listener, by the name that the certificate is good for.
    fn address(&self, which: &str) -> String {
        let address: SocketAddr = self.server.ready["listening"][which].as_str().unwrap().parse().unwrap();
        format!("localhost:{}", address.port())
    }

    /// Submits `text` and waits for its result.
    fn submit(&self, text: &str) -> String {
        let (server, ca) = (format!("https://{}", self.address("http")), self.path("ca.pem"));
        let key = &self.keys[0];
        let args = ["submit", "--wait", "--queue", "work", "--server", &server, "--ca", &ca, "--api-key", key];
        let output = run_with(args, text.as_bytes());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stdout(&output).to_owned()
    }

    fn identity(&self, identity: &Identity) -> [String; 2] {
        self.files.write("own.pem", &identity.certificate);
        self.files.write("own.key", &identity.key);
        ["own.pem", "own.key"].map(|name| self.path(name))
    }

    /// A worker of this build, not started.
    fn worker(&self, more: &[&str]) -> Command {
        let (address, ca) = (format!("tls://{}", self.address("workers")), self.path("ca.pem"));
        let args = ["worker", "--json", "--queue", "work", "--connect", &address, "--ca", &ca];
        relay(args.iter().chain(more).chain(&["--", "tr", "a-z", "A-Z"]))
    }
}

/// A worker that is written in Python, until it is dropped.
struct Python(Child);

impl Python {
    /// Starts it, and waits until it is connected.
    fn start(cluster: &Cluster, more: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("workers/examples/worker.py");
        let (address, ca) = (cluster.address("workers"), cluster.path("ca.pem"));
        let mut child = Command::new("python3")
            .arg(script)
            .args([address.as_str(), "work", "--tls", "--ca", &ca])
            .args(more)
            .args(["--", "tr", "a-z", "A-Z"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "connected\n");
        Self(child)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_worker_and_a_client_of_this_build_come_over_tls_and_trust_the_authority_that_they_are_told() {
    let cluster = Cluster::start("");
    let worker = Running::start_command(cluster.worker(&["--key", &cluster.keys[1]]));
    assert_eq!(cluster.submit("over tls"), "OVER TLS");
    worker.stop();

    // The platform's own authorities did not sign it.
    let server = format!("https://{}", cluster.address("http"));
    let output = run(["whoami", "--server", &server, "--api-key", &cluster.keys[0]]);
    assert_eq!(code(&output), 69, "{}", stderr(&output));
    let output = cluster.worker(&["--key", "none"]).output().unwrap();
    assert_eq!(code(&output), 2, "a wrong key: {}", stderr(&output));
    let other = cluster.files.write("other.pem", Authority::new("other").pem());
    let output = cluster.worker(&["--key", &cluster.keys[1], "--ca", other.to_str().unwrap()]).output().unwrap();
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    cluster.server.stop();
}

#[test]
fn a_worker_is_let_in_by_its_certificate_alone_and_another_one_or_none_is_refused() {
    let (mut files, authority) = (Files::new(), Authority::new("a"));
    files.trust(&authority, &["spiffe://a.example/*"], None);
    files.write(
        "clients.toml",
        "[[worker]]\nname = \"gpu\"\nany = [[{ mtls = \"spiffe://a.example/gpu\" }]]\nqueues = [\"work\"]\n",
    );
    let ca = files.files.authorities[0].file.display().to_string();
    let more =
        format!("clients = \"clients.toml\"\n[[client_ca]]\nfile = \"{ca}\"\nnames = [\"spiffe://a.example/*\"]");
    let cluster = Cluster::with(files, &more, &["--worker-client-auth", "optional"]);
    let [certificate, key] = cluster.identity(&authority.signs(&["spiffe://a.example/gpu"], 1));
    let shown = ["--certificate", &certificate, "--certificate-key", &key];
    let worker = Running::start_command(cluster.worker(&shown));
    assert_eq!(cluster.submit("by certificate"), "BY CERTIFICATE");
    worker.stop();
    let python = Python::start(&cluster, &shown);
    assert_eq!(cluster.submit("again"), "AGAIN");
    drop(python);

    let output = cluster.worker(&[]).output().unwrap();
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    cluster.identity(&authority.signs(&["spiffe://a.example/other"], 2));
    let output = cluster.worker(&shown).output().unwrap();
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    cluster.server.stop();
}

#[test]
fn a_worker_whose_issuer_can_not_be_asked_waits_and_works_once_the_issuers_keys_are_there() {
    const ISSUER: &str = "https://issuer.example";
    let files = Files::new();
    let identity = |keys: &str| {
        format!(
            "[[worker]]\nname = \"gpu\"\nany = [[{{ jwt = {{ issuer = \"{ISSUER}\", subject = \"gpu\" }} }}]]\n[[issuer]]\nurl = \
             \"{ISSUER}\"\naudience = \"relay\"\nalgorithms = [\"ES256\"]\n{keys}\n"
        )
    };
    // Nothing of this machine is asked, so that this one never answers.
    files.write("clients.toml", &identity("jwks_url = \"https://127.0.0.1:1/keys\""));
    let cluster = Cluster::with(files, "clients = \"clients.toml\"", &[]);
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let now = Clock::system().now().as_millis() / 1_000;
    let claims = json!({ "iss": ISSUER, "sub": "gpu", "aud": "relay", "iat": now, "exp": now + 600 });
    let token = encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap();

    let mut worker = cluster.worker(&["--key", &token]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find(|line| line.contains("the keys of issuer"));
    assert!(said.as_ref().is_some_and(|line| line.contains("waiting for it")), "{said:?}");

    let set = json!({ "keys": [Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()] });
    cluster.files.write("jwks.json", &set.to_string());
    cluster.files.write("clients.toml", &identity("file = \"jwks.json\""));
    assert_eq!(cluster.submit("by token"), "BY TOKEN");
    worker.kill().unwrap();
    worker.wait().unwrap();
    cluster.server.stop();
}

#[test]
fn a_worker_in_python_does_jobs_over_tls_with_what_the_protocol_says_alone() {
    let cluster = Cluster::start("");
    let _python = Python::start(&cluster, &["--key", &cluster.keys[1]]);
    for text in ["one", "two", "three"] {
        assert_eq!(cluster.submit(text), text.to_uppercase());
    }
    cluster.server.stop();
}

#[test]
fn a_listener_without_tls_and_one_with_it_are_told_apart_by_a_worker_that_expects_the_other() {
    let cluster = Cluster::start("");
    let address = cluster.address("workers");
    let output =
        relay(["bridge", "--from-tcp", &address, "--from-ca", "ca.pem", "--nats", "nats://127.0.0.1:1"]).output();
    assert_eq!(code(&output.unwrap()), 2, "an authority that nobody is asked about");
    let ca = cluster.path("ca.pem");
    let output = run(["worker", "--connect", "tls://localhost:1", "--certificate", &ca, "--", "cat"]);
    assert_eq!(code(&output), 2, "a certificate without its key: {}", stderr(&output));
    let output = run(["worker", "--connect", &address, "--ca", &ca, "--", "cat"]);
    assert_eq!(code(&output), 2, "an authority without TLS: {}", stderr(&output));
    let plain = Running::start([
        "serve",
        "--memory",
        "--no-auth",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "127.0.0.1:0",
    ]);
    let port = plain.workers().rsplit(':').next().unwrap().to_owned();
    let there = format!("tls://localhost:{port}");
    let output = run(["worker", "--connect", &there, "--ca", &ca, "--", "cat"]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert!(stderr(&output).contains("does not speak TLS"), "{}", stderr(&output));
    plain.stop();
    cluster.server.stop();
}
