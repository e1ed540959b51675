//! Faults from a seed do to a broker what they say, and with every retry made nothing is lost and nothing happens
//! twice that may not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{ClientId, Job, JobResult, QueueName, Submission, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, Enqueued};
use relay_bridge::leasing::{Held, LeaseRequest, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Lookup, ResultFilter, Start};
use relay_bridge::settlement::Settlement;
use relay_conformance::faults::{FaultCounts, FaultOptions, Faults};
use relay_embedded::{Embedded, EmbeddedConfig};

struct Stage {
    store: Embedded,
    clock: Clock,
    client: ClientId,
    queue: QueueName,
    policy: QueuePolicy,
}

async fn stage() -> Stage {
    let clock = Clock::manual(Timestamp::from_millis(1_763_865_086_007));
    let store = Embedded::open(EmbeddedConfig { clock: clock.clone(), ..EmbeddedConfig::default() }).await.unwrap();
    let queue: QueueName = "thumbnails".parse().unwrap();
    let policy = QueuePolicy { max_attempts: 1_000, ..QueuePolicy::default() };
    store.broker().policies.put_policy(&queue, &policy, None).await.unwrap();
    Stage { store, clock, client: "acme".parse().unwrap(), queue, policy }
}

impl Stage {
    fn job(&self, key: &str) -> Job {
        let submission = Submission {
            client: self.client.clone(),
            queue: self.queue.clone(),
            key: Some(key.parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: BTreeMap::new(),
            payload: key.to_owned().into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        submission.accept(&self.policy, self.clock.now())
    }

    fn request(&self, max: u32) -> LeaseRequest {
        LeaseRequest {
            worker: "worker-1".parse().unwrap(),
            queues: vec![self.queue.clone()],
            max: max.try_into().unwrap(),
            wait: Duration::ZERO,
        }
    }

    fn success(&self, job: &Job, attempt: u32) -> JobResult {
        let end = End { attempt, started_at: None, finished_at: self.clock.now() };
        JobResult::succeeded(job, end, "text/plain", job.payload.clone())
    }
}

fn kind<T: std::fmt::Debug>(answer: Result<T, BrokerError>) -> BrokerErrorKind {
    answer.unwrap_err().kind()
}

#[tokio::test]
async fn a_broker_that_fails_answers_every_question_that_the_broker_beneath_it_answers() {
    let stage = stage().await;
    let faulty = Faults::new(FaultOptions::default()).broker(stage.store.broker());
    let job = stage.job("key");
    faulty.jobs.enqueue(job.clone()).await.unwrap();
    assert_eq!(faulty.jobs.oldest(&stage.queue).await.unwrap(), Some(job.due_at));
    assert_eq!(faulty.jobs.waiting(&stage.client, &stage.queue).await.unwrap(), Some(1));
    let lost = Faults::new(FaultOptions { request_lost_percent: 100, ..FaultOptions::default() });
    assert_eq!(kind(lost.jobs(stage.store.broker().jobs).oldest(&stage.queue).await), BrokerErrorKind::Unavailable);
}

#[tokio::test]
async fn a_lost_request_has_no_effect() {
    let stage = stage().await;
    let faults = Faults::new(FaultOptions { request_lost_percent: 100, ..FaultOptions::default() });
    let faulty = faults.broker(stage.store.broker());
    let job = stage.job("key");
    assert_eq!(kind(faulty.jobs.enqueue(job.clone()).await), BrokerErrorKind::Unavailable);
    assert_eq!(stage.store.broker().jobs.status(&job.client, job.id).await.unwrap(), None);
    assert_eq!(kind(faulty.leasing.lease(&stage.request(1)).await), BrokerErrorKind::Unavailable);
    assert_eq!(faults.counts(), FaultCounts { calls: 2, requests_lost: 2, ..FaultCounts::default() });
}

#[tokio::test]
async fn a_lost_reply_took_effect_and_a_repeat_finds_it() {
    let stage = stage().await;
    let faults = Faults::new(FaultOptions { reply_lost_percent: 100, ..FaultOptions::default() });
    let (faulty, plain) = (faults.broker(stage.store.broker()), stage.store.broker());
    let job = stage.job("key");
    assert_eq!(kind(faulty.jobs.enqueue(job.clone()).await), BrokerErrorKind::Ambiguous);
    assert!(matches!(plain.jobs.enqueue(job.clone()).await.unwrap(), Enqueued::Known(_)));

    assert_eq!(kind(faulty.leasing.lease(&stage.request(1)).await), BrokerErrorKind::Ambiguous);
    assert_eq!(plain.jobs.depth(&stage.queue).await.unwrap(), Depth { leased: 1, ..Depth::default() });
    stage.clock.advance(stage.policy.lease);
    let delivery = plain.leasing.lease(&stage.request(1)).await.unwrap().remove(0);
    assert_eq!(delivery.attempt, 2, "what nobody knew of was as lost as a crashed worker's");

    let result = stage.success(&delivery.job, 2);
    assert_eq!(kind(faulty.leasing.record(&result).await), BrokerErrorKind::Ambiguous);
    assert_eq!(plain.leasing.record(&result).await.unwrap(), Recorded::First, "it is the run's result");
    let other = stage.success(&delivery.job, 1);
    assert!(matches!(plain.leasing.record(&other).await.unwrap(), Recorded::Superseded(_)));
}

#[tokio::test]
async fn a_cut_lease_is_unknown_to_its_holder_until_it_asks() {
    let stage = stage().await;
    let faults = Faults::new(FaultOptions { lease_cut_percent: 100, ..FaultOptions::default() });
    let (faulty, plain) = (faults.broker(stage.store.broker()), stage.store.broker());
    let job = stage.job("key");
    plain.jobs.enqueue(job.clone()).await.unwrap();
    let held = faulty.leasing.lease(&stage.request(1)).await.unwrap().remove(0);
    assert_eq!((held.attempt, held.lease), (1, stage.policy.lease));
    stage.clock.advance(Duration::from_millis(1));
    let other = plain.leasing.lease(&stage.request(1)).await.unwrap().remove(0);
    assert_eq!((other.job.id, other.attempt), (job.id, 2));
    assert_eq!(kind(faulty.leasing.extend(&held.receipt).await), BrokerErrorKind::LeaseLost);
    assert!(matches!(plain.leasing.extend(&other.receipt).await.unwrap(), Held::Until(_)));
}

#[tokio::test]
async fn a_duplicate_delivery_settles_once() {
    let stage = stage().await;
    let faults = Faults::new(FaultOptions { duplicate_percent: 100, ..FaultOptions::default() });
    let faulty = faults.broker(stage.store.broker());
    faulty.jobs.enqueue(stage.job("key")).await.unwrap();
    let twice = faulty.leasing.lease(&stage.request(1)).await.unwrap();
    assert_eq!(twice.len(), 2);
    assert_eq!(twice[0].receipt, twice[1].receipt);
    let result = stage.success(&twice[0].job, 1);
    assert_eq!(faulty.leasing.record(&result).await.unwrap(), Recorded::First);
    assert_eq!(faulty.leasing.record(&result).await.unwrap(), Recorded::First, "the same result again");
    let page =
        faulty.results.page(&stage.client, &Start::Oldest, &ResultFilter::ALL, 10, Duration::ZERO).await.unwrap();
    assert_eq!(page.entries.len(), 1);
    faulty.leasing.settle(&twice[0].receipt, &Settlement::Complete).await.unwrap();
    let second = faulty.leasing.settle(&twice[1].receipt, &Settlement::Complete).await;
    assert!(second.is_ok() || kind(second) == BrokerErrorKind::LeaseLost);
}

#[tokio::test]
async fn nothing_fails_after_healing() {
    let stage = stage().await;
    let faults = Faults::new(FaultOptions { request_lost_percent: 100, ..FaultOptions::default() });
    let faulty = faults.broker(stage.store.broker());
    assert!(faulty.jobs.depth(&stage.queue).await.is_err());
    faults.heal();
    assert_eq!(faulty.jobs.depth(&stage.queue).await.unwrap(), Depth::default());
}

/// Retries what is transient, as a caller must.
async fn retried<T, F: Future<Output = Result<T, BrokerError>>>(mut call: impl FnMut() -> F) -> Result<T, BrokerError> {
    loop {
        match call().await {
            Err(error) if error.is_transient() => {}
            answer => return answer,
        }
    }
}

/// Forty jobs through a broker that loses, delays, cuts and doubles. The digest of all that was decided.
async fn storm(seed: u64) -> u64 {
    let stage = stage().await;
    let faults = Faults::new(FaultOptions {
        seed,
        request_lost_percent: 15,
        reply_lost_percent: 15,
        delay_percent: 10,
        delay_max: Duration::from_millis(1),
        lease_cut_percent: 10,
        duplicate_percent: 10,
    });
    let faulty = faults.broker(stage.store.broker());
    let mut accepted = BTreeSet::new();
    for number in 0..40 {
        let job = stage.job(&format!("key-{number}"));
        let enqueued = retried(|| faulty.jobs.enqueue(job.clone())).await.unwrap();
        assert_eq!(enqueued.status().run_id, job.run_id);
        accepted.insert(job.id);
    }
    let broker = stage.store.broker();
    // The claim that was sent of each run and was its first result: sent again, it still is.
    let mut firsts = BTreeMap::new();
    for _ in 0..1_000 {
        if broker.jobs.depth(&stage.queue).await.unwrap() == Depth::default() {
            break;
        }
        for delivery in faulty.leasing.lease(&stage.request(3)).await.unwrap_or_default() {
            let result = stage.success(&delivery.job, delivery.attempt);
            let recorded = retried(|| faulty.leasing.record(&result)).await.unwrap();
            if recorded == Recorded::First {
                let first = firsts.entry(result.run_id).or_insert(result.claim());
                assert_eq!(*first, result.claim(), "seed {seed}: two first results");
            }
            let settled = retried(|| faulty.leasing.settle(&delivery.receipt, &Settlement::Complete)).await;
            assert!(settled.is_ok() || kind(settled) == BrokerErrorKind::LeaseLost);
        }
        stage.clock.advance(stage.policy.lease / 4);
    }
    assert_eq!(broker.jobs.depth(&stage.queue).await.unwrap(), Depth::default(), "seed {seed}: something is left");
    let page =
        broker.results.page(&stage.client, &Start::Oldest, &ResultFilter::ALL, 100, Duration::ZERO).await.unwrap();
    let finished: BTreeSet<_> = page.entries.iter().map(|entry| entry.result.job_id).collect();
    assert_eq!((page.entries.len(), finished), (40, accepted), "seed {seed}: each accepted job has one result");
    for entry in page.entries {
        let lookup = broker.results.lookup(&stage.client, entry.result.job_id).await.unwrap();
        assert!(matches!(lookup, Lookup::Finished(_)));
    }
    let counts = faults.counts();
    let all = [counts.requests_lost, counts.replies_lost, counts.delays, counts.leases_cut, counts.duplicates];
    assert!(all.iter().all(|count| *count > 0), "seed {seed}: {counts:?}");
    faults.digest()
}

#[tokio::test(start_paused = true)]
async fn every_accepted_job_has_one_result_whatever_is_lost_and_a_seed_repeats_it() {
    let mut digests = BTreeSet::new();
    for seed in 1..=6 {
        digests.insert(storm(seed).await);
    }
    assert_eq!(digests.len(), 6, "each seed is a storm of its own");
    assert_eq!(storm(3).await, storm(3).await, "and the same seed the same storm");
}
