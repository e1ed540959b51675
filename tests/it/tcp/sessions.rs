//! A session as a whole: it ends with its key, is counted and audited, takes its client's shares, and stays small.

use std::collections::BTreeMap;
use std::time::Duration;

use relay::audit::{Audit, AuditConfig, Level};
use relay::auth::Authenticator;
use relay::auth::keys::{KeyFile, Role};
use relay::ingress::tcp::client::ClientLimits;
use relay_bridge::clock::Clock;
use relay_bridge::contract::wire::client::{Follow, FromClient, Hello, Request, Submit, ToClient};

use super::support::{Door, Wire, hello, mail};
use crate::http::support::{Relay, Setup};

/// A relay with a key of `acme`: the folder of its keys, and what lets callers in.
struct Keyed {
    dir: tempfile::TempDir,
    key: String,
    relay: Relay,
    door: Door,
}

impl Keyed {
    async fn start(limits: ClientLimits, change: impl FnOnce(&mut Setup)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path().join("keys.toml"));
        let clock = Clock::system();
        let key = file.create(Role::Client, "acme".parse().unwrap(), None, clock.now()).unwrap().to_string();
        file.create(Role::Client, "other".parse().unwrap(), None, clock.now()).unwrap();
        let authenticator = Authenticator::keys(file.path().to_owned(), clock).unwrap();
        let mut setup = Setup { authenticator, ..Setup::default() };
        change(&mut setup);
        let relay = setup.start().await;
        let door = Door::with(&relay, limits, Duration::from_secs(5)).await;
        Self { dir, key, relay, door }
    }

    fn hello(&self) -> Hello {
        Hello { key: Some(self.key.clone()), ..hello() }
    }

    async fn client(&self) -> Wire {
        let mut client = Wire::connect(self.door.address).await;
        client.welcomed(&self.hello()).await;
        client
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_and_all_that_it_began_ends_with_its_key() {
    let keyed = Keyed::start(ClientLimits::default(), |_| {}).await;
    let mut client = keyed.client().await;
    let job = client.submit(1, mail("x")).await.job;
    client.ask(2, Request::Wait { job, wait: Duration::from_secs(50) }).await;
    client.ask(3, Request::Follow(Follow { results: 9, bytes: 9, ..Follow::default() })).await;
    assert!(matches!(client.next().await, Some(ToClient::Position { id: 3, .. })));
    let file = KeyFile::new(keyed.dir.path().join("keys.toml"));
    let id = keyed.key.split('_').nth(1).unwrap();
    assert!(file.revoke(id).unwrap());
    // A key that was just made is looked for at once.
    let fresh = file.create(Role::Client, "other".parse().unwrap(), None, Clock::system().now()).unwrap();
    let bearer = format!("Bearer {fresh}");
    assert_eq!(keyed.relay.ask("GET /v1/whoami", &[("Authorization", &bearer)], "").await.status, 200);
    let error = client.ended().await;
    assert_eq!((&*error.kind, &*error.slug), ("unauthorized", "unauthenticated"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_shows_nothing_is_told_where_its_key_goes_over_the_protocol_that_it_speaks() {
    let keyed = Keyed::start(ClientLimits::default(), |_| {}).await;
    let mut client = Wire::connect(keyed.door.address).await;
    client.send(&FromClient::Hello(hello())).await;
    let error = client.ended().await;
    assert_eq!(&*error.slug, "unauthenticated");
    assert!(error.detail.contains("`key` of the hello"), "{}", error.detail);
    let over_http = keyed.relay.get("/v1/whoami").await;
    over_http.is_problem(401, "unauthenticated");
    assert!(over_http.field("detail").contains("`Authorization: Bearer <key>`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_no_more_is_answered_what_it_asked_for_and_waits_for_nothing() {
    let (_relay, door) = Door::start().await;
    let mut client = door.client().await;
    client.ask(1, Request::Follow(Follow { results: 9, bytes: 9, ..Follow::default() })).await;
    client.ask(2, Request::Submit(Box::new(mail("x")))).await;
    let waits = Submit { wait: Some(Duration::from_secs(50)), ..mail("y") };
    client.ask(3, Request::Submit(Box::new(waits))).await;
    client.finish().await;
    let mut told = BTreeMap::new();
    while let Some(message) = client.next().await {
        match message {
            ToClient::Position { .. } => {}
            ToClient::Followed { id, reason, .. } => drop(told.insert(id, reason)),
            ToClient::Receipt { id, receipt } => drop(told.insert(id, receipt.state.to_string())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        told,
        BTreeMap::from([(1, "stopped"), (2, "queued"), (3, "queued")].map(|(id, is)| (id, is.to_owned())))
    );
    let mut next = door.client().await;
    next.answer(1, Request::Whoami).await;
    assert_eq!((door.clients.connections(), door.clients.in_flight()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_requests_over_tcp_take_the_shares_that_the_client_has_over_http() {
    let keyed = Keyed::start(ClientLimits::default(), |setup| {
        setup.limits.requests = 8;
        setup.limits.connections = 12;
    })
    .await;
    let mut client = Wire::connect(keyed.door.address).await;
    let welcome = client.welcomed(&keyed.hello()).await;
    assert_eq!(welcome.requests_max, 2, "a quarter of the requests");
    let job = client.submit(1, mail("x")).await.job;
    for id in [2, 3] {
        client.ask(id, Request::Wait { job, wait: Duration::from_secs(50) }).await;
    }
    client.answer(4, Request::Whoami).await;
    let bearer = format!("Bearer {}", keyed.key);
    let over_http = keyed.relay.ask("GET /v1/whoami", &[("Authorization", &bearer)], "").await;
    over_http.is_problem(429, "rate-limited");
    let _second = keyed.client().await;
    let mut fourth = Wire::connect(keyed.door.address).await;
    fourth.send(&FromClient::Hello(keyed.hello())).await;
    // One of its three connections is that of HTTP.
    match fourth.next().await.unwrap() {
        ToClient::Welcome(_) => {
            let mut fifth = Wire::connect(keyed.door.address).await;
            fifth.send(&FromClient::Hello(keyed.hello())).await;
            assert_eq!(&*fifth.ended().await.slug, "rate-limited");
        }
        ToClient::Error(error) => assert_eq!(&*error.slug, "rate-limited"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_let_go_and_the_others_do_not_wait_for_it() {
    let limits = ClientLimits { write_timeout: Duration::from_millis(300), ..ClientLimits::default() };
    let keyed = Keyed::start(limits, |setup| {
        setup.policy.result_max = 1 << 20;
        setup.limits.answer_bytes = 8 << 20;
    })
    .await;
    let (mut deaf, mut other) = (keyed.client().await, keyed.client().await);
    for n in 0..8 {
        other.submit(n, mail("x")).await;
        keyed.relay.work("text/plain", vec![b'y'; 1 << 20]).await;
    }
    let all = Follow { results: u32::MAX, bytes: u64::MAX, ..Follow::default() };
    for id in 0..8 {
        deaf.ask(id, Request::Follow(all.clone())).await;
    }
    for n in 0..50 {
        other.submit(n, mail("x")).await;
    }
    let budget = |name: &str| {
        let budgets = keyed.relay.ingress.budgets();
        budgets.iter().find(|(found, _)| *found == name).map(|(_, budget)| budget.taken()).unwrap()
    };
    assert!(budget("stream_bytes") <= 4 << 20);
    // It is let go once it took nothing for a while: then its streams are free again.
    while keyed.door.clients.connections() > 1 {
        tokio::task::yield_now().await;
    }
    while budget("streams") > 0 || budget("stream_bytes") > 0 {
        tokio::task::yield_now().await;
    }
    other.submit(99, mail("x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_old_ends_once_its_requests_are_answered_and_takes_no_others() {
    let keyed = Keyed::start(ClientLimits::default(), |setup| setup.limits.max_age = Duration::from_secs(3)).await;
    let (mut client, mut idle) = (keyed.client().await, keyed.client().await);
    let job = client.submit(1, mail("x")).await.job;
    client.ask(2, Request::Wait { job, wait: Duration::from_secs(50) }).await;
    for client in [&mut client, &mut idle] {
        match client.next().await.unwrap() {
            ToClient::GoAway { reason, .. } => assert_eq!(reason, "old"),
            other => panic!("{other:?}"),
        }
    }
    assert!(idle.next().await.is_none(), "nothing is open");
    let problem = client.problem(3, Request::Whoami).await;
    assert_eq!((&*problem.slug, problem.retry.as_str()), ("draining", "safe"));
    keyed.relay.work("text/plain", "y").await;
    client.result(2).await;
    assert!(client.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_request_has_its_line_in_the_audit_while_it_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig { file: Some(dir.path().join("audit.jsonl")), level: Level::All, required: true };
    let audit = Audit::start(config, Clock::system()).unwrap();
    let keyed = Keyed::start(ClientLimits::default(), |_| {}).await;
    keyed.relay.ingress.audits(audit.clone());
    let mut client = keyed.client().await;
    client.ask(1, Request::Follow(Follow { results: 9, bytes: 9, ..Follow::default() })).await;
    assert!(matches!(client.next().await, Some(ToClient::Position { id: 1, .. })));
    // Its own line is behind that of the follow.
    client.answer(2, Request::Whoami).await;
    audit.close(Duration::from_secs(10)).await;
    let text = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let follows: Vec<_> = lines.iter().filter(|line| line["action"] == "follow").collect();
    assert!(follows.len() == 1 && follows[0]["outcome"] == "allowed", "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_tcp_have_their_lines_in_the_audit_and_their_counts() {
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig { file: Some(dir.path().join("audit.jsonl")), level: Level::All, required: false };
    let audit = Audit::start(config, Clock::system()).unwrap();
    let keyed = Keyed::start(ClientLimits::default(), |_| {}).await;
    keyed.relay.ingress.audits(audit.clone());
    let mut client = keyed.client().await;
    let job = client.submit(1, mail("x")).await.job;
    client.answer(2, Request::Cancel(job)).await;
    let nowhere = relay_bridge::contract::wire::client::Submit { queue: "nowhere".to_owned(), ..mail("x") };
    let problem = client.problem(3, Request::Submit(Box::new(nowhere))).await;
    let mut stranger = Wire::connect(keyed.door.address).await;
    stranger.send(&FromClient::Hello(hello())).await;
    stranger.ended().await;
    audit.close(Duration::from_secs(10)).await;
    let text = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |action: &str, outcome: &str| {
        let found = lines.iter().find(|line| line["action"] == action && line["outcome"] == outcome);
        found.unwrap_or_else(|| panic!("no {action} {outcome}: {text}")).clone()
    };
    let submitted = find("submit", "allowed");
    assert_eq!((&submitted["door"], &submitted["who"]), (&"tcp".into(), &"acme".into()));
    assert_eq!((&submitted["queue"], &submitted["job"]), (&"mail".into(), &job.to_string().into()));
    assert_eq!(find("cancel", "allowed")["job"], job.to_string());
    let refused = find("submit", "refused");
    assert_eq!(refused["slug"], "not-found");
    assert_eq!(problem.instance, format!("urn:relay:request:{}", refused["request_id"].as_str().unwrap()));
    assert_eq!(find("authenticate", "refused")["door"], "tcp");
    assert_eq!(keyed.door.clients.refusals().count(relay::api::Slug::NotFound), 1);
    assert_eq!((keyed.door.clients.connections(), keyed.door.clients.in_flight()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_is_the_document_of_http() {
    let keyed = Keyed::start(ClientLimits::default(), |_| {}).await;
    let mut client = keyed.client().await;
    let ToClient::Whoami { document, .. } = client.answer(1, Request::Whoami).await else { panic!("not whoami") };
    let bearer = format!("Bearer {}", keyed.key);
    let over_http = keyed.relay.ask("GET /v1/whoami", &[("Authorization", &bearer)], "").await;
    let (mut tcp, mut http): (serde_json::Value, _) = (serde_json::from_str(&document).unwrap(), over_http.json());
    tcp["server_time"] = serde_json::Value::Null;
    http["server_time"] = serde_json::Value::Null;
    assert_eq!(tcp, http);
}
