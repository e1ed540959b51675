//! Parked jobs, counted beside everything that may happen to a job.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::store;
use super::testing::Store;
use relay_bridge::contract::Job;
use relay_bridge::leasing::{Delivery, Leasing as _};
use relay_bridge::load::SOON_MAX;
use relay_bridge::settlement::Settlement;

const LEAD: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
enum Step {
    Submit(&'static str, u64),
    Take,
    Retry(u64),
    HandBack(u64),
    Complete,
    Cancel(prop::sample::Index),
    Erase(prop::sample::Index),
    Rerun(prop::sample::Index),
    Pass(u64),
    Sweep,
    /// A submission and the end of an attempt, of which the store does nothing.
    Fail(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let delay = || prop_oneof![Just(0), 1..3_000_u64, 1..200_000_u64];
    prop_oneof![
        4 => (prop::sample::select(&["a", "b", "c"]), delay()).prop_map(|(client, delay)| Step::Submit(client, delay)),
        3 => Just(Step::Take),
        2 => delay().prop_map(Step::Retry),
        1 => delay().prop_map(Step::HandBack),
        1 => Just(Step::Complete),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => any::<prop::sample::Index>().prop_map(Step::Erase),
        1 => any::<prop::sample::Index>().prop_map(Step::Rerun),
        2 => (1..60_000_u64).prop_map(Step::Pass),
        1 => (3_000_000..4_000_000_u64).prop_map(Step::Pass),
        1 => Just(Step::Sweep),
        1 => delay().prop_map(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

/// A store, the jobs that it took, and those that are held.
struct Run<'a> {
    path: &'a Path,
    store: Store,
    jobs: Vec<Job>,
    held: Vec<Delivery>,
}

impl Run<'_> {
    async fn submit(&mut self, client: &str, delay: u64) {
        let job = self.store.delayed(client, Duration::from_millis(delay));
        if self.store.store.broker().jobs.enqueue(job.clone()).await.is_ok() {
            self.jobs.push(job);
        }
    }

    /// Does it; what is refused changes nothing, which is as good.
    async fn step(&mut self, step: &Step) {
        let jobs = self.store.store.broker().jobs;
        let chosen = |at: &prop::sample::Index| (!self.jobs.is_empty()).then(|| at.get(&self.jobs).clone());
        match step {
            Step::Submit(client, delay) => self.submit(client, *delay).await,
            Step::Take => self.held.extend(self.store.lease(2).await),
            Step::Retry(after) => self.settle(&Settlement::RetryAfter(Duration::from_millis(*after))).await,
            Step::HandBack(after) => self.settle(&Settlement::HandBack(Duration::from_millis(*after))).await,
            Step::Complete => {
                if let Some(held) = self.held.last() {
                    drop(self.store.store.record(&self.store.result(held)).await);
                }
                self.settle(&Settlement::Complete).await;
            }
            Step::Cancel(at) => {
                if let Some(job) = chosen(at) {
                    drop(jobs.cancel(&job.client, job.id).await);
                }
            }
            Step::Erase(at) => {
                if let Some(job) = chosen(at) {
                    drop(jobs.erase(&job.client, job.id).await);
                }
            }
            Step::Rerun(at) => {
                if let Some(job) = chosen(at) {
                    drop(jobs.rerun(&job.client, job.id, 1).await);
                }
            }
            Step::Pass(millis) => self.store.clock.advance(Duration::from_millis(*millis)),
            Step::Sweep => drop(jobs.sweep(100).await.unwrap()),
            Step::Fail(delay) => {
                self.store.break_lines(true).await;
                self.submit("a", *delay).await;
                self.settle(&Settlement::RetryAfter(Duration::from_millis(*delay))).await;
                self.store.break_lines(false).await;
            }
            Step::Restart => {
                let now = self.store.clock.now();
                self.store.store.close().await;
                self.store = Store::open_at(Some(self.path), |_| {}).await;
                self.store.clock.advance(now.since(self.store.clock.now()));
            }
        }
    }

    async fn settle(&mut self, settlement: &Settlement) {
        if let Some(held) = self.held.pop() {
            drop(self.store.store.settle(&held.receipt, settlement).await);
        }
    }

    /// The counts are those of the rows, and looks are made of them.
    async fn is_counted(&self) -> Result<(), TestCaseError> {
        // Once this is answered, what was due is done and committed.
        self.store.store.broker().jobs.depth(&"work".parse().unwrap()).await.unwrap();
        let read = |conn: &Connection| Ok((counted(conn), rows(conn), in_line(conn)));
        let (counted, rows, in_line) = self.store.store.read(read).await.unwrap();
        prop_assert_eq!(&counted, &rows);
        for within in [LEAD, SOON_MAX] {
            let until = (self.store.clock.now() + within).as_millis() / 1_000;
            let due: i64 = rows.iter().filter(|row| row[1] <= until).map(|row| row[3]).sum();
            prop_assert_eq!(self.store.startable(within).await, (in_line + due).unsigned_abs());
        }
        Ok(())
    }
}

fn four(conn: &Connection, query: &str) -> Vec<[i64; 4]> {
    let mut query = conn.prepare(query).unwrap();
    let rows = query.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn counted(conn: &Connection) -> Vec<[i64; 4]> {
    four(conn, "SELECT queue, second, client, jobs FROM parked ORDER BY 1, 2, 3")
}

fn rows(conn: &Connection) -> Vec<[i64; 4]> {
    let plain = "SELECT queue, due_at / 1000 AS s, client, count(*) FROM jobs WHERE state = 2 GROUP BY 1, 2, 3";
    four(conn, &format!("{plain} ORDER BY 1, 2, 3"))
}

fn in_line(conn: &Connection) -> i64 {
    conn.query_row("SELECT count(*) FROM jobs WHERE state = 0", [], |row| row.get(0)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parked_jobs_are_counted_through_everything_that_happens_to_a_job(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("relay.db");
            let store = Store::open_at(Some(&path), |_| {}).await;
            let mut run = Run { path: &path, store, jobs: Vec::new(), held: Vec::new() };
            for step in &steps {
                run.step(step).await;
                run.is_counted().await?;
            }
            run.store.store.close().await;
            prop_assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new());
            Ok(())
        })?;
    }
}
