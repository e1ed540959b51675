//! The suite on a broker that loses answers: calls are repeated as users do, and nothing else is judged otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use relay_bridge::broker::Broker;
use relay_bridge::contract::{Job, JobId, JobResult, QueueName, RunId, Timestamp};
use relay_bridge::dead_letters::{DeadLetter, DeadLetters, LetterPlace, Letters};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::faults::{FaultOptions, Faults};
use relay_conformance::{Calls, Fixture as _, RUNS};

use crate::fixture;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_broker_that_loses_answers_every_promise_is_judged_as_on_one_that_does_not() {
    let calls = Calls::new(64);
    let kept = RUNS.iter().map(|(_, run)| {
        let calls = calls.clone();
        async move {
            let fixture = Fixture { inner: fixture::Fixture::memory().await, calls, faults: Faults::new(LOSING) };
            run(&fixture).await;
        }
    });
    stream::iter(kept).buffer_unordered(16).collect::<()>().await;
    assert!(calls.repeated() > 100, "{}", calls.summary("losing"));
}

#[tokio::test]
async fn a_refusal_is_not_asked_for_again() {
    let (fixture, calls) = (fixture::Fixture::memory().await, Calls::new(1));
    let broker = calls.broker(fixture.broker());
    let refused = broker.jobs.depth(&"nowhere".parse().unwrap()).await.unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::NotFound);
    assert_eq!(calls.repeated(), 0, "{}", calls.summary("one"));
}

#[tokio::test]
async fn a_call_that_is_never_answered_fails_after_a_bounded_number_of_repetitions() {
    let (fixture, calls) = (fixture::Fixture::memory().await, Calls::new(1));
    let away = Faults::new(FaultOptions { request_lost_percent: 100, ..FaultOptions::default() });
    let broker = calls.broker(away.broker(fixture.broker()));
    let failed = broker.jobs.depth(&"nowhere".parse().unwrap()).await.unwrap_err();
    assert_eq!(failed.kind(), BrokerErrorKind::Unavailable);
    assert_eq!(calls.repeated() + 1, away.counts().calls, "each is counted");
}

/// Of each hundred calls so many.
const LOSING: FaultOptions = FaultOptions {
    seed: 7,
    request_lost_percent: 2,
    reply_lost_percent: 4,
    delay_percent: 0,
    delay_max: Duration::ZERO,
    lease_cut_percent: 0,
    duplicate_percent: 0,
};

/// The embedded broker, whose answers are lost, except those to a lease: a job that nobody got is hidden for a lease.
struct Fixture {
    inner: fixture::Fixture,
    calls: Calls,
    faults: Faults,
}

#[async_trait]
impl relay_conformance::Fixture for Fixture {
    fn broker(&self) -> Broker {
        let broker = self.inner.broker();
        Broker {
            jobs: self.faults.jobs(broker.jobs.clone()),
            leasing: Arc::new(Losing {
                lossy: self.faults.leasing(broker.leasing.clone()),
                whole: broker.leasing.clone(),
            }),
            dead_letters: Arc::new(LosingLetters { inner: broker.dead_letters.clone(), asked: AtomicU32::new(0) }),
            ..broker
        }
    }

    fn calls(&self) -> Option<&Calls> {
        Some(&self.calls)
    }

    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    async fn pass(&self, time: Duration) {
        self.inner.pass(time).await;
    }

    async fn reopen(&self) -> bool {
        self.inner.reopen().await
    }

    async fn make_newer(&self, job: &Job) -> bool {
        self.inner.make_newer(job).await
    }
}

struct Losing {
    lossy: Arc<dyn Leasing>,
    whole: Arc<dyn Leasing>,
}

#[async_trait]
impl Leasing for Losing {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        self.whole.lease(request).await
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        self.lossy.extend(receipt).await
    }

    async fn ended_early(&self, receipt: &Receipt) {
        self.lossy.ended_early(receipt).await;
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        self.lossy.progress(receipt, progress).await
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.lossy.dead_letter(letter).await
    }

    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        self.lossy.retract_dead_letter(job, run, within).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.lossy.record(result).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.lossy.settle(receipt, settlement).await
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        self.lossy.queue_policy(queue).await
    }
}

/// Every second redrive and purge has its answer lost.
struct LosingLetters {
    inner: Arc<dyn DeadLetters>,
    asked: AtomicU32,
}

impl LosingLetters {
    fn answer<T>(&self, answer: Result<T, BrokerError>) -> Result<T, BrokerError> {
        if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return Err(BrokerError::new(BrokerErrorKind::Ambiguous, "dead letters", "the answer was lost"));
        }
        answer
    }
}

#[async_trait]
impl DeadLetters for LosingLetters {
    async fn list(
        &self,
        queue: Option<&QueueName>,
        key_prefix: Option<&str>,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Letters, BrokerError> {
        self.inner.list(queue, key_prefix, after, limit).await
    }

    async fn count(&self, queue: &QueueName, max: u32) -> Result<Option<u64>, BrokerError> {
        self.inner.count(queue, max).await
    }

    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError> {
        self.inner.get(job).await
    }

    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        self.answer(self.inner.redrive(job, run).await)
    }

    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        self.answer(self.inner.purge(job, run).await)
    }
}
