//! Receipts that a worker changed: they are not signed, and nothing in them is believed. Times that nobody means.

use std::time::Duration;

use relay_bridge::contract::job::DELAY_MAX;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Held, Receipt};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

use super::support::Stage;

/// The receipt with another end of all extensions: eight bytes behind version, lease and attempt.
fn for_ever(mut receipt: Receipt) -> Receipt {
    receipt.token[21..29].copy_from_slice(&i64::MAX.to_be_bytes());
    receipt
}

#[tokio::test]
async fn a_receipt_that_says_a_later_end_is_not_held_beyond_lease_max() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let policy = QueuePolicy { lease_max: stage.policy.lease * 2, ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    stage.submit().await;
    let receipt = for_ever(stage.lease(&stage.broker).await.receipt);
    let step = policy.lease * 2 / 3;
    for held in [policy.lease, step] {
        stage.clock.advance(step);
        assert_eq!(stage.broker.leasing.extend(&receipt).await.unwrap(), Held::Until(held));
    }
    stage.clock.advance(step);
    let lost = stage.broker.leasing.extend(&receipt).await.unwrap_err();
    assert_eq!(lost.kind(), BrokerErrorKind::LeaseLost, "{lost}");
}

#[tokio::test]
async fn a_lease_max_that_is_changed_holds_for_jobs_that_are_held() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    stage.submit().await;
    let receipt = stage.lease(&stage.broker).await.receipt;
    let with = |lease_max| QueuePolicy { lease_max, ..stage.policy.clone() };
    let (shorter, longer) = (with(stage.policy.lease), with(stage.policy.lease_max * 3));
    stage.broker.policies.put_policy(&stage.queue, &shorter, Some(&stage.policy)).await.unwrap();
    stage.clock.advance(Duration::from_secs(10));
    let left = stage.policy.lease - Duration::from_secs(10);
    assert_eq!(stage.broker.leasing.extend(&receipt).await.unwrap(), Held::Until(left));
    stage.broker.policies.put_policy(&stage.queue, &longer, Some(&shorter)).await.unwrap();
    assert_eq!(stage.broker.leasing.extend(&receipt).await.unwrap(), Held::Until(stage.policy.lease));
}

#[tokio::test]
async fn a_job_that_is_put_back_for_ever_is_back_after_the_longest_delay() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    for settlement in [Settlement::RetryAfter(Duration::MAX), Settlement::HandBack(Duration::MAX)] {
        let job = stage.submit().await;
        let receipt = stage.lease(&stage.broker).await.receipt;
        stage.broker.leasing.settle(&receipt, &settlement).await.unwrap();
        let status = stage.broker.jobs.status(&stage.client(), job.id).await.unwrap().unwrap();
        assert_eq!(status.next_attempt_at, Some(stage.clock.now() + DELAY_MAX), "{settlement:?}");
    }
}
