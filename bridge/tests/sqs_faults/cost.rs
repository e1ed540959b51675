//! What a job costs: calls of SQS and units of DynamoDB, counted where they arrive, against the table in `docs/sqs.md`.

use futures_util::future::join_all;
use relay_bridge::broker::Broker;
use relay_bridge::contract::Job;
use relay_bridge::leasing::Recorded;
use relay_bridge::result_log::Lookup;
use relay_bridge::settlement::Settlement;
use relay_bridge::testing::AwsProxy;

use crate::replies::looks_never;
use crate::support::{PATIENCE, Stage};

const JOBS: usize = 200;

/// What jobs took: calls of SQS, writes and reads of DynamoDB in units, each per job.
#[derive(Clone, Copy, Debug)]
struct Cost([f64; 3]);

impl Cost {
    fn so_far(proxies: &[&AwsProxy]) -> Self {
        let mut sum = [0.0; 3];
        for proxy in proxies {
            let [writes, reads] = proxy.units();
            let calls = ["SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"];
            let calls: usize = calls.iter().map(|call| proxy.calls(call)).sum();
            sum = [sum[0] + calls as f64, sum[1] + writes, sum[2] + reads];
        }
        Self(sum)
    }

    fn per_job_since(self, before: Self) -> Self {
        Self([0, 1, 2].map(|at| (self.0[at] - before.0[at]) / JOBS as f64))
    }
}

/// Sends `JOBS` jobs through, `depth` at a time; `waiter` waits for each of them meanwhile.
async fn run(stage: &Stage, worker: &Broker, waiter: Option<&Broker>, depth: usize) {
    let max = u32::try_from(depth).unwrap();
    for _ in 0..JOBS / depth {
        let jobs: Vec<Job> = (0..depth).map(|_| stage.job(None)).collect();
        for enqueued in join_all(jobs.iter().map(|job| worker.jobs.enqueue(job.clone()))).await {
            enqueued.unwrap();
        }
        let working = async {
            let mut held = Vec::new();
            while held.len() < depth {
                held.extend(worker.leasing.lease(&stage.request(max, PATIENCE)).await.unwrap());
            }
            if waiter.is_some() {
                join_all(jobs.iter().map(|job| stage.told(job, 1))).await;
            }
            join_all(held.iter().map(async |delivery| {
                assert_eq!(worker.leasing.record(&stage.success(delivery)).await.unwrap(), Recorded::First);
                worker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
            }))
            .await;
        };
        let waiting = async {
            let Some(waiter) = waiter else { return };
            let of = |job: &Job| (job.client.clone(), job.id);
            let wait = async |(client, job)| waiter.results.wait(&client, job, PATIENCE).await.unwrap();
            for looked in join_all(jobs.iter().map(of).map(wait)).await {
                assert!(matches!(looked, Lookup::Finished(_)));
            }
        };
        tokio::join!(working, waiting);
    }
}

/// The rows of the table in the guide: one at a time; ten at once; ten at once, each waited for at another process.
fn documented() -> [(Cost, f64); 3] {
    let guide = include_str!("../../../docs/sqs.md");
    let cell = |row: &str, column: usize| {
        let line = guide.lines().find(|line| line.starts_with(&format!("| {row} |"))).expect(row);
        line.split('|').nth(column + 2).unwrap().trim().parse::<f64>().unwrap()
    };
    let rows = ["calls of SQS, at most", "write units", "read units"];
    [0, 1, 2].map(|column| (Cost(rows.map(|row| cell(row, column))), cell("USD per million", column)))
}

#[tokio::test]
async fn a_job_costs_what_the_table_in_the_guide_says() {
    let stage = Stage::open().await;
    let (at_worker, at_waiter) =
        (AwsProxy::start(&stage.emulator.url()).await, AwsProxy::start(&stage.emulator.url()).await);
    let worker = stage.process(at_worker.url()).await;
    // A look by itself is one that the machine was too slow for.
    let waiter = stage.process_with(at_waiter.url(), looks_never).await;
    let (waiting, both) = (waiter.broker(), [&at_worker, &at_waiter]);
    let mut measured = Vec::new();
    for (depth, waiting) in [(1, None), (10, None), (10, Some(&waiting))] {
        let before = Cost::so_far(&both);
        run(&stage, &worker, waiting, depth).await;
        measured.push(Cost::so_far(&both).per_job_since(before));
    }
    println!("calls of SQS, write units, read units of a job: {measured:?}");
    for (column, ((Cost(told), dollars), Cost(found))) in documented().into_iter().zip(measured).enumerate() {
        for (row, (told, found)) in told.iter().zip(found).enumerate() {
            // How many come together depends on the moment: no more than is told, and not far less.
            let near = found <= told + 0.1 && found >= told * 0.5;
            assert!(near, "row {row}, column {column} of the table: {told}, and it is {found:.2}");
        }
        assert!(column == 0 || told[0] < 1.5, "calls of SQS for jobs that come ten at once");
        let priced: f64 = told.iter().zip([0.40, 0.625, 0.125]).map(|(count, price)| count * price).sum();
        assert!((priced - dollars).abs() < 0.01, "column {column} of the table costs {priced:.2}, not {dollars}");
    }
}
