//! The setup that every promise needs: a queue of its own, jobs, workers, and time that passes.

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::Fixture;
use relay_bridge::broker::Broker;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{
    ClientId, Cursor, Failure, Job, JobId, JobResult, JobStatus, Outcome, QueueName, Submission, Timestamp,
};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, Enqueued, JobFilter};
use relay_bridge::leasing::{Delivery, LEASE_WAIT_MAX, LeaseRequest, Leasing, Recorded};
use relay_bridge::policy::{QueuePolicy, RetryPolicy, change_policy};
use relay_bridge::provision::Wanted;
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, Start};
use relay_bridge::settlement::Settlement;
use relay_bridge::support::lock;

/// How long a call that must not wait may take, repetitions included, before the test is given up as hanging.
const HANGING: Duration = Duration::from_secs(120);
/// How long a job that must be in line is waited for.
const AWAITED: Duration = LEASE_WAIT_MAX;
/// By how much what ends by itself takes longer in a promise in which no time passes.
const STEADY: u32 = 20;
/// Before what a broker does not announce is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How many calls of one test are made at once.
const AT_ONCE: usize = 64;
/// Steps of time after which a call that must end has hung.
const STEPS_MAX: u32 = 1_000;

/// A broker with one queue that no other test sees.
pub(super) struct Stage<'a> {
    pub(super) fixture: &'a dyn Fixture,
    pub(super) broker: Broker,
    pub(super) leasing: Arc<dyn Leasing>,
    pub(super) queue: QueueName,
    pub(super) policy: QueuePolicy,
    /// The unit of time.
    pub(super) lease: Duration,
    pub(super) slack: Duration,
    suffix: String,
    /// Deliveries that a look for nothing found, because the look came later than meant: kept for the next lease.
    found_late: Mutex<Vec<Delivery>>,
}

impl<'a> Stage<'a> {
    pub(super) async fn new(fixture: &'a dyn Fixture) -> Self {
        Self::with(fixture, |_| {}).await
    }

    /// A queue with the suite's policy after `change`.
    pub(super) async fn with(fixture: &'a dyn Fixture, change: impl FnOnce(&mut QueuePolicy)) -> Self {
        let (lease, span) = (fixture.lease(), fixture.span());
        let mut policy = QueuePolicy {
            lease,
            lease_max: lease * 4,
            job_ttl: lease * span,
            retention: lease * span,
            dead_retention: lease * span * 5,
            retry: RetryPolicy { base: lease / 4, cap: lease * 2, ..RetryPolicy::default() },
            ..QueuePolicy::default()
        };
        change(&mut policy);
        let broker = called(fixture);
        let suffix = unique();
        let queue: QueueName = format!("queue-{suffix}").parse().unwrap();
        broker.policies.put_policy(&queue, &policy, None).await.unwrap();
        let leasing = worker(fixture, "worker-1").await;
        let slack = fixture.slack();
        Self { fixture, broker, leasing, queue, policy, lease, slack, suffix, found_late: Mutex::default() }
    }

    /// A queue for a promise in which no time passes: its time limits are far longer than a test takes on a busy
    /// machine.
    pub(super) async fn steady(fixture: &'a dyn Fixture) -> Self {
        Self::with(fixture, |policy| {
            for span in [
                &mut policy.lease,
                &mut policy.lease_max,
                &mut policy.job_ttl,
                &mut policy.retention,
                &mut policy.dead_retention,
            ] {
                *span *= STEADY;
            }
        })
        .await
    }

    /// A queue for a promise in which a job waits for most of the usual `job_ttl`, which would end the job on a busy
    /// machine.
    pub(super) async fn patient(fixture: &'a dyn Fixture) -> Self {
        Self::with(fixture, |policy| policy.job_ttl *= STEADY).await
    }

    /// A queue for a promise about what is past its keeping: half as long as elsewhere, because the test waits for it.
    pub(super) async fn brief(fixture: &'a dyn Fixture) -> Self {
        Self::with(fixture, |policy| {
            for span in [&mut policy.job_ttl, &mut policy.retention] {
                *span /= 2;
            }
        })
        .await
    }

    /// A second queue with the same policy.
    pub(super) async fn another_queue(&self) -> QueueName {
        let queue: QueueName = format!("queue-{}", unique()).parse().unwrap();
        self.broker.policies.put_policy(&queue, &self.policy, None).await.unwrap();
        queue
    }

    /// Replaces the queue's policy, whatever it is now.
    pub(super) async fn write_policy(&self, policy: &QueuePolicy) {
        self.try_write_policy(policy).await.unwrap();
    }

    pub(super) async fn try_write_policy(&self, policy: &QueuePolicy) -> Result<(), BrokerError> {
        change_policy(&*self.broker.policies, &self.queue, |_| policy.clone()).await.map(drop)
    }

    /// `policy` for the queue, over what is stored now.
    pub(super) async fn wanted(&self, policy: &QueuePolicy) -> Wanted {
        let seen = self.broker.policies.policy(&self.queue).await.unwrap();
        Wanted { queue: self.queue.clone(), policy: policy.clone(), seen }
    }

    pub(super) fn client(&self, name: &str) -> ClientId {
        format!("{name}-{}", self.suffix).parse().unwrap()
    }

    pub(super) async fn worker(&self, name: &str) -> Arc<dyn Leasing> {
        worker(self.fixture, name).await
    }

    /// Crashes the broker. `false` if it forgot everything, which its durability must then say.
    pub(super) async fn crash(&mut self) -> bool {
        let kept = self.fixture.reopen().await;
        self.broker = called(self.fixture);
        let durability = self.broker.capabilities.durability;
        assert_eq!(
            kept,
            durability != relay_bridge::broker::Durability::None,
            "reopened: {kept}; claimed: {durability:?}"
        );
        self.leasing = self.worker("worker-1").await;
        kept
    }

    /// Ends the process that has the broker open, and opens it in another. `false` if it forgot everything.
    pub(super) async fn replace(&mut self) -> bool {
        let kept = self.fixture.replace().await;
        self.broker = self.fixture.broker();
        self.leasing = self.worker("worker-1").await;
        kept
    }

    pub(super) async fn pass(&self, time: Duration) {
        self.fixture.pass(time).await;
    }

    /// Until `slacks` times the slack after `moment`, or before it.
    pub(super) async fn pass_until(&self, moment: Timestamp, slacks: i32) {
        let slack = self.slack * slacks.unsigned_abs();
        let left = (moment + slack).since(self.fixture.now());
        self.pass(if slacks < 0 { left.saturating_sub(slack * 2) } else { left }).await;
    }

    /// Until the lease of what was leased just now has surely ended.
    pub(super) async fn pass_lease(&self) {
        self.pass(self.lease + self.slack).await;
    }

    /// Lets time pass in steps until `call` is done.
    pub(super) async fn drive<T>(&self, step: Duration, call: impl Future<Output = T>) -> T {
        let mut call = pin!(call);
        for _ in 0..STEPS_MAX {
            // Real time for the broker's threads to act on the step before; nothing is asserted on it.
            let next = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.pass(step).await;
            };
            tokio::select! {
                biased;
                done = &mut call => return done,
                () = next => {}
            }
        }
        panic!("not done after {STEPS_MAX} steps of {step:?}");
    }

    // Submitting.

    pub(super) fn submission(&self, client: &ClientId) -> Submission {
        Submission {
            client: client.clone(),
            queue: self.queue.clone(),
            key: None,
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: BTreeMap::new(),
            payload: format!("payload {}", unique()).into(),
            delay: Duration::ZERO,
            expires_in: None,
        }
    }

    pub(super) fn keyed(&self, client: &ClientId, key: &str) -> Submission {
        Submission { key: Some(key.parse().unwrap()), payload: "payload".into(), ..self.submission(client) }
    }

    pub(super) fn accept(&self, submission: Submission) -> Job {
        submission.accept(&self.policy, self.fixture.now())
    }

    /// Enqueues what must be new.
    pub(super) async fn submit(&self, submission: Submission) -> Job {
        let job = self.accept(submission);
        match self.broker.jobs.enqueue(job.clone()).await.unwrap() {
            Enqueued::Created(status) => {
                assert_eq!((status.job_id, status.run_id), (job.id, job.run_id));
                job
            }
            Enqueued::Known(status) => panic!("was there already: {status:?}"),
        }
    }

    /// Enqueues a job of `client` without a key.
    pub(super) async fn submit_plain(&self, client: &ClientId) -> Job {
        self.submit(self.submission(client)).await
    }

    /// Enqueues what must be there already.
    pub(super) async fn replay(&self, submission: Submission) -> JobStatus {
        match self.broker.jobs.enqueue(self.accept(submission)).await.unwrap() {
            Enqueued::Known(status) => status,
            Enqueued::Created(status) => panic!("was not there any more: {status:?}"),
        }
    }

    /// Enqueues `count` jobs of `client`, many at a time.
    pub(super) async fn backlog(&self, client: &ClientId, count: usize) {
        let calls = (0..count).map(|_| self.broker.jobs.enqueue(self.accept(self.submission(client))));
        let mut answers = stream::iter(calls).buffer_unordered(AT_ONCE);
        while let Some(enqueued) = answers.next().await {
            assert!(matches!(enqueued.unwrap(), Enqueued::Created(_)));
        }
    }

    // Working.

    pub(super) fn request(&self, max: u32, wait: Duration) -> LeaseRequest {
        LeaseRequest {
            worker: "worker-1".parse().unwrap(),
            queues: vec![self.queue.clone()],
            max: NonZeroU32::new(max).unwrap(),
            wait,
        }
    }

    /// The jobs that may be in line, up to `max`.
    pub(super) async fn lease_up_to(&self, max: u32) -> Vec<Delivery> {
        let most = usize::try_from(max).unwrap();
        let found = {
            let mut found = lock(&self.found_late);
            let left = found.len().saturating_sub(most);
            found.split_off(left)
        };
        if !found.is_empty() {
            return found;
        }
        let deliveries = soon(self.leasing.lease(&self.request(max, self.fixture.patience()))).await.unwrap();
        assert!(deliveries.len() <= most, "{} of {max} asked for", deliveries.len());
        deliveries
    }

    /// The jobs that must be in line, one at least and up to `max`.
    pub(super) async fn lease_some(&self, max: u32) -> Vec<Delivery> {
        // As often as it takes, and not for longer at a time than where nothing may be in line: a pull that waits at a
        // server outlives its call, and would take what comes back later.
        let until = Instant::now() + self.awaited();
        loop {
            let deliveries = self.lease_up_to(max).await;
            if !deliveries.is_empty() {
                return deliveries;
            }
            assert!(Instant::now() < until, "a job is in line");
        }
    }

    /// How long a lease waits for what must be in line.
    pub(super) fn awaited(&self) -> Duration {
        // On a clock that is moved nothing comes while it stands.
        if self.fixture.patience().is_zero() { Duration::ZERO } else { AWAITED }
    }

    /// The one delivery that must be there.
    pub(super) async fn lease_one(&self) -> Delivery {
        self.lease_some(1).await.pop().expect("a job is in line")
    }

    /// Everything that is in line, which takes several calls where a broker gives less than was asked for.
    pub(super) async fn lease_all(&self) -> Vec<Delivery> {
        let mut all = Vec::new();
        for _ in 0..STEPS_MAX {
            let more = self.lease_up_to(100).await;
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
        panic!("the line does not end");
    }

    /// The `count` deliveries that must be there, and no more. A job that came again because its lease was over, since this
    /// looked later than it was meant to, counts once: as it came last.
    pub(super) async fn lease_exactly(&self, count: usize) -> Vec<Delivery> {
        let mut all: Vec<Delivery> = Vec::new();
        let add = |all: &mut Vec<Delivery>, deliveries: Vec<Delivery>| {
            for delivery in deliveries {
                if self.was_due(&delivery) {
                    all.retain(|earlier| earlier.job.id != delivery.job.id);
                }
                all.push(delivery);
            }
        };
        while all.len() < count {
            add(&mut all, self.lease_some(100).await);
        }
        add(&mut all, self.lease_all().await);
        assert_eq!(all.len(), count, "deliveries");
        all
    }

    /// There is no job in line. One that came when it was due again, because this looked later than it was meant to,
    /// says nothing about that: it is kept for the next lease.
    pub(super) async fn assert_nothing_in_line(&self) {
        let deliveries = soon(self.leasing.lease(&self.request(10, Duration::ZERO))).await.unwrap();
        let (late, early): (Vec<_>, Vec<_>) = deliveries.into_iter().partition(|delivery| self.was_due(delivery));
        assert!(early.is_empty(), "leased {early:?}");
        lock(&self.found_late).extend(late);
    }

    /// Whether `delivery` came after the lease or the delay that kept its run out of line, in real time.
    pub(super) fn was_due(&self, delivery: &Delivery) -> bool {
        self.fixture.calls().is_some_and(|calls| calls.was_due(delivery))
    }

    /// A success of `delivery` with `payload`.
    pub(super) fn success(&self, delivery: &Delivery, payload: impl Into<Bytes>) -> JobResult {
        JobResult::succeeded(&delivery.job, self.end(delivery), "text/plain", payload.into())
    }

    pub(super) fn failure(&self, delivery: &Delivery, outcome: Outcome, reason: &str) -> JobResult {
        JobResult::unsuccessful(&delivery.job, outcome, self.end(delivery), Failure::new(reason, "as the test wants"))
    }

    pub(super) fn end(&self, delivery: &Delivery) -> End {
        End { attempt: delivery.attempt, started_at: Some(delivery.leased_at), finished_at: self.fixture.now() }
    }

    pub(super) fn letter(&self, delivery: &Delivery, outcome: Outcome) -> DeadLetter {
        DeadLetter {
            job: delivery.job.clone(),
            outcome,
            attempt: delivery.attempt,
            failure: Failure::new("exit-code", "exit status: 2"),
            at: self.fixture.now(),
            extra: Default::default(),
        }
    }

    /// Records what must become the run's result.
    pub(super) async fn record_first(&self, result: &JobResult) {
        assert_eq!(self.leasing.record(result).await.unwrap(), Recorded::First, "{result:?}");
    }

    pub(super) async fn settle(&self, delivery: &Delivery, settlement: Settlement) {
        self.leasing.settle(&delivery.receipt, &settlement).await.unwrap();
    }

    /// Settles where the lease may have ended: `Ok` and `LeaseLost` are the only answers.
    pub(super) async fn settle_late(&self, delivery: &Delivery, settlement: Settlement) {
        ok_or_lost(self.leasing.settle(&delivery.receipt, &settlement).await);
    }

    /// Records a success and settles.
    pub(super) async fn succeed(&self, delivery: &Delivery) {
        self.record_first(&self.success(delivery, "done")).await;
        self.settle(delivery, Settlement::Complete).await;
    }

    /// Dead letter, result, settle.
    pub(super) async fn end_badly(&self, delivery: &Delivery, outcome: Outcome) {
        self.leasing.dead_letter(&self.letter(delivery, outcome)).await.unwrap();
        self.record_first(&self.failure(delivery, outcome, "exit-code")).await;
        self.settle(delivery, Settlement::DeadLetter).await;
    }

    /// Submits, leases and succeeds one job.
    pub(super) async fn run(&self, submission: Submission) -> Job {
        let job = self.submit(submission).await;
        let delivery = self.lease_one().await;
        assert_eq!(delivery.job.id, job.id);
        self.succeed(&delivery).await;
        job
    }

    // Looking.

    pub(super) async fn status(&self, job: &Job) -> JobStatus {
        self.broker.jobs.status(&job.client, job.id).await.unwrap().expect("the job is known")
    }

    pub(super) async fn lookup(&self, job: &Job) -> Lookup {
        self.broker.results.lookup(&job.client, job.id).await.unwrap()
    }

    pub(super) async fn finished(&self, job: &Job) -> Finished {
        finished(self.lookup(job).await)
    }

    pub(super) async fn open(&self, job: &Job) -> JobStatus {
        match self.lookup(job).await {
            Lookup::Open(status) => *status,
            other => panic!("expected an open run: {other:?}"),
        }
    }

    pub(super) async fn assert_absent(&self, job: &Job) {
        let lookup = self.lookup(job).await;
        assert!(matches!(lookup, Lookup::Absent), "{lookup:?}");
    }

    pub(super) async fn page(&self, client: &ClientId, from: &Start, limit: u32) -> Page {
        self.broker.results.page(client, from, &ResultFilter::ALL, limit, Duration::ZERO).await.unwrap()
    }

    /// All results of `client` after `from`, page by page; there must be no reset.
    pub(super) async fn read_all(&self, client: &ClientId, from: Start) -> (Vec<Finished>, Cursor) {
        let (mut entries, mut from) = (Vec::new(), from);
        for _ in 0..STEPS_MAX {
            let page = self.page(client, &from, 100).await;
            assert_eq!(page.reset, None);
            if page.entries.is_empty() {
                return (entries, page.next);
            }
            entries.extend(page.entries);
            from = Start::After(page.next);
        }
        panic!("the results do not end");
    }

    pub(super) async fn list(&self, client: &ClientId, change: impl FnOnce(&mut JobFilter)) -> Vec<JobId> {
        let mut filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 1_000 };
        change(&mut filter);
        let jobs = self.broker.jobs.list(client, &filter).await.unwrap().jobs;
        jobs.into_iter().map(|status| status.job_id).collect()
    }

    pub(super) async fn depth(&self) -> Depth {
        self.broker.jobs.count(&self.queue).await.unwrap().depth
    }

    /// The queue's depth is `expected`, or becomes so: a broker may count a moment after it answered.
    pub(super) async fn assert_depth(&self, expected: Depth) {
        let until = Instant::now() + self.awaited();
        let mut depth = self.depth().await;
        while depth != expected && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
            depth = self.depth().await;
        }
        assert_eq!(depth, expected);
    }

    /// Sweeps until nothing is due, in steps of `limit`; the results of runs that ended as expired.
    pub(super) async fn sweep(&self) -> Vec<JobResult> {
        let mut expired = Vec::new();
        for _ in 0..STEPS_MAX {
            let swept = self.broker.jobs.sweep(100).await.unwrap();
            expired.extend(swept.expired);
            if !swept.more {
                return expired;
            }
        }
        panic!("the sweep does not end");
    }
}

/// The broker as the suite calls it.
fn called(fixture: &dyn Fixture) -> Broker {
    let broker = fixture.broker();
    match fixture.calls() {
        Some(calls) => calls.broker(broker),
        None => broker,
    }
}

/// The handle of a worker as the suite calls it.
async fn worker(fixture: &dyn Fixture, name: &str) -> Arc<dyn Leasing> {
    let leasing = fixture.worker(&name.parse().unwrap()).await;
    match fixture.calls() {
        Some(calls) => calls.leasing(leasing, fixture.broker().results),
        None => leasing,
    }
}

/// 16 hexadecimal digits that no other test has.
pub(super) fn unique() -> String {
    JobId::mint().as_bytes()[8..].iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn finished(lookup: Lookup) -> Finished {
    match lookup {
        Lookup::Finished(finished) => *finished,
        other => panic!("expected a finished run: {other:?}"),
    }
}

/// A call that must not wait; the guard only turns a hang into a failure.
pub(super) async fn soon<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGING, call).await.expect("the call answers without time passing for the broker")
}

#[track_caller]
pub(super) fn ok_or_lost<T>(answer: Result<T, BrokerError>) {
    if let Err(error) = answer {
        assert_eq!(error.kind(), BrokerErrorKind::LeaseLost, "{error}");
    }
}

/// The kind of the error that `answer` must be.
#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(answer: Result<T, BrokerError>) -> BrokerErrorKind {
    answer.expect_err("the call must be refused").kind()
}
