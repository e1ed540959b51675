//! A leased job is one worker's until its lease ends; settling ends a delivery once.

use std::time::Duration;

use super::Fixture;
use super::stage::{Stage, ok_or_lost, refused};
use relay_bridge::contract::{JobState, Outcome};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Delivery, Held, Progress, Receipt};
use relay_bridge::settlement::Settlement;

pub async fn a_leased_job_is_hidden_until_its_lease_ends(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let first = stage.lease_one().await;
    assert_eq!((first.job.id, first.attempt), (job.id, 1));
    assert!(first.lease <= stage.lease && first.lease > stage.lease / 2, "{:?}", first.lease);
    stage.assert_nothing_in_line().await;
    stage.pass(stage.lease - stage.slack).await;
    stage.assert_nothing_in_line().await;
    stage.pass(stage.slack * 2).await;
    let second = stage.lease_one().await;
    assert_eq!((second.job.id, second.attempt), (job.id, 2));
    assert_ne!(second.receipt.token, first.receipt.token, "each lease has a receipt of its own");
    stage.assert_nothing_in_line().await;
}

pub async fn an_extended_lease_keeps_the_job_hidden(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    // As often as workers do.
    for _ in 0..9 {
        stage.pass(stage.lease / 3).await;
        match stage.leasing.extend(&delivery.receipt).await.unwrap() {
            Held::Until(held) => assert!(held <= stage.lease && held > stage.lease / 2, "{held:?}"),
            ended => panic!("{ended:?}"),
        }
        stage.assert_nothing_in_line().await;
    }
    assert_eq!(stage.status(&delivery.job).await.attempt, 1, "heartbeats spend no attempt");
    stage.pass(stage.lease - stage.slack).await;
    stage.assert_nothing_in_line().await;
    stage.record_first(&stage.success(&delivery, "done")).await;
    stage.settle_late(&delivery, Settlement::Complete).await;
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn a_lease_ends_at_lease_max_however_often_it_is_extended(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.lease_max = policy.lease * 2).await;
    stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    stage.pass(stage.lease / 4).await;
    for _ in 0..4 {
        stage.leasing.extend(&delivery.receipt).await.unwrap();
        stage.pass(stage.lease / 4).await;
    }
    // 1.25 of 2 leases have passed: less than a whole lease is left.
    match stage.leasing.extend(&delivery.receipt).await.unwrap() {
        Held::Until(held) => assert!(held <= stage.lease * 3 / 4 + stage.slack, "{held:?} goes beyond lease_max"),
        ended => panic!("{ended:?}"),
    }
    stage.pass(stage.lease / 2).await;
    ok_or_lost(stage.leasing.extend(&delivery.receipt).await);
    stage.assert_nothing_in_line().await;
    stage.pass(stage.lease / 4 + stage.slack).await;
    ok_or_lost(stage.leasing.extend(&delivery.receipt).await);
    let next = stage.lease_one().await;
    assert_eq!(next.attempt, 2);
    if stage.broker.capabilities.lease_lost_certain {
        assert_eq!(refused(stage.leasing.extend(&delivery.receipt).await), BrokerErrorKind::LeaseLost);
    }
}

pub async fn a_lease_that_ended_is_not_extended(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    stage.submit_plain(&stage.client("a")).await;
    let first = stage.lease_one().await;
    stage.pass_lease().await;
    let second = stage.lease_one().await;
    if stage.broker.capabilities.lease_lost_certain {
        assert_eq!(refused(stage.leasing.extend(&first.receipt).await), BrokerErrorKind::LeaseLost);
        let progress = Progress { percent: Some(10.0), message: "still here".to_owned() };
        assert_eq!(refused(stage.leasing.progress(&first.receipt, &progress).await), BrokerErrorKind::LeaseLost);
    }
    // The second lease ends when it should, whatever the first holder tried.
    stage.pass(stage.lease - stage.slack).await;
    stage.assert_nothing_in_line().await;
    stage.pass(stage.slack * 2).await;
    assert_eq!(stage.lease_one().await.attempt, second.attempt + 1);
}

pub async fn settling_twice_has_one_effect(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    stage.submit_plain(&stage.client("a")).await;
    let first = stage.lease_one().await;
    stage.settle(&first, Settlement::RetryAfter(stage.lease / 2)).await;
    stage.settle_late(&first, Settlement::RetryAfter(stage.lease / 2)).await;
    stage.settle_late(&first, Settlement::HandBack(Duration::ZERO)).await;
    stage.assert_nothing_in_line().await;
    stage.pass(stage.lease / 2 + stage.slack).await;
    let second = stage.lease_one().await;
    assert_eq!(second.attempt, 2);
    stage.assert_nothing_in_line().await;
    stage.settle_late(&first, Settlement::Complete).await;
    assert!(matches!(stage.leasing.extend(&second.receipt).await.unwrap(), Held::Until(_)));

    stage.record_first(&stage.success(&second, "done")).await;
    stage.settle(&second, Settlement::Complete).await;
    stage.settle_late(&second, Settlement::Complete).await;
    stage.settle_late(&second, Settlement::RetryAfter(Duration::from_millis(1))).await;
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn a_late_settle_has_no_second_effect(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let late = stage.lease_one().await;
    stage.pass_lease().await;
    let holder = stage.lease_one().await;
    for settlement in [
        Settlement::HandBack(Duration::ZERO),
        Settlement::RetryAfter(Duration::from_millis(1)),
        Settlement::DeadLetter,
        Settlement::Complete,
    ] {
        let answer = stage.leasing.settle(&late.receipt, &settlement).await;
        if stage.broker.capabilities.lease_lost_certain {
            assert_eq!(refused(answer), BrokerErrorKind::LeaseLost, "{settlement:?}");
        } else {
            ok_or_lost(answer);
        }
        stage.pass(stage.slack).await;
        stage.assert_nothing_in_line().await;
        assert!(matches!(stage.leasing.extend(&holder.receipt).await.unwrap(), Held::Until(_)));
    }
    let status = stage.status(&job).await;
    assert_eq!((status.state, status.attempt), (JobState::Leased, 2));
    stage.succeed(&holder).await;
}

pub async fn a_settle_after_the_lease_ended_loses_no_job(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    stage.submit_plain(&stage.client("a")).await;
    let late = stage.lease_one().await;
    stage.pass_lease().await;
    // Nobody has leased it again yet.
    stage.settle_late(&late, Settlement::RetryAfter(Duration::from_millis(1))).await;
    stage.pass_lease().await;
    assert_eq!(stage.lease_one().await.attempt, 2);
    stage.assert_nothing_in_line().await;
}

pub async fn a_retry_is_never_before_its_delay(fixture: &dyn Fixture) {
    let stage = Stage::patient(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    // The last two are parked: longer than 30 s with the default lease.
    for (spent, delay) in [stage.lease / 3, stage.lease, stage.lease * 2, stage.lease * 5].into_iter().enumerate() {
        let delivery = stage.lease_one().await;
        assert_eq!(delivery.attempt, u32::try_from(spent).unwrap() + 1);
        let before = fixture.now();
        stage.settle(&delivery, Settlement::RetryAfter(delay)).await;
        let after = fixture.now();
        // Before anything looks for it: whatever time this takes, nobody has it.
        let status = stage.status(&job).await;
        assert_eq!(status.state, JobState::Queued);
        assert!(status.next_attempt_at.is_none_or(|at| at >= before + delay), "{:?}", status.next_attempt_at);
        stage.assert_nothing_in_line().await;
        stage.pass_until(before + delay, -1).await;
        stage.assert_nothing_in_line().await;
        stage.pass_until(after + delay, 1).await;
    }
    let last = stage.lease_one().await;
    stage.settle(&last, Settlement::RetryAfter(Duration::ZERO)).await;
    stage.pass(stage.slack).await;
    assert_eq!(stage.lease_one().await.attempt, last.attempt + 1);
}

pub async fn a_retry_spends_an_attempt_and_a_hand_back_does_not(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    for _ in 0..3 {
        let delivery = stage.lease_one().await;
        assert_eq!(delivery.attempt, 1);
        assert_eq!(stage.status(&job).await.state, JobState::Leased);
        stage.settle(&delivery, Settlement::HandBack(Duration::ZERO)).await;
        let status = stage.status(&job).await;
        assert_eq!((status.state, status.attempt), (JobState::Queued, 0));
    }
    let delivery = stage.lease_one().await;
    stage.settle(&delivery, Settlement::RetryAfter(stage.slack)).await;
    stage.pass(stage.slack * 2).await;
    for _ in 0..2 {
        let delivery = stage.lease_one().await;
        assert_eq!((delivery.attempt, &delivery.job), (2, &job), "a retry is of the job as it was accepted");
        stage.settle(&delivery, Settlement::HandBack(Duration::ZERO)).await;
    }
}

pub async fn parking_spends_no_attempt(fixture: &dyn Fixture) {
    let stage = Stage::patient(fixture).await;
    let mut submission = stage.submission(&stage.client("a"));
    submission.delay = stage.lease * 2;
    let job = stage.submit(submission).await;
    stage.assert_nothing_in_line().await;
    let status = stage.status(&job).await;
    assert_eq!((status.state, status.attempt), (JobState::Queued, 0));
    stage.pass(stage.lease * 2 - stage.slack).await;
    stage.assert_nothing_in_line().await;
    stage.pass(stage.slack * 2).await;
    let delivery = stage.lease_one().await;
    assert_eq!(delivery.attempt, 1);
    stage.settle(&delivery, Settlement::HandBack(stage.lease * 3)).await;
    stage.pass(stage.lease * 3 - stage.slack).await;
    stage.assert_nothing_in_line().await;
    stage.pass(stage.slack * 2).await;
    let delivery = stage.lease_one().await;
    assert_eq!(delivery.attempt, 1);
    stage.settle(&delivery, Settlement::RetryAfter(stage.lease * 3)).await;
    stage.pass(stage.lease * 3 + stage.slack).await;
    assert_eq!(stage.lease_one().await.attempt, 2);
}

pub async fn a_crashed_worker_spends_an_attempt_and_the_last_one_is_told(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.max_attempts = 3).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    for attempt in 1..=3 {
        assert_eq!(stage.lease_one().await.attempt, attempt);
        stage.pass_lease().await;
    }
    let spent = stage.lease_one().await;
    assert!(spent.attempt > stage.policy.max_attempts, "attempt {}", spent.attempt);
    // Its worker ends it without starting it.
    stage.end_badly(&spent, Outcome::Exhausted).await;
    assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Exhausted);
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn progress_is_taken_from_the_holder(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    for progress in [
        Progress { percent: Some(0.0), message: String::new() },
        Progress { percent: Some(99.5), message: "almost — fast fertig".to_owned() },
        Progress { percent: None, message: "x".repeat(10_000) },
        Progress { percent: Some(f32::NAN), message: "é".repeat(1_024) },
    ] {
        stage.leasing.progress(&delivery.receipt, &progress).await.unwrap();
    }
    stage.pass(stage.lease - stage.slack).await;
    stage.assert_nothing_in_line().await;
    stage.pass(stage.slack * 2).await;
    assert_eq!(stage.lease_one().await.attempt, 2, "progress is no heartbeat");
}

pub async fn a_receipt_that_no_broker_gave_is_lost_or_invalid(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    for token in [vec![], vec![0xff; 8], vec![0x00; 1_024], [&delivery.receipt.token[..], &[0]].concat()] {
        let mut receipt = delivery.receipt.clone();
        receipt.token = token;
        let allowed = |kind| matches!(kind, BrokerErrorKind::LeaseLost | BrokerErrorKind::Invalid);
        assert!(allowed(refused(stage.leasing.extend(&receipt).await)));
        assert!(allowed(refused(stage.leasing.settle(&receipt, &Settlement::Complete).await)));
    }
    assert!(matches!(stage.leasing.extend(&delivery.receipt).await.unwrap(), Held::Until(_)));
}

pub async fn a_receipt_is_good_beyond_the_process_that_gave_it(fixture: &dyn Fixture) {
    let mut stage = Stage::with(fixture, |policy| policy.lease_max = policy.lease * 8).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let held = stage.lease_one().await;
    stage.pass(stage.lease / 3).await;
    extended(&stage, &held).await;
    for _ in 0..3 {
        // More than one lease in each process, and none of them gave the receipt but the first.
        if !stage.replace().await {
            return;
        }
        for _ in 0..2 {
            extended(&stage, &held).await;
            stage.pass(stage.lease * 2 / 3).await;
            extended(&stage, &held).await;
            stage.assert_nothing_in_line().await;
        }
        stage.leasing.progress(&held.receipt, &Progress { percent: Some(50.0), message: String::new() }).await.unwrap();
    }
    assert_eq!(stage.status(&job).await.attempt, 1, "a restart spends no attempt");
    stage.succeed(&held).await;
    let finished = stage.finished(&job).await.result;
    assert_eq!((finished.outcome, finished.attempt), (Outcome::Succeeded, 1));
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn a_job_is_handed_back_and_retried_by_a_receipt_of_another_process(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    stage.submit_plain(&stage.client("a")).await;
    let first = stage.lease_one().await;
    if !stage.replace().await {
        return;
    }
    stage.settle(&first, Settlement::HandBack(Duration::ZERO)).await;
    let second = stage.lease_one().await;
    assert_eq!(second.attempt, 1, "a hand-back spends no attempt");
    stage.settle_late(&first, Settlement::HandBack(Duration::ZERO)).await;
    ok_or_lost(stage.leasing.extend(&first.receipt).await);
    stage.assert_nothing_in_line().await;
    stage.replace().await;
    // Settled before the last process came, so it is nobody's receipt there.
    stage.settle_late(&first, Settlement::HandBack(Duration::ZERO)).await;
    stage.assert_nothing_in_line().await;
    stage.settle(&second, Settlement::RetryAfter(stage.slack)).await;
    stage.pass(stage.slack * 2).await;
    let third = stage.lease_one().await;
    assert_eq!(third.attempt, 2);
    stage.succeed(&third).await;
}

pub async fn a_leased_job_counts_as_running_in_the_next_process_and_ends_with_its_lease(fixture: &dyn Fixture) {
    let mut stage = Stage::with(fixture, |policy| policy.client_defaults.max_running = 1).await;
    stage.backlog(&stage.client("a"), 2).await;
    let held = stage.lease_one().await;
    stage.assert_nothing_in_line().await;
    if !stage.replace().await {
        return;
    }
    stage.assert_nothing_in_line().await;
    extended(&stage, &held).await;
    stage.assert_nothing_in_line().await;
    stage.replace().await;
    // Its worker is gone for good: nobody beats any more.
    stage.assert_nothing_in_line().await;
    stage.pass_lease().await;
    let mut next = stage.lease_one().await;
    if next.job.id != held.job.id {
        // Of two that are in line either may come first.
        assert_eq!(next.attempt, 1);
        stage.succeed(&next).await;
        next = stage.lease_one().await;
    }
    assert_eq!((next.job.id, next.attempt), (held.job.id, 2));
    stage.assert_nothing_in_line().await;
}

pub async fn a_lease_ends_at_lease_max_whichever_process_extends_it(fixture: &dyn Fixture) {
    let mut stage = Stage::with(fixture, |policy| policy.lease_max = policy.lease * 2).await;
    stage.submit_plain(&stage.client("a")).await;
    let held = stage.lease_one().await;
    stage.pass(stage.lease / 2).await;
    extended(&stage, &held).await;
    if !stage.replace().await {
        return;
    }
    stage.pass(stage.lease / 2).await;
    extended(&stage, &held).await;
    stage.replace().await;
    stage.pass(stage.lease / 2).await;
    // 1.5 of 2 leases have passed.
    match stage.leasing.extend(&held.receipt).await.unwrap() {
        Held::Until(left) => assert!(left <= stage.lease / 2 + stage.slack, "{left:?} goes beyond lease_max"),
        ended => panic!("{ended:?}"),
    }
    stage.pass(stage.lease / 2 + stage.slack).await;
    assert_eq!(refused(stage.leasing.extend(&held.receipt).await), BrokerErrorKind::LeaseLost);
    // A broker that judges by the holder's word may keep the job hidden for what the last extension promised.
    stage.pass(stage.lease / 2).await;
    assert_eq!(stage.lease_one().await.attempt, 2);
}

pub async fn a_receipt_whose_job_somebody_else_holds_is_lost_in_every_process(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let late = stage.lease_one().await;
    stage.pass_lease().await;
    let holder = stage.lease_one().await;
    assert_eq!(holder.attempt, 2);
    if !stage.replace().await {
        return;
    }
    assert_eq!(refused(stage.leasing.extend(&late.receipt).await), BrokerErrorKind::LeaseLost);
    for settlement in [Settlement::HandBack(Duration::ZERO), Settlement::RetryAfter(Duration::from_millis(1))] {
        assert_eq!(refused(stage.leasing.settle(&late.receipt, &settlement).await), BrokerErrorKind::LeaseLost);
        stage.assert_nothing_in_line().await;
    }
    extended(&stage, &holder).await;
    assert_eq!(stage.status(&job).await.attempt, 2);
    stage.succeed(&holder).await;
    stage.replace().await;
    // The run has ended: the late holder is told how, or that its lease is over.
    match stage.leasing.extend(&late.receipt).await {
        Ok(held) => assert_eq!(held, Held::Ended(Outcome::Succeeded)),
        lost => assert_eq!(refused(lost), BrokerErrorKind::LeaseLost),
    }
}

pub async fn a_receipt_that_names_another_queue_or_client_is_good_for_nothing(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let holder = stage.lease_one().await;
    let honest = &holder.receipt;
    let elsewhere = stage.another_queue().await;
    for forged in
        [Receipt { queue: elsewhere, ..honest.clone() }, Receipt { client: stage.client("b"), ..honest.clone() }]
    {
        let none = |kind| matches!(kind, BrokerErrorKind::LeaseLost | BrokerErrorKind::Invalid);
        let kind = refused(stage.leasing.extend(&forged).await);
        assert!(none(kind), "{kind:?}");
        let progress = Progress { percent: None, message: "of somebody else".to_owned() };
        let kind = refused(stage.leasing.progress(&forged, &progress).await);
        assert!(none(kind), "{kind:?}");
        for settlement in [
            Settlement::HandBack(Duration::ZERO),
            Settlement::RetryAfter(Duration::from_millis(1)),
            Settlement::Complete,
        ] {
            let kind = refused(stage.leasing.settle(&forged, &settlement).await);
            assert!(none(kind), "{kind:?}");
        }
        stage.assert_nothing_in_line().await;
    }
    assert_eq!(stage.status(&job).await.attempt, 1);
    assert!(matches!(stage.leasing.extend(honest).await, Ok(Held::Until(_))), "its holder has it still");
    stage.succeed(&holder).await;
}

/// The lease is held for one more lease.
async fn extended(stage: &Stage<'_>, delivery: &Delivery) {
    match stage.leasing.extend(&delivery.receipt).await.unwrap() {
        Held::Until(held) => assert!(held <= stage.lease && held > stage.lease / 2, "{held:?}"),
        ended => panic!("{ended:?}"),
    }
}
