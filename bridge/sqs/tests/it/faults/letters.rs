//! Dead letters of runs that end otherwise meanwhile, and lists of many.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use relay_bridge::contract::{JobId, Outcome, RunId};
use relay_bridge::dead_letters::{LETTERS_PASSED_MAX, LetterHead};
use relay_bridge::leasing::{Held, Recorded};
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};

use super::support::Stage;

#[tokio::test]
async fn a_letter_that_comes_while_its_run_is_being_cancelled_goes_with_it() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let slow = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    proxy.fault("TransactWriteItems", AwsFault::Hold);
    let other = async {
        // The record was read before anybody had it.
        proxy.held().await;
        let delivery = stage.lease(&stage.broker).await;
        stage.broker.leasing.dead_letter(&stage.letter(&delivery)).await.unwrap();
        proxy.let_go();
    };
    let (cancelled, ()) = tokio::join!(slow.jobs.cancel(&job.client, job.id), other);
    cancelled.unwrap();
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_cancel_whose_letter_is_not_removed_stands_and_removes_it_when_it_is_repeated() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    let delivery = stage.lease(&broker).await;
    broker.leasing.dead_letter(&stage.letter(&delivery)).await.unwrap();
    proxy.fault_all("DeleteItem", AwsFault::Refuse("ValidationException"));
    broker.jobs.cancel(&job.client, job.id).await.unwrap();
    assert!(broker.dead_letters.get(job.id).await.unwrap().is_some());
    proxy.mend("DeleteItem");
    broker.jobs.cancel(&job.client, job.id).await.unwrap();
    assert_eq!(broker.dead_letters.get(job.id).await.unwrap(), None);
}

#[tokio::test]
async fn the_letter_that_relay_keeps_goes_where_the_failure_came_second_to_a_success() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let slow = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    let delivery = stage.lease(&slow).await;
    proxy.fault("TransactWriteItems", AwsFault::Hold);
    let other = async {
        proxy.held().await;
        assert_eq!(stage.broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
        proxy.let_go();
    };
    let failure = stage.failure(&delivery, "");
    let (recorded, ()) = tokio::join!(slow.leasing.record(&failure), other);
    assert_eq!(recorded.unwrap(), Recorded::Superseded(Outcome::Succeeded));
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_later_attempt_whose_letter_is_not_removed_removes_it_when_its_success_comes_again() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    let first = stage.lease(&broker).await;
    broker.leasing.dead_letter(&stage.letter(&first)).await.unwrap();
    broker.leasing.settle(&first.receipt, &Settlement::RetryAfter(Duration::ZERO)).await.unwrap();
    let second = stage.lease(&broker).await;
    proxy.fault_all("DeleteItem", AwsFault::Refuse("ValidationException"));
    broker.leasing.record(&stage.success(&second)).await.unwrap_err();
    proxy.mend("DeleteItem");
    assert_eq!(broker.leasing.record(&stage.success(&second)).await.unwrap(), Recorded::First);
    assert_eq!(broker.dead_letters.get(job.id).await.unwrap(), None);
}

#[tokio::test]
async fn the_letter_of_a_later_attempt_goes_when_an_earlier_one_of_another_process_succeeds_late() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let early = stage.process(stage.emulator.url()).await;
    let job = stage.submit().await;
    let first = stage.lease(&early).await;
    // Its worker stands still: the lease ends, and another process gives the job out again.
    stage.lose_all_messages().await;
    stage.clock.advance(Duration::from_secs(120));
    stage.broker.jobs.sweep(100).await.unwrap();
    let second = stage.lease(&stage.broker).await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
    // This one fails, and dies before it records that.
    stage.broker.leasing.dead_letter(&stage.letter(&second)).await.unwrap();
    assert_eq!(early.leasing.record(&stage.success(&first)).await.unwrap(), Recorded::First);
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None, "the run succeeded");
}

#[tokio::test]
async fn a_process_knows_the_job_that_it_gave_out_for_as_long_as_the_lease_is_extended() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    stage.submit().await;
    let delivery = stage.lease(&broker).await;
    for _ in 0..3 {
        stage.clock.advance(stage.policy.lease / 2);
        assert!(matches!(broker.leasing.extend(&delivery.receipt).await.unwrap(), Held::Until(_)));
    }
    let reads = proxy.calls("GetItem");
    assert_eq!(broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    assert_eq!(proxy.calls("GetItem") - reads, 1, "the end of the client's log, and no record");
}

#[tokio::test]
async fn the_letter_of_a_worker_costs_two_writes_and_two_reads_and_relay_a_look_when_the_run_ends() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    stage.submit().await;
    let delivery = stage.lease(&broker).await;
    let [writes, reads] = proxy.units();
    broker.leasing.dead_letter(&stage.letter(&delivery)).await.unwrap();
    assert_eq!(proxy.units(), [writes + 2.0, reads + 2.0], "as docs/sqs.md says");
    let calls = || ["PutItem", "UpdateItem", "DeleteItem"].map(|call| proxy.calls(call));
    let written = calls();
    assert_eq!(broker.leasing.record(&stage.failure(&delivery, "")).await.unwrap(), Recorded::First);
    assert_eq!(calls(), written, "the end of a run is a transaction");
    // The letter, and the end of the client's log, which a process reads once.
    assert_eq!(proxy.units()[1], reads + 4.0);
}

#[tokio::test]
async fn letters_whose_keys_begin_otherwise_are_asked_for_many_at_once() {
    const LETTERS: usize = 12;
    let stage = Stage::open().await;
    for _ in 0..LETTERS {
        stage.submit().await;
        let delivery = stage.lease(&stage.broker).await;
        assert_eq!(stage.broker.leasing.record(&stage.failure(&delivery, "")).await.unwrap(), Recorded::First);
        stage.broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
    }
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let found = broker.dead_letters.list(Some(&stage.queue), Some("no key's"), None, 1).await.unwrap();
    assert!(found.letters.is_empty() && found.next.is_none());
    assert_eq!(proxy.calls("Query"), 2, "all of them, and whether there are more");
    let found = broker.dead_letters.list(Some(&stage.queue), None, None, 5).await.unwrap();
    let rest = broker.dead_letters.list(Some(&stage.queue), None, found.next.as_ref(), 100).await.unwrap();
    assert_eq!((found.letters.len(), rest.letters.len(), rest.next), (5, LETTERS - 5, None));
}

#[tokio::test]
async fn a_list_of_letters_reads_no_payload_but_of_those_that_say_nothing_of_it_apart() {
    const PAYLOAD: usize = 200 * 1_024;
    let stage = Stage::open().await;
    for _ in 0..3 {
        stage.submit_payload(vec![7; PAYLOAD]).await;
        let delivery = stage.lease(&stage.broker).await;
        assert_eq!(stage.broker.leasing.record(&stage.failure(&delivery, "broke")).await.unwrap(), Recorded::First);
        stage.broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
    }
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let letters = stage.process(proxy.url()).await.dead_letters;
    let list = async || letters.list(Some(&stage.queue), None, None, 10).await.unwrap().letters;
    let listed = list().await;
    let shown = |head: &LetterHead| (head.size, head.letter.job.payload.len(), head.letter.failure.detail.clone());
    assert_eq!(listed.iter().map(shown).collect::<Vec<_>>(), vec![(PAYLOAD as u64, 0, "broke".to_owned()); 3]);
    let read = proxy.bytes_answered("BatchGetItem");
    assert!(read < 16 * 1_024, "three letters were {read} bytes");
    let [_, units] = proxy.units();
    assert!(units > 3.0 * 50.0, "as docs/sqs.md says, they cost as much as with their payloads: {units}");

    // As a release before this one wrote it.
    let (job, run) = (&listed[1].letter.job.id, &listed[1].letter.job.run_id);
    let key = [("pk", format!("job#{job}")), ("sk", format!("dead#{run}"))];
    let key = key.map(|(name, value)| (name.to_owned(), AttributeValue::S(value)));
    let older = stage.dynamodb().update_item().table_name("relay").set_key(Some(key.into()));
    let names = [("#head", "head"), ("#size", "size")].map(|(place, name)| (place.to_owned(), name.to_owned()));
    let older = older.update_expression("REMOVE #head, #size").set_expression_attribute_names(Some(names.into()));
    older.send().await.unwrap();
    assert_eq!(list().await, listed);
    let read = proxy.bytes_answered("BatchGetItem") - read;
    assert!((PAYLOAD..2 * PAYLOAD).contains(&read), "one letter was read whole, and {read} bytes in all");
}

#[tokio::test]
async fn a_page_of_letters_ends_after_as_many_that_can_not_be_read_as_after_others() {
    let stage = Stage::open().await;
    let (now, text) = (stage.clock.now(), |text: String| AttributeValue::S(text));
    let mut run = RunId::mint(now, None);
    let mut items: Vec<WriteRequest> = Vec::new();
    for _ in 0..=LETTERS_PASSED_MAX {
        run = RunId::mint(now, Some(run));
        let item = HashMap::from([
            ("pk".to_owned(), text(format!("job#{}", JobId::mint()))),
            ("sk".to_owned(), text(format!("dead#{run}"))),
            ("ix".to_owned(), text(format!("dead#{}", stage.queue))),
            ("ix_at".to_owned(), text(run.to_string())),
            ("letter".to_owned(), AttributeValue::B(Blob::new("nothing of relay's"))),
        ]);
        let put = PutRequest::builder().set_item(Some(item)).build().unwrap();
        items.push(WriteRequest::builder().put_request(put).build());
    }
    for chunk in items.chunks(25) {
        stage.dynamodb().batch_write_item().request_items("relay", chunk.to_vec()).send().await.unwrap();
    }
    let page = stage.broker.dead_letters.list(Some(&stage.queue), None, None, 1).await.unwrap();
    assert!(page.letters.is_empty() && page.next.is_some(), "one is left for the next page");
    let rest = stage.broker.dead_letters.list(Some(&stage.queue), None, page.next.as_ref(), 1).await.unwrap();
    assert!(rest.letters.is_empty() && rest.next.is_none());
}

#[tokio::test]
async fn a_purge_whose_answer_is_lost_says_that_there_was_a_letter() {
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    let job = stage.submit().await;
    let delivery = stage.lease(&broker).await;
    assert_eq!(broker.leasing.record(&stage.failure(&delivery, "")).await.unwrap(), Recorded::First);
    proxy.fault("DeleteItem", AwsFault::LoseAnswer);
    let letters = &broker.dead_letters;
    assert!(letters.purge(job.id, job.run_id).await.unwrap(), "the SDK repeated the call, and found no letter");
    assert!(!letters.purge(job.id, job.run_id).await.unwrap(), "and now there is none");
}
