//! Lists, sweeps and erasures on a real server: which messages they read, which they pass over, and which they leave.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobId, JobResult, JobState, Outcome, QueueName, Submission};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::{JobFilter, Listed};
use relay_bridge::leasing::LeaseRequest;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::Lookup;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::config::{Credentials, NatsConfig, Secret};
use relay_nats::connection::Wait;
use relay_nats::names::{self, Address};
use relay_nats::{Nats, Settings};

const CONNECT: Duration = Duration::from_secs(30);
/// The user whose calls break off.
const HALF: &str = "half";
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// A step of a sweep, as servers make them.
const STEP: u32 = 500;
/// Calls in flight at once.
const AT_ONCE: usize = 64;

struct Stage {
    server: NatsServer,
    broker: Broker,
    queue: QueueName,
    policy: QueuePolicy,
    clock: Clock,
}

impl Stage {
    async fn open(clock: Clock, job_ttl: Duration) -> Self {
        // One user may not delete jobs: its writes go through, and then it gets no further.
        let users = format!(
            "authorization {{ users: [{{ user: relay, password: p }}, {{ user: {HALF}, password: p, permissions: {{ publish: \
             {{ deny: \"$JS.API.STREAM.MSG.DELETE.relay-jobs-work\" }} }} }}] }}\nno_auth_user: relay"
        );
        let server = NatsServer::builder().config(&users).start().await;
        let settings = Settings { clock: clock.clone(), ..Settings::default() };
        let nats = Nats::connect(NatsConfig::new([server.url()]), Wait::AtMost(CONNECT), settings).await.unwrap();
        let stage = Self {
            server,
            broker: nats.broker(),
            queue: "work".parse().unwrap(),
            policy: QueuePolicy { job_ttl, ..QueuePolicy::default() },
            clock,
        };
        stage.broker.policies.put_policy(&stage.queue, &stage.policy, None).await.unwrap();
        stage
    }

    async fn submit(&self, client: &str, key: Option<String>, payload: Vec<u8>) -> JobId {
        let submission = Submission {
            client: client.parse().unwrap(),
            queue: self.queue.clone(),
            key: key.map(|key| key.parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: payload.into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        let enqueued = self.broker.jobs.enqueue(submission.accept(&self.policy, self.clock.now())).await.unwrap();
        enqueued.status().job_id
    }

    async fn submit_many(&self, client: &str, count: usize, size: usize) -> Vec<JobId> {
        let submit = |number| self.submit(client, Some(format!("{client}-{number}")), vec![7; size]);
        futures_util::stream::iter(0..count).map(submit).buffered(AT_ONCE).collect().await
    }

    async fn list(&self, client: &str, after: Option<JobId>, limit: u32) -> Listed {
        let filter = JobFilter { queues: None, state: None, key_prefix: None, after, limit };
        self.broker.jobs.list(&client.parse().unwrap(), &filter).await.unwrap()
    }

    /// Stores a message as somebody other than relay may, or as a process that died left it.
    async fn publish(&self, subject: String) {
        let jetstream = async_nats::jetstream::new(async_nats::connect(self.server.url()).await.unwrap());
        jetstream.publish(subject, "{}".into()).await.unwrap().await.unwrap();
    }

    async fn outcome(&self, client: &str, job: JobId) -> Option<Outcome> {
        match self.broker.results.lookup(&client.parse().unwrap(), job).await.unwrap() {
            Lookup::Finished(finished) => Some(finished.result.outcome),
            Lookup::Open(_) => None,
            Lookup::Absent => panic!("{job} is gone"),
        }
    }

    /// Runs the one job that is in line.
    async fn succeed(&self, payload: &'static str) -> JobId {
        let request = LeaseRequest {
            worker: "worker-1".parse().unwrap(),
            queues: vec![self.queue.clone()],
            max: 1.try_into().unwrap(),
            wait: CONNECT,
        };
        let delivery = self.broker.leasing.lease(&request).await.unwrap().remove(0);
        let end = End { attempt: 1, started_at: None, finished_at: self.clock.now() };
        let result = JobResult::succeeded(&delivery.job, end, "text/plain", payload.into());
        self.broker.leasing.record(&result).await.unwrap();
        self.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
        delivery.job.id
    }

    /// Whether a message of `stream` has `text` in it.
    async fn stores(&self, stream: &str, text: &str) -> bool {
        let jetstream = async_nats::jetstream::new(async_nats::connect(self.server.url()).await.unwrap());
        let stream = jetstream.get_stream(stream).await.unwrap();
        for seq in 1..=stream.cached_info().state.last_sequence {
            let message = stream.get_raw_message(seq).await;
            if message.is_ok_and(|found| found.payload.windows(text.len()).any(|part| part == text.as_bytes())) {
                return true;
            }
        }
        false
    }

    /// How many bytes the server has sent so far.
    async fn sent(&self) -> u64 {
        self.server.monitor("/varz").await.unwrap()["out_bytes"].as_u64().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_list_reads_little_more_than_what_is_on_it_wherever_it_is() {
    const JOBS: usize = 600;
    const SIZE: usize = 32 * 1024;
    let stage = Stage::open(Clock::system(), DAY).await;
    let mut jobs = Vec::new();
    // One after the other: those of one millisecond are read together, however many they are.
    for number in 0..JOBS {
        jobs.push(stage.submit("acme", Some(format!("acme-{number}")), vec![7; SIZE]).await);
    }
    stage.submit_many("other", 3_000, 0).await;
    let (mut listed, mut after, mut most) = (Vec::new(), None, 0);
    loop {
        let before = stage.sent().await;
        let page = stage.list("acme", after, 10).await;
        most = most.max(stage.sent().await - before);
        assert!(page.jobs.len() <= 10 && page.jobs.iter().all(|job| job.size == SIZE as u64));
        listed.extend(page.jobs.iter().map(|job| job.job_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    // The jobs of a page have 320 KiB, all jobs 19 MiB; a read brings a MiB, and subjects and headers.
    assert!(most < 4 * (1024 + 64) * 1024, "a page of 10 took {most} bytes");
    assert_eq!(listed.len(), JOBS);
    listed.sort();
    jobs.sort();
    assert!(listed == jobs, "each job is on one page");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_longer_time_than_its_queue_gives_now_expires_when_it_was_told() {
    // Longer than the next ones by more than what counts as in order. Schedules are the server's: no clock can be moved.
    let mut stage = Stage::open(Clock::system(), Duration::from_secs(14)).await;
    let expires_at = stage.clock.now() + stage.policy.job_ttl;
    let job = stage.submit("acme", Some("first".to_owned()), vec![]).await;
    let seen = stage.policy.clone();
    stage.policy.job_ttl = Duration::from_secs(2);
    stage.broker.policies.put_policy(&stage.queue, &stage.policy, Some(&seen)).await.unwrap();
    let ended = async {
        for number in 0.. {
            // There is always one behind it that is not due.
            stage.submit("acme", Some(format!("later-{number}")), vec![]).await;
            stage.broker.jobs.sweep(STEP).await.unwrap();
            let waited = stage.broker.results.wait(&"acme".parse().unwrap(), job, Duration::from_millis(200)).await;
            if let Lookup::Finished(finished) = waited.unwrap() {
                return finished.result;
            }
        }
        unreachable!("it is tried again and again");
    };
    let result = tokio::time::timeout(Duration::from_secs(40), ended).await.expect("it ends");
    assert_eq!(result.outcome, Outcome::Expired);
    assert!(result.finished_at >= expires_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_left_alone_hold_up_no_lane_and_are_no_work_that_is_due() {
    let stage = Stage::open(Clock::manual(Clock::system().now()), Duration::from_secs(1)).await;
    let job = stage.submit("acme", None, vec![]).await;
    // As cancels leave them whose jobs without keys have gone.
    let entries = (0..600).map(|_| {
        let address = Address::new(&stage.queue, &"other".parse().unwrap(), JobId::mint());
        stage.publish(address.overdue())
    });
    futures_util::stream::iter(entries).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    stage.clock.advance(Duration::from_secs(2));
    let swept = stage.broker.jobs.sweep(STEP).await.unwrap();
    assert_eq!(swept.expired.iter().map(|result| result.job_id).collect::<Vec<_>>(), [job]);
    assert!(!swept.more, "nothing that is left alone is due");
    // Each of them has its time, and goes.
    stage.clock.advance(Duration::from_secs(20));
    let mut steps = 1;
    while stage.broker.jobs.sweep(STEP).await.unwrap().more {
        steps += 1;
    }
    assert_eq!(steps, 3, "600, 250 at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_reads_one_job_of_a_lane_in_which_nothing_is_due() {
    const SIZE: usize = 16 * 1024;
    let stage = Stage::open(Clock::system(), DAY).await;
    stage.submit_many("acme", 50, SIZE).await;
    let before = stage.sent().await;
    assert!(!stage.broker.jobs.sweep(STEP).await.unwrap().more);
    let read = stage.sent().await - before;
    assert!(read < 5 * SIZE as u64, "it took {read} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_job_or_cannot_be_read_holds_up_no_sweep_and_no_list() {
    let stage = Stage::open(Clock::manual(Clock::system().now()), Duration::from_secs(1)).await;
    let first = stage.submit("acme", Some("first".to_owned()), vec![]).await;
    stage.publish(format!("relay.jobs.{}.acme.test", stage.queue)).await;
    // A result that no relay wrote counts as none.
    stage.publish(names::result(&"acme".parse().unwrap(), first)).await;
    let second = stage.submit("acme", Some("second".to_owned()), vec![]).await;
    let other = stage.submit("other", Some("key".to_owned()), vec![]).await;
    stage.clock.advance(Duration::from_secs(2));
    while stage.broker.jobs.sweep(STEP).await.unwrap().more {}
    for (client, job) in [("acme", first), ("acme", second), ("other", other)] {
        assert_eq!(stage.outcome(client, job).await, Some(Outcome::Expired));
    }
    let listed = stage.list("acme", None, 10).await;
    assert_eq!(listed.jobs.iter().map(|job| job.job_id).collect::<Vec<_>>(), [second, first]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_leaves_something_is_not_said_to_be_done() {
    for stream in ["relay-jobs-work", "relay-results"] {
        let stage = Stage::open(Clock::system(), DAY).await;
        stage.submit("acme", Some("key".to_owned()), "SECRET".into()).await;
        let job = stage.succeed("SECRET").await;
        let jetstream = async_nats::jetstream::new(async_nats::connect(stage.server.url()).await.unwrap());
        let mut config = jetstream.get_stream(stream).await.unwrap().cached_info().config.clone();
        config.deny_delete = true;
        jetstream.update_stream(config).await.unwrap();
        let erased = stage.broker.jobs.erase(&"acme".parse().unwrap(), job).await;
        assert!(stage.stores(stream, "SECRET").await, "the server refused to delete it");
        assert_eq!(erased.unwrap_err().kind(), BrokerErrorKind::Ambiguous, "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_broke_off_is_done_by_the_next_one() {
    let stage = Stage::open(Clock::system(), DAY).await;
    stage.submit("acme", Some("key".to_owned()), "SECRET".into()).await;
    let (client, job) = ("acme".parse().unwrap(), stage.succeed("SECRET").await);
    let credentials = Credentials::User { name: HALF.to_owned(), password: Secret::Value("p".to_owned()) };
    let config = NatsConfig { credentials, ..NatsConfig::new([stage.server.url()]) };
    let half = Nats::connect(config, Wait::AtMost(CONNECT), Settings::default()).await.unwrap().broker();
    half.jobs.erase(&client, job).await.unwrap_err();
    assert!(stage.stores("relay-jobs-work", "SECRET").await, "it broke off before");
    stage.broker.jobs.erase(&client, job).await.unwrap();
    for stream in ["relay-jobs-work", "relay-results"] {
        assert!(!stage.stores(stream, "SECRET").await, "{stream}");
    }
}

#[tokio::test]
async fn a_finished_run_is_not_ended_once_more_where_the_server_keeps_its_record_longer() {
    let stage = Stage::open(Clock::manual(Clock::system().now()), Duration::from_secs(1)).await;
    let job = stage.submit("acme", Some("key".to_owned()), b"payload".to_vec()).await;
    assert_eq!(stage.succeed("done").await, job);
    // Nobody has swept until both are past their keeping; the server removes the record an hour later.
    stage.clock.advance(stage.policy.job_ttl + stage.policy.retention + Duration::from_secs(1));
    let swept = stage.broker.jobs.sweep(STEP).await.unwrap();
    assert!(swept.expired.is_empty(), "{:?}", swept.expired);
    let lookup = stage.broker.results.lookup(&"acme".parse().unwrap(), job).await.unwrap();
    assert!(matches!(lookup, Lookup::Absent), "{lookup:?}");
}

impl Stage {
    /// The jobs that a sweep ends by their time.
    async fn swept(&self, broker: &Broker) -> Vec<JobId> {
        let mut ended = Vec::new();
        loop {
            let swept = broker.jobs.sweep(STEP).await.unwrap();
            ended.extend(swept.expired.iter().map(|result| result.job_id));
            if !swept.more {
                ended.sort();
                return ended;
            }
        }
    }

    /// Removes every result, as an operator may.
    async fn purge_results(&self) {
        let jetstream = async_nats::jetstream::new(async_nats::connect(self.server.url()).await.unwrap());
        jetstream.get_stream(names::RESULTS_STREAM).await.unwrap().purge().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_settled_and_lost_its_result_ends_as_expired_in_one_sweep_after_its_deadline() {
    const JOBS: usize = 3;
    let stage = Stage::open(Clock::manual(Clock::system().now()), Duration::from_secs(60)).await;
    let mut jobs = stage.submit_many("acme", JOBS, 0).await;
    for _ in 0..JOBS {
        stage.succeed("done").await;
    }
    jobs.sort();
    assert_eq!(stage.swept(&stage.broker).await, []);
    stage.purge_results().await;
    assert_eq!(stage.swept(&stage.broker).await, [], "before its deadline a run has its time");
    stage.clock.advance(stage.policy.job_ttl + Duration::from_secs(1));
    assert_eq!(stage.swept(&stage.broker).await, jobs);
    for job in &jobs {
        assert_eq!(stage.outcome("acme", *job).await, Some(Outcome::Expired));
    }
    assert_eq!(stage.swept(&stage.broker).await, [], "each ends once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_whose_jobs_leave_no_record_is_not_read_by_sweeps_and_a_lost_result_in_it_is_missed_at_its_deadline() {
    let stage = Stage::open(Clock::manual(Clock::system().now()), Duration::from_secs(60)).await;
    let client = async_nats::connect(stage.server.url()).await.unwrap();
    let mut reads = client.subscribe("$JS.API.DIRECT.GET.relay-jobs-work").await.unwrap();
    client.flush().await.unwrap();
    for _ in 0..3 {
        stage.submit("acme", None, vec![]).await;
        stage.succeed("done").await;
        assert_eq!(stage.swept(&stage.broker).await, []);
    }
    client.flush().await.unwrap();
    let mut of_lane = 0;
    while let Some(Some(read)) = reads.next().now_or_never() {
        of_lane += usize::from(String::from_utf8_lossy(&read.payload).contains("relay.jobs."));
    }
    assert!(of_lane <= 1, "{of_lane} reads of a lane in which there is nothing");
    let lost = stage.submit("acme", Some("key".to_owned()), vec![]).await;
    stage.succeed("done").await;
    assert_eq!(stage.swept(&stage.broker).await, []);
    // One that is not the last, so that the stream of results does not show it.
    let result = names::result(&"acme".parse().unwrap(), lost);
    stage.submit("acme", None, vec![]).await;
    stage.succeed("done").await;
    let jetstream = async_nats::jetstream::new(client.clone());
    jetstream.get_stream(names::RESULTS_STREAM).await.unwrap().purge().filter(result).await.unwrap();
    stage.clock.advance(stage.policy.job_ttl + Duration::from_secs(1));
    assert_eq!(stage.swept(&stage.broker).await, [lost]);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_are_lost_after_the_deadline_of_their_runs_are_missed_by_the_next_sweep_of_any_process() {
    for by_another in [false, true] {
        let stage = Stage::open(Clock::manual(Clock::system().now()), Duration::from_secs(60)).await;
        let job = stage.submit("acme", Some("key".to_owned()), vec![]).await;
        stage.succeed("done").await;
        stage.clock.advance(stage.policy.job_ttl + Duration::from_secs(1));
        assert_eq!(stage.swept(&stage.broker).await, [], "it has its result");
        assert_eq!(stage.outcome("acme", job).await, Some(Outcome::Succeeded));
        stage.purge_results().await;
        let settings = Settings { clock: stage.clock.clone(), ..Settings::default() };
        let config = NatsConfig::new([stage.server.url()]);
        let other = Nats::connect(config, Wait::AtMost(CONNECT), settings).await.unwrap().broker();
        assert_eq!(stage.swept(if by_another { &other } else { &stage.broker }).await, [job]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_failed_and_lost_its_result_ends_as_its_letter_says_and_the_letter_is_kept() {
    let stage = Stage::open(Clock::manual(Clock::system().now()), Duration::from_secs(60)).await;
    let job = stage.submit("acme", Some("key".to_owned()), b"payload".to_vec()).await;
    let request = LeaseRequest {
        worker: "worker-1".parse().unwrap(),
        queues: vec![stage.queue.clone()],
        max: 1.try_into().unwrap(),
        wait: CONNECT,
    };
    let delivery = stage.broker.leasing.lease(&request).await.unwrap().remove(0);
    let end = End { attempt: 1, started_at: None, finished_at: stage.clock.now() };
    let failure = Failure::new("exit 3", "cannot open /etc/app.conf");
    let result = JobResult::unsuccessful(&delivery.job, Outcome::Failed, end, failure.clone());
    stage.broker.leasing.record(&result).await.unwrap();
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    stage.purge_results().await;
    stage.clock.advance(stage.policy.job_ttl + Duration::from_secs(1));
    assert_eq!(stage.swept(&stage.broker).await, [], "it did not expire");
    assert_eq!(stage.outcome("acme", job).await, Some(Outcome::Failed));
    let kept = stage.broker.dead_letters.list(None, None, None, 10).await.unwrap().letters;
    assert_eq!(kept.len(), 1, "its one letter is kept: {kept:?}");
    let letter = stage.broker.dead_letters.get(job).await.unwrap().unwrap();
    assert_eq!((letter.job.id, &letter.failure, &letter.job.payload[..]), (job, &failure, &b"payload"[..]));
    let redriven = stage.broker.dead_letters.redrive(job, letter.job.run_id).await.unwrap();
    assert_eq!(redriven.status().generation, 2);
}

impl Stage {
    /// How many messages the server has got so far, and how many bytes it has sent.
    async fn traffic(&self) -> (u64, u64) {
        let told = self.server.monitor("/varz").await.unwrap();
        (told["in_msgs"].as_u64().unwrap(), told["out_bytes"].as_u64().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_list_costs_as_much_with_ten_times_the_jobs_whatever_it_is_filtered_by() {
    const LIMIT: u32 = 50;
    let (stage, mut most) = (Stage::open(Clock::system(), DAY).await, Vec::new());
    let mut jobs = 0;
    for all in [300, 3_000] {
        stage.submit_many(&format!("of-{all}"), all, 1_024).await;
        // Of others, in between: a stream is read by its sequences.
        stage.submit_many("other", all, 0).await;
        for (state, key_prefix) in [
            (None, None),
            (Some(JobState::Finished(Outcome::Succeeded)), None),
            (Some(JobState::Queued), Some(format!("of-{all}-29"))),
        ] {
            let (mut after, mut found, mut cost) = (None, 0, (0, 0));
            loop {
                let filter = JobFilter { queues: None, state, key_prefix: key_prefix.clone(), after, limit: LIMIT };
                let before = stage.traffic().await;
                let page = stage.broker.jobs.list(&format!("of-{all}").parse().unwrap(), &filter).await.unwrap();
                let now = stage.traffic().await;
                cost = (cost.0.max(now.0 - before.0), cost.1.max(now.1 - before.1));
                found += page.jobs.len();
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            most.push((all, state, cost));
            jobs += found;
        }
    }
    // All, none of them, and the numbers that begin with 29: 29 and 290 to 299, then 2900 to 2999 too.
    assert_eq!(jobs, 300 + 11 + 3_000 + 111);
    for (all, state, (requests, bytes)) in most {
        // A result, a report and a record for each of twice the limit, and as many once more for finding them.
        assert!(requests <= 8 * u64::from(LIMIT), "a page of {all} jobs in {state:?} took {requests} requests");
        assert!(bytes <= 4 * 1024 * 1024, "a page of {all} jobs in {state:?} took {bytes} bytes");
    }
}
