//! A rerun is a submission, and refusals have the same words on every broker.

use super::Fixture;
use super::stage::{Stage, refused};
use relay_bridge::contract::{JobId, JobState, Outcome, QueueName};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::settlement::Settlement;

pub async fn a_rerun_is_bounded_like_a_submission_and_a_redrive_is_not(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.client_defaults.max_queued = 3).await;
    let client = stage.client("a");
    let jobs = &stage.broker.jobs;
    let (first, second) =
        (stage.run(stage.keyed(&client, "first")).await, stage.run(stage.keyed(&client, "second")).await);
    let failed = stage.submit(stage.keyed(&client, "failed")).await;
    let delivery = stage.lease_one().await;
    stage.end_badly(&delivery, Outcome::Failed).await;
    stage.backlog(&client, 2).await;
    let rerun = jobs.rerun(&client, first.id, 1).await.unwrap();
    assert!(matches!(rerun, Enqueued::Created(_)));
    let full = BrokerErrorKind::QuotaExceeded { actual: 3, limit: 3 };
    let refusal = jobs.rerun(&client, second.id, 1).await.unwrap_err();
    assert_eq!(refusal.kind(), full);
    assert_eq!(stage.status(&second).await.state, JobState::Finished(Outcome::Succeeded));
    // A run that was started before is answered before anybody counts.
    let again = jobs.rerun(&client, first.id, 1).await.unwrap();
    assert!(matches!(&again, Enqueued::Known(status) if status.run_id == rerun.status().run_id));
    let redriven = stage.broker.dead_letters.redrive(failed.id, failed.run_id).await.unwrap();
    assert!(matches!(redriven, Enqueued::Created(_)), "an operator's redrive is not bound");
    // A refused submission reads the same.
    let submission = jobs.enqueue(stage.accept(stage.submission(&client))).await.unwrap_err();
    assert_eq!(submission.detail(), refusal.detail().replace("has 3", "has 4"));
}

pub async fn many_reruns_do_not_pass_the_quota(fixture: &dyn Fixture) {
    const JOBS: u32 = 12;
    let stage = Stage::with(fixture, |policy| policy.client_defaults.max_queued = 4).await;
    let client = stage.client("a");
    let mut ended = Vec::new();
    for number in 0..JOBS {
        ended.push(stage.run(stage.keyed(&client, &format!("key-{number}"))).await);
    }
    let mut started = 0;
    for job in &ended {
        match stage.broker.jobs.rerun(&client, job.id, 1).await {
            Ok(_) => started += 1,
            Err(error) => assert!(matches!(error.kind(), BrokerErrorKind::QuotaExceeded { .. }), "{error}"),
        }
    }
    assert_eq!(started, 4);
    assert_eq!(stage.lease_all().await.len(), 4);
}

pub async fn a_rerun_in_a_paused_queue_waits(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.run(stage.keyed(&stage.client("a"), "key")).await;
    stage.broker.policies.set_paused(&stage.queue, true).await.unwrap();
    let started = stage.broker.jobs.rerun(&job.client, job.id, 1).await.unwrap();
    assert_eq!((started.status().generation, started.status().state), (2, JobState::Queued));
    stage.assert_nothing_in_line().await;
    stage.broker.policies.set_paused(&stage.queue, false).await.unwrap();
    assert_eq!(stage.lease_one().await.job.generation, 2);
}

pub async fn a_keyless_job_that_is_recorded_and_not_settled_is_not_rerun(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    stage.record_first(&stage.success(&delivery, "done")).await;
    let rerun = || stage.broker.jobs.rerun(&job.client, job.id, 1);
    let before = rerun().await.unwrap_err();
    stage.settle(&delivery, Settlement::Complete).await;
    let after = rerun().await.unwrap_err();
    assert_eq!((before.kind(), before.detail()), (after.kind(), after.detail()));
    assert_eq!(before.detail(), NOT_KEPT);
    stage.assert_nothing_in_line().await;
}

const NOT_KEPT: &str = "the payload was not kept: submit the job again, or set `keep_keyless` for the queue";

#[track_caller]
fn says<T: std::fmt::Debug>(answer: Result<T, BrokerError>, kind: BrokerErrorKind, detail: &str) {
    let error = answer.expect_err("the call must be refused");
    assert_eq!((error.kind(), error.detail()), (kind, detail));
}

pub async fn refusals_about_a_job_have_the_same_words_everywhere(fixture: &dyn Fixture) {
    use BrokerErrorKind::{Invalid, NotFound, StateConflict};
    // Held over many calls, which may each take their time.
    let stage =
        Stage::with(fixture, |policy| (policy.lease, policy.lease_max) = (policy.lease * 20, policy.lease * 40)).await;
    let client = stage.client("a");
    let jobs = &stage.broker.jobs;
    let nobodys = JobId::mint();
    let no_job = format!("there is no job {nobodys}");
    says(jobs.cancel(&client, nobodys).await, NotFound, &no_job);
    says(jobs.rerun(&client, nobodys, 1).await, NotFound, &no_job);
    says(jobs.erase(&client, nobodys).await, NotFound, &no_job);

    let job = stage.submit(stage.keyed(&client, "key")).await;
    let hidden = format!("there is no job {}", job.id);
    let other = stage.client("b");
    says(jobs.cancel(&other, job.id).await, NotFound, &hidden);
    says(jobs.rerun(&other, job.id, 1).await, NotFound, &hidden);
    says(jobs.erase(&other, job.id).await, NotFound, &hidden);
    let open = "generation 1 has not ended: wait for it, or cancel it";
    says(jobs.rerun(&client, job.id, 1).await, StateConflict, open);
    says(
        jobs.rerun(&client, job.id, 3).await,
        StateConflict,
        "the job is in generation 1, not 3: rerun that one, if it is meant",
    );
    says(
        jobs.rerun(&client, job.id, 0).await,
        StateConflict,
        "the job is in generation 1, not 0: rerun that one, if it is meant",
    );
    says(jobs.erase(&client, job.id).await, StateConflict, "the run has not ended: cancel it first");

    let delivery = stage.lease_one().await;
    let result = stage.success(&delivery, "done");
    let later = relay_bridge::contract::JobResult { run_id: job.next_run(fixture.now()).run_id, ..result };
    says(stage.leasing.record(&later).await, Invalid, "the result names a run that no relay gave out");
    let no_letter = format!("there is no dead letter of job {} in run {}", job.id, job.run_id);
    says(stage.broker.dead_letters.redrive(job.id, job.run_id).await, NotFound, &no_letter);
    let letter = stage.letter(&delivery, Outcome::Failed);
    stage.leasing.dead_letter(&letter).await.unwrap();
    let open = "the run has not ended: wait for its outcome, or have its client cancel it";
    says(stage.broker.dead_letters.redrive(job.id, job.run_id).await, StateConflict, open);
    stage.succeed(&delivery).await;
    // Where the broker leaves the letter of a first attempt that succeeds.
    let (kind, why) = match stage.broker.dead_letters.get(job.id).await.unwrap() {
        Some(_) => (StateConflict, "the run succeeded after all: purge the dead letter instead"),
        None => (NotFound, no_letter.as_str()),
    };
    says(stage.broker.dead_letters.redrive(job.id, job.run_id).await, kind, why);
    jobs.erase(&client, job.id).await.unwrap();
    let erased = "the payload was erased: submit the job again";
    says(jobs.rerun(&client, job.id, 1).await, StateConflict, erased);
    let keyless = stage.run(stage.submission(&client)).await;
    says(jobs.rerun(&client, keyless.id, 1).await, StateConflict, NOT_KEPT);
}

pub async fn refusals_about_a_queue_have_the_same_words_everywhere(fixture: &dyn Fixture) {
    let limit = fixture.broker().capabilities.payload_max;
    let stage = Stage::with(fixture, |policy| policy.payload_max = limit).await;
    let client = stage.client("a");
    let nowhere: QueueName = format!("nowhere-{}", super::stage::unique()).parse().unwrap();
    let no_queue = format!("there is no queue `{nowhere}`");
    let not_found = BrokerErrorKind::NotFound;
    let broker = &stage.broker;
    let mut submission = stage.submission(&client);
    submission.queue = nowhere.clone();
    says(broker.jobs.enqueue(stage.accept(submission)).await, not_found, &no_queue);
    says(broker.jobs.depth(&nowhere).await, not_found, &no_queue);
    says(broker.jobs.waiting(&client, &nowhere).await, not_found, &no_queue);
    says(broker.policies.set_paused(&nowhere, true).await, not_found, &no_queue);
    says(stage.leasing.queue_policy(&nowhere).await, not_found, &no_queue);
    let mut request = stage.request(1, std::time::Duration::ZERO);
    request.queues = vec![stage.queue.clone(), nowhere];
    says(stage.leasing.lease(&request).await, not_found, &no_queue);
    request.queues = Vec::new();
    assert_eq!(refused(stage.leasing.lease(&request).await), BrokerErrorKind::Invalid);
    let mut large = stage.submission(&client);
    large.payload = vec![0; usize::try_from(limit).unwrap() + 1].into();
    let actual = limit + 1;
    let too_large = format!("{actual} bytes are more than the {limit} that are taken");
    let kind = BrokerErrorKind::TooLarge { actual, limit };
    says(broker.jobs.enqueue(stage.accept(large)).await, kind, &too_large);
}
