//! Fair between clients, bounded for each: nobody's backlog, failures or greed hold up another.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::Fixture;
use super::stage::{Stage, refused, soon};
use relay_bridge::contract::{ClientId, Submission};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Delivery, LEASE_WAIT_MAX};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::provision::Wanted;
use relay_bridge::settlement::Settlement;

fn count(held: &[Delivery], client: &ClientId) -> usize {
    held.iter().filter(|delivery| delivery.job.client == *client).count()
}

/// `deliveries` in calls of at most `batch`.
async fn take(stage: &Stage<'_>, deliveries: usize, batch: u32) -> Vec<Delivery> {
    let mut held = Vec::new();
    while held.len() < deliveries {
        let left = u32::try_from(deliveries - held.len()).unwrap();
        held.extend(stage.lease_some(batch.min(left)).await);
    }
    held
}

/// The bound: with two clients of weight 1 the lone job is among the next 2 * clients * weight = 4 deliveries, or in
/// the next batch. Where clients share no weights it comes with the rest of the line.
pub async fn a_lone_job_is_not_held_up_by_another_clients_backlog(fixture: &dyn Fixture) {
    const BACKLOG: usize = 3_000;
    let stage = Stage::steady(fixture).await;
    if !stage.broker.capabilities.fair {
        stage.backlog(&stage.client("busy"), 300).await;
        let job = stage.submit_plain(&stage.client("lone")).await;
        let held = take(&stage, 301, 10).await;
        assert!(held.iter().any(|delivery| delivery.job.id == job.id), "not in line");
        return;
    }
    let (busy, lone) = (stage.client("busy"), stage.client("lone"));
    stage.backlog(&busy, BACKLOG).await;
    let bound = 4;
    for _ in 0..5 {
        // Earlier deliveries give no client a claim to later ones.
        take(&stage, 20, 8).await;
        let job = stage.submit_plain(&lone).await;
        // A worker may be told of it a moment later.
        stage.pass(stage.slack).await;
        let held = take(&stage, bound, 1).await;
        assert!(held.iter().any(|delivery| delivery.job.id == job.id), "not among the next {bound}");
    }
    let job = stage.submit_plain(&lone).await;
    stage.pass(stage.slack).await;
    let held = take(&stage, bound.max(16), 16).await;
    assert!(held.iter().any(|delivery| delivery.job.id == job.id), "not in the next batch of 16");
}

/// The bound: of 200 deliveries the heavier client has 150, ten more or less.
pub async fn weights_share_a_queue(fixture: &dyn Fixture) {
    for batch in [1, 8, 50] {
        let mut stage = Stage::steady(fixture).await;
        let (heavy, light) = (stage.client("heavy"), stage.client("light"));
        stage.policy.clients.insert(heavy.clone(), ClientPolicy { weight: 3, ..ClientPolicy::default() });
        stage.write_policy(&stage.policy).await;
        stage.backlog(&heavy, 250).await;
        stage.backlog(&light, 250).await;
        let held = take(&stage, 200, batch).await;
        let heavies = count(&held, &heavy);
        assert_eq!(heavies + count(&held, &light), 200);
        if stage.broker.capabilities.fair {
            assert!((140..=160).contains(&heavies), "{heavies} of 200 in batches of {batch}");
        }
        // A share that its owner does not use goes to the other.
        stage.lease_exactly(300).await;
    }
}

pub async fn many_clients_share_alike(fixture: &dyn Fixture) {
    const CLIENTS: usize = 40;
    let stage = Stage::steady(fixture).await;
    let clients: Vec<_> = (0..CLIENTS).map(|number| stage.client(&format!("c{number}"))).collect();
    for (number, client) in clients.iter().enumerate() {
        // The first one has far more than its share.
        stage.backlog(client, if number == 0 { 500 } else { 8 }).await;
    }
    let held = take(&stage, CLIENTS * 5, 10).await;
    let mut counts = BTreeMap::new();
    for delivery in &held {
        *counts.entry(delivery.job.client.clone()).or_insert(0_usize) += 1;
    }
    if stage.broker.capabilities.fair {
        assert_eq!(counts.len(), CLIENTS, "everybody was served");
        assert!(counts.values().all(|count| (3..=7).contains(count)), "{counts:?}");
    }
}

pub async fn jobs_of_one_client_that_were_not_retried_come_oldest_first_within_reason(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let old = stage.submit_plain(&client).await;
    stage.pass(stage.slack).await;
    stage.backlog(&client, 500).await;
    // No order is promised; but nothing that waits is passed by for ever.
    let held = take(&stage, 501, 50).await;
    assert!(held.iter().any(|delivery| delivery.job.id == old.id));
}

pub async fn failing_jobs_in_backoff_do_not_hold_up_a_healthy_one(fixture: &dyn Fixture) {
    for backoff in [fixture.lease() / 2, fixture.lease() * 2] {
        // Longer than 300 settlements take in real time.
        let stage = Stage::with(fixture, |policy| policy.lease *= 10).await;
        let client = stage.client("a");
        stage.backlog(&client, 300).await;
        // Together: one after the other, the first would be back before the last is put aside on a busy machine.
        let failing = stage.lease_exactly(300).await;
        let settled = failing.iter().map(|delivery| stage.settle(delivery, Settlement::RetryAfter(backoff)));
        stream::iter(settled).buffer_unordered(32).collect::<()>().await;
        let healthy = stage.submit_plain(&client).await;
        // On a slow machine some are back by now; none may be that is not due.
        let (mut back, mut served) = (Vec::new(), Vec::new());
        while served.is_empty() {
            let held = stage.lease_some(100).await;
            let (own, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.job.id == healthy.id);
            served.extend(own);
            back.extend(others);
        }
        let early: Vec<_> = back.iter().filter(|delivery| !stage.was_due(delivery)).collect();
        assert!(early.is_empty(), "in backoff, and leased: {early:?}");
        stage.succeed(&served[0]).await;
        stage.pass(backoff + stage.slack).await;
        stage.lease_exactly(300 - back.len()).await;
    }
}

pub async fn a_clients_running_jobs_are_bounded(fixture: &dyn Fixture) {
    let mut stage = Stage::with(fixture, |policy| {
        // Longer than all of this takes in real time.
        policy.lease *= 3;
        policy.client_defaults.max_running = 2;
    })
    .await;
    stage.lease = stage.policy.lease;
    let (bounded, other) = (stage.client("a"), stage.client("b"));
    stage.backlog(&bounded, 10).await;
    let held = stage.lease_exactly(2).await;
    stage.backlog(&other, 1).await;
    let others = stage.lease_exactly(1).await;
    assert_eq!(count(&others, &other), 1, "its bound is nobody else's");
    // Each way in which a delivery ends makes room for one.
    stage.succeed(&held[0]).await;
    let next = stage.lease_exactly(1).await;
    stage.settle(&next[0], Settlement::RetryAfter(stage.lease * 10)).await;
    let next = stage.lease_exactly(1).await;
    stage.broker.jobs.cancel(&bounded, next[0].job.id).await.unwrap();
    stage.settle_late(&next[0], Settlement::Complete).await;
    stage.lease_exactly(1).await;
    stage.pass_lease().await;
    // Leases that ended, the other client's among them.
    assert_eq!(count(&stage.lease_exactly(3).await, &bounded), 2);
}

pub async fn a_waiting_lease_is_woken_when_a_client_may_run_again(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.client_defaults.max_running = 1).await;
    stage.backlog(&stage.client("a"), 2).await;
    let held = stage.lease_one().await;
    stage.assert_nothing_in_line().await;
    let request = stage.request(1, LEASE_WAIT_MAX);
    let (next, ()) = soon(async {
        tokio::join!(stage.leasing.lease(&request), async {
            tokio::task::yield_now().await;
            stage.succeed(&held).await;
        })
    })
    .await;
    assert_eq!(next.unwrap().len(), 1);
}

pub async fn a_clients_waiting_jobs_are_bounded(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.client_defaults.max_queued = 3).await;
    let client = stage.client("a");
    stage.backlog(&client, 2).await;
    let mut delayed = stage.submission(&client);
    // Far longer than the test takes, also where calls are slow.
    delayed.delay = stage.lease * 20;
    stage.submit(delayed).await;
    let jobs = &stage.broker.jobs;
    let full = BrokerErrorKind::QuotaExceeded { actual: 3, limit: 3 };
    let refusal = stage.accept(stage.submission(&client));
    assert_eq!(refused(jobs.enqueue(refusal.clone()).await), full);
    stage.assert_absent(&refusal).await;
    stage.submit_plain(&stage.client("b")).await;
    // A job that runs does not wait; one that is cancelled neither.
    let held = stage.lease_exactly(3).await;
    assert_eq!(count(&held, &client), 2);
    let waiting = stage.submit_plain(&client).await;
    stage.submit_plain(&client).await;
    assert_eq!(refused(jobs.enqueue(stage.accept(stage.submission(&client))).await), full);
    jobs.cancel(&client, waiting.id).await.unwrap();
    stage.submit_plain(&client).await;
    assert_eq!(refused(jobs.enqueue(stage.accept(stage.submission(&client))).await), full);
    // A full quota never refuses an accepted job that goes back in line.
    for delivery in held {
        stage.settle(&delivery, Settlement::RetryAfter(Duration::from_millis(1))).await;
    }
    stage.pass(stage.slack).await;
    stage.lease_exactly(5).await;
}

pub async fn the_bytes_that_a_client_keeps_are_bounded_or_such_a_policy_is_refused(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let (client, queue, jobs) = (stage.client("a"), &stage.queue, &stage.broker.jobs);
    let submission = |key: &str| Submission { payload: vec![7; BYTES as usize].into(), ..stage.keyed(&client, key) };
    let first = stage.submit(submission("key-1")).await;
    let Some(each) = jobs.stored(&client, queue).await.unwrap() else { return refuses_to_bound_bytes(&stage).await };
    assert!(stage.broker.capabilities.counts_stored && each >= BYTES, "{each} bytes");
    let limit = 3 * each + BYTES / 4;
    stage.write_policy(&bounded(&stage, limit)).await;
    let second = stage.submit(submission("key-2")).await;
    stage.submit(submission("key-3")).await;
    let fourth = stage.accept(submission("key-4"));
    let full = BrokerErrorKind::QuotaExceeded { actual: 3 * each + BYTES, limit };
    assert_eq!(refused(jobs.enqueue(fourth.clone()).await), full);
    stage.assert_absent(&fourth).await;
    stage.submit_plain(&stage.client("b")).await;
    // A job that was accepted is finished whatever the bound says, and its result counts.
    let held = stage.lease_all().await;
    for delivery in held.iter().filter(|delivery| [first.id, second.id].contains(&delivery.job.id)) {
        stage.record_first(&stage.success(delivery, vec![8; BYTES as usize])).await;
    }
    let kept = jobs.stored(&client, queue).await.unwrap().unwrap();
    assert!(kept >= 5 * BYTES, "{kept} bytes");
    assert_eq!(refused(jobs.rerun(&client, first.id, 1).await), BrokerErrorKind::QuotaExceeded { actual: kept, limit });
    jobs.erase(&client, first.id).await.unwrap();
    jobs.erase(&client, second.id).await.unwrap();
    let kept = jobs.stored(&client, queue).await.unwrap().unwrap();
    assert!((each..2 * BYTES).contains(&kept), "{kept} bytes are kept of one job and what is left of two");
    stage.submit(submission("key-4")).await;
}

/// The payload of one job where bytes are counted: far more than what is kept beside it.
const BYTES: u64 = 10_000;

fn bounded(stage: &Stage<'_>, max_stored: u64) -> QueuePolicy {
    let client_defaults = ClientPolicy { max_stored: Some(max_stored), ..stage.policy.client_defaults.clone() };
    QueuePolicy { client_defaults, ..stage.policy.clone() }
}

async fn refuses_to_bound_bytes(stage: &Stage<'_>) {
    assert!(!stage.broker.capabilities.counts_stored);
    let wanted = stage.wanted(&bounded(stage, 1)).await;
    let Wanted { queue, policy, seen } = &wanted;
    let policies = &stage.broker.policies;
    assert_eq!(refused(policies.put_policy(queue, policy, seen.as_ref()).await), BrokerErrorKind::Invalid);
    let (wanted, provision) = (std::slice::from_ref(&wanted), &stage.broker.provision);
    assert_eq!(refused(provision.plan(wanted).await), BrokerErrorKind::Invalid);
    assert_eq!(refused(provision.apply(wanted, true).await), BrokerErrorKind::Invalid);
    let stored = policies.policy(queue).await.unwrap().unwrap();
    assert!(!stored.bounds_stored());
}

pub async fn a_known_key_is_answered_where_no_more_bytes_are_kept(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let first = stage.submit(stage.keyed(&client, "key-1")).await;
    if stage.broker.capabilities.counts_stored {
        stage.write_policy(&bounded(&stage, 1)).await;
        let refusal = refused(stage.broker.jobs.enqueue(stage.accept(stage.keyed(&client, "key-2"))).await);
        assert!(matches!(refusal, BrokerErrorKind::QuotaExceeded { limit: 1, .. }), "{refusal:?}");
    }
    assert_eq!(stage.replay(stage.keyed(&client, "key-1")).await.run_id, first.run_id);
}

pub async fn a_paused_queue_gives_nothing_until_it_is_resumed(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let (policies, queue) = (&stage.broker.policies, &stage.queue);
    stage.submit_plain(&client).await;
    let held = stage.lease_one().await;
    policies.set_paused(queue, true).await.unwrap();
    policies.set_paused(queue, true).await.unwrap();
    stage.submit_plain(&client).await;
    stage.assert_nothing_in_line().await;
    assert!(stage.leasing.queue_policy(queue).await.unwrap().paused);
    // A configuration that is written again does not end the pause.
    stage.write_policy(&QueuePolicy { max_attempts: stage.policy.max_attempts + 1, ..stage.policy.clone() }).await;
    assert!(policies.policy(queue).await.unwrap().unwrap().paused);
    stage.assert_nothing_in_line().await;
    // Running jobs go on.
    stage.leasing.extend(&held.receipt).await.unwrap();
    stage.succeed(&held).await;

    let request = stage.request(1, LEASE_WAIT_MAX);
    let (resumed, ()) = soon(async {
        tokio::join!(stage.leasing.lease(&request), async {
            tokio::task::yield_now().await;
            policies.set_paused(queue, false).await.unwrap();
        })
    })
    .await;
    assert_eq!(resumed.unwrap().len(), 1, "a worker that waited is woken");
    assert!(!policies.policy(queue).await.unwrap().unwrap().paused);
}

pub async fn a_pause_of_one_queue_does_not_hold_up_another(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let other = stage.another_queue().await;
    stage.submit_plain(&stage.client("a")).await;
    let mut submission = stage.submission(&stage.client("a"));
    submission.queue = other.clone();
    let job = stage.submit(submission).await;
    stage.broker.policies.set_paused(&stage.queue, true).await.unwrap();
    let mut request = stage.request(10, stage.awaited());
    request.queues.push(other);
    let held = soon(stage.leasing.lease(&request)).await.unwrap();
    assert_eq!(held.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [job.id]);
}
