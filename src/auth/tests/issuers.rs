//! Issuers that are asked over https: once for all who wait, at most once a minute, and believed for a day.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use jsonwebtoken::Algorithm;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::signer::{Signer, claims, set};
use super::*;

const CLIENT: &str =
    "[[client]]\nname = \"acme\"\nany = [[{ jwt = { issuer = \"https://issuer.example\", subject = \"batch\" } }]]\n";

/// The server's answer.
#[derive(Clone)]
enum Answer {
    Keys(String),
    /// An answer that never ends.
    Endless,
    Status(&'static str),
    Nothing,
}

/// A server of keys on loopback, which ends with the test.
struct Server {
    port: u16,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Answer>>,
    _serving: JoinSet<()>,
}

impl Server {
    async fn start(bench: &Bench, answer: Answer) -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        bench.write("ca.pem", &certified.cert.pem());
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.into())
            .unwrap();
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(answer)));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut serving = JoinSet::new();
        let (count, says) = (Arc::clone(&asked), Arc::clone(&answer));
        serving.spawn(async move {
            let mut peers = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (acceptor, answer) = (acceptor.clone(), says.lock().unwrap().clone());
                peers.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut head = [0; 1_024];
                    let (status, body) = match answer {
                        Answer::Nothing => return,
                        Answer::Keys(body) => ("200 OK", body),
                        Answer::Status(status) => (status, String::new()),
                        Answer::Endless => ("200 OK", String::new()),
                    };
                    if stream.read(&mut head).await.is_err() {
                        return;
                    }
                    let length = if body.is_empty() { 1 << 30 } else { body.len() };
                    let text = format!(
                        "HTTP/1.1 {status}\r\nlocation: https://localhost/\r\ncontent-length: {length}\r\n\r\n{body}"
                    );
                    let mut sent = stream.write_all(text.as_bytes()).await;
                    while body.is_empty() && sent.is_ok() {
                        sent = stream.write_all(&[b' '; 16 * 1024]).await;
                    }
                    drop(stream.shutdown().await);
                });
            }
        });
        Self { port, asked, answer, _serving: serving }
    }

    fn says(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn believed_by(&self, bench: &Bench) -> Authenticator {
        let issuer = format!(
            "[[issuer]]\nurl = \"https://issuer.example\"\naudience = \"relay\"\nalgorithms = [\"ES256\"]\njwks_url = \
             \"https://localhost:{}/keys\"\nca = \"ca.pem\"\n",
            self.port
        );
        bench.with_clients(&format!("{CLIENT}{issuer}")).fetching_from(|_| true)
    }
}

async fn bring(to: &Authenticator, token: &str) -> Result<Caller, Refused> {
    let bearer = format!("Bearer {token}");
    to.authenticate(Presented { authorization: Some(&bearer), ..Presented::default() }).await
}

/// Does `test` while `authenticator` asks its issuers.
async fn watched(authenticator: &Authenticator, test: impl Future<Output = ()>) {
    tokio::select! {
        () = authenticator.watch() => {}
        () = test => {}
    }
}

/// Lets `span` pass in steps that `authenticator` notices, until `done`.
async fn pass(bench: &Bench, span: Duration, done: impl Fn() -> bool) {
    let step = Duration::from_secs(1);
    let mut passed = Duration::ZERO;
    while passed < span || !done() {
        if passed < span {
            bench.clock.advance(step);
            passed += step;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_issuer_is_asked_once_for_all_who_wait_for_its_keys() {
    let bench = Bench::new();
    let signer = Signer::new("one", Algorithm::ES256);
    let server = Server::start(&bench, Answer::Keys(set(&[&signer]))).await;
    let to = server.believed_by(&bench);
    let tokens: Vec<_> = (0..50).map(|_| signer.sign(&claims(bench.clock.now(), "batch"))).collect();
    watched(&to, async {
        let all = futures_util::future::join_all(tokens.iter().map(|token| bring(&to, token))).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
    })
    .await;
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn ten_thousand_unknown_keys_have_an_issuer_asked_once_a_minute() {
    let bench = Bench::new();
    let (signer, stranger) = (Signer::new("one", Algorithm::ES256), Signer::new("0", Algorithm::ES256));
    let server = Server::start(&bench, Answer::Keys(set(&[&signer]))).await;
    let to = server.believed_by(&bench);
    let good = claims(bench.clock.now(), "batch");
    watched(&to, async {
        bring(&to, &signer.sign(&good)).await.unwrap();
        let (_, rest) =
            stranger.sign(&good).split_once('.').map(|(head, rest)| (head.to_owned(), rest.to_owned())).unwrap();
        for n in 0..10_000 {
            use base64::Engine as _;
            let header = format!(r#"{{"alg":"ES256","kid":"{n}"}}"#);
            let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
            let refused = bring(&to, &format!("{header}.{rest}")).await.unwrap_err();
            assert!(refused.to_string().contains("does not have"), "{refused}");
        }
        assert_eq!(server.asked(), 1);
        // A key that the issuer made meanwhile is found as soon as it may be asked again.
        let successor = Signer::new("two", Algorithm::ES256);
        server.says(Answer::Keys(set(&[&signer, &successor])));
        bring(&to, &successor.sign(&good)).await.unwrap_err();
        bench.clock.advance(Duration::from_secs(60));
        bring(&to, &successor.sign(&good)).await.unwrap();
        assert_eq!(server.asked(), 2);
    })
    .await;
}

#[tokio::test]
async fn an_issuer_that_is_down_for_an_hour_is_believed_and_after_a_day_its_tokens_are_answered_503() {
    let bench = Bench::new();
    let signer = Signer::new("one", Algorithm::ES256);
    let server = Server::start(&bench, Answer::Keys(set(&[&signer]))).await;
    let to = server.believed_by(&bench);
    watched(&to, async {
        bring(&to, &signer.sign(&claims(bench.clock.now(), "batch"))).await.unwrap();
        server.says(Answer::Nothing);
        assert_eq!(to.issuer_ages(), [("https://issuer.example".to_owned(), Duration::ZERO)]);
        pass(&bench, Duration::from_secs(3_600), || server.asked() > 2).await;
        assert_eq!(to.issuer_ages()[0].1, Duration::from_secs(3_600));
        bring(&to, &signer.sign(&claims(bench.clock.now(), "batch"))).await.unwrap();
        bench.clock.advance(Duration::from_secs(24 * 3_600));
        let token = signer.sign(&claims(bench.clock.now(), "batch"));
        assert!(matches!(bring(&to, &token).await.unwrap_err(), Refused::Unavailable(_)));
        server.says(Answer::Keys(set(&[&signer])));
        bench.clock.advance(Duration::from_secs(60));
        bring(&to, &token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_set_of_keys_that_never_ends_or_that_is_none_is_not_taken_and_nobody_waits_for_it_at_the_start() {
    let many = serde_json::json!({ "keys": (0..65).map(|_| serde_json::json!({ "kty": "oct" })).collect::<Vec<_>>() });
    for answer in [
        Answer::Endless,
        Answer::Status("302 Found"),
        Answer::Status("500 Internal Server Error"),
        Answer::Keys("{}".to_owned()),
        Answer::Keys(many.to_string()),
        Answer::Keys(r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}]}"#.to_owned()),
        Answer::Nothing,
    ] {
        let bench = Bench::new();
        let signer = Signer::new("one", Algorithm::ES256);
        let server = Server::start(&bench, answer).await;
        let to = server.believed_by(&bench);
        watched(&to, async {
            let token = signer.sign(&claims(bench.clock.now(), "batch"));
            assert!(matches!(bring(&to, &token).await.unwrap_err(), Refused::Unavailable(_)));
            assert_eq!(server.asked(), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn a_key_that_its_issuer_takes_back_ends_what_was_begun_with_it() {
    let bench = Bench::new();
    let (signer, successor) = (Signer::new("one", Algorithm::ES256), Signer::new("two", Algorithm::ES256));
    let server = Server::start(&bench, Answer::Keys(set(&[&signer, &successor]))).await;
    let to = server.believed_by(&bench);
    let good = claims(bench.clock.now(), "batch");
    watched(&to, async {
        let taken = bring(&to, &signer.sign(&good)).await.unwrap().credential;
        let kept = bring(&to, &successor.sign(&good)).await.unwrap().credential;
        server.says(Answer::Keys(set(&[&successor])));
        pass(&bench, Duration::from_secs(301), || server.asked() > 1).await;
        while !taken.has_ended() {
            bench.clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
        assert!(!kept.has_ended());
    })
    .await;
}
