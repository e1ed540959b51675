//! Jobs beside which others fail, or crowd.

use std::time::Duration;

use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;

use super::support::{PATIENCE, SLOTS, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn as_many_jobs_in_backoff_as_a_client_may_run_do_not_hold_up_a_healthy_one() {
    const MAX_RUNNING: u32 = 32;
    let server = NatsServer::start().await;
    let client_defaults = ClientPolicy { max_running: MAX_RUNNING, ..ClientPolicy::default() };
    let stage = Stage::open(&server.url(), 1, QueuePolicy { client_defaults, ..QueuePolicy::default() }).await;
    stage.submit_many("acme", "failing", MAX_RUNNING as usize).await;
    let mut failed = 0;
    while failed < MAX_RUNNING {
        for delivery in stage.lease(MAX_RUNNING, PATIENCE).await {
            let later = Settlement::RetryAfter(Duration::from_secs(3_600));
            stage.broker.leasing.settle(&delivery.receipt, &later).await.unwrap();
            failed += 1;
        }
    }
    let healthy = stage.submit_many("acme", "healthy", 1).await;
    assert_eq!(stage.run(1).await, healthy);
    let depth = stage.broker.jobs.depth(&stage.queue).await.unwrap();
    assert_eq!((depth.parked, depth.leased), (u64::from(MAX_RUNNING), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_job_behind_100_000_of_another_client_is_among_the_next_few_that_are_given_out() {
    const CROWD: usize = 100_000;
    // As many jobs as the slots hold take their turn first; the rest is how long the news may take.
    const BOUND: usize = 4 * SLOTS as usize;
    let server = NatsServer::start().await;
    let client_defaults = ClientPolicy { max_queued: 2 * CROWD as u64, ..ClientPolicy::default() };
    let policy = QueuePolicy { client_defaults, ..QueuePolicy::default() };
    let stage = Stage::open(&server.url(), 1, policy.clone()).await;
    stage.submit_many("crowd", "job", CROWD).await;
    // The worker is another process, busy with the crowd.
    let worker = Stage::open(&server.url(), 1, policy).await;
    worker.run(4 * SLOTS as usize).await;
    let lone = stage.submit_many("lone", "job", 1).await;
    let ran = worker.run(BOUND).await;
    let place = ran.iter().position(|job| *job == lone[0]);
    assert!(place.is_some(), "not among the next {BOUND} of {CROWD}");
}
