//! Losses that only NATS can have: of announcements, of a whole stream, of room. On a real server.

use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Job, JobResult, QueueName, RunId, Submission};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::{Enqueued, JobFilter};
use relay_bridge::leasing::{LeaseRequest, Recorded};
use relay_bridge::policy::{QueuePolicy, change_policy};
use relay_bridge::provision::Wanted;
use relay_bridge::result_log::{Lookup, Reset, ResultFilter, Start};
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings, StreamSettings, names};

/// Far longer than a test runs.
const WAIT: Duration = Duration::from_secs(20);

async fn open(server: &NatsServer, streams: StreamSettings) -> Nats {
    let config = NatsConfig::new([server.url()]);
    Nats::connect(config, Wait::AtMost(WAIT), Settings { streams, ..Settings::default() }).await.unwrap()
}

async fn jetstream(server: &NatsServer) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

fn job(key: &str, payload: Vec<u8>) -> Job {
    let submission = Submission {
        client: "acme".parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: Some(key.parse().unwrap()),
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: payload.into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(&QueuePolicy::default(), Clock::system().now())
}

/// Leases one job and records its success.
async fn succeed(broker: &Broker) -> Job {
    end(broker, "done".into()).await
}

/// The same with this result.
async fn end(broker: &Broker, payload: Vec<u8>) -> Job {
    let request = LeaseRequest {
        worker: "worker-1".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: 1.try_into().unwrap(),
        wait: WAIT,
    };
    let delivery = broker.leasing.lease(&request).await.unwrap().remove(0);
    let end = End { attempt: 1, started_at: Some(delivery.leased_at), finished_at: Clock::system().now() };
    let result = JobResult::succeeded(&delivery.job, end, "text/plain", payload.into());
    assert_eq!(broker.leasing.record(&result).await.unwrap(), Recorded::First);
    broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    delivery.job
}

#[tokio::test]
async fn storage_that_is_nearly_full_refuses_new_jobs_and_takes_outcomes() {
    let server = NatsServer::start().await;
    let streams = StreamSettings { jobs_bytes_max: Some(1_000_000), ..StreamSettings::default() };
    let broker = open(&server, streams).await.broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let first = job("key-0", vec![1; 1_000]);
    broker.jobs.enqueue(first.clone()).await.unwrap();
    let mut refused = None;
    for number in 1..100_000 {
        if let Err(error) = broker.jobs.enqueue(job(&format!("key-{number}"), vec![1; 10_000])).await {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("a job is refused");
    assert!(matches!(refused.kind(), BrokerErrorKind::Overloaded { .. }), "{refused}");
    assert!(refused.detail().contains("of 1000000 bytes"), "{refused}");
    let again = broker.jobs.enqueue(first.clone()).await.unwrap();
    assert!(matches!(again, Enqueued::Known(_)), "a known key is answered");
    let done = succeed(&broker).await;
    let found = broker.results.lookup(&done.client, done.id).await.unwrap();
    assert!(matches!(found, Lookup::Finished(_)), "{found:?}");
}

#[tokio::test]
async fn who_waits_for_a_job_before_it_is_submitted_hears_of_its_run_and_of_no_earlier_one() {
    let server = NatsServer::start().await;
    let broker = open(&server, StreamSettings::default()).await.broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let job = job("key", vec![]);
    let later = RunId::mint(Clock::system().now(), Some(job.run_id));
    let submit = async {
        broker.jobs.enqueue(job.clone()).await.unwrap();
        succeed(&broker).await
    };
    let (heard, of_a_later_run, _) = tokio::join!(
        biased;
        broker.results.wait_ahead(&job.client, job.id, job.run_id, WAIT),
        broker.results.wait_ahead(&job.client, job.id, later, Duration::from_secs(1)),
        submit,
    );
    let heard = heard.unwrap().expect("the result was announced");
    assert_eq!((heard.result.run_id, &heard.result.payload[..]), (job.run_id, &b"done"[..]));
    assert!(of_a_later_run.unwrap().is_none());
}

#[tokio::test]
async fn all_jobs_are_taken_however_few_publishes_may_be_in_flight() {
    let server = NatsServer::start().await;
    let config = NatsConfig { in_flight: 1, ..NatsConfig::new([server.url()]) };
    let broker = Nats::connect(config, Wait::AtMost(WAIT), Settings::default()).await.unwrap().broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let submissions = (0..50).map(|number| broker.jobs.enqueue(job(&format!("key-{number}"), vec![])));
    for taken in futures_util::future::join_all(submissions).await {
        assert!(matches!(taken.unwrap(), Enqueued::Created(_)));
    }
    succeed(&broker).await;
}

#[tokio::test]
async fn a_result_that_nobody_announced_is_found_by_who_waits() {
    let server = NatsServer::start().await;
    let broker = open(&server, StreamSettings::default()).await.broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let jetstream = jetstream(&server).await;
    let mut config = jetstream.get_stream("relay-results").await.unwrap().cached_info().config.clone();
    assert!(config.republish.take().is_some());
    jetstream.update_stream(config).await.unwrap();

    let job = job("key", vec![]);
    broker.jobs.enqueue(job.clone()).await.unwrap();
    // Both end with a last look of their own.
    let wait = Duration::from_secs(2);
    let (lookup, ahead, page, _) = tokio::join!(
        broker.results.wait(&job.client, job.id, wait),
        broker.results.wait_ahead(&job.client, job.id, job.run_id, wait),
        broker.results.page(&job.client, &Start::Oldest, &ResultFilter::ALL, 10, wait),
        succeed(&broker),
    );
    assert!(matches!(lookup.unwrap(), Lookup::Finished(_)));
    assert!(ahead.unwrap().is_some());
    assert_eq!(page.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_log_that_was_made_anew_starts_readers_over() {
    let server = NatsServer::start().await;
    let broker = open(&server, StreamSettings::default()).await.broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    broker.jobs.enqueue(job("old", vec![])).await.unwrap();
    let old = succeed(&broker).await;
    let cursor =
        broker.results.page(&old.client, &Start::Oldest, &ResultFilter::ALL, 10, Duration::ZERO).await.unwrap().next;

    jetstream(&server).await.delete_stream("relay-results").await.unwrap();
    // Any process that provisions makes it again.
    let broker = open(&server, StreamSettings::default()).await.broker();
    broker.policies.put_policy(&"other".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    broker.jobs.enqueue(job("new", vec![])).await.unwrap();
    let new = succeed(&broker).await;
    let page =
        broker.results.page(&old.client, &Start::After(cursor), &ResultFilter::ALL, 10, Duration::ZERO).await.unwrap();
    assert_eq!(page.reset, Some(Reset::LogReplaced));
    assert_eq!(page.entries.iter().map(|entry| entry.result.job_id).collect::<Vec<_>>(), [new.id]);
}

#[tokio::test]
async fn who_reads_on_at_the_end_of_a_log_hears_that_it_was_made_anew_and_misses_nothing_of_it() {
    let server = NatsServer::start().await;
    let broker = open(&server, StreamSettings::default()).await.broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    broker.jobs.enqueue(job("old-1", vec![])).await.unwrap();
    broker.jobs.enqueue(job("old-2", vec![])).await.unwrap();
    succeed(&broker).await;
    let client = succeed(&broker).await.client;
    let mut next =
        broker.results.page(&client, &Start::Oldest, &ResultFilter::ALL, 10, Duration::ZERO).await.unwrap().next;
    let mut read = async |least| {
        let (mut resets, mut found) = (Vec::new(), Vec::new());
        while found.len() < least {
            let after = Start::After(next.clone());
            let page =
                broker.results.page(&client, &after, &ResultFilter::ALL, 10, Duration::from_millis(300)).await.unwrap();
            next = page.next;
            resets.extend(page.reset);
            found.extend(page.entries.into_iter().map(|entry| entry.result.job_id));
        }
        (resets, found)
    };
    assert_eq!(read(0).await, (vec![], vec![]));
    jetstream(&server).await.delete_stream("relay-results").await.unwrap();
    broker.policies.put_policy(&"other".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let mut new = Vec::new();
    for number in 0..3 {
        broker.jobs.enqueue(job(&format!("new-{number}"), vec![])).await.unwrap();
        new.push(succeed(&broker).await.id);
        let heard = tokio::time::timeout(WAIT, read(1)).await.expect("the result is read");
        let resets = if number == 0 { vec![Reset::LogReplaced] } else { vec![] };
        assert_eq!(heard, (resets, vec![new[number]]));
    }
}

#[tokio::test]
async fn a_result_is_found_after_its_queue_was_removed() {
    let server = NatsServer::start().await;
    let broker = open(&server, StreamSettings::default()).await.broker();
    broker.policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    broker.jobs.enqueue(job("key", vec![])).await.unwrap();
    let done = succeed(&broker).await;
    jetstream(&server).await.delete_stream("relay-jobs-work").await.unwrap();
    let found = broker.results.lookup(&done.client, done.id).await.unwrap();
    assert!(matches!(found, Lookup::Finished(_)), "{found:?}");
}

#[tokio::test]
async fn what_is_missing_is_told_at_start_and_what_is_beyond_the_need_is_fine() {
    let server = NatsServer::start().await;
    let nats = open(&server, StreamSettings::default()).await;
    let queue = "work".parse().unwrap();
    let missing = nats.check_provisioned(std::slice::from_ref(&queue)).await.unwrap_err();
    assert_eq!(missing.kind(), BrokerErrorKind::NotFound);
    for name in ["relay-jobs-work", "relay-results", "relay-dead", "relay-state", "relay provision"] {
        assert!(missing.detail().contains(name), "{missing}");
    }
    nats.broker().policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    nats.check_provisioned(std::slice::from_ref(&queue)).await.unwrap();

    let jetstream = jetstream(&server).await;
    let mut config = jetstream.get_stream("relay-jobs-work").await.unwrap().cached_info().config.clone();
    config.subjects.push("audit.>".to_owned());
    config.metadata.insert("team".to_owned(), "payments".to_owned());
    config.max_age = Duration::ZERO;
    jetstream.update_stream(config.clone()).await.unwrap();
    nats.check_provisioned(std::slice::from_ref(&queue)).await.unwrap();
    let wanted = [Wanted { queue: queue.clone(), policy: QueuePolicy::default(), seen: None }];
    assert_eq!(nats.broker().provision.plan(&wanted).await.unwrap(), []);
    // A change of policy leaves it alone, too.
    let policy = QueuePolicy { max_attempts: 3, ..QueuePolicy::default() };
    let wanted = [Wanted { queue: queue.clone(), policy, seen: Some(QueuePolicy::default()) }];
    nats.broker().provision.apply(&wanted, false).await.unwrap();
    let after = jetstream.get_stream("relay-jobs-work").await.unwrap().cached_info().config.clone();
    assert_eq!((after.subjects, after.max_age), (config.subjects.clone(), config.max_age));
    assert_eq!(after.metadata.get("team").map(String::as_str), Some("payments"));

    config.max_messages = 10;
    jetstream.update_stream(config).await.unwrap();
    let wrong = nats.check_provisioned(&[queue]).await.unwrap_err();
    assert_eq!(wrong.kind(), BrokerErrorKind::StateConflict);
    assert!(wrong.detail().contains("max_msgs"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_stands_whoever_writes_the_queues_policy_in_the_same_moment() {
    let server = NatsServer::start().await;
    let (operator, server_process) =
        (open(&server, StreamSettings::default()).await, open(&server, StreamSettings::default()).await);
    let (operator, writer) = (operator.broker().policies, server_process.broker().policies);
    let queue: QueueName = "work".parse().unwrap();
    writer.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let mut seen = QueuePolicy::default();
    for round in 1..=30 {
        let policy = QueuePolicy { max_attempts: round, ..QueuePolicy::default() };
        let (paused, written) =
            tokio::join!(operator.set_paused(&queue, true), writer.put_policy(&queue, &policy, Some(&seen)));
        paused.unwrap();
        written.unwrap();
        let found = operator.policy(&queue).await.unwrap().unwrap();
        assert!(found.paused && found.max_attempts == round, "round {round}: {found:?}");
        operator.set_paused(&queue, false).await.unwrap();
        seen = policy;
    }
}

#[tokio::test]
async fn a_writer_that_vanished_with_its_turn_holds_up_a_pause_and_does_not_prevent_it() {
    let server = NatsServer::start().await;
    let policies = open(&server, StreamSettings::default()).await.broker().policies;
    let queue: QueueName = "work".parse().unwrap();
    policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    // As the writer leaves it, with less of its time left.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-TTL", "2s");
    let turn = names::turn(&queue);
    jetstream(&server).await.publish_with_headers(turn, headers, "".into()).await.unwrap().await.unwrap();

    let mut pause = std::pin::pin!(policies.set_paused(&queue, true));
    let meanwhile = async {
        for _ in 0..20 {
            assert!(!policies.policy(&queue).await.unwrap().unwrap().paused, "it was not its turn");
        }
    };
    tokio::select! {
        paused = &mut pause => panic!("it did not wait for its turn: {paused:?}"),
        () = meanwhile => {}
    }
    pause.await.unwrap();
    assert!(policies.policy(&queue).await.unwrap().unwrap().paused);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_change_different_settings_of_one_queue_all_keep_theirs() {
    let server = NatsServer::start().await;
    let (one, other) = (open(&server, StreamSettings::default()).await, open(&server, StreamSettings::default()).await);
    let (one, other) = (one.broker().policies, other.broker().policies);
    let queue: QueueName = "work".parse().unwrap();
    for round in 1..=20_u32 {
        let (written, also) = tokio::join!(
            change_policy(&*one, &queue, |found| QueuePolicy { max_attempts: round, ..found }),
            change_policy(&*other, &queue, |found| QueuePolicy { result_max: round.into(), ..found }),
        );
        written.unwrap();
        also.unwrap();
        let found = one.policy(&queue).await.unwrap().unwrap();
        assert_eq!((found.max_attempts, found.result_max), (round, round.into()), "round {round}");
    }
}

#[tokio::test]
async fn a_policy_that_was_written_in_another_writers_turn_is_not_overwritten_in_the_next() {
    let server = NatsServer::start().await;
    let policies = open(&server, StreamSettings::default()).await.broker().policies;
    let (queue, seen): (QueueName, _) = ("work".parse().unwrap(), QueuePolicy::default());
    policies.put_policy(&queue, &seen, None).await.unwrap();
    // Another writer has the turn: it has read and not written yet.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-TTL", "2s");
    let jetstream = jetstream(&server).await;
    jetstream.publish_with_headers(names::turn(&queue), headers, "".into()).await.unwrap().await.unwrap();
    let mut config = jetstream.get_stream("relay-jobs-work").await.unwrap().cached_info().config.clone();

    let late = QueuePolicy { result_max: 9, ..seen.clone() };
    let mut write = std::pin::pin!(policies.put_policy(&queue, &late, Some(&seen)));
    // The later writer finds what it saw, and waits for its turn.
    let looked = async {
        for _ in 0..20 {
            assert_eq!(policies.policy(&queue).await.unwrap().as_ref(), Some(&seen));
        }
    };
    tokio::select! {
        written = &mut write => panic!("it did not wait for its turn: {written:?}"),
        () = looked => {}
    }
    let meanwhile = QueuePolicy { max_attempts: 7, ..seen.clone() };
    config.metadata.insert("relay.policy".to_owned(), serde_json::to_string(&meanwhile).unwrap());
    jetstream.update_stream(config).await.unwrap();
    assert_eq!(write.await.unwrap_err().kind(), BrokerErrorKind::StateConflict);
    assert_eq!(policies.policy(&queue).await.unwrap(), Some(meanwhile));
}

#[tokio::test]
async fn a_result_that_no_relay_wrote_ends_no_reading_and_is_replaced_by_the_real_one() {
    let server = NatsServer::start().await;
    let broker = open(&server, StreamSettings::default()).await.broker();
    let queue = "work".parse().unwrap();
    broker.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let sent = job("key", b"in".to_vec());
    broker.jobs.enqueue(sent.clone()).await.unwrap();
    let jetstream = jetstream(&server).await;
    let write = async || {
        let subject = names::result(&sent.client, sent.id);
        jetstream.publish(subject, "by whoever has credentials".into()).await.unwrap().await.unwrap();
    };
    write().await;
    assert!(matches!(broker.results.lookup(&sent.client, sent.id).await.unwrap(), Lookup::Open(_)));
    assert!(broker.jobs.status(&sent.client, sent.id).await.unwrap().is_some());
    let all = JobFilter { queues: None, key_prefix: None, state: None, limit: 10, after: None };
    assert_eq!(broker.jobs.list(&sent.client, &all).await.unwrap().jobs.len(), 1);
    let page = broker.results.page(&sent.client, &Start::Oldest, &ResultFilter::ALL, 10, Duration::ZERO).await.unwrap();
    assert!(page.entries.is_empty());
    succeed(&broker).await;
    assert!(matches!(broker.results.lookup(&sent.client, sent.id).await.unwrap(), Lookup::Finished(_)));
    // Nor does it keep a client from having its job erased.
    write().await;
    broker.jobs.cancel(&sent.client, sent.id).await.unwrap();
    write().await;
    broker.jobs.cancel(&sent.client, sent.id).await.unwrap();
    broker.jobs.erase(&sent.client, sent.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_stream_there_is_no_such_queue_in_every_answer() {
    let server = NatsServer::start().await;
    let broker = open(&server, StreamSettings::default()).await.broker();
    let (queue, client) = ("work".parse().unwrap(), "acme".parse().unwrap());
    broker.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
    let sent = job("key", b"in".to_vec());
    broker.jobs.enqueue(sent.clone()).await.unwrap();
    let end = End { attempt: 1, started_at: None, finished_at: Clock::system().now() };
    let result = JobResult::succeeded(&sent, end, "text/plain", "done".into());
    broker.leasing.queue_policy(&queue).await.unwrap();
    jetstream(&server).await.delete_stream(names::jobs_stream(&queue)).await.unwrap();
    let no_queue = |error: relay_bridge::error::BrokerError| {
        assert_eq!((error.kind(), error.detail()), (BrokerErrorKind::NotFound, "there is no queue `work`"));
    };
    no_queue(broker.leasing.record(&result).await.unwrap_err());
    no_queue(broker.jobs.depth(&queue).await.unwrap_err());
    no_queue(broker.jobs.waiting(&client, &queue).await.unwrap_err());
}

#[tokio::test]
async fn whether_a_job_is_in_a_queue_is_told_without_reading_its_payload_or_its_result() {
    const BYTES: usize = 200_000;
    let server = NatsServer::start().await;
    let broker = open(&server, StreamSettings::default()).await.broker();
    let [work, other]: [QueueName; 2] = ["work", "other"].map(|queue| queue.parse().unwrap());
    for queue in [&work, &other] {
        broker.policies.put_policy(queue, &QueuePolicy::default(), None).await.unwrap();
    }
    let open = job("key", vec![7; BYTES]);
    let submission = Submission::plain(open.client.clone(), work.clone(), "text/plain", vec![7; BYTES]);
    let ended = submission.accept(&QueuePolicy::default(), Clock::system().now());
    // Without a key: once it ended, its result is all that is left.
    broker.jobs.enqueue(ended.clone()).await.unwrap();
    end(&broker, vec![7; BYTES]).await;
    broker.jobs.enqueue(open.clone()).await.unwrap();
    let sent = async || server.monitor("/varz").await.unwrap()["out_bytes"].as_u64().unwrap();
    let before = sent().await;
    for job in [&open, &ended] {
        let is_in = async |client, queues: &[QueueName]| broker.jobs.is_in(client, job.id, queues).await.unwrap();
        assert!(is_in(&job.client, &[other.clone(), work.clone()]).await);
        assert!(!is_in(&job.client, std::slice::from_ref(&other)).await);
        assert!(!is_in(&"stranger".parse().unwrap(), std::slice::from_ref(&work)).await);
        let filter = JobFilter {
            queues: Some(vec![other.clone()]),
            state: None,
            key_prefix: None,
            after: Some(job.id),
            limit: 10,
        };
        assert!(!broker.jobs.list(&job.client, &filter).await.unwrap().after_known);
    }
    let sent = sent().await - before;
    assert!(sent < BYTES as u64, "{sent} bytes");
    // The entry that stays of an erased result tells as well.
    broker.jobs.erase(&ended.client, ended.id).await.unwrap();
    assert!(broker.jobs.is_in(&ended.client, ended.id, &[work]).await.unwrap());
    assert!(!broker.jobs.is_in(&ended.client, ended.id, &[other]).await.unwrap());
    let info = jetstream(&server).await.get_stream(names::RESULTS_STREAM).await.unwrap().get_info().await.unwrap();
    assert_eq!(info.state.consumer_count, 0, "each read removes its consumer");
}
