//! NATS takes nothing of what relay answers, and goes on sending what clients ask.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Request};
use relay::api::Slug;
use relay::ingress::budget::Budget;
use relay::ingress::clients::ClientShares;
use relay::ingress::nats::{Ingress, Limits, serve};
use relay::ingress::rates::Rates;
use relay_bridge::clock::Clock;
use relay_nats::config::Credentials;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::support::{Answer, Relay, connect};

/// A way to the server on which what relay says can be held up.
struct Way {
    url: String,
    held: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Way {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let (held, holding) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((relay, _)) = listener.accept().await {
                let server = TcpStream::connect(server.trim_start_matches("nats://")).await.unwrap();
                let (from_relay, mut to_relay) = relay.into_split();
                let (mut from_server, to_server) = server.into_split();
                tokio::select! {
                    _ = copy(&mut from_server, &mut to_relay) => {}
                    () = pass(from_relay, to_server, holding.clone()) => {}
                }
            }
        });
        Self { url, held, _tasks: tasks }
    }
}

/// Passes on what relay says, unless it is held up.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut holding: watch::Receiver<bool>) {
    let mut buffer = vec![0; 1 << 16];
    while holding.wait_for(|held| !held).await.is_ok() {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        to.write_all(&buffer[..length]).await.unwrap();
    }
}

/// A relay that speaks by a way of its own, beside one from which server, broker and client are.
struct Served {
    other: Relay,
    way: Way,
    ingress: Arc<Ingress>,
    answers: Arc<Budget>,
    _serving: JoinSet<std::io::Result<()>>,
}

impl Served {
    async fn start(limits: Limits, bytes: usize) -> Self {
        let mut other = Relay::start().await;
        other.shutdown.cancel();
        other.drained().await;
        let way = Way::to(other.server.url()).await;
        let [bytes, answers] = [bytes; 2].map(|max| Budget::new(max, ClientShares::undivided()));
        let budgets = (bytes, Arc::clone(&answers));
        let ingress = Ingress::new(other.broker.clone(), limits, budgets, Rates::new(Clock::system()), Clock::system());
        let connection = connect(&way.url, Credentials::None).await;
        let mut serving = JoinSet::new();
        serving.spawn(serve(connection, Arc::clone(&ingress), CancellationToken::new(), Duration::ZERO));
        let subject = format!("$SRV.PING.relay.{}", ingress.id());
        while other.client.request(subject.clone(), "".into()).await.is_err() {}
        Self { other, way, ingress, answers, _serving: serving }
    }

    fn client(&self) -> &Client {
        &self.other.client
    }

    /// Waits until so many requests were answered with a problem, whether or not it has left.
    async fn refused(&self, slugs: &[Slug], count: u64) {
        let counted = || slugs.iter().map(|slug| self.ingress.refusals().count(*slug)).sum::<u64>();
        let refused = async {
            while counted() < count {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), refused).await;
        assert!(waited.is_ok(), "{} of {count} requests were refused", counted());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_read_while_answers_do_not_leave() {
    let served = Served::start(Limits { requests: 1, ..Limits::default() }, 1 << 20).await;
    served.way.held.send_replace(true);
    // Their answers are more than the connection and the system keep.
    for sent in 1..=20 {
        for _ in 0..1_000 {
            served.client().publish_with_reply("relay.status.me", "_INBOX.x", "x".into()).await.unwrap();
        }
        // One has a place, and keeps it for as long as clients wait.
        served.refused(&[Slug::MalformedRequest, Slug::Overloaded], sent * 1_000 - 1).await;
    }
    served.way.held.send_replace(false);
    // Requests that come until the connection has caught up may not be answered.
    let ask = || Request::new().payload("x".into()).timeout(Some(Duration::from_millis(500)));
    let again = async { while served.client().send_request("relay.status.me", ask()).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_do_not_leave_keep_their_bytes_and_more_are_refused() {
    let served = Served::start(Limits::default(), 300_000).await;
    let id = Answer(served.client().request("relay.submit.me.mail", "x".into()).await.unwrap()).job();
    served.other.work("text/plain", vec![b'r'; 100_000]).await;
    served.way.held.send_replace(true);
    for _ in 0..200 {
        served.client().publish_with_reply("relay.result.me", "_INBOX.x", id.clone().into()).await.unwrap();
    }
    // 20 MB in all, of which the system keeps some.
    served.refused(&[Slug::Overloaded], 50).await;
    served.way.held.send_replace(false);
    let left = async {
        while served.answers.taken() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), left).await.unwrap();
}
