//! The worker role over real sockets: the real `Remote` and raw bytes against the listener, with a small line of jobs
//! behind it. The broker itself is tested elsewhere.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use relay::auth::{Presented, Refused};
use relay::ingress::tcp::{WorkerAuth, WorkerGrant, WorkerLimits, WorkerListener};
use relay_bridge::contract::wire::{FRAME_MAX, FromServer, FromWorker, Hello, Request, Response, Role, WireError};
use relay_bridge::contract::{Failure, result::End};
use relay_bridge::contract::{Job, JobId, JobResult, Outcome, QueueName, RunId, Submission, Timestamp, WorkerId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_remote::stream::FrameReader;
use relay_remote::{Remote, RemoteConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A line of jobs that remembers what workers did. Every change can be awaited.
struct Line {
    seen: watch::Sender<Seen>,
    /// While it is set, records wait.
    gate: watch::Sender<bool>,
    waiting: Mutex<VecDeque<Job>>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    waiting: usize,
    asking: usize,
    dropped: usize,
    recording: usize,
    progress: Vec<Option<f32>>,
    recorded: Vec<JobResult>,
    letters: Vec<DeadLetter>,
    retracted: Vec<RunId>,
    settled: Vec<(JobId, Settlement)>,
}

impl Line {
    fn new() -> Arc<Self> {
        Arc::new(Self { seen: watch::Sender::default(), gate: watch::Sender::new(false), waiting: Mutex::default() })
    }

    fn put(&self, job: Job) {
        self.waiting.lock().unwrap().push_back(job);
        self.seen.send_modify(|seen| seen.waiting += 1);
    }

    async fn until(&self, what: impl FnMut(&Seen) -> bool) -> Seen {
        self.seen.subscribe().wait_for(what).await.unwrap().clone()
    }

    fn handed_back(seen: &Seen) -> usize {
        seen.settled.iter().filter(|(_, settlement)| matches!(settlement, Settlement::HandBack(_))).count()
    }
}

/// Counts a lease future that was dropped before it had an answer.
struct Asking<'a>(&'a Line, bool);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.seen.send_modify(|seen| {
            seen.asking -= 1;
            seen.dropped += usize::from(!self.1);
        });
    }
}

#[async_trait]
impl Leasing for Line {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        if request.queues[0].as_str() == "missing" {
            return Err(BrokerError::new(Kind::NotFound, "lease", "there is no such queue"));
        }
        self.seen.send_modify(|seen| seen.asking += 1);
        let mut asking = Asking(self, false);
        let arrived = async {
            self.seen.subscribe().wait_for(|seen| seen.waiting > 0).await.unwrap();
        };
        drop(tokio::time::timeout(request.wait, arrived).await);
        asking.1 = true;
        let mut waiting = self.waiting.lock().unwrap();
        let count = waiting.len().min(request.max.get() as usize);
        let jobs: Vec<Job> = waiting.drain(..count).collect();
        self.seen.send_modify(|seen| seen.waiting -= count);
        Ok(jobs
            .into_iter()
            .map(|job| Delivery { receipt: receipt_of(&job), attempt: 1, leased_at: now(), lease: LEASE, job })
            .collect())
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        match receipt.token[..] {
            [0] => Ok(Held::Ended(Outcome::Cancelled)),
            [1] => Err(BrokerError::new(Kind::LeaseLost, "extend", "the lease ended")),
            _ => Ok(Held::Until(LEASE)),
        }
    }

    async fn ended_early(&self, _: &Receipt) {
        std::future::pending().await
    }

    async fn progress(&self, _: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        self.seen.send_modify(|seen| seen.progress.push(progress.percent));
        Ok(())
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.seen.send_modify(|seen| seen.letters.push(letter.clone()));
        Ok(())
    }

    async fn retract_dead_letter(&self, _: JobId, run: RunId, _: Option<&[QueueName]>) -> Result<(), BrokerError> {
        self.seen.send_modify(|seen| seen.retracted.push(run));
        Ok(())
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.seen.send_modify(|seen| seen.recording += 1);
        self.gate.subscribe().wait_for(|closed| !closed).await.unwrap();
        let first = self.seen.borrow().recorded.iter().all(|other| other.run_id != result.run_id);
        self.seen.send_modify(|seen| seen.recorded.push(result.clone()));
        Ok(if first { Recorded::First } else { Recorded::Superseded(Outcome::Succeeded) })
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.seen.send_modify(|seen| seen.settled.push((receipt.job_id, settlement.clone())));
        Ok(())
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        match queue.as_str() {
            "missing" => Err(BrokerError::new(Kind::NotFound, "queue policy", "there is no such queue")),
            _ => Ok(QueuePolicy { max_attempts: 3, ..QueuePolicy::default() }),
        }
    }
}

/// One key, `k.secret`; it grants the queues `work` and `missing`.
struct OneKey;

impl WorkerAuth for OneKey {
    fn authorize<'a>(
        &'a self,
        _: &'a WorkerId,
        key: Option<&'a str>,
        _: Presented<'a>,
    ) -> BoxFuture<'a, Result<WorkerGrant, Refused>> {
        let queues = Some(vec!["work".parse().unwrap(), "missing".parse().unwrap()]);
        let granted = if key == Some("k.secret") {
            Ok(WorkerGrant { queues, ..WorkerGrant::default() })
        } else {
            Err(Refused::Unauthenticated("the key is not known".to_owned()))
        };
        Box::pin(std::future::ready(granted))
    }
}

/// A listener on a port of its own.
struct Served {
    address: SocketAddr,
    shutdown: CancellationToken,
    running: JoinSet<std::io::Result<()>>,
}

impl Served {
    async fn with(line: &Arc<Line>, limits: WorkerLimits) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), line, limits, Duration::ZERO)
    }

    async fn new(line: &Arc<Line>) -> Self {
        Self::with(line, WorkerLimits::default()).await
    }

    fn on(listener: TcpListener, line: &Arc<Line>, limits: WorkerLimits, drain: Duration) -> Self {
        let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let leasing: Arc<dyn Leasing> = Arc::clone(line) as _;
        let workers = WorkerListener::new(leasing, Arc::new(OneKey)).with_limits(limits);
        let mut running = JoinSet::new();
        running.spawn(workers.serve(vec![listener.into()], shutdown.clone(), drain));
        Self { address, shutdown, running }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.running.join_next().await.unwrap().unwrap().unwrap();
    }

    fn config(&self) -> RemoteConfig {
        let mut config = RemoteConfig::new(self.address.to_string(), "w1".parse().unwrap());
        config.key = Some("k.secret".to_owned());
        config
    }

    async fn remote(&self) -> Remote {
        Remote::connect(self.config()).await.unwrap()
    }
}

/// A worker that speaks in bytes.
struct Raw {
    from: FrameReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Raw {
    async fn connect(served: &Served) -> Self {
        let (from, to) = TcpStream::connect(served.address).await.unwrap().into_split();
        Self { from: FrameReader::new(from, FRAME_MAX), to }
    }

    async fn welcomed(served: &Served) -> Self {
        let mut raw = Self::connect(served).await;
        raw.send(&FromWorker::Hello(hello())).await;
        assert!(matches!(raw.next().await, Some(FromServer::Welcome(_))));
        raw
    }

    async fn send(&mut self, message: &FromWorker) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        self.to.write_all(&bytes).await.unwrap();
    }

    async fn next(&mut self) -> Option<FromServer> {
        self.from.next().await.unwrap().map(|frame| FromServer::decode(&frame).unwrap())
    }

    async fn refused(&mut self) -> WireError {
        match self.next().await.unwrap() {
            FromServer::Error { id: None, error } => {
                assert!(self.next().await.is_none(), "the connection is closed after it");
                error
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        envelope_max: 2,
        role: Role::Worker,
        worker: "raw".parse().unwrap(),
        key: Some("k.secret".to_owned()),
        build: "raw".to_owned(),
        frame_max: FRAME_MAX,
    }
}

const LEASE: Duration = Duration::from_secs(30);

fn now() -> Timestamp {
    Timestamp::from_millis(1_763_865_086_007)
}

fn job(payload: impl Into<Bytes>) -> Job {
    let submission = Submission {
        client: "acme".parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: None,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: [].into(),
        payload: payload.into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(&QueuePolicy::default(), now())
}

fn receipt_of(job: &Job) -> Receipt {
    let (client, queue) = (job.client.clone(), job.queue.clone());
    Receipt { job_id: job.id, run_id: job.run_id, client, queue, token: b"token".to_vec() }
}

fn request(queue: &str, max: u32, wait: Duration) -> LeaseRequest {
    let queues = vec![queue.parse().unwrap()];
    LeaseRequest { worker: "w1".parse().unwrap(), queues, max: max.try_into().unwrap(), wait }
}

fn result_of(job: &Job) -> JobResult {
    let end = End { attempt: 1, started_at: Some(now()), finished_at: now() };
    JobResult::succeeded(job, end, "text/plain", Bytes::from_static(b"done"))
}

const LONG: Duration = Duration::from_secs(50);

#[tokio::test]
async fn a_worker_does_everything_over_the_wire_that_it_may_do_at_the_broker() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let remote = served.remote().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let sent = job(every_byte);
    line.put(sent.clone());

    let delivery = remote.lease(&request("work", 4, LONG)).await.unwrap().remove(0);
    assert_eq!((&delivery.job, delivery.attempt, delivery.lease), (&sent, 1, LEASE));
    assert_eq!(delivery.receipt, receipt_of(&sent));
    assert_eq!(remote.extend(&delivery.receipt).await.unwrap(), Held::Until(LEASE));
    let ended = Receipt { token: vec![0], ..delivery.receipt.clone() };
    assert_eq!(remote.extend(&ended).await.unwrap(), Held::Ended(Outcome::Cancelled));
    let lost = Receipt { token: vec![1], ..delivery.receipt.clone() };
    assert_eq!(remote.extend(&lost).await.unwrap_err().kind(), Kind::LeaseLost);
    let progress = Progress { percent: Some(50.0), message: "half".to_owned() };
    remote.progress(&delivery.receipt, &progress).await.unwrap();
    let vague = Progress { percent: Some(f32::NAN), message: "x".repeat(100_000) };
    remote.progress(&delivery.receipt, &vague).await.unwrap();
    let failure = Failure::new("exit-code", "2");
    let letter = DeadLetter {
        job: sent.clone(),
        outcome: Outcome::Failed,
        attempt: 1,
        failure,
        at: now(),
        extra: Default::default(),
    };
    remote.dead_letter(&letter).await.unwrap();
    remote.retract_dead_letter(sent.id, sent.run_id, None).await.unwrap();
    assert_eq!(remote.record(&result_of(&sent)).await.unwrap(), Recorded::First);
    let again = remote.record(&result_of(&sent)).await.unwrap();
    assert_eq!(again, Recorded::Superseded(Outcome::Succeeded));
    remote.settle(&delivery.receipt, &Settlement::RetryAfter(Duration::from_micros(1))).await.unwrap();
    assert_eq!(remote.queue_policy(&sent.queue).await.unwrap().max_attempts, 3);
    let missing = remote.queue_policy(&"missing".parse().unwrap()).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    assert_eq!(remote.lease(&request("missing", 1, LONG)).await.unwrap_err().kind(), Kind::NotFound);
    assert!(remote.lease(&request("work", 1, Duration::ZERO)).await.unwrap().is_empty());

    let seen = line.seen.borrow().clone();
    assert_eq!(seen.progress, [Some(50.0), None]);
    assert_eq!((seen.letters, seen.retracted), (vec![letter], vec![sent.run_id]));
    assert_eq!(seen.recorded[0], result_of(&sent));
    assert_eq!(
        seen.settled,
        [(sent.id, Settlement::RetryAfter(Duration::from_millis(1)))],
        "rounded up, never to zero"
    );
    remote.close().await;
    served.stop().await;
}

#[tokio::test]
async fn a_queue_that_the_key_does_not_grant_is_refused_in_every_request() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let remote = served.remote().await;
    let foreign = Job { queue: "other".parse().unwrap(), ..job("x") };
    let receipt = receipt_of(&foreign);
    let letter = DeadLetter {
        job: foreign.clone(),
        outcome: Outcome::Failed,
        attempt: 1,
        failure: Failure::new("x", "y"),
        at: now(),
        extra: Default::default(),
    };
    let progress = Progress { percent: None, message: String::new() };
    let two =
        LeaseRequest { queues: vec!["work".parse().unwrap(), "other".parse().unwrap()], ..request("work", 1, LONG) };
    for refused in [
        remote.lease(&two).await.map(drop),
        remote.extend(&receipt).await.map(drop),
        remote.progress(&receipt, &progress).await,
        remote.dead_letter(&letter).await,
        remote.record(&result_of(&foreign)).await.map(drop),
        remote.settle(&receipt, &Settlement::Complete).await,
        remote.queue_policy(&foreign.queue).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), Kind::Unauthorized);
    }
    let seen = line.seen.borrow().clone();
    assert!(seen.settled.is_empty() && seen.recorded.is_empty() && seen.letters.is_empty());
}

#[tokio::test]
async fn a_job_of_a_queue_that_the_key_does_not_grant_goes_back_unseen() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let remote = served.remote().await;
    let (foreign, own) = (Job { queue: "other".parse().unwrap(), ..job("x") }, job("y"));
    line.put(foreign.clone());
    line.put(own.clone());
    let mut given = remote.lease(&request("work", 1, LONG)).await.unwrap();
    given.extend(remote.lease(&request("work", 1, LONG)).await.unwrap());
    assert_eq!(given.iter().map(|delivery| delivery.job.id).collect::<Vec<_>>(), [own.id]);
    let seen = line.until(|seen| !seen.settled.is_empty()).await;
    assert_eq!(seen.settled, [(foreign.id, Settlement::HandBack(Duration::ZERO))]);
}

#[tokio::test]
async fn a_wrong_key_is_told_so_and_nothing_else_is_served() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let config = RemoteConfig { key: Some("k.guess".to_owned()), ..served.config() };
    assert_eq!(Remote::connect(config).await.unwrap_err().kind(), Kind::Unauthorized);
    let mut raw = Raw::connect(&served).await;
    raw.send(&FromWorker::Hello(Hello { key: None, ..hello() })).await;
    assert_eq!(&*raw.refused().await.slug, "unauthenticated");
}

#[tokio::test]
async fn the_server_says_nothing_before_the_worker_and_closes_after_a_while() {
    let limits = WorkerLimits { hello_timeout: Duration::from_millis(50), ..WorkerLimits::default() };
    let served = Served::with(&Line::new(), limits).await;
    let mut raw = Raw::connect(&served).await;
    assert_eq!(&*raw.refused().await.slug, "request-timeout");
}

#[tokio::test]
async fn what_is_no_hello_is_refused_in_words() {
    let served = Served::new(&Line::new()).await;
    let mut http = TcpStream::connect(served.address).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n").await.unwrap();
    let mut told = String::new();
    http.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("relay's TCP protocol and no HTTP"), "{told}");
    let mut secure = Raw::connect(&served).await;
    secure.to.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).await.unwrap();
    assert!(secure.refused().await.detail.contains("speaks TLS"));

    let mut garbage = Raw::connect(&served).await;
    garbage.to.write_all(&[0, 0, 0, 3, 0xc1, 0xc1, 0xc1]).await.unwrap();
    assert_eq!(garbage.refused().await.broker_kind(), Kind::Invalid);

    let mut eager = Raw::connect(&served).await;
    eager.send(&FromWorker::Ping(1)).await;
    assert!(eager.refused().await.detail.contains("hello"));

    let mut future = Raw::connect(&served).await;
    future.send(&FromWorker::Hello(Hello { version_min: 7, version_max: 9, ..hello() })).await;
    assert_eq!(future.refused().await.broker_kind(), Kind::NewerVersion { found: 7, newest: 1 });
}

#[tokio::test]
async fn a_message_that_is_not_understood_is_answered_and_the_connection_goes_on() {
    let served = Served::new(&Line::new()).await;
    let mut raw = Raw::welcomed(&served).await;
    // {"type": "juggle", "id": 5}
    raw.to.write_all(b"\0\0\0\x11\x82\xa4type\xa6juggle\xa2id\x05").await.unwrap();
    let Some(FromServer::Error { id: Some(5), error }) = raw.next().await else { panic!("no typed error") };
    assert_eq!((&*error.kind, &*error.slug, error.retry.as_str()), ("invalid", "malformed-request", "no"));
    raw.send(&FromWorker::Ping(8)).await;
    assert_eq!(raw.next().await, Some(FromServer::Pong(8)));

    raw.to.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    assert_eq!(raw.refused().await.broker_kind(), Kind::Invalid, "a frame that is too long can't be skipped");
}

#[tokio::test]
async fn requests_beyond_the_grant_are_answered_overloaded_and_lose_nothing() {
    let line = Line::new();
    let limits = WorkerLimits { requests_max: 2, ..WorkerLimits::default() };
    let served = Served::with(&line, limits).await;
    let mut raw = Raw::welcomed(&served).await;
    let mut flood = BytesMut::new();
    for id in 0..500 {
        FromWorker::Request { id, request: Request::Lease(request("work", 1, LONG)) }.encode(&mut flood);
    }
    raw.to.write_all(&flood).await.unwrap();
    for _ in 2..500 {
        let Some(FromServer::Error { id: Some(2..), error }) = raw.next().await else { panic!("not refused") };
        assert_eq!((&*error.slug, error.retry.as_str()), ("overloaded", "safe"));
    }
    line.until(|seen| seen.asking == 2).await;
    line.put(job("x"));
    let Some(FromServer::Response { id: 0 | 1, response: Response::Deliveries { deliveries, more: false } }) =
        raw.next().await
    else {
        panic!("a granted request is answered")
    };
    assert_eq!(deliveries.len(), 1);
}

#[tokio::test]
async fn a_peer_that_falls_silent_loses_its_connection_and_its_waiting_lease() {
    let line = Line::new();
    let limits = WorkerLimits { ping: Duration::from_millis(200), ..WorkerLimits::default() };
    let served = Served::with(&line, limits).await;
    let mut raw = Raw::welcomed(&served).await;
    raw.send(&FromWorker::Request { id: 1, request: Request::Lease(request("work", 1, LONG)) }).await;
    let mut pings = 0;
    while let Some(message) = raw.next().await {
        pings += u32::from(matches!(message, FromServer::Ping(_)));
    }
    assert_eq!(pings, 3, "it was asked first");
    line.until(|seen| seen.dropped == 1 && seen.asking == 0).await;
}

#[tokio::test]
async fn a_connection_that_dies_drops_its_waiting_lease() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let mut raw = Raw::welcomed(&served).await;
    raw.send(&FromWorker::Request { id: 1, request: Request::Lease(request("work", 1, LONG)) }).await;
    line.until(|seen| seen.asking == 1).await;
    drop(raw);
    line.until(|seen| seen.dropped == 1 && seen.asking == 0).await;
}

#[tokio::test]
async fn a_dropped_lease_future_is_cancelled_at_the_broker() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let remote = served.remote().await;
    {
        let lease = request("work", 1, LONG);
        let mut waiting = remote.lease(&lease);
        tokio::select! {
            _ = &mut waiting => panic!("there is no job"),
            _ = line.until(|seen| seen.asking == 1) => {}
        }
    }
    line.until(|seen| seen.asking == 0).await;
    line.put(job("x"));
    assert_eq!(remote.lease(&request("work", 1, LONG)).await.unwrap().len(), 1, "nobody else took it");
}

#[tokio::test]
async fn dropping_lease_futures_at_any_moment_loses_no_job() {
    const JOBS: usize = 300;
    let line = Line::new();
    let served = Served::new(&line).await;
    let remote = served.remote().await;
    let mut taken = 0;
    for round in 0..JOBS {
        line.put(job("x"));
        let lease = request("work", 1, LONG);
        // Polled a different number of times before it is dropped: before it is sent, while it waits, when it is answered.
        let mut polls = 0;
        let leased = tokio::select! {
            biased;
            leased = remote.lease(&lease) => leased.unwrap().len(),
            () = std::future::poll_fn(|context| {
                polls += 1;
                context.waker().wake_by_ref();
                if polls > round % 23 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            }) => 0,
        };
        taken += leased;
    }
    // Every job was taken by a caller, was handed back, or is still in line.
    remote.close().await;
    served.stop().await;
    let seen = line.seen.borrow().clone();
    assert_eq!(taken + Line::handed_back(&seen) + seen.waiting, JOBS, "{taken} taken, {} in line", seen.waiting);
}

#[tokio::test]
async fn a_worker_that_does_not_read_gets_its_deliveries_taken_back() {
    const JOBS: usize = 200;
    let line = Line::new();
    let limits = WorkerLimits { write_timeout: Duration::from_millis(100), ..WorkerLimits::default() };
    let served = Served::with(&line, limits).await;
    for _ in 0..JOBS {
        line.put(job(vec![7; 256 * 1024]));
    }
    let mut raw = Raw::welcomed(&served).await;
    raw.send(&FromWorker::Request { id: 1, request: Request::Lease(request("work", 200, LONG)) }).await;
    line.until(|seen| Line::handed_back(seen) > 0).await;
    drop(raw);
    served.stop().await;
    let seen = line.seen.borrow().clone();
    assert!(Line::handed_back(&seen) > JOBS / 2, "{} came back", Line::handed_back(&seen));
}

#[tokio::test]
async fn a_lease_larger_than_a_frame_comes_whole() {
    let line = Line::new();
    let served = Served::with(&line, WorkerLimits { frame_max: 512 * 1024, ..WorkerLimits::default() }).await;
    let remote = served.remote().await;
    let large = job(vec![1; 600 * 1024]);
    line.put(large.clone());
    let jobs: Vec<Job> = (0..20).map(|size| job(vec![2; size * 13_000])).collect();
    jobs.iter().for_each(|job| line.put(job.clone()));
    let leased = remote.lease(&request("work", 64, LONG)).await.unwrap();
    assert_eq!(leased.into_iter().map(|delivery| delivery.job).collect::<Vec<_>>(), jobs);
    let seen = line.until(|seen| !seen.settled.is_empty()).await;
    assert_eq!(seen.settled, [(large.id, Settlement::HandBack(Duration::from_secs(30)))], "no frame holds it");
    let result = JobResult { payload: vec![3; 600 * 1024].into(), ..result_of(&large) };
    assert!(matches!(remote.record(&result).await.unwrap_err().kind(), Kind::TooLarge { limit: 524_288, .. }));
}

#[tokio::test]
async fn a_remote_comes_back_after_its_server_and_its_receipts_stay_good() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let address = served.address;
    let remote = served.remote().await;
    line.put(job("x"));
    let delivery = remote.lease(&request("work", 1, LONG)).await.unwrap().remove(0);
    served.stop().await;

    let listener = TcpListener::bind(address).await.unwrap();
    let _served = Served::on(listener, &line, WorkerLimits::default(), Duration::ZERO);
    // A request that meets the end of the old connection is told so and may be repeated.
    while let Err(error) = remote.settle(&delivery.receipt, &Settlement::Complete).await {
        assert!(error.is_transient(), "{error}");
    }
    let settled = line.seen.borrow().settled.clone();
    assert_eq!(settled.last().unwrap(), &(delivery.job.id, Settlement::Complete));
}

#[tokio::test]
async fn a_request_that_was_sent_when_the_connection_broke_is_ambiguous_and_a_later_one_unavailable() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let config = RemoteConfig { request_timeout: Duration::from_secs(2), ..served.config() };
    let remote = Remote::connect(config).await.unwrap();
    line.gate.send_replace(true);
    let sent = job("x");
    let result = result_of(&sent);
    let record = remote.record(&result);
    let broken = async {
        line.until(|seen| seen.recording == 1).await;
        served.stop().await;
    };
    let (recorded, ()) = tokio::join!(record, broken);
    assert_eq!(recorded.unwrap_err().kind(), Kind::Ambiguous);
    let later = remote.settle(&receipt_of(&sent), &Settlement::Complete).await;
    assert_eq!(later.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_drain_answers_waiting_leases_and_lets_held_jobs_be_settled() {
    let line = Line::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut served = Served::on(listener, &line, WorkerLimits::default(), LONG);
    let config = RemoteConfig { request_timeout: Duration::from_secs(2), ..served.config() };
    let remote = Remote::connect(config).await.unwrap();
    line.put(job("x"));
    let delivery = remote.lease(&request("work", 1, LONG)).await.unwrap().remove(0);
    let lease = request("work", 1, LONG);
    let stop = async {
        line.until(|seen| seen.asking == 1).await;
        served.shutdown.cancel();
    };
    let (waiting, ()) = tokio::join!(remote.lease(&lease), stop);
    assert!(waiting.unwrap().is_empty(), "a waiting lease is answered");
    assert_eq!(remote.lease(&lease).await.unwrap_err().kind(), Kind::Unavailable, "no new one is taken");
    assert!(TcpStream::connect(served.address).await.is_err(), "nobody is let in");
    assert!(served.running.try_join_next().is_none(), "it waits for the job that is held");
    remote.record(&result_of(&delivery.job)).await.unwrap();
    remote.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    served.running.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_that_takes_too_long_closes_every_connection() {
    let line = Line::new();
    let served = Served::new(&line).await;
    let mut raw = Raw::welcomed(&served).await;
    line.put(job("x"));
    raw.send(&FromWorker::Request { id: 1, request: Request::Lease(request("work", 1, LONG)) }).await;
    assert!(matches!(raw.next().await, Some(FromServer::Response { .. })));
    served.stop().await;
    let mut rest = Vec::new();
    raw.from.inner_mut().read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn an_old_connection_is_told_to_go_and_does_not_wait_for_the_jobs_that_its_worker_holds() {
    let line = Line::new();
    let limits = WorkerLimits { max_age: Duration::from_millis(100), ..WorkerLimits::default() };
    let served = Served::with(&line, limits).await;
    line.put(job("held"));
    let mut raw = Raw::welcomed(&served).await;
    raw.send(&FromWorker::Request { id: 1, request: Request::Lease(request("work", 1, LONG)) }).await;
    let receipt = match raw.next().await {
        Some(FromServer::Response { id: 1, response: Response::Deliveries { mut deliveries, .. } }) => {
            deliveries.remove(0).receipt
        }
        other => panic!("{other:?}"),
    };
    match raw.next().await {
        Some(FromServer::GoAway { reason, .. }) => assert_eq!(reason, "old"),
        other => panic!("{other:?}"),
    }
    assert!(raw.next().await.is_none(), "closed, although the job is held");
    // Its lease goes on over another connection.
    assert_eq!(served.remote().await.extend(&receipt).await.unwrap(), Held::Until(LEASE));
}
