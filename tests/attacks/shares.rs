//! A client that takes as much as it gets, beside one that does not.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use relay_conformance::testing::NatsServer;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::cli_support::{Running, code, run_with, stderr};
use crate::support::{Attacked, ask, connections, h2_peer, request};

fn submits(attacked: &Attacked, key: &str) {
    let output = run_with(["submit", "--server", &attacked.server.url(), "--api-key", key], b"hello");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_requests_wait_leaves_three_quarters_of_the_places_to_others() {
    let (attacked, keys) = Attacked::start(&["a", "b"], &[]);
    let submitted = ask(attacked.address(), &request("POST /v1/queues/default/jobs", &keys[0], "x")).await;
    let job = submitted.split("\"job_id\":\"").nth(1).unwrap().split('"').next().unwrap();
    let wait = format!("/v1/jobs/{job}/result?wait=50s");
    let (mut peers, mut answers) = (Vec::new(), FuturesUnordered::new());
    for _ in 0..41 {
        let mut peer = h2_peer(attacked.address(), 65_535, 65_535).await;
        for _ in 0..250 {
            answers.push(peer.get(&wait, &keys[0], &[]).await);
        }
        peers.push(peer);
    }
    // Those that wait are not answered; the first answer is a refusal, and says how many a client may have.
    let refused = answers.next().await.unwrap().unwrap();
    assert_eq!(refused.status(), 429);
    let body = String::from_utf8(refused.into_body().data().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(body.contains("rate-limited") && body.contains("\"limit\":2500"), "{body}");
    submits(&attacked, &keys[1]);
    let whoami = ask(attacked.address(), &request("GET /v1/whoami", &keys[1], "")).await;
    assert!(whoami.contains("\"share\":{\"requests\":2500,"), "{whoami}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_streams_and_connections_are_its_share_and_no_more() {
    connections(3_000);
    let more = ["--followers", "400", "--connections", "1200"];
    let (attacked, keys) = Attacked::start(&["a", "b"], &more);
    let follow = request("GET /v1/results", &keys[0], "").replace("host:", "accept: text/event-stream\r\nhost:");
    let mut peers = Vec::new();
    let mut statuses = Vec::new();
    for _ in 0..450 {
        let mut peer = TcpStream::connect(attacked.address()).await.unwrap();
        peer.write_all(follow.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut peer, &mut status).await.unwrap();
        statuses.push(String::from_utf8(status.to_vec()).unwrap());
        peers.push(peer);
    }
    assert_eq!(statuses.iter().filter(|status| *status == "HTTP/1.1 200").count(), 100, "a quarter of the streams");
    assert!(statuses.iter().filter(|status| *status == "HTTP/1.1 429").count() == 350);
    submits(&attacked, &keys[1]);
    let mut other = TcpStream::connect(attacked.address()).await.unwrap();
    other.write_all(follow.replace(&keys[0], &keys[1]).as_bytes()).await.unwrap();
    let mut status = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut other, &mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_over_nats_takes_its_clients_places_and_no_others() {
    let users = r#"
        authorization { users: [
            { user: relay, password: r, permissions: { publish: ">", subscribe: ">" } }
            { user: a, password: a }
            { user: b, password: b }
        ] }"#;
    let nats = NatsServer::builder().config(users).start().await;
    let dir = tempfile::tempdir().unwrap();
    for client in ["a", "b"] {
        crate::support::new_key(dir.path(), &[client]);
    }
    let password = dir.path().join("password");
    std::fs::write(&password, "r").unwrap();
    let url = nats.url();
    // Each look-up is a request to the server, and takes its time.
    let broker =
        ["serve", "--json", "--listen", "127.0.0.1:0", "--keys", dir.path().join("keys.toml").to_str().unwrap()]
            .map(str::to_owned);
    let more =
        ["--nats", &url, "--provision", "--nats-user", "relay", "--nats-password-file", password.to_str().unwrap()]
            .map(str::to_owned);
    let attacked = Running::start(broker.iter().chain(&more));
    let connect =
        |user: &str| async_nats::ConnectOptions::with_user_and_password(user.into(), user.into()).connect(url.clone());
    let (a, b) = (connect("a").await.unwrap(), connect("b").await.unwrap());
    // The service is there once it answers.
    while b.request("relay.status.b", "x".into()).await.is_err() {}
    // More than the places of all clients together, at all times.
    let receipt = a.request("relay.submit.a.default", "x".into()).await.unwrap();
    let receipt: serde_json::Value = serde_json::from_slice(&receipt.payload).unwrap();
    let job = receipt["job_id"].as_str().unwrap().to_owned();
    let ask = || a.request("relay.status.a", job.clone().into());
    let flood = async {
        let mut asked: FuturesUnordered<_> = (0..5_000).map(|_| ask()).collect();
        while asked.next().await.is_some() {
            asked.push(ask());
        }
    };
    let honest = async {
        for n in 0..15 {
            // On a busy machine the NATS server itself is late: no place was missing then.
            while let Some(refused) = refusal(&b, n).await {
                assert_eq!(refused, "unconfirmed", "submission {n}");
            }
        }
    };
    tokio::select! { () = flood => {}, () = honest => {} }
    drop(attacked);
}

/// Submits this payload as `b`; the slug of the refusal, if it is refused.
async fn refusal(b: &async_nats::Client, payload: u32) -> Option<String> {
    let answer = b.request("relay.submit.b.default", payload.to_string().into()).await.unwrap();
    answer.headers?.get("Nats-Service-Error").map(ToString::to_string)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_says_what_share_clients_have_and_single_ones_and_whoami_shows_it() {
    let more = ["--client-share", "10", "--client-share-of", "b=50"];
    let (attacked, keys) = Attacked::start(&["a", "b"], &more);
    for (key, requests) in [(&keys[0], 1_000), (&keys[1], 5_000)] {
        let whoami = ask(attacked.address(), &request("GET /v1/whoami", key, "")).await;
        assert!(whoami.contains(&format!("\"share\":{{\"requests\":{requests},")), "{whoami}");
    }
    // It holds, and its refusal names it.
    let mut peer = h2_peer(attacked.address(), 65_535, 65_535).await;
    let mut peers = Vec::new();
    let mut waits = FuturesUnordered::new();
    for at in 0..1_100 {
        if at % 250 == 0 {
            peers.push(std::mem::replace(&mut peer, h2_peer(attacked.address(), 65_535, 65_535).await));
        }
        waits.push(peer.get("/v1/results?wait=50s", &keys[0], &[]).await);
    }
    let refused = waits.next().await.unwrap().unwrap();
    assert_eq!(refused.status(), 429);
    let body = String::from_utf8(refused.into_body().data().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(body.contains("\"limit\":1000") && body.contains("client-share"), "{body}");
    submits(&attacked, &keys[1]);
}
