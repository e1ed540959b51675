//! Peers of the worker listener: they touch no queue that their key does not grant.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay::client::{Client, NewJob};
use relay_bridge::contract::result::End;
use relay_bridge::contract::wire::{FRAME_MAX, FromServer, FromWorker, Hello, Request, Role};
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

use crate::support::{Attacked, new_key};

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
            queue: queue.parse().unwrap(),
            key: None,
            content_type: "text/plain".to_owned(),
            payload: Bytes::from(vec![b'x'; bytes]),
            delay: None,
            expires_in: None,
            meta: Default::default(),
        };
        self.client.submit(&job, None).await.unwrap().job_id()
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
