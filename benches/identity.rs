//! The cost of knowing who is calling: kept connections over TLS beside those without, with a PROXY header and a token beside a key,
//! wrong keys beside paths that are not there, and an honest client beside strangers who connect over TLS all the time.
//!
//! `cargo bench --bench identity`, or `-- honest` for the last of these alone. The server is a process of its own with all of these listeners, on a store in memory. One pair is
//! both sides, one after the other; the first of a pair takes turns (`RELAY_BENCH_PAIRS` of them). CPU is the server's.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use relay_bridge::clock::Clock;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use support::{Sample, cpu_of, median, pairs, report};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_rustls::TlsConnector;

/// Kept connections, one request at a time each.
const CONNECTIONS: usize = 32;
/// Submissions of one side, and requests that are refused.
const REQUESTS: u64 = 10_000;
/// Requests of one connection that is closed with its last: the server closes one at its fifth wrong key.
const REFUSED: usize = 5;
const ISSUER: &str = "https://issuer.example";
/// Submissions of an honest client in one round, one after the other.
const HONEST: usize = 3_000;
/// New connections a second of strangers, each with a handshake and a wrong key.
const STRANGERS: u32 = 500;
/// VPC endpoints: that of the honest client, and another one.
const OWN: &str = "vpce-0a1b2c3d4e5";
const OTHER: &str = "vpce-0b1b2c3d4e5";

/// The header of 10.1.1.`host` through an endpoint.
fn header(host: u8, endpoint: &str) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20\x0a\x01\x01".to_vec();
    header.push(host);
    header.extend_from_slice(b"\x0a\0\0\x02\x80\0\0\x50\xea\0\x11\x01");
    header.extend_from_slice(endpoint.as_bytes());
    header
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
type Peer = Box<dyn Stream>;

/// One way in.
#[derive(Clone)]
struct Door {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    header: Option<Vec<u8>>,
}

impl Door {
    async fn open(&self) -> Peer {
        self.try_open().await.unwrap()
    }

    /// `None` where the server closes the connection in the handshake or before it.
    async fn try_open(&self) -> Option<Peer> {
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        stream.set_nodelay(true).unwrap();
        if let Some(header) = &self.header {
            stream.write_all(header).await.ok()?;
        }
        match &self.tls {
            Some(config) => {
                let connector = TlsConnector::from(Arc::clone(config));
                Some(Box::new(connector.connect("localhost".try_into().unwrap(), stream).await.ok()?))
            }
            None => Some(Box::new(stream)),
        }
    }
}

struct Server {
    child: Child,
    plain: Door,
    tls: Door,
    header: Door,
    /// The file of the authority of all certificates here.
    certificate: String,
    key: String,
    token: String,
    _folder: TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name).to_str().unwrap().to_owned()
        };
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (certificate, pem) = (write("tls.pem", &made.cert.pem()), made.cert.pem());
        let private = write("tls.key", &made.signing_key.serialize_pem());
        let keys = folder.path().join("keys.toml");
        let new = ["keys", "new", "--file", keys.to_str().unwrap(), "shop"];
        let new = Command::new(env!("CARGO_BIN_EXE_relay")).args(new).output().unwrap();
        assert!(new.status.success(), "{new:?}");
        let signing = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let signing = EncodingKey::from_ec_pem(signing.serialize_pem().as_bytes()).unwrap();
        write(
            "jwks.json",
            &json!({ "keys": [Jwk::from_encoding_key(&signing, Algorithm::ES256).unwrap()] }).to_string(),
        );
        let clients = format!(
            "[[client]]\nname = \"batch\"\nany = [[{{ jwt = {{ issuer = \"{ISSUER}\", subject = \"s\" }} }}, {{ vpce = [\"vpce-0a1b2c3d4e5\"] }}]]\n\
             [[issuer]]\nurl = \"{ISSUER}\"\naudience = \"relay\"\nalgorithms = [\"ES256\"]\nfile = \"jwks.json\"\n"
        );
        let clients = write("clients.toml", &clients);
        let config = format!(
            "[store]\nmemory = true\n[access]\nkeys = {keys:?}\nclients = {clients:?}\n\
             [listen]\ntls_cert = {certificate:?}\ntls_key = {private:?}\n[[queue]]\nname = \"work\"\n\
             [[listener]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\n\
             [[listener]]\nname = \"tls\"\naddress = \"127.0.0.1:0\"\ntls = \"on\"\n\
             [[listener]]\nname = \"header\"\naddress = \"127.0.0.1:0\"\ntls = \"on\"\nproxy = \"required\"\ntrusted = [\"127.0.0.1\"]\n"
        );
        let config = write("relay.toml", &config);
        let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
        command.args(["serve", "--json", "--log", "error", "--config", &config, "--source-unproven", "1000"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let client = Some(trusting(&pem));
        let door = |name: &str, tls: Option<Arc<ClientConfig>>| {
            let address = ready["listening"]["listeners"][name]["address"].as_str().unwrap().parse().unwrap();
            Door { address, tls, header: (name == "header").then(|| header(1, OWN)) }
        };
        let now = Clock::system().now().as_millis() / 1_000;
        let claims = json!({ "iss": ISSUER, "sub": "s", "aud": ["relay"], "iat": now, "exp": now + 3_000 });
        Self {
            plain: door("plain", None),
            tls: door("tls", client.clone()),
            header: door("header", client),
            certificate,
            key: String::from_utf8(new.stdout).unwrap().trim().to_owned(),
            token: encode(&Header::new(Algorithm::ES256), &claims, &signing).unwrap(),
            child,
            _folder: folder,
        }
    }

    /// Submits jobs of 256 bytes over connections that are there before the time runs.
    async fn submits(&self, door: &Door, bearer: &str) -> Sample {
        let request: Arc<str> = submission(bearer).into();
        let mut peers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut peer = door.open().await;
            assert_eq!(asked(&mut peer, &request).await, 202);
            peers.push(peer);
        }
        let (next, mut tasks) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
        let (start, before) = (Instant::now(), cpu_of(self.child.id()));
        for mut peer in peers {
            let (next, request) = (Arc::clone(&next), Arc::clone(&request));
            tasks.spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                    assert_eq!(asked(&mut peer, &request).await, 202);
                }
            });
        }
        tasks.join_all().await;
        let cpu = cpu_of(self.child.id()).saturating_sub(before);
        Sample { operations: REQUESTS, wall: start.elapsed(), cpu }
    }

    /// Asks for `path`, a few times on each connection, and is answered `status`.
    async fn refused(&self, path: &str, bearer: &str, status: u16) -> Sample {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {bearer}\r\n\r\n");
        let (start, before) = (Instant::now(), cpu_of(self.child.id()));
        for _ in 0..REQUESTS / REFUSED as u64 {
            let mut peer = self.plain.open().await;
            for _ in 0..REFUSED {
                assert_eq!(asked(&mut peer, &request).await, status);
            }
        }
        let cpu = cpu_of(self.child.id()).saturating_sub(before);
        Sample { operations: REQUESTS, wall: start.elapsed(), cpu }
    }

    /// Seconds that 99 of 100 submissions of an honest client take at most.
    async fn honest(&self) -> f64 {
        let request = submission(&self.token);
        let (mut peer, mut times) = (self.header.open().await, Vec::new());
        for _ in 0..HONEST {
            let begun = Instant::now();
            assert_eq!(asked(&mut peer, &request).await, 202);
            times.push(begun.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        times[times.len() * 99 / 100]
    }

    /// Strangers who come from 249 addresses through `endpoint`. A process of its own that gives way to all others, since strangers
    /// have machines of their own: with the cores of this one they would take time from the server and from the honest client.
    fn strangers(&self, endpoint: &str) -> Child {
        let address = self.header.address.to_string();
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(std::env::current_exe().unwrap());
        command.args(["strangers", &address, &self.certificate, endpoint]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    async fn beside_all_strangers(&self) {
        self.beside_strangers("of another endpoint", OTHER).await;
        self.beside_strangers("of the same endpoint", OWN).await;
    }

    /// Prints the times of an honest client beside strangers who come through `endpoint`.
    async fn beside_strangers(&self, of: &str, endpoint: &'static str) {
        let (mut alone, mut beside, mut ratios, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..pairs() {
            let quiet = self.honest().await;
            let (mut strangers, begun) = (self.strangers(endpoint), Instant::now());
            // The first of them are at work.
            sleep(Duration::from_millis(500)).await;
            let loud = self.honest().await;
            // They end with what they are told through, and say how many they were.
            drop(strangers.stdin.take());
            let seconds = begun.elapsed().as_secs_f64();
            let answered = std::io::read_to_string(strangers.stdout.take().unwrap()).unwrap();
            strangers.wait().unwrap();
            rates.push(answered.trim().parse::<f64>().unwrap() / seconds);
            alone.push(quiet * 1e3);
            beside.push(loud * 1e3);
            ratios.push(loud / quiet);
        }
        println!(
            "{:44} p99 alone {:.2} ms, beside {STRANGERS} new connections a second ({:.0} answered) {:.2} ms, ratio {:.2} (goal <= 2, {} pairs)",
            format!("strangers {of}"),
            median(alone),
            median(rates),
            median(beside),
            median(ratios.clone()),
            ratios.len()
        );
    }
}

/// Connects to `address` all the time, with a header of `endpoint`, a handshake and a wrong key each, until the standard input ends.
/// Prints how many had their answer.
async fn strangers(address: &str, certificate: &str, endpoint: &str) {
    let door = Door {
        address: address.parse().unwrap(),
        tls: Some(trusting(&fs::read_to_string(certificate).unwrap())),
        header: None,
    };
    let answered = Arc::new(AtomicU64::new(0));
    let ended = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin()));
    let coming = async {
        let (mut due, mut peers) = (interval(Duration::from_secs(1) / STRANGERS), JoinSet::new());
        for host in (2..=250).cycle() {
            due.tick().await;
            let door = Door { header: Some(header(host, endpoint)), ..door.clone() };
            let answered = Arc::clone(&answered);
            peers.spawn(async move {
                // Closed before its handshake where too many came.
                if let Some(mut peer) = door.try_open().await {
                    let request = "GET /v1/whoami HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer no\r\n\r\n";
                    peer.write_all(request.as_bytes()).await.ok();
                    let read = peer.read(&mut [0; 1024]).await;
                    answered.fetch_add(u64::from(read.is_ok_and(|read| read > 0)), Ordering::Relaxed);
                }
            });
            while peers.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = coming => {}
        _ = ended => {}
    }
    println!("{}", answered.load(Ordering::Relaxed));
}

/// TLS that trusts the authority of `pem`.
fn trusting(pem: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(client.with_root_certificates(roots).with_no_client_auth())
}

fn submission(bearer: &str) -> String {
    format!(
        "POST /v1/queues/work/jobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {bearer}\r\ncontent-length: 256\r\n\r\n{}",
        "x".repeat(256)
    )
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The status of the answer, which is read whole.
async fn asked(peer: &mut Peer, request: &str) -> u16 {
    peer.write_all(request.as_bytes()).await.unwrap();
    peer.flush().await.unwrap();
    let (mut answer, mut filled) = ([0; 8 * 1024], 0);
    loop {
        let read = peer.read(&mut answer[filled..]).await.unwrap();
        assert!(read > 0, "the server closed the connection");
        filled += read;
        let text = std::str::from_utf8(&answer[..filled]).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return head["HTTP/1.1 ".len()..][..3].parse().unwrap();
        }
    }
}

/// One side of a pair.
#[derive(Clone, Copy)]
enum Side {
    Plain,
    Tls,
    Token,
    WrongKey,
    NoPath,
}

impl Server {
    async fn run(&self, side: Side) -> Sample {
        match side {
            Side::Plain => self.submits(&self.plain, &self.key).await,
            Side::Tls => self.submits(&self.tls, &self.key).await,
            Side::Token => self.submits(&self.header, &self.token).await,
            Side::WrongKey => self.refused("/v1/whoami", "a.b", 401).await,
            Side::NoPath => self.refused("/v1/nothing", &self.key, 404).await,
        }
    }

    async fn pairs(&self, ours: Side, base: Side) -> Vec<(Sample, Sample)> {
        let mut taken = Vec::new();
        for pair in 0..pairs() {
            let (first, second) = if pair % 2 == 0 { (ours, base) } else { (base, ours) };
            let (first, second) = (self.run(first).await, self.run(second).await);
            taken.push(if pair % 2 == 0 { (first, second) } else { (second, first) });
        }
        taken
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, address, certificate, endpoint] = &arguments[..]
        && role == "strangers"
    {
        return strangers(address, certificate, endpoint).await;
    }
    let server = Server::start();
    if arguments.iter().any(|argument| argument == "honest") {
        return server.beside_all_strangers().await;
    }
    report("submissions over TLS, beside none", 0.9, &server.pairs(Side::Tls, Side::Plain).await);
    report("over TLS with header and token, beside a key", 0.97, &server.pairs(Side::Token, Side::Tls).await);
    let wrong = server.pairs(Side::WrongKey, Side::NoPath).await;
    let ratio = median(wrong.iter().map(|(wrong, base)| wrong.cpu_us() / base.cpu_us()).collect());
    println!(
        "{:44} server's CPU {ratio:.2} of that of as many 404s (goal <= 1.50, {} pairs)",
        "wrong keys",
        wrong.len()
    );
    server.beside_all_strangers().await;
}
