//! A worker that lost its lease to one in another process, and does not know.

use std::time::Duration;

use relay_bridge::contract::JobState;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Held, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;

use super::support::{PATIENCE, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn acks_naks_and_heartbeats_after_a_lease_do_nothing_to_the_holder_in_another_process() {
    let server = NatsServer::start().await;
    let policy = QueuePolicy { lease: Duration::from_secs(5), ..QueuePolicy::default() };
    let late = Stage::open(&server.url(), 1, policy.clone()).await;
    let holder = Stage::open(&server.url(), 1, policy).await;
    let job = late.submit("acme", "key").await.status().clone();
    let lost = late.lease(1, PATIENCE).await.remove(0);
    let held = holder.lease(1, PATIENCE).await.remove(0);
    assert_eq!((held.job.id, held.attempt), (job.job_id, 2));

    let heartbeat = late.broker.leasing.extend(&lost.receipt).await.unwrap_err();
    assert_eq!(heartbeat.kind(), BrokerErrorKind::LeaseLost, "{heartbeat}");
    for settlement in [
        Settlement::HandBack(Duration::ZERO),
        Settlement::RetryAfter(Duration::from_millis(1)),
        Settlement::DeadLetter,
        Settlement::Complete,
    ] {
        let refused = late.broker.leasing.settle(&lost.receipt, &settlement).await.unwrap_err();
        assert_eq!(refused.kind(), BrokerErrorKind::LeaseLost, "{settlement:?}: {refused}");
        assert!(late.lease(1, Duration::ZERO).await.is_empty(), "{settlement:?} put it in line");
        let still = holder.broker.leasing.extend(&held.receipt).await.unwrap();
        assert!(matches!(still, Held::Until(_)), "{settlement:?}: {still:?}");
    }
    let status = holder.broker.jobs.status(&job.client, job.job_id).await.unwrap().unwrap();
    assert_eq!((status.state, status.attempt), (JobState::Leased, 2));
    assert_eq!(holder.succeed(&held, "done").await, Recorded::First);
    assert!(late.lease(1, Duration::ZERO).await.is_empty());
}
