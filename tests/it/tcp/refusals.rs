//! Each refusal over TCP is the refusal over HTTP: one test for each slug asks the same relay for the same thing both ways.

use std::sync::Arc;
use std::time::Duration;

use relay::api::{Problem, Retry, Slug};
use relay::auth::keys::{KeyFile, Role};
use relay::auth::{Authenticator, Files};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::JobId;
use relay_bridge::contract::wire::client::{FromClient, Hello, Request, Submit, ToClient, WireProblem};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use serde_json::json;

use super::support::{Door, Wire, hello, mail};
use crate::http::failing::{Failing, Fault};
use crate::http::support::{Relay, Reply, Setup};

/// Those that only one of the protocols has, and why.
const OF_HTTP_ALONE: [(Slug, &str); 3] = [
    (Slug::MethodNotAllowed, "messages have no methods"),
    (Slug::HeadersTooLarge, "messages have no headers: a frame has its limit"),
    (Slug::RequestTimeout, "a frame takes as long as it takes while the connection lives; a late hello ends it"),
];

#[track_caller]
fn same(over_http: &Reply, over_tcp: &WireProblem, slug: Slug) {
    let http: Problem = serde_json::from_slice(&over_http.body).unwrap();
    assert_eq!((http.slug, &*over_tcp.slug), (slug, slug.as_str()), "{}", over_tcp.detail);
    assert_eq!(http.detail, over_tcp.detail);
    assert_eq!(http.retry.as_str(), over_tcp.retry.as_str());
    assert_eq!(http.retry_after.map(|after| after.0), over_tcp.retry_after);
    assert_eq!((http.limit, http.actual), (over_tcp.limit, over_tcp.actual));
    assert_eq!((http.job_id, http.first_at), (over_tcp.job, over_tcp.first_at));
    assert_eq!((http.outcome, http.finished_at), (over_tcp.outcome, over_tcp.finished_at));
    let (named, length) = (over_tcp.instance.strip_prefix("urn:relay:request:"), over_tcp.instance.len());
    assert!(named.is_some() && length == http.instance.len(), "{}", over_tcp.instance);
}

fn to_mail(submit: Submit) -> Request {
    Request::Submit(Box::new(submit))
}

async fn both(setup: Setup) -> (Relay, Door, Wire) {
    let relay = setup.start().await;
    let door = Door::of(&relay).await;
    let client = door.client().await;
    (relay, door, client)
}

/// A relay whose queue has this policy, and a clock that stands still.
async fn with_policy(policy: QueuePolicy) -> (Relay, Door, Wire) {
    let clock = Clock::manual(Clock::system().now());
    both(Setup { policy: QueuePolicy { payload_max: 1_000, ..policy }, clock, ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_request_is_the_same_over_both() {
    let (relay, _door, mut client) = both(Setup::default()).await;
    let over_http = relay.submit(&[("Idempotency-Key", "a b")], "x").await;
    let submit = Submit { key: Some("a b".to_owned()), ..mail("x") };
    same(&over_http, &client.problem(1, to_mail(submit)).await, Slug::MalformedRequest);
    let long = "k".repeat(256);
    let day = Duration::from_secs(86_400);
    for submit in [
        Submit { key: Some(long.clone()), ..mail("x") },
        Submit { key: Some(String::new()), ..mail("x") },
        Submit { delay: Some(8 * day), ..mail("x") },
        Submit { expires_in: Some(Duration::ZERO), ..mail("x") },
        Submit { content_type: Some(long.clone()), ..mail("x") },
        Submit { content_type: Some("a\nb".to_owned()), ..mail("x") },
        Submit { content_encoding: Some("\u{fc}".to_owned()), ..mail("x") },
        Submit { meta: [("a b".to_owned(), "x".to_owned())].into(), ..mail("x") },
        Submit { meta: [("a".to_owned(), "\u{fc}".to_owned())].into(), ..mail("x") },
        Submit { meta: [("a".to_owned(), "m".repeat(2_048))].into(), ..mail("x") },
        Submit { queue: "UPPER".to_owned(), ..mail("x") },
        Submit { queue: "q".repeat(64), ..mail("x") },
    ] {
        let problem = client.problem(2, to_mail(submit.clone())).await;
        assert_eq!(problem.slug, "malformed-request", "{submit:?}: {}", problem.detail);
    }
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 0, "nothing was done");
}

/// A relay with a key of `acme` for the queue `mail`, and that key.
async fn with_key(rights: &str) -> (tempfile::TempDir, Relay, Door, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = KeyFile::new(dir.path().join("keys.toml"));
    let clock = Clock::system();
    let queues = Some(vec!["mail".parse().unwrap()]);
    let key = file.create(Role::Client, "acme".parse().unwrap(), queues, clock.now()).unwrap().to_string();
    if !rights.is_empty() {
        let text = std::fs::read_to_string(file.path()).unwrap();
        let with_rights = text.replacen("role = ", &format!("rights = {rights}\nrole = "), 1);
        std::fs::write(file.path(), with_rights).unwrap();
    }
    let authenticator = Authenticator::keys(file.path().to_owned(), clock).unwrap();
    let relay = Setup { authenticator, ..Setup::default() }.start().await;
    let door = Door::of(&relay).await;
    (dir, relay, door, key)
}

fn with(key: &str) -> Hello {
    Hello { key: Some(key.to_owned()), ..hello() }
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_is_the_same_over_both() {
    let (_dir, relay, door, key) = with_key("").await;
    let wrong = &key[..key.len() - 1];
    let over_http = relay.submit(&[("Authorization", &format!("Bearer {wrong}"))], "x").await;
    over_http.is_problem(401, "unauthenticated");
    let mut client = Wire::connect(door.address).await;
    client.send(&FromClient::Hello(with(wrong))).await;
    let error = client.ended().await;
    assert_eq!((&*error.kind, &*error.slug), ("unauthorized", "unauthenticated"));
    assert_eq!(error.detail, over_http.field("detail"));
    let mut client = Wire::connect(door.address).await;
    client.send(&FromClient::Hello(hello())).await;
    assert_eq!(client.ended().await.detail, relay.submit(&[], "x").await.field("detail"));
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_is_the_same_over_both() {
    let (_dir, relay, door, key) = with_key("[\"read\"]").await;
    let bearer = format!("Bearer {key}");
    let mut client = Wire::connect(door.address).await;
    assert_eq!(client.welcomed(&with(&key)).await.client.as_str(), "acme");
    let over_http = relay.submit(&[("Authorization", &bearer)], "x").await;
    same(&over_http, &client.problem(1, to_mail(mail("x"))).await, Slug::Forbidden);
    let job = JobId::mint();
    let over_http = relay.ask(&format!("POST /v1/jobs/{job}/cancel"), &[("Authorization", &bearer)], "").await;
    same(&over_http, &client.problem(2, Request::Cancel(job)).await, Slug::Forbidden);

    let (_dir, relay, door, key) = with_key("").await;
    let mut client = Wire::connect(door.address).await;
    client.welcomed(&with(&key)).await;
    let bearer = format!("Bearer {key}");
    let over_http = relay.ask("POST /v1/queues/other/jobs", &[("Authorization", &bearer)], "x").await;
    let submit = Submit { queue: "other".to_owned(), ..mail("x") };
    same(&over_http, &client.problem(3, to_mail(submit)).await, Slug::Forbidden);

    let policy = QueuePolicy { allowed_clients: ["shop".parse().unwrap()].into(), ..QueuePolicy::default() };
    let (relay, _door, mut client) = with_policy(policy).await;
    same(&relay.submit(&[], "x").await, &client.problem(4, to_mail(mail("x"))).await, Slug::Forbidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn not_found_is_the_same_over_both() {
    let (relay, _door, mut client) = both(Setup::default()).await;
    let over_http = relay.ask("POST /v1/queues/nowhere/jobs", &[], "x").await;
    let submit = Submit { queue: "nowhere".to_owned(), ..mail("x") };
    same(&over_http, &client.problem(1, to_mail(submit)).await, Slug::NotFound);
    // Another client's job looks like one that is not there.
    let other = relay.submit(&[("Relay-Client", "other")], "x").await.field("job_id").parse().unwrap();
    for job in [JobId::mint(), other] {
        for (line, request) in [
            (format!("GET /v1/jobs/{job}"), Request::Status(job)),
            (format!("GET /v1/jobs/{job}/result?wait=50s"), Request::Wait { job, wait: Duration::from_secs(50) }),
            (format!("POST /v1/jobs/{job}/cancel"), Request::Cancel(job)),
            (format!("POST /v1/jobs/{job}/rerun?from=1"), Request::Rerun { job, from: 1 }),
        ] {
            same(&relay.ask(&line, &[], "").await, &client.problem(2, request).await, Slug::NotFound);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn state_conflict_is_the_same_over_both() {
    let (relay, _door, mut client) = both(Setup::default()).await;
    let job = client.submit(1, mail("x")).await.job;
    let over_http = relay.ask(&format!("POST /v1/jobs/{job}/rerun?from=1"), &[], "").await;
    same(&over_http, &client.problem(2, Request::Rerun { job, from: 1 }).await, Slug::StateConflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn result_expired_is_the_same_over_both() {
    let (relay, _door, mut client) = both(Setup::default()).await;
    let job = client.submit(1, Submit { key: Some("k".to_owned()), ..mail("x") }).await.job;
    relay.work("text/plain", "y").await;
    client.ask(2, Request::Wait { job, wait: Duration::from_secs(50) }).await;
    client.result(2).await;
    assert_eq!(relay.ask(&format!("DELETE /v1/jobs/{job}"), &[], "").await.status, 204);
    let over_http = relay.get(&format!("/v1/jobs/{job}/result")).await;
    let over_tcp = client.problem(3, Request::Wait { job, wait: Duration::ZERO }).await;
    same(&over_http, &over_tcp, Slug::ResultExpired);
}

#[tokio::test(flavor = "multi_thread")]
async fn payload_too_large_is_the_same_over_both() {
    let (relay, _door, mut client) = both(Setup::default()).await;
    let over_http = relay.submit(&[], vec![0; 1_001]).await;
    same(&over_http, &client.problem(1, to_mail(mail(vec![0; 1_001]))).await, Slug::PayloadTooLarge);
    client.submit(2, mail(vec![0; 1_000])).await;
    client.submit(3, mail("")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_media_type_is_the_same_over_both() {
    let policy = QueuePolicy { content_types: ["image/*".parse().unwrap()].into(), ..QueuePolicy::default() };
    let (relay, _door, mut client) = with_policy(policy).await;
    let over_http = relay.submit(&[("Content-Type", "text/plain")], "x").await;
    let submit = Submit { content_type: Some("text/plain".to_owned()), ..mail("x") };
    same(&over_http, &client.problem(1, to_mail(submit)).await, Slug::UnsupportedMediaType);
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_conflict_is_the_same_over_both() {
    let (relay, _door, mut client) = both(Setup::default()).await;
    client.submit(1, Submit { key: Some("k".to_owned()), ..mail("x") }).await;
    let over_http = relay.submit(&[("Idempotency-Key", "k")], "y").await;
    let submit = Submit { key: Some("\"k\"".to_owned()), ..mail("y") };
    same(&over_http, &client.problem(2, to_mail(submit)).await, Slug::IdempotencyConflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limited_is_the_same_over_both() {
    let slow = ClientPolicy { rate: Some("1/h".parse().unwrap()), burst: 1, ..Default::default() };
    let (relay, _door, mut client) = with_policy(QueuePolicy { client_defaults: slow, ..QueuePolicy::default() }).await;
    client.submit(1, mail("x")).await;
    same(&relay.submit(&[], "x").await, &client.problem(2, to_mail(mail("x"))).await, Slug::RateLimited);
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_exceeded_is_the_same_over_both() {
    let few = ClientPolicy { max_queued: 1, ..Default::default() };
    let (relay, _door, mut client) = with_policy(QueuePolicy { client_defaults: few, ..QueuePolicy::default() }).await;
    client.submit(1, mail("x")).await;
    same(&relay.submit(&[], "x").await, &client.problem(2, to_mail(mail("x"))).await, Slug::QuotaExceeded);
}

async fn with_broker(break_broker: fn(&mut Broker)) -> (Relay, Door, Wire) {
    both(Setup { break_broker: Box::new(break_broker), ..Setup::default() }).await
}

/// The answers to one submission under a key.
async fn failed((relay, _door, mut client): (Relay, Door, Wire), slug: Slug) {
    let over_http = relay.submit(&[("Idempotency-Key", "k")], "x").await;
    let submit = Submit { key: Some("k".to_owned()), ..mail("x") };
    same(&over_http, &client.problem(1, to_mail(submit)).await, slug);
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_is_the_same_over_both() {
    failed(with_broker(|broker| broker.jobs = Arc::new(Failing(Fault::Fails(Kind::Corrupt)))).await, Slug::Internal)
        .await;
    // A panic says more, of the words that each protocol has for a key.
    let (_relay, _door, mut client) = with_broker(|broker| broker.jobs = Arc::new(Failing(Fault::Panics))).await;
    let problem = client.problem(1, to_mail(mail("x"))).await;
    assert_eq!((&*problem.slug, problem.retry.as_str()), ("internal", Retry::WithIdempotencyKey.as_str()));
    assert!(problem.job.is_some());
    client.answer(2, Request::Whoami).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_unavailable_is_the_same_over_both() {
    let broken = with_broker(|broker| broker.jobs = Arc::new(Failing(Fault::Fails(Kind::Unavailable)))).await;
    failed(broken, Slug::BrokerUnavailable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unconfirmed_is_the_same_over_both() {
    let broken = with_broker(|broker| broker.jobs = Arc::new(Failing(Fault::Fails(Kind::Ambiguous)))).await;
    failed(broken, Slug::Unconfirmed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overloaded_is_the_same_over_both() {
    let (relay, door, mut waiting) = both({
        let mut setup = Setup::default();
        setup.limits.requests = 1;
        setup
    })
    .await;
    let job = waiting.submit(1, mail("x")).await.job;
    waiting.ask(2, Request::Wait { job, wait: Duration::from_secs(50) }).await;
    // A message that is answered after the wait has its place.
    waiting.send(&FromClient::Ping(1)).await;
    assert_eq!(waiting.next().await, Some(ToClient::Pong(1)));
    let mut client = door.client().await;
    let over_tcp = client.problem(3, to_mail(mail("x"))).await;
    same(&relay.submit(&[], "x").await, &over_tcp, Slug::Overloaded);
    waiting.send(&FromClient::Stop { id: 2 }).await;
    assert!(matches!(waiting.next().await, Some(ToClient::Job { id: 2, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_is_the_same_over_both() {
    let (_relay, door, mut client) = with_broker(|broker| broker.jobs = Arc::new(Failing(Fault::Hangs))).await;
    // A request that the broker does not answer keeps the connection.
    client.ask(1, to_mail(mail("x"))).await;
    client.answer(2, Request::Whoami).await;
    door.shutdown.cancel();
    client.ask(3, to_mail(mail("x"))).await;
    let problem = loop {
        match client.next().await.unwrap() {
            ToClient::Problem { id: 3, problem } => break problem,
            ToClient::GoAway { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    let wanted = Problem::new(Slug::Draining, "");
    assert_eq!((&*problem.slug, problem.retry.as_str()), (wanted.slug.as_str(), wanted.retry.as_str()));
    assert_eq!(problem.retry_after, wanted.retry_after.map(|after| after.0));
    assert!(problem.detail.contains("shutting down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn issuer_unavailable_is_the_same_over_both() {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    let dir = tempfile::tempdir().unwrap();
    let clients = r#"
        [[client]]
        name = "batch"
        any = [[{ jwt = { issuer = "https://issuer.example", subject = "submitter" } }]]
        [[issuer]]
        url = "https://issuer.example"
        audience = "relay"
        algorithms = ["ES256"]
        jwks_url = "https://127.0.0.1:9/keys"
    "#;
    std::fs::write(dir.path().join("clients.toml"), clients).unwrap();
    let files = Files { keys: None, clients: Some(dir.path().join("clients.toml")) };
    let authenticator = Authenticator::open(files, Clock::system()).unwrap();
    let relay = Setup { authenticator, ..Setup::default() }.start().await;
    let door = Door::of(&relay).await;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let now = Clock::system().now().as_millis() / 1_000;
    let claims =
        json!({ "iss": "https://issuer.example", "sub": "submitter", "aud": "relay", "iat": now, "exp": now + 600 });
    let token = encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap();
    let over_http = relay.submit(&[("Authorization", &format!("Bearer {token}"))], "x").await;
    over_http.is_problem(503, "issuer-unavailable");
    let mut client = Wire::connect(door.address).await;
    client.send(&FromClient::Hello(with(&token))).await;
    let error = client.ended().await;
    assert_eq!((&*error.slug, error.retry.as_str()), ("issuer-unavailable", "safe"));
    assert_eq!((error.detail, error.retry_after), (over_http.field("detail"), Some(Duration::from_secs(60))));
}

#[test]
fn every_slug_is_compared_or_is_of_one_protocol() {
    let tests = include_str!("refusals.rs");
    for slug in Slug::ALL {
        let compared = tests.contains(&format!("fn {}_is_the_same_over_both()", slug.as_str().replace('-', "_")));
        let alone = OF_HTTP_ALONE.iter().any(|(of_http, _)| of_http == slug);
        assert!(compared != alone, "{slug} has to be compared, or to have a reason");
    }
}
