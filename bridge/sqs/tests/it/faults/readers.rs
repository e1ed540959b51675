//! Readers beside writers in other processes: woken by their own looks, and nothing is missed.

use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::contract::JobResult;
use relay_bridge::leasing::Recorded;
use relay_bridge::result_log::{Lookup, ResultFilter, Start};
use relay_conformance::testing::{AwsFault, AwsProxy};
use tokio::task::JoinSet;

use super::support::{PATIENCE, Stage};

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
    following
        .spawn(async move { results.page(&client, &Start::Oldest, &ResultFilter::ALL, 10, PATIENCE).await.unwrap() });
    let delivery = stage.lease(&other).await;
    assert_eq!(other.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    assert!(matches!(waiting.join_next().await.unwrap().unwrap(), Lookup::Finished(_)));
    assert_eq!(following.join_next().await.unwrap().unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_follower_misses_nothing_of_sixteen_writers_two_of_which_stand_still() {
    const WRITERS: usize = 16;
    const EACH: usize = 6;
    let stage = Stage::open().await;
    let mut held = Vec::new();
    for _ in 0..WRITERS * EACH {
        stage.submit().await;
        held.push(stage.lease(&stage.broker).await);
    }
    let results: Vec<_> = held.iter().map(|delivery| stage.success(delivery)).collect();
    let mut shares: Vec<_> = results.chunks(EACH).map(<[_]>::to_vec).collect();
    // Both stand still behind the number of the log's last page, and before the page that follows it: one has just read that
    // number, the other remembers it from a page of its own.
    let proxies = [AwsProxy::start(&stage.emulator.url()).await, AwsProxy::start(&stage.emulator.url()).await];
    let mut writing = JoinSet::new();
    for (number, proxy) in proxies.iter().enumerate() {
        let still = stage.process(proxy.url()).await;
        let mut share = shares.remove(0);
        if number == 1 {
            assert_eq!(still.leasing.record(&share.remove(0)).await.unwrap(), Recorded::First);
        }
        proxy.fault_all("TransactWriteItems", AwsFault::Hold);
        writing.spawn(write(still, share));
        proxy.held().await;
    }
    // Everybody else writes, and the reader passes all of it.
    for share in shares {
        writing.spawn(write(stage.process(stage.emulator.url()).await, share));
    }
    let (mut seen, mut from) = (Vec::new(), Start::Oldest);
    let mut read_until = async |count: usize| {
        while seen.len() < count {
            let page =
                stage.broker.results.page(&stage.client(), &from, &ResultFilter::ALL, 7, PATIENCE).await.unwrap();
            assert!(page.reset.is_none() && !page.entries.is_empty(), "{} of {count} came", seen.len());
            seen.extend(page.entries.iter().map(|entry| (entry.cursor.sequence, entry.result.job_id)));
            from = Start::After(page.next);
        }
        seen.len()
    };
    assert_eq!(read_until((WRITERS - 2) * EACH + 1).await, (WRITERS - 2) * EACH + 1);
    for (nth, proxy) in proxies.iter().enumerate() {
        // So long that the SDK has given the call up and repeated it, twice: the calls given up are on their way as
        // well.
        proxy.held().await;
        proxy.held().await;
        let held = &proxy.bodies("TransactWriteItems")[nth];
        let number = &held["TransactItems"][0]["Update"]["ExpressionAttributeValues"][":last"]["N"];
        assert_eq!(number.as_str().unwrap(), (nth + 1).to_string(), "a number that others have taken");
        proxy.mend("TransactWriteItems");
    }
    read_until(WRITERS * EACH).await;
    while let Some(written) = writing.join_next().await {
        written.unwrap();
    }
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "the order never steps back");
    let mut jobs: Vec<_> = seen.iter().map(|(_, job)| *job).collect();
    jobs.sort();
    jobs.dedup();
    assert_eq!(jobs.len(), WRITERS * EACH, "each once");
    let rest = stage.broker.results.page(&stage.client(), &from, &ResultFilter::ALL, 7, Duration::ZERO).await.unwrap();
    assert!(rest.entries.is_empty() && rest.reset.is_none());
}

/// Records these results, one after the other.
async fn write(broker: Broker, results: Vec<JobResult>) {
    for result in results {
        assert_eq!(broker.leasing.record(&result).await.unwrap(), Recorded::First);
    }
}

#[tokio::test]
async fn what_waits_is_counted_for_its_client_and_told_by_its_age() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    stage.bound_waiting(10).await;
    let (jobs, queue, client) = (&stage.broker.jobs, &stage.queue, stage.client());
    assert_eq!((jobs.waiting(&client, queue).await.unwrap(), jobs.count(queue).await.unwrap().oldest), (Some(0), None));
    let first = stage.submit().await;
    stage.clock.advance(Duration::from_secs(7));
    stage.submit().await;
    assert_eq!(jobs.depth(queue).await.unwrap().waiting, 2);
    let counted = jobs.count(queue).await.unwrap();
    assert_eq!((counted.depth.waiting, counted.oldest), (2, Some(first.due_at)));
    assert_eq!(jobs.oldest(queue).await.unwrap(), None, "that would be looked up in the records");
    assert_eq!(jobs.waiting(&client, queue).await.unwrap(), Some(2));
    assert_eq!(jobs.waiting(&"other".parse().unwrap(), queue).await.unwrap(), Some(0));
    stage.lease(&stage.broker).await;
    assert_eq!(jobs.waiting(&client, queue).await.unwrap(), Some(1), "one is held");
}
