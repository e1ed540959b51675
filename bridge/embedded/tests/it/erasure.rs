//! Erased bytes are gone from the file, not only from the answers: no seam shows this.

use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, Outcome, Submission};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::leasing::LeaseRequest;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_embedded::{Embedded, EmbeddedConfig};

/// `marker` over and over: some rows fit a page, others take many.
fn repeated(marker: &str, times: usize) -> Vec<u8> {
    marker.repeat(times).into_bytes()
}

#[tokio::test]
async fn an_erased_payload_and_result_are_not_in_the_file_any_more() {
    for times in [1, 2_000] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.db");
        let config = EmbeddedConfig { path: Some(path.clone()), ..EmbeddedConfig::default() };
        let store = Embedded::open(config).await.unwrap();
        let (broker, policy, now) = (store.broker(), QueuePolicy::default(), Clock::system().now());
        broker.policies.put_policy(&"work".parse().unwrap(), &policy, None).await.unwrap();
        let submission = |key: &str, payload: Vec<u8>| Submission {
            client: "acme".parse().unwrap(),
            queue: "work".parse().unwrap(),
            key: Some(key.parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: [("relay-meta-person".to_owned(), "SECRET-HEADER".to_owned())].into(),
            payload: payload.into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        let job = submission("erased", repeated("SECRET-PAYLOAD", times)).accept(&policy, now);
        broker.jobs.enqueue(job.clone()).await.unwrap();
        let mut kept = submission("kept", repeated("PLAIN-PAYLOAD", times));
        kept.headers.clear();
        broker.jobs.enqueue(kept.accept(&policy, now)).await.unwrap();
        let request = LeaseRequest {
            worker: "worker-1".parse().unwrap(),
            queues: vec!["work".parse().unwrap()],
            max: 1.try_into().unwrap(),
            wait: Duration::ZERO,
        };
        let delivery = broker.leasing.lease(&request).await.unwrap().remove(0);
        assert_eq!(delivery.job.id, job.id);
        let failure = Failure::new("exit-code", "SECRET-DETAIL");
        let letter = DeadLetter {
            job: delivery.job.clone(),
            outcome: Outcome::Failed,
            attempt: 1,
            failure: failure.clone(),
            at: now,
            extra: Default::default(),
        };
        broker.leasing.dead_letter(&letter).await.unwrap();
        let end = End { attempt: 1, started_at: Some(now), finished_at: now };
        let mut result = JobResult::unsuccessful(&delivery.job, Outcome::Failed, end, failure);
        result.payload = repeated("SECRET-RESULT", times).into();
        broker.leasing.record(&result).await.unwrap();
        broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
        broker.jobs.erase(&job.client, job.id).await.unwrap();
        store.close().await;

        let file = std::fs::read(&path).unwrap();
        let holds = |text: &str| file.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(holds("PLAIN-PAYLOAD"), "what was not erased is there");
        let parts = ["SECRET-HEADER", "SECRET-PAYLOAD", "SECRET-DETAIL", "SECRET-RESULT"];
        let left: Vec<_> = parts.into_iter().filter(|part| holds(part)).collect();
        assert!(left.is_empty(), "{left:?} is left in the file (payload of {times} times the marker)");
    }
}
