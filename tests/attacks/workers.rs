//! Peers of the worker listener: they take no memory beyond its bounds, keep no worker out, and touch no queue that their key
//! does not grant.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use relay::client::{Client, NewJob};
use relay_bridge::contract::result::End;
use relay_bridge::contract::wire::{FRAME_MAX, FromServer, FromWorker, Hello, Request, Response, Role};
use relay_bridge::contract::{Failure, Job, JobId, JobResult, Outcome, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};
use relay_bridge::leasing::{Held, LeaseRequest, Leasing as _, Progress, Receipt, Recorded};
use relay_bridge::settlement::Settlement;
use relay_remote::stream::FrameReader;
use relay_remote::{Remote, RemoteConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;

use crate::support::{Attacked, POD_BYTES, new_key};

const MIB: usize = 1024 * 1024;
/// The most that one answer to a lease holds, beside one job.
const ANSWER_MAX: usize = 16 * MIB;
/// How long a call waits for what must come: longer than any bound that the server keeps.
const PATIENT: Duration = Duration::from_secs(60);

/// A server with the queues `q1` and `q2`, a client of both, and a worker's key for each.
struct Two {
    attacked: Attacked,
    client: Client,
    keys: [String; 2],
}

impl Two {
    fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client = new_key(dir.path(), &["shop"]);
        let worker = |name, queue| new_key(dir.path(), &[name, "--role", "worker", "--queue", queue]);
        let keys = [worker("one", "q1"), worker("two", "q2")];
        let queues = ["--queue", "q1", "--queue", "q2", "--payload-max", "4MiB", "--result-max", "4MiB"];
        let args: Vec<&str> = queues.iter().chain(more).copied().collect();
        let attacked = Attacked::start_in(dir, &args);
        let client = Client::new(&attacked.server.url(), Some(client)).unwrap();
        Self { attacked, client, keys }
    }

    async fn submit(&self, queue: &str, bytes: usize) -> JobId {
        let job = NewJob {
            content_type: "text/plain".to_owned(),
            ..NewJob::new(queue.parse().unwrap(), Bytes::from(vec![b'x'; bytes]))
        };
        self.client.submit(&job).await.unwrap().job_id()
    }

    /// The worker with the key of `q1` or of `q2`.
    async fn worker(&self, of: usize) -> Remote {
        let config = RemoteConfig {
            key: Some(self.keys[of].clone()),
            connect_timeout: PATIENT,
            request_timeout: PATIENT,
            ..RemoteConfig::new(self.attacked.server.workers(), "host".parse().unwrap())
        };
        Remote::connect(config).await.unwrap()
    }
}

fn request(queue: &str, max: u32) -> LeaseRequest {
    LeaseRequest {
        worker: "host".parse().unwrap(),
        queues: vec![queue.parse().unwrap()],
        max: NonZeroU32::new(max).unwrap(),
        wait: Duration::from_secs(30),
    }
}

/// A worker's connection in bytes.
struct Raw {
    from: FrameReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Raw {
    async fn welcomed(address: &str, key: &str, worker: &str) -> Self {
        let (from, to) = TcpStream::connect(address).await.unwrap().into_split();
        let mut raw = Self { from: FrameReader::new(from, FRAME_MAX), to };
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            envelope_max: 2,
            role: Role::Worker,
            worker: worker.parse().unwrap(),
            key: Some(key.to_owned()),
            build: "raw".to_owned(),
            frame_max: FRAME_MAX,
        };
        raw.send(&FromWorker::Hello(hello)).await;
        let frame = raw.from.next().await.unwrap().unwrap();
        assert!(matches!(FromServer::decode(&frame), Ok(FromServer::Welcome(_))));
        raw
    }

    /// The next message that is no ping.
    async fn next(&mut self) -> FromServer {
        loop {
            let frame = self.from.next().await.unwrap().expect("a message");
            match FromServer::decode(&frame).unwrap() {
                FromServer::Ping(_) => {}
                message => return message,
            }
        }
    }

    async fn send(&mut self, message: &FromWorker) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        self.to.write_all(&bytes).await.unwrap();
    }
}

fn result_of(job: &Job) -> JobResult {
    let end = End { attempt: 1, started_at: Some(job.accepted_at), finished_at: job.accepted_at };
    JobResult::succeeded(job, end, "text/plain", Bytes::from_static(b"done"))
}

fn is_refused<T>(what: &str, answer: Result<T, BrokerError>, kinds: &[Kind]) {
    match answer {
        Ok(_) => panic!("{what} is allowed"),
        Err(error) => assert!(kinds.contains(&error.kind()), "{what}: {error}"),
    }
}

#[tokio::test]
async fn a_worker_of_one_queue_can_do_nothing_to_a_job_of_another_whatever_receipt_it_forges() {
    let two = Two::start(&[]);
    let (thief, owner) = (two.worker(0).await, two.worker(1).await);
    two.submit("q2", 10).await;
    let held = owner.lease(&request("q2", 1)).await.unwrap().remove(0);
    let honest = held.receipt.clone();
    let forged = Receipt { queue: "q1".parse().unwrap(), ..honest.clone() };
    let elsewhere = Job { queue: "q1".parse().unwrap(), ..held.job.clone() };
    let progress = Progress { percent: None, message: String::new() };
    let letter = |job: &Job| DeadLetter {
        job: job.clone(),
        outcome: Outcome::Failed,
        attempt: 1,
        failure: Failure::new("x", "y"),
        at: Timestamp::from_millis(1_763_865_086_007),
        extra: Default::default(),
    };
    let not_granted = &[Kind::Unauthorized];
    let both = LeaseRequest { queues: vec!["q1".parse().unwrap(), "q2".parse().unwrap()], ..request("q1", 1) };
    is_refused("a lease of both", thief.lease(&both).await, not_granted);
    is_refused("extend", thief.extend(&honest).await, not_granted);
    is_refused("progress", thief.progress(&honest, &progress).await, not_granted);
    is_refused("dead-letter", thief.dead_letter(&letter(&held.job)).await, not_granted);
    is_refused("record", thief.record(&result_of(&held.job)).await, not_granted);
    is_refused("settle", thief.settle(&honest, &Settlement::HandBack(Duration::ZERO)).await, not_granted);
    is_refused("policy", thief.queue_policy(&"q2".parse().unwrap()).await, not_granted);
    // The frame names no queue: the broker finds that of the job.
    let retract = Request::RetractDeadLetter(held.job.id, held.job.run_id);
    let mut raw = Raw::welcomed(&two.attacked.server.workers(), &two.keys[0], "raw").await;
    raw.send(&FromWorker::Request { id: 1, request: retract }).await;
    let frame = raw.from.next().await.unwrap().unwrap();
    match FromServer::decode(&frame).unwrap() {
        FromServer::Error { id: Some(1), error } => assert_eq!(&*error.slug, "forbidden"),
        other => panic!("a retraction is answered {other:?}"),
    }

    let unknown = &[Kind::NotFound, Kind::LeaseLost, Kind::Invalid];
    is_refused("extend, forged", thief.extend(&forged).await, unknown);
    is_refused("progress, forged", thief.progress(&forged, &progress).await, unknown);
    is_refused("dead-letter, forged", thief.dead_letter(&letter(&elsewhere)).await, unknown);
    is_refused("record, forged", thief.record(&result_of(&elsewhere)).await, unknown);
    for settlement in [Settlement::HandBack(Duration::ZERO), Settlement::RetryAfter(Duration::from_secs(1))] {
        is_refused("settle, forged", thief.settle(&forged, &settlement).await, unknown);
    }
    assert!(matches!(owner.extend(&honest).await.unwrap(), Held::Until(_)), "its holder has it still");
    assert_eq!(owner.record(&result_of(&held.job)).await.unwrap(), Recorded::First);
    owner.settle(&honest, &Settlement::Complete).await.unwrap();
}

#[tokio::test]
async fn one_lease_answers_no_more_bytes_than_its_bound_and_the_next_goes_on() {
    const JOBS: usize = 60;
    let two = Two::start(&[]);
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        jobs.push(two.submit("q1", 4 * MIB).await);
    }
    let before = two.attacked.peak();
    let worker = two.worker(0).await;
    let mut leased = Vec::new();
    while leased.len() < JOBS {
        let some = worker.lease(&request("q1", 1_024)).await.unwrap();
        let bytes: usize = some.iter().map(|delivery| delivery.job.payload.len()).sum();
        assert!((1..=ANSWER_MAX).contains(&bytes), "{} jobs of {bytes} bytes in one answer", some.len());
        leased.extend(some.into_iter().map(|delivery| delivery.job.id));
    }
    leased.sort_unstable();
    jobs.sort_unstable();
    assert_eq!(leased, jobs, "each once");
    let more = two.attacked.peak() - before;
    assert!(more < 8 * ANSWER_MAX, "{} MiB more", more / MIB);
}

#[tokio::test]
async fn workers_that_lease_and_do_not_read_hold_little_and_others_are_given_jobs() {
    const JOBS: usize = 90;
    let two = Two::start(&[]);
    let both = new_key(two.attacked.dir.path(), &["greedy", "--role", "worker"]);
    for _ in 0..JOBS {
        two.submit("q1", 4 * MIB).await;
    }
    let own = two.submit("q2", 1_000).await;
    let before = two.attacked.peak();
    let address = two.attacked.server.workers();
    let mut deaf = Vec::new();
    for number in 0..30 {
        let mut raw = Raw::welcomed(&address, &both, &format!("deaf-{number}")).await;
        for id in 0..20 {
            raw.send(&FromWorker::Request { id, request: Request::Lease(request("q1", 1_024)) }).await;
        }
        deaf.push(raw);
    }
    let worker = two.worker(1).await;
    let mine = worker.lease(&request("q2", 1)).await.unwrap().remove(0);
    assert_eq!(mine.job.id, own);
    assert_eq!(worker.record(&result_of(&mine.job)).await.unwrap(), Recorded::First);
    // Each of them has been answered, as far as it reads, once it is answered this.
    for raw in &mut deaf {
        raw.send(&FromWorker::Ping(7)).await;
    }
    for raw in &mut deaf {
        let mut bytes = 0;
        while bytes < MIB {
            let frame = raw.from.next().await.unwrap().unwrap();
            match FromServer::decode(&frame).unwrap() {
                FromServer::Pong(7) => break,
                FromServer::Response { response: Response::Deliveries { .. }, .. } => bytes += frame.len(),
                _ => {}
            }
        }
    }
    let more = two.attacked.peak() - before;
    assert!(more < POD_BYTES / 2, "{} MiB more", more / MIB);
}

#[tokio::test]
async fn frames_that_never_end_share_one_budget_and_workers_go_on() {
    const PEERS: usize = 60;
    let two = Two::start(&[]);
    let before = two.attacked.peak();
    let address = two.attacked.server.workers();
    let job = two.submit("q2", 10).await;
    let worker = two.worker(1).await;
    let held = worker.lease(&request("q2", 1)).await.unwrap().remove(0);
    assert_eq!(held.job.id, job);

    let mut peers = JoinSet::new();
    for number in 0..PEERS {
        let (address, key) = (address.clone(), two.keys[0].clone());
        peers.spawn(async move {
            let mut raw = Raw::welcomed(&address, &key, &format!("peer-{number}")).await;
            raw.to.write_u32(FRAME_MAX).await.unwrap();
            let mut sent = BytesMut::new();
            sent.put_bytes(0, 64 * 1024);
            // All but the end of it. A server that takes no more closes the connection.
            for _ in 0..16 * 16 {
                if raw.to.write_all(&sent).await.is_err() {
                    break;
                }
            }
            raw
        });
    }
    // Beside them: a heartbeat, and a result that is large enough to need the budget.
    assert!(matches!(worker.extend(&held.receipt).await.unwrap(), Held::Until(_)));
    let result = JobResult { payload: Bytes::from(vec![b'r'; 2 * MIB]), ..result_of(&held.job) };
    assert_eq!(worker.record(&result).await.unwrap(), Recorded::First);
    worker.settle(&held.receipt, &Settlement::Complete).await.unwrap();
    let peers = peers.join_all().await;
    let more = two.attacked.peak() - before;
    assert!(more < POD_BYTES / 2, "{} MiB more", more / MIB);
    drop(peers);
}

#[tokio::test]
async fn peers_that_say_no_hello_keep_no_worker_out() {
    const PEERS: usize = 1_100;
    let two = Two::start(&[]);
    let address = two.attacked.server.workers();
    let mut silent = Vec::new();
    for _ in 0..PEERS {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    let config =
        RemoteConfig { key: Some(two.keys[0].clone()), ..RemoteConfig::new(address.clone(), "host".parse().unwrap()) };
    let worker = Remote::connect(config).await.expect("a worker is let in beside them");
    two.submit("q1", 10).await;
    assert_eq!(worker.lease(&request("q1", 1)).await.unwrap().len(), 1);
    drop(silent);
}

#[tokio::test]
async fn the_connections_of_one_key_keep_no_worker_of_another_out() {
    /// As many as the listener takes.
    const ALL: usize = 1_024;
    // A line for each of them would fill the pipe, which nobody reads.
    let two = Two::start(&["--log", "warn"]);
    let address = two.attacked.server.workers();
    let mut greedy = Vec::new();
    for at in 0..ALL {
        greedy.push(Raw::welcomed(&address, &two.keys[0], &format!("g{at}")).await);
    }
    let worker = two.worker(1).await;
    two.submit("q2", 10).await;
    assert_eq!(worker.lease(&request("q2", 1)).await.unwrap().len(), 1);
    let told = greedy[ALL - 1].next().await;
    assert!(matches!(&told, FromServer::Error { id: None, error } if *error.slug == *"overloaded"), "{told:?}");
    two.submit("q1", 10).await;
    let still = FromWorker::Request { id: 1, request: Request::Lease(request("q1", 1)) };
    greedy[0].send(&still).await;
    let answer = greedy[0].next().await;
    assert!(matches!(answer, FromServer::Response { id: 1, .. }), "the others go on: {answer:?}");
}

#[tokio::test]
async fn the_leases_of_one_key_that_wait_keep_no_worker_of_another_from_its_jobs() {
    /// Together more than the embedded broker lets wait.
    const CONNECTIONS: usize = 70;
    const EACH: u64 = 250;
    let two = Two::start(&["--log", "warn"]);
    let address = two.attacked.server.workers();
    let mut greedy = Vec::new();
    for at in 0..CONNECTIONS {
        let mut raw = Raw::welcomed(&address, &two.keys[0], &format!("g{at}")).await;
        for id in 0..EACH {
            raw.send(&FromWorker::Request { id, request: Request::Lease(request("q1", 1)) }).await;
        }
        // Everything before it was read by the time it is answered.
        raw.send(&FromWorker::Ping(7)).await;
        greedy.push(raw);
    }
    let mut refused = 0;
    for raw in &mut greedy {
        loop {
            match raw.next().await {
                FromServer::Pong(7) => break,
                FromServer::Error { id: Some(_), error } => {
                    assert_eq!(&*error.slug, "overloaded", "{error:?}");
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let worker = two.worker(1).await;
    two.submit("q2", 10).await;
    assert_eq!(worker.lease(&request("q2", 1)).await.unwrap().len(), 1);
    assert!(refused > 0, "what is too much is refused at once");
    // One more of its own workers may lease as well.
    let mut late = Raw::welcomed(&address, &two.keys[0], "late").await;
    let once = LeaseRequest { wait: Duration::ZERO, ..request("q1", 1) };
    late.send(&FromWorker::Request { id: 1, request: Request::Lease(once) }).await;
    let answer = late.next().await;
    assert!(matches!(answer, FromServer::Response { id: 1, .. }), "{answer:?}");
}

#[tokio::test]
async fn a_worker_is_named_by_its_key_and_can_pose_as_no_other() {
    let mut two = Two::start(&["--admin", "127.0.0.1:0"]);
    two.submit("q1", 10).await;
    let mut raw = Raw::welcomed(&two.attacked.server.workers(), &two.keys[0], "two/host").await;
    let posing = LeaseRequest { worker: "two/host".parse().unwrap(), ..request("q1", 1) };
    raw.send(&FromWorker::Request { id: 1, request: Request::Lease(posing) }).await;
    raw.from.next().await.unwrap().unwrap();
    let line = two.attacked.server.wait_for_line("a worker connected");
    assert!(line.contains("one/two/host"), "{line}");
    let admin = two.attacked.server.ready["listening"]["admin"].as_str().unwrap().to_owned();
    let overview = crate::support::get(&admin, "/v1/overview");
    assert!(overview.contains("\"one/two/host\"") && !overview.contains("\"two/host\""), "{overview}");
}
