//! Jobs that say when they were submitted and how long they last: how they come, and how their handler notes its begin.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::jetstream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::mix;
use crate::plain::SUBJECT;
use crate::support::load::Connection;

/// How long a handler takes at most.
const LASTS_MAX: Duration = Duration::from_millis(50);
/// After the last handler: its result, its acknowledgement, and what the server does with them.
const SETTLED: Duration = Duration::from_millis(200);
/// After a message for a stream that its server does not know yet.
const NOT_YET: Duration = Duration::from_millis(10);
/// The longest wait for jobs that must begin.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where jobs are submitted.
pub(crate) enum Submitter {
    /// relay's HTTP API, over several connections by turns.
    Http(Vec<tokio::sync::Mutex<Connection>>),
    /// The baseline's stream.
    Publish(jetstream::Context),
    /// relay's subjects, for a mix of jobs.
    Mixed(async_nats::Client),
}

impl Submitter {
    async fn submit(&self, jobs: &Jobs, number: u64) {
        match self {
            Self::Http(connections) => {
                let mut connection = connections[number as usize % connections.len()].lock().await;
                connection.submit_payload("", jobs.payload(number).as_bytes()).await;
            }
            Self::Publish(context) => {
                // Of several servers one may not have heard of the stream yet.
                while context.publish(SUBJECT, jobs.payload(number).into()).await.unwrap().await.is_err() {
                    sleep(NOT_YET).await;
                }
            }
            Self::Mixed(client) => mix::submit(client, number, jobs.payload(number)).await,
        }
    }
}

/// The jobs of one run, numbered from 0. Their random figures come from their numbers: they are alike in every run.
pub(crate) struct Jobs {
    epoch: Instant,
    /// Of which jobs the first attempt fails.
    fails_once: fn(u64) -> bool,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// How long each job waited for its handler; of several attempts, for the first.
    waits: BTreeMap<u64, Duration>,
    /// Each begin of a handler, in their order: of which job, and when.
    begins: Vec<(u64, Duration)>,
    /// Workers that had a job.
    workers: BTreeSet<usize>,
}

impl Jobs {
    pub(crate) fn new() -> Self {
        Self::failing_once(|_| false)
    }

    pub(crate) fn failing_once(fails_once: fn(u64) -> bool) -> Self {
        Self { epoch: Instant::now(), fails_once, noted: Mutex::default() }
    }

    /// Submits these jobs, `rate` a second at random distances, each at its time whether or not the one before was answered.
    pub(crate) async fn come(self: &Arc<Self>, submitter: &Arc<Submitter>, rate: u64, numbers: Range<u64>) {
        let (mut due, mut submissions) = (Instant::now(), JoinSet::new());
        for number in numbers {
            // Even distances would meet what workers do by the clock always at the same point.
            due += Duration::from_secs_f64(2.0 * drawn(number, 0) / rate as f64);
            sleep_until(due).await;
            let (jobs, submitter) = (Arc::clone(self), Arc::clone(submitter));
            submissions.spawn(async move { submitter.submit(&jobs, number).await });
        }
        submissions.join_all().await;
    }

    /// The time of all figures.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Each begin of a handler so far, in their order: of which job, and when.
    pub(crate) fn begins(&self) -> Vec<(u64, Duration)> {
        self.noted().begins.clone()
    }

    /// A payload of which the time is now.
    pub(crate) fn payload(&self, number: u64) -> String {
        let lasts = LASTS_MAX.mul_f64(drawn(number, 1));
        format!("{number} {} {}", lasts.as_nanos(), self.epoch.elapsed().as_nanos())
    }

    /// Handles a job: notes that it began, and takes its time. Whether it succeeds.
    pub(crate) async fn handle(&self, worker: usize, payload: &[u8]) -> bool {
        let now = self.epoch.elapsed();
        let text = std::str::from_utf8(payload).unwrap();
        let figures: Vec<u64> = text.split(' ').map(|figure| figure.parse().unwrap()).collect();
        let [number, lasts, submitted] = figures[..] else { panic!("not a payload of this benchmark: {text}") };
        let is_first = {
            let mut noted = self.noted();
            noted.workers.insert(worker);
            noted.begins.push((number, now));
            let known = noted.waits.len();
            noted.waits.entry(number).or_insert(now - Duration::from_nanos(submitted));
            noted.waits.len() > known
        };
        sleep(Duration::from_nanos(lasts)).await;
        !(is_first && (self.fails_once)(number))
    }

    /// How many workers had a job.
    pub(crate) fn workers(&self) -> usize {
        self.noted().workers.len()
    }

    /// Waits until the first `jobs` jobs began, and until all is over that follows.
    pub(crate) async fn all_begun(&self, jobs: u64) {
        let until = Instant::now() + PATIENCE;
        while (self.noted().waits.len() as u64) < jobs {
            let begun = self.noted().waits.len();
            assert!(Instant::now() < until, "{begun} of {jobs} jobs began within {PATIENCE:?} of the last submission");
            sleep(Duration::from_millis(10)).await;
        }
        sleep(LASTS_MAX + SETTLED).await;
    }

    /// The waits of all jobs from this number on, the shortest first.
    pub(crate) fn waits_from(&self, number: u64) -> Vec<Duration> {
        let mut waits: Vec<Duration> = self.noted().waits.range(number..).map(|(_, wait)| *wait).collect();
        waits.sort_unstable();
        waits
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap()
    }
}

/// A job's figure from 0 to 1: the `which`th of eight.
fn drawn(number: u64, which: usize) -> f64 {
    let hash = blake3::hash(&number.to_be_bytes());
    let bytes = hash.as_bytes()[4 * which..].first_chunk::<4>().unwrap();
    f64::from(u32::from_be_bytes(*bytes)) / f64::from(u32::MAX)
}
