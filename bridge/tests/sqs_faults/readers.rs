//! Readers beside writers in other processes: woken by their own looks, and nothing is missed.

use std::time::Duration;

use relay_bridge::leasing::Recorded;
use relay_bridge::result_log::{Lookup, Start};
use relay_bridge::testing::{AwsFault, AwsProxy};
use tokio::task::JoinSet;

use crate::support::{PATIENCE, Stage};

#[tokio::test]
async fn who_waits_sees_what_another_process_recorded() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let other = stage.process(stage.emulator.url()).await;
    let (results, client, id) = (stage.broker.results.clone(), job.client.clone(), job.id);
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { results.wait(&client, id, PATIENCE).await.unwrap() });
    let (results, client) = (stage.broker.results.clone(), job.client.clone());
    let mut following = JoinSet::new();
    following.spawn(async move { results.page(&client, &Start::Oldest, 10, PATIENCE).await.unwrap() });
    let delivery = stage.lease(&other).await;
    assert_eq!(other.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    assert!(matches!(waiting.join_next().await.unwrap().unwrap(), Lookup::Finished(_)));
    assert_eq!(following.join_next().await.unwrap().unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_follower_misses_nothing_of_sixteen_writers_one_of_which_stands_still() {
    const WRITERS: usize = 16;
    const EACH: usize = 6;
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let mut held = Vec::new();
    for _ in 0..WRITERS * EACH {
        stage.submit().await;
        held.push(stage.lease(&stage.broker).await);
    }
    // One process stands still with its transaction on the way, while all others write to the same log.
    let still = stage.process(proxy.url()).await;
    proxy.fault("TransactWriteItems", AwsFault::Hold);
    let mut writing = JoinSet::new();
    let results: Vec<_> = held.iter().map(|delivery| stage.success(delivery)).collect();
    for (number, share) in results.chunks(EACH).enumerate() {
        let broker = if number == 0 { still.clone() } else { stage.process(stage.emulator.url()).await };
        let share = share.to_vec();
        writing.spawn(async move {
            for result in share {
                assert_eq!(broker.leasing.record(&result).await.unwrap(), Recorded::First);
            }
        });
    }
    proxy.held().await;
    let (mut seen, mut from) = (Vec::new(), Start::Oldest);
    while seen.len() < WRITERS * EACH {
        if seen.len() == (WRITERS - 1) * EACH {
            // Everybody else is through, and the reader has passed all of it.
            proxy.let_go();
        }
        let page = stage.broker.results.page(&stage.client(), &from, 7, PATIENCE).await.unwrap();
        assert!(page.reset.is_none() && !page.entries.is_empty(), "{} of {} came", seen.len(), WRITERS * EACH);
        seen.extend(page.entries.iter().map(|entry| (entry.cursor.sequence, entry.result.job_id)));
        from = Start::After(page.next);
    }
    while let Some(written) = writing.join_next().await {
        written.unwrap();
    }
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "the order never steps back");
    let mut jobs: Vec<_> = seen.iter().map(|(_, job)| *job).collect();
    jobs.sort();
    jobs.dedup();
    assert_eq!(jobs.len(), WRITERS * EACH, "each once");
    let rest = stage.broker.results.page(&stage.client(), &from, 7, Duration::ZERO).await.unwrap();
    assert!(rest.entries.is_empty() && rest.reset.is_none());
}

#[tokio::test]
async fn what_waits_is_counted_for_its_client_and_told_by_its_age() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let (jobs, queue, client) = (&stage.broker.jobs, &stage.queue, stage.client());
    assert_eq!((jobs.waiting(&client, queue).await.unwrap(), jobs.oldest(queue).await.unwrap()), (Some(0), None));
    let first = stage.submit().await;
    stage.clock.advance(Duration::from_secs(7));
    stage.submit().await;
    assert_eq!(jobs.depth(queue).await.unwrap().waiting, 2);
    assert_eq!(jobs.oldest(queue).await.unwrap(), Some(first.due_at));
    assert_eq!(jobs.waiting(&client, queue).await.unwrap(), Some(2));
    assert_eq!(jobs.waiting(&"other".parse().unwrap(), queue).await.unwrap(), Some(0));
    stage.lease(&stage.broker).await;
    assert_eq!(jobs.waiting(&client, queue).await.unwrap(), Some(1), "one is held");
}
