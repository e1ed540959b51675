//! The cost of a job: calls of SQS and units of DynamoDB, counted where they arrive, against the table in
//! `docs/sqs.md`.

use futures_util::future::join_all;
use relay_bridge::broker::Broker;
use relay_bridge::contract::{Job, JobResult};
use relay_bridge::leasing::Recorded;
use relay_bridge::result_log::Lookup;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::AwsProxy;

use super::replies::looks_never;
use super::support::{PATIENCE, Stage};

/// How often jobs go through for one figure.
const ROUNDS: usize = 20;
/// The subject of the first table: bytes of a payload and of a result.
const SMALL: (usize, usize) = (256, 600);

/// The cost of a job: calls of SQS, writes and reads of DynamoDB in units.
#[derive(Clone, Copy, Debug)]
struct Cost([f64; 3]);

impl Cost {
    /// The cost so far, without the looks of processes that come by time: policies, signs of life.
    fn so_far(proxies: &[&AwsProxy]) -> Self {
        let of_jobs = |partition: &str| partition.starts_with("job#") || partition.starts_with("log#");
        let mut sum = [0.0; 3];
        for proxy in proxies {
            let [writes, reads] = proxy.units_of(of_jobs);
            let calls = ["SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"];
            let calls: usize = calls.iter().map(|call| proxy.calls(call)).sum();
            sum = [sum[0] + calls as f64, sum[1] + writes, sum[2] + reads];
        }
        Self(sum)
    }

    fn per_job_since(self, before: Self, jobs: usize) -> Self {
        Self([0, 1, 2].map(|at| (self.0[at] - before.0[at]) / jobs as f64))
    }

    /// Of each the one in the middle: a round in which the machine stood still says nothing.
    fn median(rounds: &[Self]) -> Self {
        Self([0, 1, 2].map(|at| {
            let mut found: Vec<_> = rounds.iter().map(|cost| cost.0[at]).collect();
            found.sort_by(f64::total_cmp);
            found[found.len() / 2]
        }))
    }

    /// USD for a million of them.
    fn price(self) -> f64 {
        self.0.iter().zip([0.40, 0.625, 0.125]).map(|(count, price)| count * price).sum()
    }
}

/// Sends `depth` jobs through at once, with payloads and results of so many bytes; `waiter` waits for each of them meanwhile.
async fn round(stage: &Stage, worker: &Broker, waiter: Option<&Broker>, depth: usize, sizes: (usize, usize)) {
    let max = u32::try_from(depth).unwrap();
    let jobs: Vec<Job> = (0..depth).map(|_| stage.job_of(None, vec![b'p'; sizes.0])).collect();
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
            let result = JobResult { payload: vec![b'r'; sizes.1].into(), ..stage.success(delivery) };
            assert_eq!(worker.leasing.record(&result).await.unwrap(), Recorded::First);
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

/// A cell of the tables in the guide: of the row that begins like that, counted from 0.
fn cell(row: &str, column: usize) -> f64 {
    let guide = include_str!("../../../../../docs/sqs.md");
    let line = guide.lines().find(|line| line.starts_with(&format!("| {row} |"))).expect(row);
    line.split('|').nth(column + 2).unwrap().trim().parse().unwrap()
}

/// The figure found is told, with a little room.
fn assert_told(row: &str, column: usize, found: f64, least: f64) {
    let told = cell(row, column);
    let near = found <= told + 0.1 && found >= told * least;
    assert!(near, "row `{row}`, column {column} of the table: {told}, and it is {found:.2}");
}

fn assert_price(row: &str, column: usize, cost: Cost) {
    let (told, found) = (cell(row, column), cost.price());
    assert!((told - found).abs() < 0.01, "row `{row}`, column {column} of the table: {told}, and it costs {found:.2}");
}

#[tokio::test]
async fn a_job_costs_what_the_table_in_the_guide_says() {
    const ROWS: [&str; 3] = ["calls of SQS, at most", "write units", "read units"];
    let stage = Stage::open().await;
    let (at_worker, at_waiter) =
        (AwsProxy::start(&stage.emulator.url()).await, AwsProxy::start(&stage.emulator.url()).await);
    let worker = stage.process(at_worker.url()).await;
    // A look by itself is one that the machine was too slow for.
    let waiter = stage.process_with(at_waiter.url(), looks_never).await;
    let (waiting, both) = (waiter.broker(), [&at_worker, &at_waiter]);
    // A process makes its reply queue and reads the end of the log once.
    round(&stage, &worker, Some(&waiting), 1, SMALL).await;
    for (column, (depth, waiting)) in [(1, None), (10, None), (10, Some(&waiting))].into_iter().enumerate() {
        let mut rounds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let before = Cost::so_far(&both);
            round(&stage, &worker, waiting, depth, SMALL).await;
            rounds.push(Cost::so_far(&both).per_job_since(before, depth));
        }
        let found = Cost::median(&rounds);
        println!("column {column}: {found:?}");
        // How many come together depends on the moment: no more than is told, and not far less.
        for (at, (row, least)) in ROWS.into_iter().zip([0.5, 0.95, 0.95]).enumerate() {
            assert_told(row, column, found.0[at], least);
        }
        let told = Cost(ROWS.map(|row| cell(row, column)));
        assert!(column == 0 || told.0[0] < 1.5, "calls of SQS for jobs that come ten at once");
        assert_price("USD per million", column, told);
    }
}

#[tokio::test]
async fn a_larger_job_costs_what_the_table_of_sizes_in_the_guide_says() {
    const KIB: usize = 1_024;
    const ROWS: [&str; 3] = ["calls", "writes", "reads"];
    let stage = Stage::open().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let worker = stage.process(proxy.url()).await;
    round(&stage, &worker, None, 1, SMALL).await;
    for (column, bytes) in [KIB, 4 * KIB, 16 * KIB, 100 * KIB].into_iter().enumerate() {
        let before = Cost::so_far(&[&proxy]);
        round(&stage, &worker, None, 1, (bytes, bytes)).await;
        let found = Cost::so_far(&[&proxy]).per_job_since(before, 1);
        println!("{bytes} bytes: {found:?}");
        for (at, row) in ROWS.into_iter().enumerate() {
            assert_told(row, column, found.0[at], 0.95);
        }
        assert_price("USD for a million of them", column, Cost(ROWS.map(|row| cell(row, column))));
    }
}
