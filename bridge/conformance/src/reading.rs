//! Results wait for the client: in order, after a cursor, once each, and for that client alone.

use std::time::Duration;

use tokio::task::JoinSet;

use super::Fixture;
use super::stage::{Stage, finished, refused, soon};
use relay_bridge::contract::{Cursor, JobId, LogId, Timestamp};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::result_log::{Lookup, PAGE_BYTES_MAX, Reset, ResultFilter, Start};
use relay_bridge::settlement::Settlement;

/// Far longer than a test runs in real time; the broker's clock decides.
pub(super) const WAIT: Duration = Duration::from_secs(50);

/// `count` jobs of client `name`, finished one after the other.
pub(super) async fn finish(stage: &Stage<'_>, name: &str, count: usize) -> Vec<JobId> {
    let mut jobs = Vec::new();
    for _ in 0..count {
        jobs.push(stage.run(stage.submission(&stage.client(name))).await.id);
    }
    jobs
}

pub async fn results_come_in_the_order_in_which_they_were_recorded(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    stage.backlog(&client, 12).await;
    stage.backlog(&stage.client("b"), 3).await;
    let mut held = stage.lease_exactly(15).await;
    // Recorded in another order than submitted or leased.
    held.sort_by_key(|delivery| delivery.job.id.as_bytes()[15]);
    let mut recorded = Vec::new();
    for delivery in &held {
        stage.succeed(delivery).await;
        if delivery.job.client == client {
            recorded.push(delivery.job.id);
        }
    }
    let (entries, end) = stage.read_all(&client, Start::Oldest).await;
    assert_eq!(entries.iter().map(|entry| entry.result.job_id).collect::<Vec<_>>(), recorded);
    assert!(entries.windows(2).all(|pair| pair[0].cursor.sequence < pair[1].cursor.sequence));
    assert_eq!(entries.last().unwrap().cursor, end);
    for entry in &entries {
        let looked_up = finished(stage.broker.results.lookup(&client, entry.result.job_id).await.unwrap());
        assert_eq!((looked_up.result, looked_up.cursor), (entry.result.clone(), entry.cursor.clone()));
    }
}

pub async fn a_cursor_resumes_with_nothing_lost_or_doubled(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let mut expected = finish(&stage, "a", 10).await;
    let (mut seen, mut from) = (Vec::new(), Start::Oldest);
    for round in 0..8 {
        let page = stage.page(&client, &from, 3).await;
        assert_eq!(page.reset, None);
        assert!(page.entries.len() <= 3);
        seen.extend(page.entries.into_iter().map(|entry| entry.result.job_id));
        // Between two processes, a client keeps the cursor as text.
        from = Start::After(page.next.to_string().parse().unwrap());
        if round < 4 {
            expected.extend(finish(&stage, "a", 2).await);
            finish(&stage, "b", 1).await;
        }
    }
    assert_eq!(seen, expected);
    // A read consumes nothing, and each entry's own cursor continues after it.
    let (all, _) = stage.read_all(&client, Start::Oldest).await;
    for (at, entry) in all.iter().enumerate() {
        let (rest, _) = stage.read_all(&client, Start::After(entry.cursor.clone())).await;
        assert_eq!(rest.len(), all.len() - at - 1);
    }
}

pub async fn a_cursor_from_before_the_first_result_resumes(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    for start in [Start::Oldest, Start::Now] {
        let empty = stage.page(&client, &start, 10).await;
        assert!(empty.entries.is_empty() && empty.reset.is_none());
        let jobs = finish(&stage, "a", 2).await;
        let (entries, _) = stage.read_all(&client, Start::After(empty.next)).await;
        assert_eq!(entries.iter().map(|entry| entry.result.job_id).collect::<Vec<_>>(), jobs);
    }
}

pub async fn reading_from_now_skips_what_was_there(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    finish(&stage, "a", 3).await;
    let page = stage.page(&client, &Start::Now, 100).await;
    assert!(page.entries.is_empty());
    let jobs = finish(&stage, "a", 2).await;
    let (entries, _) = stage.read_all(&client, Start::After(page.next)).await;
    assert_eq!(entries.iter().map(|entry| entry.result.job_id).collect::<Vec<_>>(), jobs);
}

/// Reading after `cursor` starts over once, with `reset`, and goes on from there.
async fn assert_reset(stage: &Stage<'_>, cursor: Cursor, reset: Reset, expected: &[JobId]) {
    let client = cursor.client.clone();
    let page = stage.page(&client, &Start::After(cursor.clone()), 100).await;
    assert_eq!(page.reset, Some(reset), "{cursor:?}");
    assert_eq!(page.entries.iter().map(|entry| entry.result.job_id).collect::<Vec<_>>(), expected);
    let (rest, _) = stage.read_all(&client, Start::After(page.next)).await;
    assert!(rest.is_empty(), "one reset, then the cursor is good");
}

pub async fn a_cursor_of_another_log_starts_over_and_says_so(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let jobs = finish(&stage, "a", 3).await;
    let (entries, end) = stage.read_all(&stage.client("a"), Start::Oldest).await;
    let replaced = Cursor { log: LogId([0x5a; 16]), ..end.clone() };
    assert_reset(&stage, replaced, Reset::LogReplaced, &jobs).await;
    let past_the_end = Cursor { sequence: end.sequence + 1_000_000_000, ..end.clone() };
    assert_reset(&stage, past_the_end, Reset::LogReplaced, &jobs).await;
    let reused = Cursor { at: entries[1].cursor.at + Duration::from_secs(3_600), ..entries[1].cursor.clone() };
    assert_reset(&stage, reused, Reset::LogReplaced, &jobs).await;
    let greatest = Cursor { sequence: u64::MAX, at: Timestamp::MAX, ..end };
    assert_reset(&stage, greatest, Reset::LogReplaced, &jobs).await;
}

pub async fn a_cursor_older_than_retention_starts_over_and_says_so(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let client = stage.client("a");
    finish(&stage, "a", 3).await;
    let (entries, end) = stage.read_all(&client, Start::Oldest).await;
    stage.pass(stage.policy.job_ttl + stage.policy.retention + stage.slack).await;
    stage.sweep().await;
    let new = finish(&stage, "a", 2).await;
    assert_reset(&stage, entries[0].cursor.clone(), Reset::OlderThanRetention, &new).await;
    // A client that had read everything missed nothing; an adapter that can't tell may start over all the same.
    let page = stage.page(&client, &Start::After(end), 100).await;
    assert!(matches!(page.reset, None | Some(Reset::OlderThanRetention)), "{:?}", page.reset);
    assert_eq!(page.entries.iter().map(|entry| entry.result.job_id).collect::<Vec<_>>(), new);
}

pub async fn a_reader_goes_on_past_results_that_were_removed_before_older_ones(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let mut kept = finish(&stage, "a", 4).await;
    // A result of a queue that keeps for a shorter time, recorded after those.
    let short = Stage::with(fixture, |policy| {
        (policy.job_ttl, policy.retention) = (policy.lease * 5, policy.lease * 5);
    })
    .await;
    short.run(short.submission(&client)).await;
    stage.pass(stage.lease * 10 + stage.slack * 2).await;
    short.sweep().await;
    kept.extend(finish(&stage, "a", 1).await);
    let (mut seen, mut from, mut resets) = (Vec::new(), Start::Oldest, 0);
    for _ in 0..20 {
        let page = stage.page(&client, &from, 2).await;
        if page.reset.is_some() {
            resets += 1;
            seen.clear();
        }
        if page.entries.is_empty() {
            break;
        }
        seen.extend(page.entries.into_iter().map(|entry| entry.result.job_id));
        from = Start::After(page.next);
    }
    assert_eq!(seen, kept, "after {resets} resets");
    assert!(resets <= 1, "it started over {resets} times");
}

pub async fn another_clients_cursor_is_invalid(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    finish(&stage, "a", 2).await;
    finish(&stage, "b", 2).await;
    let (_, cursor) = stage.read_all(&stage.client("a"), Start::Oldest).await;
    let answer =
        stage.broker.results.page(&stage.client("b"), &Start::After(cursor), &ResultFilter::ALL, 10, WAIT).await;
    assert_eq!(refused(answer), BrokerErrorKind::Invalid);
}

pub async fn a_result_that_a_later_run_replaced_is_no_longer_among_the_results(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.run(stage.keyed(&stage.client("a"), "key")).await;
    let other = finish(&stage, "a", 1).await;
    let (_, before) = stage.read_all(&job.client, Start::Oldest).await;
    stage.broker.jobs.rerun(&job.client, job.id, 1).await.unwrap();
    let delivery = stage.lease_one().await;
    stage.succeed(&delivery).await;
    let (entries, _) = stage.read_all(&job.client, Start::Oldest).await;
    let ids: Vec<_> = entries.iter().map(|entry| entry.result.job_id).collect();
    assert_eq!(ids, [other[0], job.id]);
    assert_eq!(entries[1].result.generation, 2);
    let (entries, _) = stage.read_all(&job.client, Start::After(before)).await;
    assert_eq!(entries.len(), 1, "a reader that had seen the first run sees the second");
}

pub async fn a_page_is_bounded_in_entries_and_bytes(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let bytes = (PAGE_BYTES_MAX / 3).min(usize::try_from(stage.broker.capabilities.payload_max).unwrap());
    for _ in 0..7 {
        stage.submit_plain(&client).await;
        let delivery = stage.lease_one().await;
        stage.record_first(&stage.success(&delivery, vec![1; bytes])).await;
        stage.settle(&delivery, Settlement::Complete).await;
    }
    let (mut from, mut seen) = (Start::Oldest, 0);
    while seen < 7 {
        let page = stage.page(&client, &from, 100).await;
        let size: usize = page.entries.iter().map(|entry| entry.result.payload.len()).sum();
        assert!(size <= PAGE_BYTES_MAX && !page.entries.is_empty(), "{size} bytes in {}", page.entries.len());
        seen += page.entries.len();
        from = Start::After(page.next);
    }
    assert_eq!(seen, 7);
    for limit in [1, 2, 100] {
        let page = stage.page(&client, &Start::Oldest, limit).await;
        assert!((1..=limit).contains(&u32::try_from(page.entries.len()).unwrap()));
    }
}

pub async fn a_result_larger_than_a_page_comes_alone(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let largest = usize::try_from(stage.broker.capabilities.payload_max).unwrap().min(PAGE_BYTES_MAX + 1);
    for payload in [vec![1; 10], vec![2; largest], vec![3; 10]] {
        stage.submit_plain(&client).await;
        let delivery = stage.lease_one().await;
        stage.record_first(&stage.success(&delivery, payload)).await;
        stage.settle(&delivery, Settlement::Complete).await;
    }
    let (mut sizes, mut from) = (Vec::new(), Start::Oldest);
    while sizes.iter().sum::<usize>() < 3 {
        let page = stage.page(&client, &from, 100).await;
        assert!(!page.entries.is_empty());
        if largest > PAGE_BYTES_MAX && page.entries.iter().any(|entry| entry.result.payload.len() == largest) {
            assert_eq!(page.entries.len(), 1);
        }
        sizes.push(page.entries.len());
        from = Start::After(page.next);
    }
}

pub async fn a_client_sees_nothing_of_another(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| (policy.keep_keyless, policy.lease) = (true, policy.lease * 5)).await;
    let (owner, other) = (stage.client("a"), stage.client("b"));
    let done = stage.run(stage.keyed(&owner, "done")).await;
    let leased = stage.submit(stage.keyed(&owner, "leased")).await;
    let held = stage.lease_one().await;
    let queued = stage.submit(stage.keyed(&owner, "queued")).await;
    for job in [&done, &leased, &queued] {
        let (jobs, results) = (&stage.broker.jobs, &stage.broker.results);
        assert_eq!(jobs.status(&other, job.id).await.unwrap(), None);
        assert!(matches!(results.lookup(&other, job.id).await.unwrap(), Lookup::Absent));
        assert!(matches!(soon(results.wait(&other, job.id, WAIT)).await.unwrap(), Lookup::Absent));
        assert_eq!(refused(jobs.cancel(&other, job.id).await), BrokerErrorKind::NotFound);
        assert_eq!(refused(jobs.rerun(&other, job.id, 1).await), BrokerErrorKind::NotFound);
        assert_eq!(refused(jobs.erase(&other, job.id).await), BrokerErrorKind::NotFound);
    }
    assert!(stage.list(&other, |_| {}).await.is_empty());
    assert!(stage.page(&other, &Start::Oldest, 100).await.entries.is_empty());
    // And nothing of it had an effect.
    assert_eq!(stage.finished(&done).await.result.payload, "done");
    stage.succeed(&held).await;
    let delivery = stage.lease_one().await;
    assert_eq!(delivery.job.id, queued.id);
    assert_eq!(stage.list(&owner, |_| {}).await.len(), 3);
}

pub async fn a_follower_sees_each_result_once_while_many_record(fixture: &dyn Fixture) {
    const JOBS: usize = 200;
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    stage.backlog(&client, JOBS).await;
    stage.backlog(&stage.client("b"), JOBS / 2).await;
    let held = stage.lease_exactly(JOBS + JOBS / 2).await;
    let mut recording = JoinSet::new();
    for share in held.chunks(JOBS / 8) {
        let results: Vec<_> = share.iter().map(|delivery| stage.success(delivery, "done")).collect();
        let leasing = stage.leasing.clone();
        recording.spawn(async move {
            for result in results {
                leasing.record(&result).await.unwrap();
            }
        });
    }
    let (mut seen, mut from) = (Vec::new(), Start::Oldest);
    while seen.len() < JOBS {
        let page = soon(stage.broker.results.page(&client, &from, &ResultFilter::ALL, 7, WAIT)).await.unwrap();
        assert_eq!(page.reset, None);
        assert!(!page.entries.is_empty(), "an entry was skipped: {} of {JOBS} came", seen.len());
        seen.extend(page.entries.into_iter().map(|entry| (entry.cursor.sequence, entry.result.job_id)));
        from = Start::After(page.next);
    }
    recording.join_all().await;
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "the order never steps back");
    let (entries, _) = stage.read_all(&client, Start::Oldest).await;
    let all: Vec<_> = entries.iter().map(|entry| (entry.cursor.sequence, entry.result.job_id)).collect();
    assert_eq!(seen, all, "what was followed is what is there");
}
