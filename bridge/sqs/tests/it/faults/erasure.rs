//! Calls under way when a job is erased bring nothing of it back.

use relay_bridge::contract::{Job, JobResult, Outcome};
use relay_bridge::leasing::{Delivery, Recorded};
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};

use super::between::mortal;
use super::support::Stage;

/// More than a record holds of payload and result.
const LARGE: usize = 8 * 1_024;

/// A job of this result has ended, at another process than the one that leased it.
async fn end(stage: &Stage, delivery: &Delivery, result: &JobResult) {
    assert_eq!(stage.broker.leasing.record(result).await.unwrap(), Recorded::First);
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
}

async fn erase(stage: &Stage, job: &Job) {
    stage.broker.jobs.erase(&job.client, job.id).await.unwrap();
    assert_eq!(stage.items_of(job).await, ["record"]);
}

/// A rerun is refused whose write of this kind reaches AWS only after its job was erased, and leaves no payload.
async fn assert_refused_where_held(write: &'static str) {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let slow = stage.process(proxy.url()).await;
    let job = stage.submit_payload(vec![7; LARGE]).await;
    let delivery = stage.lease(&stage.broker).await;
    end(&stage, &delivery, &stage.success(&delivery)).await;
    proxy.fault(write, AwsFault::Hold);
    let other = async {
        proxy.held().await;
        erase(&stage, &job).await;
        proxy.let_go();
    };
    let (refused, ()) = tokio::join!(slow.jobs.rerun(&job.client, job.id, 1), other);
    assert_eq!(refused.unwrap_err().detail(), "the payload was erased: submit the job again");
    assert_eq!(stage.items_of(&job).await, ["record"]);
}

#[tokio::test]
async fn a_rerun_that_was_under_way_when_its_job_was_erased_is_refused_and_leaves_no_payload() {
    assert_refused_where_held("UpdateItem").await;
}

#[tokio::test]
async fn a_payload_that_is_written_again_after_its_job_was_erased_is_removed() {
    assert_refused_where_held("PutItem").await;
}

#[tokio::test]
async fn a_large_result_that_comes_after_its_job_was_erased_leaves_nothing() {
    let stage = Stage::open().await;
    let late = stage.process(stage.emulator.url()).await;
    let job = stage.submit().await;
    let delivery = stage.lease(&late).await;
    let result = JobResult { payload: vec![7; LARGE].into(), ..stage.success(&delivery) };
    end(&stage, &delivery, &result).await;
    erase(&stage, &job).await;
    let answer = late.leasing.record(&result).await.unwrap();
    assert_eq!(answer, Recorded::Superseded(Outcome::Succeeded), "nothing tells that it was this one");
    assert_eq!(stage.items_of(&job).await, ["record"]);
    let key = |name: &str, value: String| (name.to_owned(), aws_sdk_dynamodb::types::AttributeValue::S(value));
    let key = [key("pk", format!("job#{}", job.id)), key("sk", "record".to_owned())].into();
    let record = stage.dynamodb().get_item().table_name("relay").set_key(Some(key)).send().await.unwrap();
    let left: Vec<_> = record.item().unwrap().keys().filter(|name| name.starts_with("result_")).collect();
    assert!(left.iter().all(|name| ["result_run", "result_size"].contains(&name.as_str())), "{left:?}");
}

#[tokio::test]
async fn a_letter_whose_keeper_died_while_its_job_was_erased_is_removed_when_it_comes_again() {
    let stage = Stage::open().await;
    let job = stage.submit().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let (process, dying) = (stage.process(proxy.url()).await, mortal());
    let delivery = stage.lease(&process).await;
    let letter = stage.letter(&delivery);
    let sent = letter.clone();
    proxy.fault("PutItem", AwsFault::Hold);
    dying.spawn(async move { drop(process.leasing.dead_letter(&sent).await) });
    proxy.held().await;
    end(&stage, &delivery, &stage.failure(&delivery, "")).await;
    erase(&stage, &job).await;
    // Its second look at the record.
    proxy.fault("GetItem", AwsFault::Hold);
    proxy.let_go();
    proxy.held().await;
    dying.shutdown_background();
    assert!(stage.broker.dead_letters.get(job.id).await.unwrap().is_some(), "here it came back");
    stage.broker.leasing.dead_letter(&letter).await.unwrap();
    assert_eq!(stage.items_of(&job).await, ["record"]);
}

#[tokio::test]
async fn a_job_that_was_started_again_while_it_was_being_erased_is_to_be_cancelled_first() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let slow = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    let delivery = stage.lease(&stage.broker).await;
    end(&stage, &delivery, &stage.success(&delivery)).await;
    proxy.fault("UpdateItem", AwsFault::Hold);
    let other = async {
        proxy.held().await;
        stage.broker.jobs.rerun(&job.client, job.id, 1).await.unwrap();
        proxy.let_go();
    };
    let (refused, ()) = tokio::join!(slow.jobs.erase(&job.client, job.id), other);
    assert_eq!(refused.unwrap_err().detail(), "the run has not ended: cancel it first");
}
