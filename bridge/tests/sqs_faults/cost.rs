//! How many calls a job takes, where many go at once.

use futures_util::future::join_all;
use relay_bridge::settlement::Settlement;
use relay_bridge::testing::AwsProxy;

use crate::support::{PATIENCE, Stage};

#[tokio::test]
async fn jobs_that_come_many_at_once_take_fewer_than_one_and_a_half_calls_of_sqs_each() {
    const JOBS: usize = 200;
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let broker = stage.process(proxy.url()).await;
    for enqueued in join_all((0..JOBS).map(|_| broker.jobs.enqueue(stage.job(None)))).await {
        enqueued.unwrap();
    }
    let mut done = 0;
    while done < JOBS {
        let held = broker.leasing.lease(&stage.request(40, PATIENCE)).await.unwrap();
        join_all(held.iter().map(async |delivery| {
            broker.leasing.record(&stage.success(delivery)).await.unwrap();
            broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
        }))
        .await;
        done += held.len();
    }
    let count = |calls: &[&str]| calls.iter().map(|call| proxy.calls(call)).sum::<usize>();
    let of_sqs = count(&["SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"]);
    assert!(of_sqs * 2 < JOBS * 3, "{of_sqs} calls for {JOBS} jobs");
    let transactions = count(&["TransactWriteItems"]);
    assert!(transactions < JOBS, "{transactions} transactions for {JOBS} jobs of one client");
    let writes = count(&["PutItem", "UpdateItem"]);
    assert!(writes <= JOBS * 2 + 10, "{writes} writes beside them: one put and one claim each");
}
