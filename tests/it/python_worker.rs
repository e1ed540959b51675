//! The worker in Python against a server that refuses and takes jobs away: it settles nothing before its result is there, and stops when
//! its lease is lost.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay_bridge::clock::Clock;
use relay_bridge::contract::Submission;
use relay_bridge::contract::envelope::{WireVersion, decode_result, encode_job};
use relay_bridge::contract::wire::{
    FRAME_MAX, FromServer, FromWorker, Request, Response, Welcome, WireDelivery, WireError,
};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

/// A server of workers that answers what a test says, and the one worker in Python that is connected to it.
struct Scripted {
    worker: Child,
    peer: TcpStream,
}

impl Scripted {
    fn start(command: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("workers/examples/worker.py");
        let address = listener.local_addr().unwrap().to_string();
        let mut worker = Command::new("python3");
        worker.arg(script).args([&address, "work", "--"]).args(command).stdout(Stdio::null());
        let worker = worker.spawn().unwrap();
        let (peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(LONG)).unwrap();
        let mut scripted = Self { worker, peer };
        assert!(matches!(scripted.read(), FromWorker::Hello(_)));
        scripted.send(&FromServer::Welcome(Welcome {
            version: 1,
            envelope_max: 2,
            frame_max: FRAME_MAX,
            requests_max: 64,
            ping: LONG,
            server_time: Clock::system().now(),
            build: "test".to_owned(),
        }));
        scripted
    }

    fn send(&mut self, message: &FromServer) {
        let mut frame = BytesMut::new();
        message.encode(&mut frame);
        self.peer.write_all(&frame).unwrap();
    }

    fn read(&mut self) -> FromWorker {
        let mut length = [0; 4];
        self.peer.read_exact(&mut length).unwrap();
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.peer.read_exact(&mut frame).unwrap();
        FromWorker::decode(&Bytes::from(frame)).unwrap()
    }

    fn request(&mut self) -> (u64, Request) {
        match self.read() {
            FromWorker::Request { id, request } => (id, request),
            other => panic!("no request: {other:?}"),
        }
    }

    fn respond(&mut self, id: u64, response: Response) {
        self.send(&FromServer::Response { id, response });
    }

    fn refuse(&mut self, id: u64, kind: BrokerErrorKind) {
        self.send(&FromServer::Error { id: Some(id), error: WireError::new(kind, "as the test says") });
    }

    /// Answers until the worker leases, and gives it a job that is leased for so long; a lease is refused once before.
    fn deliver(&mut self, lease: Duration) {
        let mut refused = false;
        loop {
            match self.request() {
                (id, Request::QueuePolicy(_)) => self.respond(id, Response::Policy(Box::default())),
                (id, Request::Lease(_)) if !refused => {
                    refused = true;
                    self.refuse(id, BrokerErrorKind::Overloaded { retry_after: Duration::from_millis(10) });
                }
                (id, Request::Lease(_)) => {
                    let deliveries = vec![delivery(lease)];
                    return self.respond(id, Response::Deliveries { deliveries, more: false });
                }
                (_, other) => panic!("no lease: {other:?}"),
            }
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.worker.kill().ok();
        self.worker.wait().ok();
    }
}

fn delivery(lease: Duration) -> WireDelivery {
    let submission = Submission {
        client: "shop".parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: None,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: BTreeMap::new(),
        payload: "hello".into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    let now = Clock::system().now();
    let job = submission.accept(&QueuePolicy::default(), now);
    WireDelivery {
        job: encode_job(&job, WireVersion::V2).into(),
        receipt: Receipt {
            job_id: job.id,
            run_id: job.run_id,
            client: job.client,
            queue: job.queue,
            token: b"token".to_vec(),
        },
        attempt: 1,
        leased_at: now,
        lease,
    }
}

#[test]
fn a_worker_in_python_settles_no_job_before_its_result_is_there() {
    let mut server = Scripted::start(&["tr", "a-z", "A-Z"]);
    server.deliver(LONG);
    for kind in [BrokerErrorKind::Unavailable, BrokerErrorKind::Ambiguous] {
        match server.request() {
            (id, Request::Record(_)) => server.refuse(id, kind),
            (_, other) => panic!("the result is not there, and it goes on with {other:?}"),
        }
    }
    let (id, Request::Record(result)) = server.request() else { panic!("no result") };
    assert_eq!(decode_result(&result).unwrap().payload, "HELLO");
    server.respond(id, Response::Recorded(Recorded::First));
    assert!(matches!(server.request(), (_, Request::Settle(_, Settlement::Complete))));
}

#[test]
fn a_worker_in_python_stops_a_command_whose_lease_is_lost_and_says_nothing_more_of_its_job() {
    let mut server = Scripted::start(&["sleep", "600"]);
    server.deliver(Duration::from_secs(2));
    let (id, Request::Extend(_)) = server.request() else { panic!("no heartbeat") };
    server.refuse(id, BrokerErrorKind::LeaseLost);
    match server.request() {
        (_, Request::Lease(_)) => {}
        (_, other) => panic!("the job is somebody else's, and it goes on with {other:?}"),
    }
}

const LONG: Duration = Duration::from_secs(60);
