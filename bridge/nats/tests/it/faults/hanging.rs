//! A server that stops without closing a connection: it is known to be away only half a minute later.

use std::time::Duration;

use futures_util::future::{join_all, join4};
use relay_bridge::contract::Job;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_conformance::testing::NatsServer;
use tokio::time::timeout;

use super::support::{PATIENCE, Stage, is_passing};

/// With their payloads, more than what the sockets, the client's buffer and its queue of commands hold.
const CALLS: usize = 4_000;
const PAYLOAD_BYTES: usize = 16 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_answered_while_the_server_hangs_and_works_again_when_it_goes_on() {
    let server = NatsServer::start().await;
    let client_defaults = ClientPolicy { max_queued: 100_000, ..ClientPolicy::default() };
    let stage = Stage::open(&server.url(), 1, QueuePolicy { client_defaults, ..QueuePolicy::default() }).await;
    let (acme, known) = ("acme".parse().unwrap(), stage.submit("acme", "known").await.status().job_id);
    let large = |call: &str, number: usize| {
        let job = stage.job("acme", &format!("{call}-{number}"));
        Job { payload: vec![b'x'; PAYLOAD_BYTES].into(), ..job }
    };
    server.pause();

    // They fill the buffers in between; when they are answered, the copies of policies are too old to be used.
    let first = join_all((0..CALLS).map(|number| stage.broker.jobs.enqueue(large("first", number))));
    let answers = timeout(PATIENCE, first).await.expect("all were answered");
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(is_passing)));

    let enqueue = join_all((0..CALLS).map(|number| stage.broker.jobs.enqueue(large("second", number))));
    let status = join_all((0..100).map(|_| stage.broker.jobs.status(&acme, known)));
    let wait = join_all((0..100).map(|_| stage.broker.results.wait(&acme, known, Duration::from_secs(1))));
    let policy = join_all((0..100).map(|_| stage.broker.policies.policy(&stage.queue)));
    let all = timeout(PATIENCE, join4(enqueue, status, wait, policy)).await.expect("all were answered");
    let refused = all.0.into_iter().map(Result::unwrap_err);
    let refused = refused.chain(all.1.into_iter().map(Result::unwrap_err));
    let refused = refused.chain(all.2.into_iter().map(Result::unwrap_err));
    for error in refused.chain(all.3.into_iter().map(Result::unwrap_err)) {
        // None of them had anything written.
        assert_eq!(error.kind(), BrokerErrorKind::Unavailable, "{error}");
    }

    server.resume();
    let job = stage.submit("acme", "after").await.status().job_id;
    let mut ran = stage.lease(1, PATIENCE).await;
    while ran.iter().all(|delivery| delivery.job.id != job) {
        for delivery in &ran {
            stage.succeed(delivery, "done").await;
        }
        ran = stage.lease(64, PATIENCE).await;
    }
    assert!(stage.broker.jobs.status(&acme, known).await.unwrap().is_some());
}
