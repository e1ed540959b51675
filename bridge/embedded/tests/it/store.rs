//! Properties that only the embedded broker can show: its file, its lock, its versions, its writer.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, JobState, Outcome, RunId, Submission, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Lookup, Reset, ResultFilter, Start};
use relay_bridge::settlement::Settlement;
use relay_embedded::{Embedded, EmbeddedConfig, store};
use tempfile::TempDir;

async fn open(path: &Path) -> Embedded {
    let config = EmbeddedConfig { path: Some(path.to_owned()), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    store
}

fn submission(key: Option<&str>, payload: &[u8]) -> Submission {
    Submission {
        client: "alice".parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: key.map(|key| key.parse().unwrap()),
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: Bytes::copy_from_slice(payload),
        delay: Duration::ZERO,
        expires_in: None,
    }
}

async fn submit(store: &Embedded, key: &str) -> relay_bridge::contract::JobStatus {
    let job = submission(Some(key), key.as_bytes()).accept(&QueuePolicy::default(), Clock::system().now());
    store.broker().jobs.enqueue(job).await.unwrap().status().clone()
}

async fn lease(store: &Embedded, max: u32) -> Vec<Delivery> {
    let request = LeaseRequest {
        worker: "w1".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: NonZeroU32::new(max).unwrap(),
        wait: Duration::ZERO,
    };
    store.broker().leasing.lease(&request).await.unwrap()
}

async fn finish(store: &Embedded, delivery: &Delivery) -> Recorded {
    let now = Clock::system().now();
    let end = End { attempt: delivery.attempt, started_at: Some(now), finished_at: now };
    let result = JobResult::succeeded(&delivery.job, end, "text/plain", Bytes::from_static(b"done"));
    let recorded = store.broker().leasing.record(&result).await.unwrap();
    store.broker().leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    recorded
}

#[tokio::test]
async fn jobs_leases_attempts_and_results_survive_a_restart() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let (done, open_job) = (submit(&store, "done").await, submit(&store, "open").await);
    let deliveries = lease(&store, 2).await;
    assert_eq!(finish(&store, &deliveries[0]).await, Recorded::First);
    store.close().await;

    let store = open(&path).await;
    let broker = store.broker();
    let finished = broker.results.lookup(&done.client, done.job_id).await.unwrap();
    assert!(matches!(finished, Lookup::Finished(finished) if finished.result.outcome == Outcome::Succeeded));
    let status = broker.jobs.status(&open_job.client, open_job.job_id).await.unwrap().unwrap();
    assert_eq!((status.state, status.attempt), (JobState::Leased, 1));
    assert!(lease(&store, 2).await.is_empty());
    assert_eq!(finish(&store, &deliveries[1]).await, Recorded::First);
    store.close().await;

    // Settlements whose answers were lost with the process are repeated, to no effect.
    let store = open(&path).await;
    for delivery in &deliveries {
        let leasing = store.broker().leasing;
        assert_eq!(leasing.extend(&delivery.receipt).await.unwrap(), Held::Ended(Outcome::Succeeded));
        leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    }
    assert!(lease(&store, 2).await.is_empty());
    store.close().await;
}

#[tokio::test]
async fn jobs_of_a_worker_in_the_process_that_died_are_in_line_again_at_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let request = LeaseRequest {
        worker: "w1".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: NonZeroU32::MIN,
        wait: Duration::ZERO,
    };
    submit(&store, "here").await;
    let here = store.leasing_here().lease(&request).await.unwrap().remove(0);
    submit(&store, "elsewhere").await;
    // A worker of the same name: names are theirs to choose, and say nothing of where it is.
    let elsewhere = store.broker().leasing.lease(&request).await.unwrap().remove(0);
    store.close().await;

    let store = open(&path).await;
    let again = lease(&store, 2).await;
    assert_eq!(again.iter().map(|d| (d.job.id, d.attempt)).collect::<Vec<_>>(), [(here.job.id, 2)]);
    let leasing = store.broker().leasing;
    assert_eq!(leasing.extend(&here.receipt).await.unwrap_err().kind(), BrokerErrorKind::LeaseLost);
    assert!(matches!(leasing.extend(&elsewhere.receipt).await.unwrap(), Held::Until(_)));
    store.close().await;
}

/// The job is in line for no step of the writer: the number of waiting jobs is zero before and after.
#[tokio::test]
async fn a_clients_first_job_that_a_waiting_worker_gets_at_once_stays_leased_over_a_restart() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let broker = store.broker();
    let request = LeaseRequest {
        worker: "w2".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: NonZeroU32::MIN,
        wait: Duration::from_secs(60),
    };
    let (held, job) = tokio::join!(biased; broker.leasing.lease(&request), submit(&store, "first"));
    let held = held.unwrap().remove(0);
    assert_eq!(held.job.id, job.job_id);
    store.close().await;

    let store = open(&path).await;
    let leasing = store.broker().leasing;
    assert!(matches!(leasing.extend(&held.receipt).await.unwrap(), Held::Until(_)));
    assert!(lease(&store, 1).await.is_empty(), "it is in one worker's hands");
    store.close().await;
}

#[tokio::test]
async fn the_deadline_of_a_job_that_is_leased_over_a_restart_is_found() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let clock = Clock::manual(Clock::system().now());
    let config = EmbeddedConfig { path: Some(path.clone()), clock: clock.clone(), ..EmbeddedConfig::default() };
    open(&path).await.close().await;
    let store = Embedded::open(config.clone()).await.unwrap();
    let policy = QueuePolicy::default();
    let job = submission(Some("held"), b"held").accept(&policy, clock.now());
    store.broker().jobs.enqueue(job.clone()).await.unwrap();
    let held = lease(&store, 1).await.remove(0);
    store.close().await;

    let store = Embedded::open(config).await.unwrap();
    // In two steps: a job is held for `lease_max` at most.
    clock.advance(policy.job_ttl - policy.lease);
    let again = lease(&store, 1).await.remove(0);
    assert_eq!((again.job.id, again.attempt), (held.job.id, 2));
    store.close().await;

    let config = EmbeddedConfig { path: Some(path), clock: clock.clone(), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    clock.advance(policy.lease * 2 / 3);
    let leasing = store.broker().leasing;
    assert!(matches!(leasing.extend(&again.receipt).await.unwrap(), Held::Until(_)));
    clock.advance(policy.lease * 2 / 3);
    let swept = store.broker().jobs.sweep(10).await.unwrap();
    assert_eq!(swept.expired.iter().map(|result| result.job_id).collect::<Vec<_>>(), [job.id]);
    assert_eq!(leasing.extend(&again.receipt).await.unwrap(), Held::Ended(Outcome::Expired));
    store.close().await;
}

#[tokio::test]
async fn a_second_process_is_refused_by_name_of_the_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let config = EmbeddedConfig { path: Some(path.clone()), ..EmbeddedConfig::default() };
    let refused = Embedded::open(config).await.err().unwrap();
    assert!(refused.detail().contains("relay.db is in use by another relay process"), "{refused}");
    store.close().await;
    open(&path).await.close().await;
}

#[tokio::test]
async fn a_damaged_a_foreign_and_a_newer_file_are_told_apart_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("damaged.db"), vec![0xa5; 8192]).unwrap();
    rusqlite::Connection::open(at("foreign.db")).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    open(&at("newer.db")).await.close().await;
    rusqlite::Connection::open(at("newer.db")).unwrap().execute_batch("PRAGMA user_version = 2000").unwrap();
    for (name, kind, says) in [
        ("damaged.db", BrokerErrorKind::Corrupt, "damaged or not a relay store"),
        ("foreign.db", BrokerErrorKind::Corrupt, "of another program"),
        ("newer.db", BrokerErrorKind::NewerVersion { found: 2, newest: 1 }, "has version 2.0"),
    ] {
        let before = std::fs::read(at(name)).unwrap();
        let config = EmbeddedConfig { path: Some(at(name)), ..EmbeddedConfig::default() };
        let refused = Embedded::open(config).await.err().unwrap();
        assert_eq!(refused.kind(), kind, "{name}");
        assert!(refused.detail().contains(says) && refused.detail().contains(name), "{refused}");
        assert_eq!(std::fs::read(at(name)).unwrap(), before, "{name} was touched");
    }
}

#[tokio::test]
async fn a_newer_minor_version_is_opened() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    open(&path).await.close().await;
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 1007").unwrap();
    open(&path).await.close().await;
}

#[tokio::test]
async fn a_store_of_the_version_before_is_opened_with_what_waits_in_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let (first, second) = (submit(&store, "first").await, submit(&store, "second").await);
    finish(&store, &lease(&store, 1).await.remove(0)).await;
    store.close().await;
    // The additions of later versions, taken away again.
    let old = "DROP INDEX dead_letters_queue; CREATE INDEX dead_letters_run ON dead_letters(run); ALTER TABLE jobs DROP COLUMN lease; ALTER TABLE jobs DROP COLUMN lease_here;
               DROP INDEX jobs_timer; ALTER TABLE jobs DROP COLUMN in_order_at;
               ALTER TABLE counters DROP COLUMN in_order_to; ALTER TABLE counters DROP COLUMN own_n; ALTER TABLE clients DROP COLUMN from_n; ALTER TABLE lines DROP COLUMN stored; DROP TABLE parked;
               CREATE INDEX jobs_timer ON jobs(timer_at); PRAGMA user_version = 1000;";
    rusqlite::Connection::open(&path).unwrap().execute_batch(old).unwrap();
    assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new());

    let clock = Clock::manual(Clock::system().now());
    let config = EmbeddedConfig { path: Some(path.clone()), clock: clock.clone(), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    let third = submit(&store, "third").await;
    clock.advance(QueuePolicy::default().job_ttl + Duration::from_secs(60));
    let swept = store.broker().jobs.sweep(10).await.unwrap();
    let expired: Vec<_> = swept.expired.iter().map(|result| result.job_id).collect();
    assert_eq!(expired, [second.job_id, third.job_id]);
    let first = store.broker().results.lookup(&first.client, first.job_id).await.unwrap();
    assert!(matches!(first, Lookup::Finished(finished) if finished.result.outcome == Outcome::Succeeded));
    assert_eq!(store::stats(&path).unwrap().version, "1.5");
    assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new());
    store.close().await;
}

#[tokio::test]
async fn a_store_of_1_1_is_opened_and_what_was_leased_in_it_waits_again() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let (held, waits) = (submit(&store, "held").await, submit(&store, "waits").await);
    let before = lease(&store, 1).await.remove(0);
    store.close().await;
    let old = "DROP INDEX dead_letters_queue; CREATE INDEX dead_letters_run ON dead_letters(run);
               ALTER TABLE jobs DROP COLUMN lease; ALTER TABLE jobs DROP COLUMN lease_here; ALTER TABLE counters DROP COLUMN own_n; ALTER TABLE clients DROP COLUMN from_n; ALTER TABLE lines DROP COLUMN stored; DROP TABLE parked;
               PRAGMA user_version = 1001;";
    rusqlite::Connection::open(&path).unwrap().execute_batch(old).unwrap();

    let store = open(&path).await;
    assert_eq!(store::stats(&path).unwrap().version, "1.5");
    let again = lease(&store, 10).await;
    assert_eq!(again.iter().map(|d| (d.job.id, d.attempt)).collect::<Vec<_>>(), [(held.job_id, 2), (waits.job_id, 1)]);
    let lost = store.broker().leasing.extend(&before.receipt).await.unwrap_err();
    assert_eq!(lost.kind(), BrokerErrorKind::LeaseLost);
    store.close().await;
    assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_backup_is_whole_and_resets_old_cursors() {
    let folder = TempDir::new().unwrap();
    let (path, copy) = (folder.path().join("relay.db"), folder.path().join("copy.db"));
    let store = open(&path).await;
    let job = submit(&store, "one").await;
    let delivery = lease(&store, 1).await.remove(0);
    finish(&store, &delivery).await;
    let page =
        store.broker().results.page(&job.client, &Start::Oldest, &ResultFilter::ALL, 10, Duration::ZERO).await.unwrap();
    store::backup(&path, &copy).unwrap();
    assert!(store::backup(&path, &copy).unwrap_err().detail().contains("overwrites nothing"));
    assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new());
    store.close().await;

    let backup = folder.path().join("backup.db");
    std::fs::rename(&copy, &backup).unwrap();
    relay_embedded::restore(&backup, &copy).unwrap();
    let restored = open(&copy).await;
    let after = Start::After(page.next);
    let again =
        restored.broker().results.page(&job.client, &after, &ResultFilter::ALL, 10, Duration::ZERO).await.unwrap();
    assert_eq!((again.reset, again.entries.len()), (Some(Reset::LogReplaced), 1));
    restored.close().await;
    assert_eq!(store::check(&copy).unwrap().problems, Vec::<String>::new());
    assert_eq!(store::stats(&copy).unwrap().results, 1);
}

#[tokio::test]
async fn a_check_finds_what_does_not_fit_together() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    submit(&store, "one").await;
    store.close().await;
    rusqlite::Connection::open(&path).unwrap().execute_batch("UPDATE counters SET ids_upto = 1").unwrap();
    assert_eq!(store::check(&path).unwrap().problems, ["1 jobs whose id does not lead to them"]);
}

#[tokio::test]
async fn a_manual_clock_wakes_a_waiting_lease_when_a_delay_ends() {
    let clock = Clock::manual(Timestamp::from_millis(1_700_000_000_000));
    let config = EmbeddedConfig { clock: clock.clone(), ..EmbeddedConfig::default() };
    let store = Embedded::open(config).await.unwrap();
    let broker = store.broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let delayed = Submission { delay: Duration::from_secs(60), ..submission(None, b"later") };
    broker.jobs.enqueue(delayed.accept(&QueuePolicy::default(), clock.now())).await.unwrap();
    let request = LeaseRequest {
        worker: "w1".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: NonZeroU32::MIN,
        wait: Duration::from_secs(60),
    };
    assert!(lease(&store, 1).await.is_empty());
    let (leased, ()) = tokio::join!(broker.leasing.lease(&request), async {
        // Both orders are right: the delay may end before or after the call has arrived.
        clock.advance(Duration::from_secs(60));
    });
    assert_eq!(leased.unwrap().len(), 1);
    store.close().await;
}

#[tokio::test]
async fn who_waits_for_a_job_before_it_is_submitted_hears_of_its_run_and_of_no_earlier_one() {
    let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
    let broker = store.broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let now = Clock::system().now();
    let job = submission(Some("key"), b"payload").accept(&QueuePolicy::default(), now);
    let later = RunId::mint(now, Some(job.run_id));
    let (heard, of_a_later_run, ()) = tokio::join!(
        biased;
        broker.results.wait_ahead(&job.client, job.id, job.run_id, Duration::from_secs(60)),
        broker.results.wait_ahead(&job.client, job.id, later, Duration::from_secs(1)),
        async {
            broker.jobs.enqueue(job.clone()).await.unwrap();
            finish(&store, &lease(&store, 1).await[0]).await;
        },
    );
    let heard = heard.unwrap().expect("a result was recorded");
    assert_eq!((heard.result.job_id, heard.result.run_id), (job.id, job.run_id));
    assert!(of_a_later_run.unwrap().is_none());
    store.close().await;
}

#[tokio::test]
async fn a_lease_that_names_a_missing_queue_takes_nothing_from_the_others() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    let job = submit(&store, "one").await;
    let request = LeaseRequest {
        worker: "w1".parse().unwrap(),
        queues: vec!["work".parse().unwrap(), "missing".parse().unwrap()],
        max: NonZeroU32::new(4).unwrap(),
        wait: Duration::ZERO,
    };
    let refused = store.broker().leasing.lease(&request).await.unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::NotFound);
    let status = store.broker().jobs.status(&job.client, job.job_id).await.unwrap().unwrap();
    assert_eq!((status.state, status.attempt), (JobState::Queued, 0));
    store.close().await;
}

#[tokio::test]
async fn a_dead_letter_of_a_run_that_nobody_gave_out_is_refused_and_ends_no_lease() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    submit(&store, "one").await;
    submit(&store, "two").await;
    let deliveries = lease(&store, 2).await;
    let mut job = deliveries[0].job.clone();
    job.generation += 1;
    let letter = DeadLetter {
        job,
        outcome: Outcome::Failed,
        attempt: 1,
        failure: Failure::new("bad", "bad"),
        at: Clock::system().now(),
        extra: Default::default(),
    };
    let leasing = store.broker().leasing;
    assert_eq!(leasing.dead_letter(&letter).await.unwrap_err().kind(), BrokerErrorKind::Invalid);
    for delivery in &deliveries {
        assert!(matches!(leasing.extend(&delivery.receipt).await.unwrap(), Held::Until(_)));
    }
    store.close().await;
}

#[tokio::test]
async fn a_hand_back_parks_a_job_for_seven_days_at_most() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    let job = submit(&store, "one").await;
    let delivery = lease(&store, 1).await.remove(0);
    let before = Clock::system().now();
    store.broker().leasing.settle(&delivery.receipt, &Settlement::HandBack(Duration::MAX)).await.unwrap();
    let status = store.broker().jobs.status(&job.client, job.job_id).await.unwrap().unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    assert!(status.next_attempt_at.unwrap() <= before + week + Duration::from_secs(60), "{status:?}");
    store.close().await;
}

#[tokio::test]
async fn the_job_that_waits_longest_is_told_by_when_it_could_be_taken() {
    let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
    let broker = store.broker();
    let queue = "work".parse().unwrap();
    broker.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    assert_eq!(broker.jobs.oldest(&queue).await.unwrap(), None);
    let now = Clock::system().now();
    for (client, key, delay) in [("bob", "b", 0), ("alice", "parked", 3_600), ("alice", "a", 0)] {
        let submission = Submission {
            client: client.parse().unwrap(),
            delay: Duration::from_secs(delay),
            ..submission(Some(key), b"x")
        };
        // Bob's is a minute younger than Alice's.
        let accepted_at = if client == "bob" { now } else { Timestamp::from_millis(now.as_millis() - 60_000) };
        broker.jobs.enqueue(submission.accept(&QueuePolicy::default(), accepted_at)).await.unwrap();
    }
    let minute_ago = Timestamp::from_millis(now.as_millis() - 60_000);
    assert_eq!(broker.jobs.oldest(&queue).await.unwrap(), Some(minute_ago));
    assert_eq!(lease(&store, 2).await.len(), 2);
    assert_eq!(broker.jobs.oldest(&queue).await.unwrap(), None, "what is leased or parked does not wait");
}

#[tokio::test]
async fn a_redriven_job_without_a_key_keeps_its_payload_until_its_run_ends_and_no_longer() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let broker = store.broker();
    let job = submission(None, b"A-PAYLOAD-OF-NO-KEY").accept(&QueuePolicy::default(), Clock::system().now());
    broker.jobs.enqueue(job.clone()).await.unwrap();
    let first = lease(&store, 1).await.remove(0);
    let end = End { attempt: 1, started_at: None, finished_at: Clock::system().now() };
    let failed = JobResult::unsuccessful(&first.job, Outcome::Failed, end, Failure::new("bad", "bad"));
    broker.leasing.record(&failed).await.unwrap();
    broker.leasing.settle(&first.receipt, &Settlement::DeadLetter).await.unwrap();
    broker.dead_letters.redrive(job.id, job.run_id).await.unwrap();
    let second = lease(&store, 1).await.remove(0);
    assert_eq!(second.job.payload, job.payload);
    finish(&store, &second).await;
    let refused = broker.jobs.rerun(&job.client, job.id, 2).await.unwrap_err();
    assert!(refused.detail().contains("the payload was not kept"), "{refused}");
    store.close().await;
    let kept: Vec<u8> = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("SELECT envelope FROM payloads", [], |row| row.get(0))
        .unwrap();
    assert!(!kept.windows(job.payload.len()).any(|part| part == job.payload), "the record has it still");
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_read_is_left_out_of_lists_and_holds_up_no_other() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let mut jobs = Vec::new();
    for key in ["first", "damaged", "last"] {
        jobs.push(submit(&store, key).await.job_id);
        let delivery = lease(&store, 1).await.remove(0);
        let end = End { attempt: 1, started_at: None, finished_at: Clock::system().now() };
        let failed = JobResult::unsuccessful(&delivery.job, Outcome::Failed, end, Failure::new("bad", "bad"));
        store.broker().leasing.record(&failed).await.unwrap();
        store.broker().leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
    }
    store.close().await;
    let damage = "UPDATE dead_letters SET envelope = x'ff' WHERE job = ?1";
    rusqlite::Connection::open(&path).unwrap().execute(damage, [jobs[1].as_bytes()]).unwrap();

    let store = open(&path).await;
    let letters = store.broker().dead_letters;
    let (work, missing) = ("work".parse().unwrap(), "missing".parse().unwrap());
    for queue in [None, Some(&work)] {
        let listed = letters.list(queue, None, None, 10).await.unwrap();
        assert_eq!(listed.letters.iter().map(|head| head.letter.job.id).collect::<Vec<_>>(), [jobs[2], jobs[0]]);
    }
    assert_eq!(letters.list(Some(&missing), None, None, 10).await.unwrap().letters, []);
    store.close().await;
}

fn letter_of(delivery: &Delivery) -> DeadLetter {
    DeadLetter {
        job: delivery.job.clone(),
        attempt: delivery.attempt,
        outcome: Outcome::Failed,
        failure: Failure::new("exit-code", "it said no"),
        at: Clock::system().now(),
        extra: Default::default(),
    }
}

#[tokio::test]
async fn a_letter_of_the_first_attempt_goes_when_that_attempt_succeeds_after_all() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    let job = submit(&store, "key").await;
    let delivery = lease(&store, 1).await.remove(0);
    store.broker().leasing.dead_letter(&letter_of(&delivery)).await.unwrap();
    // A worker that connects over TCP may say both.
    assert_eq!(finish(&store, &delivery).await, Recorded::First);
    assert_eq!(store.broker().dead_letters.get(job.job_id).await.unwrap(), None);
    store.close().await;
}

#[tokio::test]
async fn a_letter_goes_when_its_worker_hands_the_job_back_and_another_one_succeeds() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder.path().join("relay.db")).await;
    let job = submit(&store, "key").await;
    let delivery = lease(&store, 1).await.remove(0);
    store.broker().leasing.dead_letter(&letter_of(&delivery)).await.unwrap();
    store.broker().leasing.settle(&delivery.receipt, &Settlement::HandBack(Duration::ZERO)).await.unwrap();
    let next = lease(&store, 1).await.remove(0);
    assert_eq!(finish(&store, &next).await, Recorded::First);
    assert_eq!(store.broker().dead_letters.get(job.job_id).await.unwrap(), None);
    store.close().await;
}
