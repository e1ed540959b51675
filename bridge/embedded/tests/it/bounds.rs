//! A page looks at a bounded number of records, however few of them are wanted, and the next one goes on behind those.

use std::time::Duration;

use futures_util::future::try_join_all;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Failure, JobId, Outcome, Submission};
use relay_bridge::dead_letters::{DeadLetter, LETTERS_PASSED_MAX};
use relay_bridge::leasing::LeaseRequest;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{PASSED_MAX, ResultFilter, Start};
use relay_embedded::{Embedded, EmbeddedConfig};

/// A store in memory with `count` jobs of client `acme` under the keys `mail-0`, `mail-1` and so on.
async fn store(count: usize) -> (Embedded, Vec<JobId>) {
    let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
    let policy = QueuePolicy::default();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &policy, None).await.unwrap();
    let jobs = store.broker().jobs;
    let submitted = (0..count).map(|number| {
        let submission = Submission {
            client: "acme".parse().unwrap(),
            queue: "work".parse().unwrap(),
            key: Some(format!("mail-{number}").parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: "x".into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        jobs.enqueue(submission.accept(&policy, Clock::system().now()))
    });
    let submitted = try_join_all(submitted).await.unwrap();
    (store, submitted.iter().map(|enqueued| enqueued.status().job_id).collect())
}

#[tokio::test]
async fn a_page_passes_over_a_bounded_number_of_results_and_the_next_goes_on_behind_them() {
    let (store, jobs) = store(PASSED_MAX + 7).await;
    let (broker, client): (_, ClientId) = (store.broker(), "acme".parse().unwrap());
    try_join_all(jobs.iter().map(|job| broker.jobs.cancel(&client, *job))).await.unwrap();
    let filter = ResultFilter { queues: None, key_prefix: Some("order-".to_owned()) };
    // It does not wait: there are results.
    let wait = Duration::from_secs(3_600);
    let first = broker.results.page(&client, &Start::Oldest, &filter, 10, wait).await.unwrap();
    assert!(first.entries.is_empty() && first.reset.is_none());
    let start = Start::After(first.next);
    let rest = broker.results.page(&client, &start, &ResultFilter::ALL, 100, Duration::ZERO).await.unwrap();
    assert_eq!(rest.entries.len(), 7, "it stopped after {PASSED_MAX}");
    let last = broker.results.page(&client, &start, &filter, 10, wait).await.unwrap();
    assert!(last.entries.is_empty() && last.next == rest.next, "behind all there is");
    store.close().await;
}

#[tokio::test]
async fn a_page_passes_over_a_bounded_number_of_dead_letters_and_the_next_goes_on_behind_them() {
    let (store, _) = store(LETTERS_PASSED_MAX + 7).await;
    let broker = store.broker();
    let request = LeaseRequest {
        worker: "worker-1".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: 100.try_into().unwrap(),
        wait: Duration::ZERO,
    };
    let mut kept = 0;
    while kept < LETTERS_PASSED_MAX + 7 {
        let held = broker.leasing.lease(&request).await.unwrap();
        assert!(!held.is_empty(), "{kept} of them");
        let letters: Vec<_> = held
            .into_iter()
            .map(|delivery| DeadLetter {
                job: delivery.job,
                outcome: Outcome::Failed,
                attempt: 1,
                failure: Failure::new("bad", "bad"),
                at: Clock::system().now(),
                extra: Default::default(),
            })
            .collect();
        try_join_all(letters.iter().map(|letter| broker.leasing.dead_letter(letter))).await.unwrap();
        kept += letters.len();
    }
    let first = broker.dead_letters.list(None, Some("order-"), None, 10).await.unwrap();
    assert!(first.letters.is_empty() && first.next.is_some());
    let rest = broker.dead_letters.list(None, None, first.next.as_ref(), 100).await.unwrap();
    assert_eq!((rest.letters.len(), rest.next), (7, None), "it stopped after {LETTERS_PASSED_MAX}");
    let last = broker.dead_letters.list(None, Some("order-"), first.next.as_ref(), 10).await.unwrap();
    assert_eq!((last.letters.len(), last.next), (0, None));
    store.close().await;
}
