//! Every run ends in exactly one outcome: the first record wins, and every other answer agrees.

use std::time::Duration;

use tokio::task::JoinSet;

use super::Fixture;
use super::stage::{Stage, finished, refused};
use relay_bridge::contract::result::End;
use relay_bridge::contract::{JobId, JobResult, JobState, Outcome};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Delivery, Held, Recorded};
use relay_bridge::result_log::Start;
use relay_bridge::settlement::Settlement;

pub async fn a_second_result_is_refused(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    stage.record_first(&stage.success(&delivery, "first")).await;
    let cursor = stage.finished(&job).await.cursor;
    let superseded = Recorded::Superseded(Outcome::Succeeded);
    for again in [stage.success(&delivery, "second"), stage.failure(&delivery, Outcome::Failed, "late")] {
        assert_eq!(stage.leasing.record(&again).await.unwrap(), superseded);
    }
    stage.settle(&delivery, Settlement::Complete).await;
    assert_eq!(stage.leasing.record(&stage.success(&delivery, "third")).await.unwrap(), superseded);
    let finished = stage.finished(&job).await;
    assert_eq!((finished.result.payload.as_ref(), finished.cursor), (&b"first"[..], cursor));
    assert_eq!(stage.read_all(&job.client, Start::Oldest).await.0.len(), 1);
}

pub async fn a_late_attempts_result_wins_if_it_is_first(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    let late = stage.lease_one().await;
    stage.pass_lease().await;
    let holder = stage.lease_one().await;
    stage.record_first(&stage.success(&late, "late")).await;
    match stage.leasing.extend(&holder.receipt).await {
        Ok(held) => assert_eq!(held, Held::Ended(Outcome::Succeeded)),
        Err(error) => assert_eq!(error.kind(), BrokerErrorKind::LeaseLost, "{error}"),
    }
    let answer = stage.leasing.record(&stage.success(&holder, "holder")).await.unwrap();
    assert_eq!(answer, Recorded::Superseded(Outcome::Succeeded));
    stage.settle_late(&holder, Settlement::Complete).await;
    let result = stage.finished(&job).await.result;
    assert_eq!((result.payload.as_ref(), result.attempt), (&b"late"[..], 1));
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn a_run_that_was_recorded_but_not_settled_keeps_its_result(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    let crashed = stage.lease_one().await;
    stage.record_first(&stage.success(&crashed, "kept")).await;
    assert_eq!(stage.status(&job).await.state, JobState::Finished(Outcome::Succeeded));
    stage.pass_lease().await;
    // The broker may hand it out once more; the result of that attempt is dropped.
    for again in stage.lease_up_to(1).await {
        let answer = stage.leasing.record(&stage.success(&again, "again")).await.unwrap();
        assert_eq!(answer, Recorded::Superseded(Outcome::Succeeded));
        stage.settle_late(&again, Settlement::Complete).await;
    }
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
    assert_eq!(stage.finished(&job).await.result.payload, "kept");
}

pub async fn a_result_of_a_smaller_run_never_replaces_a_greater_one(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    let first = stage.lease_one().await;
    stage.succeed(&first).await;
    stage.broker.jobs.rerun(&job.client, job.id, 1).await.unwrap();
    let late = stage.success(&first, "late");
    assert!(matches!(stage.leasing.record(&late).await.unwrap(), Recorded::Superseded(_)));
    assert_eq!(stage.open(&job).await.generation, 2);
    let second = stage.lease_one().await;
    stage.record_first(&stage.failure(&second, Outcome::Failed, "exit-code")).await;
    assert_eq!(stage.leasing.record(&late).await.unwrap(), Recorded::Superseded(Outcome::Failed));
    let result = stage.finished(&job).await.result;
    assert_eq!((result.outcome, result.run_id), (Outcome::Failed, second.job.run_id));
}

pub async fn a_result_without_a_job_is_not_found(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let unknown = stage.accept(stage.submission(&stage.client("a")));
    let end = End { attempt: 1, started_at: None, finished_at: fixture.now() };
    let result = JobResult::succeeded(&unknown, end, "text/plain", "done".into());
    assert_eq!(refused(stage.leasing.record(&result).await), BrokerErrorKind::NotFound);
    stage.assert_absent(&unknown).await;
}

pub async fn a_result_that_names_another_client_queue_or_run_ends_nothing(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    let result = stage.success(&delivery, "done");
    let next_run = job.next_run(fixture.now()).run_id;
    for wrong in [
        JobResult { client: stage.client("b"), ..result.clone() },
        JobResult { queue: stage.another_queue().await, ..result.clone() },
        JobResult { run_id: next_run, generation: 2, ..result.clone() },
    ] {
        let kind = refused(stage.leasing.record(&wrong).await);
        assert!(matches!(kind, BrokerErrorKind::NotFound | BrokerErrorKind::Invalid), "{kind:?}");
        stage.open(&job).await;
    }
    stage.record_first(&result).await;
}

pub async fn a_result_recorded_without_a_lease_ends_the_run(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    stage.settle(&delivery, Settlement::RetryAfter(stage.lease / 2)).await;
    stage.record_first(&stage.success(&delivery, "after all")).await;
    stage.pass(stage.lease).await;
    for again in stage.lease_up_to(1).await {
        assert!(matches!(stage.leasing.extend(&again.receipt).await, Ok(Held::Ended(Outcome::Succeeded))));
        stage.settle_late(&again, Settlement::Complete).await;
    }
    assert_eq!(stage.finished(&job).await.result.payload, "after all");
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn a_cancelled_queued_job_never_starts(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let mut parked = stage.keyed(&client, "parked");
    parked.delay = stage.lease * 2;
    let jobs = [
        stage.submit(stage.keyed(&client, "key")).await,
        stage.submit(parked).await,
        stage.submit_plain(&client).await,
    ];
    for job in &jobs {
        let status = stage.broker.jobs.cancel(&client, job.id).await.unwrap();
        assert_eq!(status.state, JobState::Finished(Outcome::Cancelled));
        let again = stage.broker.jobs.cancel(&client, job.id).await.unwrap();
        assert_eq!((again.state, again.run_id), (status.state, status.run_id));
        let result = stage.finished(job).await.result;
        assert_eq!((result.outcome, result.attempt, result.started_at), (Outcome::Cancelled, 0, None));
        assert_eq!((result.job_id, result.run_id, &result.client), (job.id, job.run_id, &client));
        assert!(result.failure.is_some(), "what is not a success has a reason");
    }
    stage.assert_nothing_in_line().await;
    stage.pass(stage.lease * 3).await;
    stage.assert_nothing_in_line().await;
    stage.assert_depth(relay_bridge::job_queue::Depth::default()).await;
    assert_eq!(stage.read_all(&client, Start::Oldest).await.0.len(), 3);
}

pub async fn a_holder_learns_of_a_cancel_at_its_next_heartbeat(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    let delivery = stage.lease_one().await;
    let status = stage.broker.jobs.cancel(&job.client, job.id).await.unwrap();
    assert_eq!(status.state, JobState::Finished(Outcome::Cancelled));
    let result = stage.finished(&job).await.result;
    assert_eq!((result.outcome, result.attempt), (Outcome::Cancelled, 1));
    assert_eq!(stage.leasing.extend(&delivery.receipt).await.unwrap(), Held::Ended(Outcome::Cancelled));
    let answer = stage.leasing.record(&stage.success(&delivery, "done")).await.unwrap();
    assert_eq!(answer, Recorded::Superseded(Outcome::Cancelled));
    stage.settle_late(&delivery, Settlement::Complete).await;
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
    stage.assert_depth(relay_bridge::job_queue::Depth::default()).await;
}

pub async fn a_cancelled_job_whose_holder_retries_does_not_come_back(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    for settlement in [Settlement::RetryAfter(Duration::from_millis(1)), Settlement::HandBack(Duration::ZERO)] {
        let job = stage.submit_plain(&client).await;
        let delivery = stage.lease_one().await;
        stage.broker.jobs.cancel(&client, job.id).await.unwrap();
        stage.settle_late(&delivery, settlement).await;
        stage.pass_lease().await;
        stage.assert_nothing_in_line().await;
        assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Cancelled);
    }
}

pub async fn cancelling_a_finished_job_answers_its_outcome(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.run(stage.keyed(&stage.client("a"), "key")).await;
    let status = stage.broker.jobs.cancel(&job.client, job.id).await.unwrap();
    assert_eq!(status.state, JobState::Finished(Outcome::Succeeded));
    assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Succeeded);
    // Also when only the result is left of it.
    let keyless = stage.run(stage.submission(&job.client)).await;
    let status = stage.broker.jobs.cancel(&job.client, keyless.id).await.unwrap();
    assert_eq!(status.state, JobState::Finished(Outcome::Succeeded));
    let unknown = stage.broker.jobs.cancel(&job.client, JobId::mint()).await;
    assert_eq!(refused(unknown), BrokerErrorKind::NotFound);
}

pub async fn cancel_and_completion_racing_end_in_one_outcome(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    for round in 0..60 {
        let job = stage.submit(stage.keyed(&client, &format!("key-{round}"))).await;
        let delivery = stage.lease_one().await;
        let result = stage.success(&delivery, "done");
        let (leasing, broker, owner) = (stage.leasing.clone(), stage.broker.clone(), client.clone());
        let mut recording = JoinSet::new();
        recording.spawn(async move { leasing.record(&result).await.unwrap() });
        let mut cancelling = JoinSet::new();
        cancelling.spawn(async move { broker.jobs.cancel(&owner, job.id).await.unwrap() });
        let recorded = recording.join_all().await.remove(0);
        let cancelled = cancelling.join_all().await.remove(0);
        let outcome = stage.finished(&job).await.result.outcome;
        match recorded {
            Recorded::First => assert_eq!(outcome, Outcome::Succeeded, "round {round}"),
            Recorded::Superseded(winner) => assert_eq!((winner, outcome), (Outcome::Cancelled, Outcome::Cancelled)),
        }
        assert_eq!(cancelled.state, JobState::Finished(outcome), "round {round}");
        stage.settle_late(&delivery, Settlement::Complete).await;
        assert_eq!(stage.status(&job).await.state, JobState::Finished(outcome));
    }
    assert_eq!(stage.read_all(&client, Start::Oldest).await.0.len(), 60, "one result each");
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn cancel_completion_and_expiry_racing_end_in_one_outcome(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    // One job runs first, so that the broker's setup for a new client takes no time from the others.
    stage.run(stage.keyed(&client, "first")).await;
    for round in 0..5 {
        for number in 0..6 {
            let mut submission = stage.keyed(&client, &format!("key-{round}-{number}"));
            submission.expires_in = Some(stage.lease / 2);
            stage.submit(submission).await;
        }
        let held = stage.lease_exactly(6).await;
        stage.pass(stage.lease / 2 + stage.slack).await;
        // At once, because a sweep ends all that are past their deadline.
        futures_util::future::join_all(held.iter().map(|delivery| race_to_the_end(&stage, delivery))).await;
    }
    assert_eq!(stage.read_all(&client, Start::Oldest).await.0.len(), 31, "one result each");
}

async fn race_to_the_end(stage: &Stage<'_>, delivery: &Delivery) {
    let (client, id) = (&delivery.job.client, delivery.job.id);
    let results = [stage.success(delivery, "done"), stage.failure(delivery, Outcome::Failed, "exit-code")];
    let mut racing = JoinSet::new();
    for result in results {
        let leasing = stage.leasing.clone();
        racing.spawn(async move {
            match leasing.record(&result).await.unwrap() {
                Recorded::First => result.outcome,
                Recorded::Superseded(winner) => winner,
            }
        });
    }
    let (broker, owner) = (stage.broker.clone(), client.clone());
    racing.spawn(async move {
        broker.jobs.cancel(&owner, id).await.unwrap().state.outcome().expect("a cancelled job is finished")
    });
    let (broker, owner) = (stage.broker.clone(), client.clone());
    racing.spawn(async move {
        while broker.jobs.sweep(100).await.unwrap().more {}
        finished(broker.results.lookup(&owner, id).await.unwrap()).result.outcome
    });
    let answers = racing.join_all().await;
    let outcome = stage.finished(&delivery.job).await.result.outcome;
    assert!(answers.iter().all(|answer| *answer == outcome), "{answers:?}, then {outcome}");
    stage.settle_late(delivery, Settlement::Complete).await;
}

pub async fn many_results_for_one_run_racing_leave_one(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    let mut racing = JoinSet::new();
    for number in 0..24 {
        let result = stage.success(&delivery, format!("result {number}"));
        let leasing = stage.leasing.clone();
        racing.spawn(async move { (leasing.record(&result).await.unwrap(), result.payload) });
    }
    let answers = racing.join_all().await;
    let winners: Vec<_> = answers.iter().filter(|(recorded, _)| *recorded == Recorded::First).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(stage.finished(&job).await.result.payload, winners[0].1);
    assert_eq!(stage.read_all(&job.client, Start::Oldest).await.0.len(), 1);
}
