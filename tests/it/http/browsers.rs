//! A development relay authenticates nobody, so it must not listen to the web pages in its user's browser.

use relay::auth::Authenticator;
use relay::auth::keys::{KeyFile, Role};
use relay_bridge::clock::Clock;

use super::support::{Relay, Reply, Setup};

/// A request that a page of another site can have a browser send without asking first.
async fn submit(relay: &Relay, headers: &[(&str, &str)]) -> Reply {
    relay.submit(&[&[("content-type", "text/plain")], headers].concat(), "rm").await
}

async fn jobs(relay: &Relay) -> usize {
    relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_can_not_submit_to_a_development_relay_or_read_from_it() {
    let relay = Relay::start().await;
    for (header, value) in [
        ("Origin", "https://attacker.example"),
        ("Origin", "http://localhost:3000"),
        ("Origin", "null"),
        ("Origin", ""),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", ""),
        ("Host", "attacker.example"),
        ("Host", "attacker.example:7777"),
        ("Host", "localhost.attacker.example"),
        ("Host", "127.0.0.1.attacker.example"),
        ("Host", "localhost@attacker.example"),
        ("Host", "10.0.0.1"),
        ("Host", "0.0.0.0"),
        ("Host", "[::]"),
        ("Host", "[::2]:80"),
        ("Host", ""),
    ] {
        let reply = submit(&relay, &[(header, value)]).await;
        reply.is_problem(403, "forbidden");
        let detail = reply.field("detail");
        assert!(detail.to_lowercase().contains(&header.to_lowercase()), "{header}: {value} -> {detail}");
        assert!(detail.contains("http://localhost") && detail.contains("--keys"), "what to do: {detail}");
        relay.ask("GET /v1/jobs", &[(header, value)], "").await.is_problem(403, "forbidden");
    }
    submit(&relay, &[("Host", "localhost"), ("Host", "attacker.example")]).await.is_problem(400, "malformed-request");
    submit(&relay, &[("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")]).await.is_problem(403, "forbidden");
    relay.get("http://attacker.example/v1/jobs").await.is_problem(403, "forbidden");
    assert_eq!(jobs(&relay).await, 0, "nothing was done");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_on_the_machine_use_a_development_relay_as_before() {
    let relay = Relay::start().await;
    for host in ["localhost", "LocalHost:7777", "127.0.0.1", "127.0.0.1:80", "127.9.8.7:1", "[::1]", "[::1]:7777"] {
        let reply = submit(&relay, &[("Host", host), ("User-Agent", "curl/8.5.0"), ("Accept", "*/*")]).await;
        assert_eq!(reply.status, 202, "{host}: {}", reply.text());
    }
    for site in ["none", "same-origin"] {
        assert_eq!(submit(&relay, &[("Sec-Fetch-Site", site)]).await.status, 202, "{site}");
    }
    assert_eq!(jobs(&relay).await, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_http_1_0_may_leave_the_host_out() {
    let relay = Relay::start().await;
    for (version, status) in [("1.0", "200"), ("1.1", "400")] {
        let mut peer = relay.connect().await;
        peer.write(format!("GET /v1/whoami HTTP/{version}\r\nconnection: close\r\n\r\n").as_bytes()).await;
        let answer = peer.closed().await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    let mut peer = relay.connect().await;
    peer.write(b"GET /v1/whoami HTTP/1.0\r\norigin: null\r\n\r\n").await;
    assert_eq!(peer.closed().await.split(' ').nth(1), Some("403"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_holds_over_http_2() {
    let relay = Relay::start().await;
    let attacker = "attacker.example";
    let client = reqwest::Client::builder().http2_prior_knowledge().resolve(attacker, relay.address).build().unwrap();
    let port = relay.address.port();
    let ask = |host: &str| client.post(format!("http://{host}:{port}/v1/queues/mail/jobs")).body("x");
    assert_eq!(ask("127.0.0.1").send().await.unwrap().status().as_u16(), 202);
    let local = ask("127.0.0.1").header("sec-fetch-site", "same-origin");
    assert_eq!(local.send().await.unwrap().status().as_u16(), 202);
    for refused in [
        ask(attacker),
        ask("127.0.0.1").header("origin", "https://attacker.example"),
        ask("127.0.0.1").header("sec-fetch-site", "cross-site"),
        ask("127.0.0.1").header("host", attacker),
    ] {
        let reply = refused.send().await.unwrap();
        assert_eq!((reply.version(), reply.status().as_u16()), (reqwest::Version::HTTP_2, 403));
        assert!(reply.text().await.unwrap().contains("\"forbidden\""));
    }
    assert_eq!(jobs(&relay).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_asks_for_keys_leaves_it_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = KeyFile::new(folder.path().join("keys.toml"));
    let clock = Clock::system();
    file.create(Role::Client, "acme".parse().unwrap(), None, clock.now()).unwrap();
    let authenticator = Authenticator::keys(file.path().to_owned(), clock).unwrap();
    let relay = Setup { authenticator, ..Setup::default() }.start().await;
    for header in [("Host", "relay.example"), ("Origin", "https://relay.example"), ("Sec-Fetch-Site", "cross-site")] {
        submit(&relay, &[header]).await.is_problem(401, "unauthenticated");
    }
}
