//! A worker's word decides nothing that is relay's: how long a result is kept, whose it is, when and at which attempt the run
//! ended. A result that can't be kept ends the run once.

use std::time::Duration;

use super::Fixture;
use super::stage::Stage;
use relay_bridge::contract::result::DETAIL_BYTES_MAX;
use relay_bridge::contract::{Failure, Job, JobResult, JobState, Outcome, Timestamp};
use relay_bridge::leasing::{Delivery, Recorded};
use relay_bridge::result_log::{PAGE_BYTES_MAX, Start};
use relay_bridge::settlement::Settlement;

/// How far the clocks of two hosts may be apart.
const SKEW: Duration = Duration::from_secs(5);

/// A keyed job in a worker's hands.
async fn held(stage: &Stage<'_>, key: &str) -> (Job, Delivery) {
    let job = stage.submit(stage.keyed(&stage.client("a"), key)).await;
    (job, stage.lease_one().await)
}

pub async fn a_worker_that_says_how_long_to_keep_is_not_believed(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    for (number, keep_ms) in [0, 1, 5, u64::MAX].into_iter().enumerate() {
        let key = format!("key-{number}");
        let (job, delivery) = held(&stage, &key).await;
        stage.record_first(&JobResult { keep_ms, ..stage.success(&delivery, "done") }).await;
        stage.settle(&delivery, Settlement::Complete).await;
        stage.pass(stage.slack).await;
        stage.sweep().await;
        let result = stage.finished(&job).await.result;
        assert_eq!((result.outcome, result.keep_ms), (Outcome::Succeeded, job.keep_ms), "keep_ms {keep_ms}");
        let replayed = stage.replay(stage.keyed(&job.client, &key)).await;
        assert_eq!((replayed.run_id, replayed.state), (job.run_id, JobState::Finished(Outcome::Succeeded)));
        stage.assert_nothing_in_line().await;
    }
    let entries = stage.read_all(&stage.client("a"), Start::Oldest).await.0;
    assert_eq!(entries.len(), 4);
    stage.pass(stage.policy.job_ttl + stage.policy.retention + stage.lease).await;
    assert!(stage.read_all(&stage.client("a"), Start::Oldest).await.0.is_empty() || stage.sweep().await.is_empty());
    stage.sweep().await;
    for entry in entries {
        let lookup = stage.broker.results.lookup(&entry.result.client, entry.result.job_id).await.unwrap();
        assert!(matches!(lookup, relay_bridge::result_log::Lookup::Absent), "kept for ever: {lookup:?}");
    }
}

pub async fn what_is_relays_in_a_result_comes_from_the_record(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let mut submission = stage.keyed(&stage.client("a"), "key");
    submission.headers.insert("relay-meta-tenant".to_owned(), "blue".to_owned());
    let job = stage.submit(submission).await;
    let delivery = stage.lease_one().await;
    let honest = stage.success(&delivery, "done");
    let lie = JobResult {
        generation: 7,
        key: Some("another".parse().unwrap()),
        meta: [("tenant".to_owned(), "red".to_owned())].into(),
        attempt: 4_000_000_000,
        accepted_at: Timestamp::EPOCH,
        started_at: Some(Timestamp::EPOCH),
        finished_at: Timestamp::from_millis(i64::MAX),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        ..honest.clone()
    };
    stage.record_first(&lie).await;
    stage.settle(&delivery, Settlement::Complete).await;
    let kept = stage.finished(&job).await.result;
    let facts = |result: &JobResult| {
        (result.generation, result.key.clone(), result.meta.clone(), result.accepted_at, result.traceparent.clone())
    };
    assert_eq!(facts(&kept), (1, job.key.clone(), job.meta(), job.accepted_at, None));
    assert_eq!((kept.attempt, kept.payload.clone()), (1, honest.payload));
    let within = |at: Timestamp| at + SKEW >= job.due_at && at <= fixture.now() + SKEW;
    assert!(kept.started_at.is_some_and(within) && within(kept.finished_at), "{kept:?}");
    let status = stage.status(&job).await;
    assert_eq!((status.attempt, status.generation), (1, 1));
    assert!(status.finished_at.is_some_and(within), "{status:?}");
}

pub async fn a_result_that_cannot_be_kept_ends_its_run_once_and_relay_keeps_the_letter(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.result_max = 1_000).await;
    let failure = |reason: usize, detail: usize| Failure { reason: "r".repeat(reason), detail: "d".repeat(detail) };
    type Spoil = fn(&mut JobResult);
    let cases: [(&str, Spoil); 6] = [
        ("result-too-large", |result| result.payload = vec![7; 1_001].into()),
        ("result-invalid", |result| result.content_type = "x".repeat(256)),
        ("result-invalid", |result| result.content_type = "text/plain\r\nNats-Rollup: all".to_owned()),
        ("result-invalid", |result| result.content_type = "text/plain\u{7f}".to_owned()),
        ("result-invalid", |result| result.content_type = "text/plain; name=\u{fc}".to_owned()),
        ("result-invalid", |result| result.content_type = " text/plain".to_owned()),
    ];
    for (number, (reason, spoil)) in cases.into_iter().enumerate() {
        let (job, delivery) = held(&stage, &format!("key-{number}")).await;
        let mut sent = stage.success(&delivery, "done");
        spoil(&mut sent);
        ends_as_failed(&stage, &job, &delivery, sent, reason).await;
    }
    for (number, failure) in [failure(65, 1), failure(1, DETAIL_BYTES_MAX + 1)].into_iter().enumerate() {
        let (job, delivery) = held(&stage, &format!("failed-{number}")).await;
        let sent = JobResult { failure: Some(failure), ..stage.failure(&delivery, Outcome::Failed, "exit-code") };
        ends_as_failed(&stage, &job, &delivery, sent, "result-invalid").await;
    }
}

async fn ends_as_failed(stage: &Stage<'_>, job: &Job, delivery: &Delivery, sent: JobResult, reason: &str) {
    for _ in 0..2 {
        stage.record_first(&sent).await;
    }
    // As a worker does after a success, which this is to it.
    stage.leasing.retract_dead_letter(job.id, job.run_id, None).await.unwrap();
    stage.settle(delivery, Settlement::Complete).await;
    let result = stage.finished(job).await.result;
    let failure = result.failure.expect("what is not a success has a reason");
    assert_eq!((result.outcome, failure.reason.as_str()), (Outcome::Failed, reason));
    let letter = stage.broker.dead_letters.get(job.id).await.unwrap().expect("relay keeps the letter");
    assert_eq!((&letter.job.payload, letter.failure.reason.as_str()), (&job.payload, reason));
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn a_megabyte_of_detail_ends_its_run_once(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (job, delivery) = held(&stage, "key").await;
    let detail = "d".repeat(8 * 1024 * 1024);
    let failure = Some(Failure { reason: "exit-code".to_owned(), detail });
    let sent = JobResult { failure, ..stage.failure(&delivery, Outcome::Failed, "exit-code") };
    ends_as_failed(&stage, &job, &delivery, sent, "result-invalid").await;
}

pub async fn the_same_result_again_is_the_first_one(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    let (job, delivery) = held(&stage, "key").await;
    let result = stage.success(&delivery, "done");
    for _ in 0..3 {
        stage.record_first(&result).await;
    }
    let (_, lying) = held(&stage, "lie").await;
    let lie = JobResult { attempt: 4_000_000_000, ..stage.success(&lying, "done") };
    stage.record_first(&lie).await;
    stage.pass(stage.slack).await;
    stage.record_first(&lie).await;
    let failing = stage.submit_plain(&job.client).await;
    let last = stage.lease_one().await;
    let failed = stage.failure(&last, Outcome::Exhausted, "exit-code");
    stage.leasing.dead_letter(&stage.letter(&last, Outcome::Exhausted)).await.unwrap();
    stage.record_first(&failed).await;
    stage.settle(&last, Settlement::DeadLetter).await;
    // Its answer was lost, also that of the settlement.
    stage.record_first(&failed).await;
    for other in [
        stage.success(&delivery, "something else"),
        JobResult { content_type: "text/html".to_owned(), ..result.clone() },
        JobResult { attempt: 2, ..result.clone() },
    ] {
        let answer = stage.leasing.record(&other).await.unwrap();
        assert_eq!(answer, Recorded::Superseded(Outcome::Succeeded), "{other:?}");
    }
    assert_eq!(
        stage.broker.dead_letters.get(failing.id).await.unwrap().map(|letter| letter.outcome),
        Some(failed.outcome)
    );
    if stage.crash().await {
        stage.record_first(&result).await;
        stage.record_first(&lie).await;
    }
}

pub async fn a_claim_that_a_worker_names_is_not_taken_for_its_words(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    // The first is small; the second has an item of its own where small ones are kept with the record.
    for (number, bytes) in [1, 4_000].into_iter().enumerate() {
        let (job, delivery) = held(&stage, &format!("key-{number}")).await;
        let first = stage.success(&delivery, vec![b'a'; bytes]);
        stage.record_first(&JobResult { claimed: Some(stage.success(&delivery, "b").words()), ..first.clone() }).await;
        for claimed in [first.words(), stage.success(&delivery, "b").words()] {
            let forged = JobResult { claimed: Some(claimed), ..stage.success(&delivery, vec![b'b'; bytes]) };
            for attempt in [1, 4_000_000_000] {
                let answer = stage.leasing.record(&JobResult { attempt, ..forged.clone() }).await.unwrap();
                assert_eq!(answer, Recorded::Superseded(Outcome::Succeeded));
            }
        }
        stage.record_first(&JobResult { claimed: None, ..first.clone() }).await;
        assert_eq!(stage.finished(&job).await.result.payload, first.payload);
        stage.settle(&delivery, Settlement::Complete).await;
    }
}

pub async fn a_run_that_failed_has_a_letter_also_without_its_workers(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    for submission in [stage.keyed(&client, "key"), stage.submission(&client)] {
        let job = stage.submit(submission).await;
        let delivery = stage.lease_one().await;
        stage.record_first(&stage.failure(&delivery, Outcome::Failed, "exit-code")).await;
        stage.settle(&delivery, Settlement::DeadLetter).await;
        let letters = &stage.broker.dead_letters;
        let letter = letters.get(job.id).await.unwrap().expect("a failed run has a letter");
        assert_eq!((&letter.job.payload, letter.outcome), (&job.payload, Outcome::Failed));
        assert_eq!((letter.failure.reason.as_str(), letter.attempt), ("exit-code", 1));
        // The worker's own comes late: the first one stays.
        stage.leasing.dead_letter(&stage.letter(&delivery, Outcome::Exhausted)).await.unwrap();
        assert_eq!(letters.get(job.id).await.unwrap().map(|letter| letter.outcome), Some(Outcome::Failed));
        assert_eq!(letters.redrive(job.id, job.run_id).await.unwrap().status().generation, 2);
        assert_eq!(stage.lease_one().await.job.payload, job.payload);
    }
}

pub async fn a_page_is_bounded_by_what_its_entries_take(fixture: &dyn Fixture) {
    const RESULTS: usize = 100;
    let stage = Stage::with(fixture, |policy| policy.lease *= 10).await;
    let client = stage.client("a");
    stage.backlog(&client, RESULTS).await;
    let failure = Failure::new("exit-code", "\u{1}".repeat(DETAIL_BYTES_MAX));
    let held = stage.lease_all().await;
    assert_eq!(held.len(), RESULTS);
    let results: Vec<_> = held
        .iter()
        .map(|held| JobResult::unsuccessful(&held.job, Outcome::Expired, stage.end(held), failure.clone()))
        .collect();
    let recorded = futures_util::future::join_all(results.iter().map(|result| stage.leasing.record(result))).await;
    assert!(recorded.into_iter().all(|recorded| recorded.unwrap() == Recorded::First));
    let (mut from, mut seen) = (Start::Oldest, 0);
    while seen < RESULTS {
        let page = stage.page(&client, &from, 100).await;
        let taken = |result: &JobResult| {
            result.payload.len() + result.failure.as_ref().map_or(0, |failure| failure.detail.len())
        };
        let size: usize = page.entries.iter().map(|entry| taken(&entry.result)).sum();
        assert!(size <= PAGE_BYTES_MAX && !page.entries.is_empty(), "{size} bytes in {}", page.entries.len());
        seen += page.entries.len();
        from = Start::After(page.next);
    }
    assert_eq!(seen, RESULTS);
}
