//! Steps of the writer that fail: their effect on memory, and their cost for other callers.

use std::time::Duration;

use super::testing::{Store, request};
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, JobState, Outcome, QueueName};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Depth;
use relay_bridge::leasing::{Held, Leasing as _, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

#[tokio::test]
async fn a_step_that_is_not_committed_leaves_everything_in_memory_as_it_was() {
    let store = Store::open(|policy| policy.client_defaults.weight = 2).await;
    for client in ["a", "b", "a", "c", "b", "a", "a"] {
        store.submit(client).await;
    }
    let keyed = store.job("a", Some("key"), 10);
    store.store.broker().jobs.enqueue(keyed.clone()).await.unwrap();
    let held = store.lease(3).await;
    assert_eq!(held.len(), 3);
    store.store.record(&store.result(&held[0])).await.unwrap();
    let before = store.picture().await;

    // In one step: a new client, a new queue, all kinds of settlements, a cancel, a rerun, and a lease.
    let broker = store.store.broker();
    let (work, new): (QueueName, QueueName) = ("work".parse().unwrap(), "new".parse().unwrap());
    let policy = QueuePolicy { max_attempts: 77, ..QueuePolicy::default() };
    let seen = broker.policies.policy(&work).await.unwrap();
    let result = store.result(&held[1]);
    let back = Settlement::HandBack(Duration::from_secs(5));
    let request = request(5);
    store.break_lines(true).await;
    let failed = store.in_one_batch(async {
        tokio::join!(
            broker.jobs.enqueue(store.job("new", None, 10)),
            broker.leasing.record(&result),
            broker.leasing.settle(&held[1].receipt, &Settlement::Complete),
            broker.leasing.settle(&held[2].receipt, &back),
            broker.leasing.settle(&held[0].receipt, &Settlement::Complete),
            broker.jobs.cancel(&keyed.client, keyed.id),
            broker.jobs.rerun(&keyed.client, keyed.id, 1),
            broker.policies.put_policy(&work, &policy, seen.as_ref()),
            broker.policies.put_policy(&new, &policy, None),
            broker.leasing.lease(&request),
        )
    });
    let (a, b, c, d, e, f, g, h, i, j) = failed.await;
    let kinds = [
        a.unwrap_err().kind(),
        b.unwrap_err().kind(),
        c.unwrap_err().kind(),
        d.unwrap_err().kind(),
        e.unwrap_err().kind(),
        f.unwrap_err().kind(),
        g.unwrap_err().kind(),
        h.unwrap_err().kind(),
        i.unwrap_err().kind(),
        j.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [BrokerErrorKind::Unavailable; 10]);
    store.break_lines(false).await;
    assert_eq!(store.picture().await, before);

    // Everything goes on from there.
    store.store.settle(&held[0].receipt, &Settlement::Complete).await.unwrap();
    assert_eq!(store.store.record(&store.result(&held[1])).await.unwrap(), Recorded::First);
    let order: Vec<_> = store.lease(10).await.iter().map(|d| d.job.client.to_string()).collect();
    assert_eq!(order.len(), 5, "{order:?}");
    let depth = store.store.broker().jobs.depth(&"work".parse().unwrap()).await.unwrap();
    assert_eq!((depth.waiting, depth.parked), (0, 0), "{depth:?}");
}

#[tokio::test]
async fn refused_submissions_of_one_client_end_no_lease_of_another_and_spend_no_attempt() {
    let store = Store::open(|_| {}).await;
    let lease = QueuePolicy::default().lease;
    let job = store.submit("a").await;
    let held = store.lease(1).await.remove(0);
    store.fill(true).await;
    for submission in 0..50 {
        let refused = store.store.broker().jobs.enqueue(store.job("b", None, 100_000)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.detail()), (BrokerErrorKind::Unavailable, "the store has no space left"));
        if submission % 5 == 0 {
            store.clock.advance(lease / 2);
            assert_eq!(store.store.extend(&held.receipt).await.unwrap(), Held::Until(lease));
        }
    }
    let status = store.store.broker().jobs.status(&job.client, job.id).await.unwrap().unwrap();
    assert_eq!((status.state, status.attempt), (JobState::Leased, 1));
    store.fill(false).await;
    assert_eq!(store.store.record(&store.result(&held)).await.unwrap(), Recorded::First);
    store.store.settle(&held.receipt, &Settlement::Complete).await.unwrap();
    let depth = store.store.broker().jobs.depth(&"work".parse().unwrap()).await.unwrap();
    assert_eq!(depth, Depth { waiting: 0, parked: 0, leased: 0 });
}

#[tokio::test]
async fn a_heartbeat_is_answered_although_the_transaction_beside_it_fails() {
    let store = Store::open(|_| {}).await;
    store.submit("a").await;
    let held = store.lease(1).await.remove(0);
    store.fill(true).await;
    let jobs = store.store.broker().jobs;
    let (before, after) = (store.job("b", None, 100_000), store.job("b", None, 100_000));
    let answers = store.in_one_batch(async {
        tokio::join!(jobs.enqueue(before), store.store.extend(&held.receipt), jobs.enqueue(after))
    });
    let (first, extended, second) = answers.await;
    assert!(first.is_err() && second.is_err());
    assert_eq!(extended.unwrap(), Held::Until(QueuePolicy::default().lease));
}

#[tokio::test]
async fn a_lease_that_ends_while_nothing_can_be_written_ends_when_it_can() {
    let store = Store::open(|_| {}).await;
    let job = store.submit("a").await;
    let held = store.lease(1).await.remove(0);
    store.sql("PRAGMA query_only = ON").await;
    store.clock.advance(QueuePolicy::default().lease);
    // It could not be put back in line, so its worker still has it.
    assert!(store.store.broker().jobs.enqueue(store.job("b", None, 10)).await.is_err());
    let status = store.store.broker().jobs.status(&job.client, job.id).await.unwrap().unwrap();
    assert_eq!((status.state, status.attempt), (JobState::Leased, 1));
    store.sql("PRAGMA query_only = OFF").await;
    store.clock.advance(Duration::from_secs(1));
    let again = store.lease(1).await.remove(0);
    assert_eq!((again.job.id, again.attempt), (held.job.id, 2));
    let failure = Failure::new("test", "over");
    let end = End { attempt: 2, started_at: None, finished_at: store.clock.now() };
    let result = JobResult::unsuccessful(&again.job, Outcome::Failed, end, failure);
    assert_eq!(store.store.record(&result).await.unwrap(), Recorded::First);
}

#[tokio::test]
async fn what_time_demands_is_done_however_often_other_writes_fail() {
    let store = Store::open(|_| {}).await;
    let job = store.submit("a").await;
    store.lease(1).await.remove(0);
    store.fill(true).await;
    store.clock.advance(QueuePolicy::default().lease - Duration::from_secs(1));
    let jobs = store.store.broker().jobs;
    for _ in 0..10 {
        assert!(jobs.enqueue(store.job("b", None, 100_000)).await.is_err());
        store.clock.advance(Duration::from_millis(200));
    }
    let status = jobs.status(&job.client, job.id).await.unwrap().unwrap();
    assert_eq!((status.state, status.attempt), (JobState::Queued, 1));
}

#[tokio::test]
async fn writes_that_fail_again_and_again_take_nobody_elses_along() {
    let store = Store::open(|_| {}).await;
    let mut queued = Vec::new();
    for _ in 0..3 {
        queued.push(store.submit("a").await);
    }
    let waiting = store.job("a", None, 10);
    store.fill(true).await;
    let broker = store.store.broker();
    let large = || broker.jobs.enqueue(store.job("b", None, 100_000));
    assert!(large().await.is_err());
    let request = request(1);
    let answers = store.in_one_batch(async {
        tokio::join!(
            large(),
            broker.jobs.cancel(&queued[0].client, queued[0].id),
            large(),
            broker.leasing.lease(&request),
            large(),
        )
    });
    let (first, cancelled, second, leased, third) = answers.await;
    assert!(first.is_err() && second.is_err() && third.is_err());
    assert_eq!(cancelled.unwrap().state, JobState::Finished(Outcome::Cancelled));
    assert_eq!(leased.unwrap()[0].job.id, queued[1].id);
    store.fill(false).await;
    assert!(broker.jobs.enqueue(waiting).await.is_ok());
}

#[tokio::test]
async fn a_failure_that_has_changed_memory_alone_is_taken_back() {
    let store = Store::open(|_| {}).await;
    store.submit("a").await;
    let held = store.lease(1).await.remove(0);
    let before = store.picture().await;
    let seq = super::lease::read_token(&held.receipt).unwrap().1;
    let failed = store.store.call(move |writer| {
        writer.state.end_lease(seq);
        Err::<(), _>(BrokerError::new(BrokerErrorKind::Corrupt, "test", "the page is damaged"))
    });
    assert_eq!(failed.await.unwrap_err().kind(), BrokerErrorKind::Corrupt);
    assert_eq!(store.picture().await, before);
    assert!(matches!(store.store.extend(&held.receipt).await.unwrap(), Held::Until(_)));
}

#[tokio::test]
async fn whoever_waits_is_woken_when_the_store_is_open_again() {
    let store = Store::open(|_| {}).await;
    let job = store.submit("a").await;
    let held = store.lease(1).await.remove(0);
    let shared = store.store.shared();
    let (one, all) = (shared.jobs.register(job.id), shared.clients.register(job.client.clone()));
    let (mut one, mut all) = (Box::pin(one.notify.notified()), Box::pin(all.notify.notified()));
    assert!(!one.as_mut().enable() && !all.as_mut().enable());
    // The commit takes effect, and the writer does not hear of it.
    let result = store.result(&held);
    let lose = store.store.call(|writer| {
        writer.conn.execute_batch("COMMIT").unwrap();
        Ok(())
    });
    let (recorded, _) = store.in_one_batch(async { tokio::join!(store.store.record(&result), lose) }).await;
    assert_eq!(recorded.unwrap_err().kind(), BrokerErrorKind::Ambiguous);
    assert_eq!(store.store.record(&result).await.unwrap(), Recorded::First);
    assert!(one.as_mut().enable() && all.as_mut().enable(), "nobody was told");
}

#[tokio::test]
async fn a_result_is_counted_when_it_is_committed_and_not_before() {
    let store = Store::open(|_| {}).await;
    store.submit("a").await;
    let held = store.lease(1).await.remove(0);
    let result = JobResult { keep_ms: 1, ..store.result(&held) };
    store.break_lines(true).await;
    // Its line changes with it, so that the transaction fails at its end.
    let other = store.job("b", None, 10);
    let jobs = store.store.broker().jobs;
    let (recorded, _) =
        store.in_one_batch(async { tokio::join!(store.store.record(&result), jobs.enqueue(other)) }).await;
    assert_eq!(recorded.unwrap_err().kind(), BrokerErrorKind::Unavailable);
    store.break_lines(false).await;
    assert_eq!(store.store.broker().counts.read().facts_corrected, 0);
    assert_eq!(store.store.record(&result).await.unwrap(), Recorded::First);
    assert_eq!(store.store.broker().counts.read().facts_corrected, 1);
}
