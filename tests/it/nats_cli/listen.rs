//! `relay serve` and `relay dev` serve clients on the servers of their broker.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, RequestErrorKind};
use futures_util::StreamExt as _;
use relay_conformance::testing::NatsServer;
use serde_json::Value;

use crate::cli_support::{Running, code, run, stderr, stdout};

pub(crate) const SERVE: [&str; 6] = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--nats"];
/// Relay has subscribed by then.
pub(crate) const OPEN: &str = "the NATS ingress is open";

pub(crate) async fn request(client: &Client, subject: &str, body: &str) -> Value {
    let answer = client.request(subject.to_owned(), body.to_owned().into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// The permissions that `relay nats permissions` gives `relay`, `me` and `gpu`, who are the only ones.
pub(crate) fn permissions(more: &[&str]) -> String {
    let printed = run(["nats", "permissions", "--client", "me", "--worker", "gpu=default"].iter().chain(more));
    assert_eq!(code(&printed), 0, "{printed:?}");
    let users = ["RELAY_NATS_PASSWORD", "CLIENT_ME_PASSWORD", "WORKER_GPU_PASSWORD"];
    users.iter().fold(stdout(&printed).to_owned(), |text, name| text.replace(&format!("${name}"), "secret"))
}

#[tokio::test]
async fn with_the_credentials_of_the_broker_clients_submit_and_hear_of_the_result() {
    let nats = NatsServer::builder().config(&permissions(&[])).start().await;
    clients_submit_and_hear_of_the_result(&nats, &[]).await;
}

#[tokio::test]
async fn the_permissions_for_a_jetstream_domain_are_enough_on_a_server_of_that_domain() {
    let domain = ["--nats-domain", "hub"];
    let nats = NatsServer::builder().config(&permissions(&domain)).jetstream("domain: hub").start().await;
    clients_submit_and_hear_of_the_result(&nats, &domain).await;
}

#[tokio::test]
async fn the_permissions_for_a_jetstream_domain_are_enough_on_a_server_that_a_leaf_node_leads_from() {
    let domain = ["--nats-domain", "hub"];
    let leaves = "leafnodes { listen: \"127.0.0.1:-1\" }";
    let hub = NatsServer::builder().config(leaves).jetstream("domain: hub").start().await;
    let port = hub.monitor("/varz").await.unwrap()["leaf"]["port"].as_u64().unwrap();
    let remote = format!("leafnodes {{ remotes: [{{ url: \"nats://127.0.0.1:{port}\" }}] }}");
    let leaf = NatsServer::builder().config(&remote).config(&permissions(&domain)).jetstream("domain: leaf");
    let leaf = leaf.start().await;
    clients_submit_and_hear_of_the_result(&leaf, &domain).await;
}

/// `domain` is what relay and its worker are told.
async fn clients_submit_and_hear_of_the_result(nats: &NatsServer, domain: &[&str]) {
    let url = nats.url();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "secret").unwrap();
    let file = file.to_str().unwrap();
    let who = |user| [&[url.as_str(), "--nats-user", user, "--nats-password-file", file], domain].concat();
    let more = ["--provision", "--worker-listen", "127.0.0.1:0"];
    let mut server = Running::start(SERVE.iter().copied().chain(who("relay")).chain(more));
    server.wait_for_line(OPEN);
    let options = ConnectOptions::with_user_and_password("me".to_owned(), "secret".to_owned());
    let me = options.custom_inbox_prefix("_INBOX_me").connect(&url).await.unwrap();
    let mut replies = me.subscribe("relay.reply.me.*").await.unwrap();

    let on_nats = ["worker", "--json", "--id", "gpu", "--nats"].into_iter().chain(who("gpu"));
    let connected = ["worker", "--json", "--connect", &server.workers()].map(str::to_owned);
    let workers: [Vec<String>; 2] = [on_nats.map(str::to_owned).collect(), connected.to_vec()];
    for worker in workers {
        let worker = Running::start(worker.iter().map(String::as_str).chain(["--", "tr", "a-z", "A-Z"]));
        let receipt = request(&me, "relay.submit.me.default", "hello").await;
        let reply = tokio::time::timeout(Duration::from_secs(60), replies.next()).await.unwrap().unwrap();
        assert!(reply.subject.ends_with(receipt["job_id"].as_str().unwrap()), "{}: {receipt}", reply.subject);
        let id = receipt["job_id"].as_str().unwrap().to_owned();
        let result = me.request("relay.result.me", id.into()).await.unwrap();
        assert_eq!(&result.payload[..], b"HELLO");
        worker.stop();
    }
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, said) = server.wait();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("refused") && !said.contains("can act as any client"), "{said}");
}

#[tokio::test]
async fn development_answers_over_nats_too() {
    let nats = NatsServer::start().await;
    let mut dev = Running::dev(&["--nats", &nats.url()], "cat");
    dev.wait_for_line(OPEN);
    let client = async_nats::connect(nats.url()).await.unwrap();
    assert_eq!(request(&client, "$SRV.PING", "").await["name"], "relay");
    assert_eq!(request(&client, "relay.submit.me.default", "x").await["replayed"], false);
    dev.stop();
}

#[tokio::test]
async fn what_a_client_submits_over_http_counts_for_its_rate_over_nats() {
    let nats = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    std::fs::write(&file, "[[queue]]\nname = \"default\"\nrate = \"1/d\"\nburst = 2\n").unwrap();
    let flags = [nats.url().as_str(), "--provision", "--config", file.to_str().unwrap()].map(str::to_owned);
    let mut server = Running::start(SERVE.iter().map(|flag| (*flag).to_owned()).chain(flags));
    server.wait_for_line(OPEN);
    let client = async_nats::connect(nats.url()).await.unwrap();
    let (http, address) = (reqwest::Client::new(), format!("{}/v1/queues/default/jobs", server.url()));
    let over_http = async || http.post(&address).body("x").send().await.unwrap().status().as_u16();
    assert_eq!(over_http().await, 202);
    assert_eq!(request(&client, "relay.submit.dev.default", "x").await["state"], "queued");
    assert_eq!(request(&client, "relay.submit.dev.default", "x").await["slug"], "rate-limited");
    assert_eq!(over_http().await, 429);
    server.stop();
}

#[tokio::test]
async fn clients_are_not_served_where_that_is_not_wanted() {
    let nats = NatsServer::start().await;
    let server = Running::start(SERVE.iter().copied().chain([nats.url().as_str(), "--provision", "--no-nats-listen"]));
    let client = async_nats::connect(nats.url()).await.unwrap();
    let refused = client.request("relay.submit.me.default", "x".into()).await.unwrap_err();
    assert_eq!(refused.kind(), RequestErrorKind::NoResponders);
    let connections = nats.monitor("/connz").await.unwrap();
    let named = |name: &str| connections["connections"].as_array().unwrap().iter().any(|found| found["name"] == name);
    assert!(named("relay") && !named("relay-listen"), "{connections}");
    server.stop();
}

#[tokio::test]
async fn what_contradicts_itself_about_clients_over_nats_is_refused() {
    for (flags, says) in [
        (&["--nats", "a", "--nats-listen", "b"][..], "--nats-listen"),
        (&["--memory", "--no-nats-listen"], "--nats"),
        (&["--memory", "--nats-user", "me"], "--nats-user without --nats"),
        (&["--memory", "--nats-listen", "a", "--nats-domain", "b"], "--nats-domain without --nats"),
        (&["--memory", "--nats-listen", "nats://me:hush@a"], "credentials"),
        (&["--memory", "--nats-waits", "5"], "--nats-waits: no clients are served over NATS"),
        (&["--nats", "a", "--no-nats-listen", "--nats-waits-per-client", "5"], "--nats-waits-per-client: no clients"),
        (&["--nats", "a", "--nats-waits", "5", "--nats-waits-per-client", "6"], "--nats-waits is 5"),
        (&["--nats", "a", "--nats-waits-per-client", "0"], "--nats-waits-per-client"),
    ] {
        let refused = run(["serve", "--no-auth"].iter().chain(flags));
        assert_eq!(code(&refused), 2, "{refused:?}");
        assert!(stderr(&refused).contains(says) && !stderr(&refused).contains("hush"), "{refused:?}");
    }
}
