//! A body goes there and back, for callers that are known, and no job is made of it.

use relay::auth::Authenticator;
use relay_bridge::clock::Clock;

use super::support::{Relay, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn a_body_comes_back_byte_by_byte_and_no_job_is_made_of_it() {
    let relay = Relay::start().await;
    let body: Vec<u8> = (0..16 * 1024).map(|at: u32| at.to_le_bytes()[0]).collect();
    let back = relay.ask("POST /v1/echo", &[], &body).await;
    assert_eq!((back.status, back.body == body), (200, true));
    assert_eq!(back.header("content-security-policy"), "sandbox");
    assert_eq!(relay.ask("POST /v1/echo", &[], "").await.body, b"");
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_16_kib_is_refused_and_so_is_a_caller_that_nobody_knows() {
    let relay = Relay::start().await;
    relay.ask("POST /v1/echo", &[], vec![0; 16 * 1024 + 1]).await.is_problem(413, "payload-too-large");
    relay.ask("POST /v1/echo?x=1", &[], "x").await.is_problem(400, "malformed-request");
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.toml");
    std::fs::write(&keys, "").unwrap();
    let authenticator = Authenticator::keys(keys, Clock::system()).unwrap();
    let relay = Setup { authenticator, ..Setup::default() }.start().await;
    relay.ask("POST /v1/echo", &[], "x").await.is_problem(401, "unauthenticated");
}
