//! Taking jobs: at once or after a wait, by many workers, over several queues, and with futures that are dropped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::Fixture;
use super::stage::{Stage, refused, soon};
use relay_bridge::contract::Submission;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{LEASE_BATCH_MAX, LEASE_BYTES_MAX, LEASE_WAIT_MAX};
use relay_bridge::settlement::Settlement;

pub async fn a_lease_returns_at_once_when_something_is_there(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    // Asks for far more than there is, and may wait for it: it must not.
    let request = stage.request(LEASE_BATCH_MAX, LEASE_WAIT_MAX);
    let deliveries = soon(stage.leasing.lease(&request)).await.unwrap();
    assert_eq!(deliveries.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [job.id]);
}

pub async fn a_lease_is_empty_after_its_wait(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    assert!(soon(stage.leasing.lease(&stage.request(5, Duration::ZERO))).await.unwrap().is_empty());
    let request = stage.request(5, stage.lease);
    let deliveries = stage.drive(stage.lease / 4, stage.leasing.lease(&request)).await.unwrap();
    assert!(deliveries.is_empty());
}

pub async fn a_waiting_lease_is_woken_by_a_new_job(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    for _ in 0..20 {
        let request = stage.request(1, LEASE_WAIT_MAX);
        let (deliveries, job) = soon(async {
            tokio::join!(stage.leasing.lease(&request), async {
                tokio::task::yield_now().await;
                stage.submit_plain(&client).await
            })
        })
        .await;
        let delivery = deliveries.unwrap().pop().expect("the new job");
        assert_eq!(delivery.job.id, job.id);
        stage.succeed(&delivery).await;
    }
}

pub async fn a_waiting_lease_is_woken_when_a_delay_ends(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let mut submission = stage.submission(&stage.client("a"));
    submission.delay = stage.lease;
    let job = stage.submit(submission).await;
    let request = stage.request(1, LEASE_WAIT_MAX.min(stage.lease * 2));
    let deliveries = stage.drive(stage.lease / 10, stage.leasing.lease(&request)).await.unwrap();
    assert_eq!(deliveries.first().expect("the delayed job").job.id, job.id);
    assert!(fixture.now() >= job.due_at, "it came before it was due");
}

pub async fn a_job_without_a_delay_is_in_line_also_where_the_clock_stepped_back(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    // It was accepted before the step, and is enqueued after it.
    let now = fixture.now() + stage.lease * 3;
    let job = stage.submission(&stage.client("a")).accept(&stage.policy, now);
    let accepted = stage.broker.jobs.enqueue(job.clone()).await.unwrap();
    assert_eq!(accepted.status().next_attempt_at, None, "it asked for no delay");
    let held = stage.lease_one().await;
    assert_eq!((held.job.id, held.attempt), (job.id, 1));
    stage.succeed(&held).await;
}

pub async fn a_waiting_lease_is_woken_by_a_hand_back(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    stage.submit_plain(&stage.client("a")).await;
    let held = stage.lease_one().await;
    let request = stage.request(1, LEASE_WAIT_MAX);
    let (deliveries, ()) = soon(async {
        tokio::join!(stage.leasing.lease(&request), async {
            tokio::task::yield_now().await;
            stage.settle(&held, Settlement::HandBack(Duration::ZERO)).await;
        })
    })
    .await;
    assert_eq!(deliveries.unwrap().first().expect("what was handed back").attempt, 1);
}

pub async fn a_lease_gives_no_more_than_was_asked_for(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    stage.backlog(&stage.client("a"), 10).await;
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        seen.extend(stage.lease_up_to(3).await.into_iter().map(|delivery| delivery.job.id));
        if seen.len() == 10 {
            break;
        }
    }
    assert_eq!(seen.len(), 10);
    let mut request = stage.request(1, Duration::ZERO);
    request.max = (LEASE_BATCH_MAX * 4).try_into().unwrap();
    request.wait = Duration::ZERO;
    match stage.leasing.lease(&request).await {
        Ok(deliveries) => assert!(deliveries.is_empty()),
        Err(error) => assert_eq!(error.kind(), BrokerErrorKind::Invalid, "{error}"),
    }
}

pub async fn a_lease_gives_bounded_bytes_and_the_next_one_goes_on(fixture: &dyn Fixture) {
    let most = fixture.broker().capabilities.payload_max.min(1024 * 1024);
    let stage = Stage::with(fixture, |policy| {
        policy.payload_max = most;
        // One turn alone could take all of them.
        policy.client_defaults.weight = 1_000;
        for span in [&mut policy.lease, &mut policy.lease_max, &mut policy.job_ttl] {
            *span *= 20;
        }
    })
    .await;
    let (client, payload) = (stage.client("a"), vec![b'x'; usize::try_from(most).unwrap()]);
    let count = usize::try_from(LEASE_BYTES_MAX / most).unwrap() + 5;
    let mut jobs = Vec::new();
    for _ in 0..count {
        jobs.push(stage.submit(Submission { payload: payload.clone().into(), ..stage.submission(&client) }).await.id);
    }
    let mut leased = Vec::new();
    while leased.len() < count {
        let some = stage.lease_some(1_024).await;
        let bytes: u64 = some.iter().map(|delivery| delivery.job.payload.len() as u64).sum();
        assert!(bytes <= LEASE_BYTES_MAX, "{} jobs of {bytes} bytes", some.len());
        leased.extend(some.iter().map(|delivery| delivery.job.id));
    }
    leased.sort_unstable();
    jobs.sort_unstable();
    assert_eq!(leased, jobs, "each once");
    stage.assert_nothing_in_line().await;
}

pub async fn two_workers_never_hold_the_same_job(fixture: &dyn Fixture) {
    const JOBS: usize = 300;
    let stage = Stage::steady(fixture).await;
    stage.backlog(&stage.client("a"), JOBS / 2).await;
    stage.backlog(&stage.client("b"), JOBS / 2).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for number in 0..8 {
        let leasing = stage.worker(&format!("worker-{number}")).await;
        let (request, taken) = (stage.request(7, stage.fixture.patience()), Arc::clone(&taken));
        workers.spawn(async move {
            let mut held = Vec::new();
            while taken.load(Ordering::Relaxed) < JOBS {
                let deliveries = soon(leasing.lease(&request)).await.unwrap();
                taken.fetch_add(deliveries.len(), Ordering::Relaxed);
                held.extend(deliveries);
            }
            held
        });
    }
    let held: Vec<_> = workers.join_all().await.into_iter().flatten().collect();
    stage.assert_nothing_in_line().await;
    assert_eq!(held.len(), JOBS);
    assert_eq!(held.iter().map(|delivery| delivery.job.id).collect::<BTreeSet<_>>().len(), JOBS);
    assert!(held.iter().all(|delivery| delivery.attempt == 1));
}

pub async fn queues_are_asked_in_the_order_given(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let (first, second) = (stage.another_queue().await, stage.another_queue().await);
    let client = stage.client("a");
    for queue in [&second, &first, &second, &first] {
        let mut submission = stage.submission(&client);
        submission.queue = queue.clone();
        stage.submit(submission).await;
    }
    let mut taken = Vec::new();
    let mut request = stage.request(1, stage.awaited());
    request.queues = vec![stage.queue.clone(), first.clone(), second.clone()];
    for _ in 0..4 {
        taken.extend(soon(stage.leasing.lease(&request)).await.unwrap().into_iter().map(|held| held.job.queue));
    }
    assert_eq!(taken, [first.clone(), first, second.clone(), second]);
}

pub async fn a_waiting_lease_is_woken_by_any_of_its_queues(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let last = stage.another_queue().await;
    let mut request = stage.request(1, LEASE_WAIT_MAX);
    request.queues.push(last.clone());
    let mut submission = stage.submission(&stage.client("a"));
    submission.queue = last;
    let (deliveries, job) = soon(async {
        tokio::join!(stage.leasing.lease(&request), async {
            tokio::task::yield_now().await;
            stage.submit(submission).await
        })
    })
    .await;
    assert_eq!(deliveries.unwrap().first().expect("the job of the last queue").job.id, job.id);
}

pub async fn an_unknown_queue_is_not_found(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let nowhere = format!("nowhere-{}", super::stage::unique()).parse().unwrap();
    let mut request = stage.request(1, Duration::ZERO);
    request.queues = vec![stage.queue.clone(), nowhere];
    let nowhere = &request.queues[1];
    let mut submission = stage.submission(&stage.client("a"));
    submission.queue = nowhere.clone();
    let not_found = BrokerErrorKind::NotFound;
    assert_eq!(refused(stage.broker.jobs.enqueue(stage.accept(submission)).await), not_found);
    assert_eq!(refused(stage.leasing.lease(&request).await), not_found);
    assert_eq!(refused(stage.leasing.queue_policy(nowhere).await), not_found);
    assert_eq!(refused(stage.broker.jobs.depth(nowhere).await), not_found);
    assert_eq!(refused(stage.broker.policies.set_paused(nowhere, true).await), not_found);
    assert_eq!(stage.broker.policies.policy(nowhere).await.unwrap(), None);
}

pub async fn a_dropped_lease_future_loses_nothing(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let request = stage.request(1, LEASE_WAIT_MAX);

    // Dropped before it was polled, and while it waits.
    drop(stage.leasing.lease(&request));
    for yields in 0..5 {
        let mut waiting = JoinSet::new();
        let (leasing, request) = (stage.leasing.clone(), request.clone());
        waiting.spawn(async move { leasing.lease(&request).await });
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        waiting.shutdown().await;
    }

    // Dropped around the moment at which the broker answers it.
    for round in 0..60_u32 {
        let job = stage.submit_plain(&client).await;
        let mut taking = JoinSet::new();
        let (leasing, wanted) = (stage.leasing.clone(), request.clone());
        taking.spawn(async move { leasing.lease(&wanted).await.unwrap() });
        for _ in 0..round % 20 {
            tokio::task::yield_now().await;
        }
        taking.abort_all();
        while let Some(ended) = taking.join_next().await {
            for delivery in ended.unwrap_or_default() {
                stage.settle(&delivery, Settlement::HandBack(Duration::ZERO)).await;
            }
        }
        let delivery = soon(stage.leasing.lease(&request)).await.unwrap().pop().expect("the job went back");
        assert_eq!((delivery.job.id, delivery.attempt), (job.id, 1), "round {round}");
        stage.succeed(&delivery).await;
    }
}
