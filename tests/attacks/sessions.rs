//! A credential that was taken away, or may do less than it could, ends what was begun with it: streams, waits and the
//! sessions of workers. Each attack goes on with what it had open.

use std::num::NonZeroU32;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use relay_bridge::contract::wire::{FRAME_MAX, FromServer, FromWorker, Hello, Request, Response, Role};
use relay_bridge::leasing::LeaseRequest;
use relay_remote::stream::FrameReader;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::cli_support::{code, run, stderr};
use crate::support::{Attacked, new_key};
use crate::talk::{Asked, Hands, ask, stream, submit};

/// Streams would end by themselves after about so long, and waits: a test that fails says so soon.
const SERVED: [&str; 8] = ["--queue", "q1", "--queue", "q2", "--follow-for", "10s", "--lease", "2s"];

/// `relay keys` with the keys of the server.
fn keys(attacked: &Attacked, args: &[&str]) {
    let file = attacked.dir.path().join("keys.toml");
    let done = run(["keys"].iter().chain(args).chain(&["--file", file.to_str().unwrap()]));
    assert_eq!(code(&done), 0, "{}", stderr(&done));
}

/// Changes the text of `keys.toml`, as an editor does.
fn edit(attacked: &Attacked, from: &str, to: &str) {
    let file = attacked.dir.path().join("keys.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

fn id(key: &str) -> &str {
    key.split('_').nth(1).unwrap()
}

/// Returns once the server has seen the file as it is now: a key that was just made is looked for at once.
async fn seen(attacked: &Attacked) {
    let fresh = new_key(attacked.dir.path(), &["somebody"]);
    assert_eq!(ask(attacked, &fresh, "GET /v1/whoami", &[], "").await.status, 200);
}

/// A server with two queues, a key of `shop` that stays, and a worker.
async fn server() -> (Attacked, String, Hands) {
    let dir = tempfile::tempdir().unwrap();
    let stays = new_key(dir.path(), &["shop"]);
    let worker = new_key(dir.path(), &["hands", "--role", "worker"]);
    let attacked = Attacked::start_in(dir, &SERVED);
    let hands = Hands::connect(&attacked, &worker).await;
    (attacked, stays, hands)
}

#[tokio::test]
async fn streams_end_with_their_key_whatever_ends_it() {
    type Change = fn(&Attacked, &str);
    let changes: [(&str, Change); 4] = [
        ("revoked", |attacked, key| keys(attacked, &["revoke", id(key)])),
        ("expired", |attacked, key| keys(attacked, &["rotate", id(key), "--keep", "1s"])),
        ("a queue less", |attacked, _| edit(attacked, "queues = [\"q1\", \"q2\"]", "queues = [\"q1\"]")),
        ("another role", |attacked, key| {
            let head = format!("id = \"{}\"", id(key));
            let text = std::fs::read_to_string(attacked.dir.path().join("keys.toml")).unwrap();
            let entry = &text[text.find(&head).unwrap()..];
            let entry = entry.split("\n\n").next().unwrap();
            edit(attacked, entry, &entry.replace("role = \"client\"", "role = \"worker\""));
        }),
    ];
    let (attacked, stays, hands) = server().await;
    for (number, (what, change)) in changes.into_iter().enumerate() {
        let key = new_key(attacked.dir.path(), &["shop", "--queue", "q1", "--queue", "q2"]);
        let job = submit(&attacked, &stays, "q1", &format!("watched-{number}"), "x").await;
        let follower = stream(&attacked, &key, "/v1/results?after=now").await;
        let mut watcher = stream(&attacked, &key, &format!("/v1/jobs/{job}/events")).await;
        watcher.until("event: snapshot").await;
        change(&attacked, &key);
        let (follower, watcher) = tokio::join!(follower.rest(), watcher.rest());
        for (which, text) in [("results", follower), ("events", watcher)] {
            assert!(text.contains("event: problem"), "{what}, {which}: {text}");
            assert!(text.contains("\"slug\":\"unauthenticated\""), "{what}, {which}: {text}");
        }
        hands.work("q1", "done").await;
    }
}

#[tokio::test]
async fn streams_end_with_the_list_that_let_them_in() {
    let dir = tempfile::tempdir().unwrap();
    let (listed, free) = (new_key(dir.path(), &["shop"]), new_key(dir.path(), &["other"]));
    let clients = dir.path().join("clients.toml");
    let block = "[[client]]\nname = \"shop\"\nany = [[\"key\"]]\n";
    std::fs::write(&clients, block).unwrap();
    let more = [&SERVED[..], &["--clients", clients.to_str().unwrap()]].concat();
    let attacked = Attacked::start_in(dir, &more);
    let follower = stream(&attacked, &listed, "/v1/results?after=now").await;
    let mut stays = stream(&attacked, &free, "/v1/results?after=now").await;
    std::fs::write(&clients, block.replace("\"key\"", "\"key\", { vpce = [\"vpce-0a1b2c3d\"] }")).unwrap();
    let text = follower.rest().await;
    assert!(text.contains("event: problem") && text.contains("\"slug\":\"unauthenticated\""), "{text}");
    assert_eq!(ask(&attacked, &listed, "GET /v1/whoami", &[], "").await.status, 403);
    submit(&attacked, &free, "q1", "", "x").await;
    let hands = Hands::connect(&attacked, &new_key(attacked.dir.path(), &["hands", "--role", "worker"])).await;
    hands.work("q1", "done").await;
    stays.until(&STANDARD.encode("done")).await;
}

#[tokio::test]
async fn nothing_is_delivered_on_a_stream_whose_key_was_revoked() {
    let (attacked, stays, hands) = server().await;
    let stolen = new_key(attacked.dir.path(), &["shop"]);
    let mut follower = stream(&attacked, &stolen, "/v1/results?after=now").await;
    submit(&attacked, &stays, "q1", "", "x").await;
    hands.work("q1", "before").await;
    follower.until(&STANDARD.encode("before")).await;
    keys(&attacked, &["revoke", id(&stolen)]);
    seen(&attacked).await;
    for _ in 0..3 {
        submit(&attacked, &stays, "q1", "", "x").await;
        hands.work("q1", "afterwards").await;
    }
    let rest = follower.rest().await;
    assert!(!rest.contains(&STANDARD.encode("afterwards")), "{rest}");
}

#[tokio::test]
async fn a_change_that_takes_nothing_away_ends_nothing() {
    let (attacked, stays, hands) = server().await;
    let key = new_key(attacked.dir.path(), &["shop", "--queue", "q1"]);
    let mut follower = stream(&attacked, &key, "/v1/results?after=now").await;
    edit(&attacked, "queues = [\"q1\"]", "queues = [\"q2\", \"q1\"]");
    seen(&attacked).await;
    let head = format!("id = \"{}\"", id(&key));
    edit(&attacked, &head, &format!("# a comment\n{head}\nexpires = \"2100-01-01T00:00:00.000Z\""));
    seen(&attacked).await;
    submit(&attacked, &stays, "q1", "", "x").await;
    hands.work("q1", "goes on").await;
    let read = follower.until(&STANDARD.encode("goes on")).await;
    assert!(!read.contains("event: problem"), "{read}");
}

#[tokio::test]
async fn waits_end_with_their_key_and_an_accepted_job_keeps_its_receipt() {
    let (attacked, stays, _) = server().await;
    let stolen = new_key(attacked.dir.path(), &["shop"]);
    let job = submit(&attacked, &stays, "q1", "first", "x").await;
    let result = format!("GET /v1/jobs/{job}/result?wait=10s");
    let of_job = Asked::send(&attacked, &stolen, &result, &[], "").await;
    let page = Asked::send(&attacked, &stolen, "GET /v1/results?wait=10s", &[], "").await;
    let submitting = ["prefer: wait=10", "idempotency-key: second"];
    let submitting = Asked::send(&attacked, &stolen, "POST /v1/queues/q1/jobs", &submitting, "y").await;
    let by_key = "GET /v1/queues/q1/jobs?key=second";
    while ask(&attacked, &stays, by_key, &[], "").await.status == 404 {}
    keys(&attacked, &["revoke", id(&stolen)]);
    for (which, asked) in [("result", of_job), ("page", page)] {
        let answer = asked.answer().await;
        assert_eq!((answer.status, &*answer.field("slug")), (401, "unauthenticated"), "{which}: {answer:?}");
    }
    let receipt = submitting.answer().await;
    assert_eq!((receipt.status, &*receipt.field("state")), (202, "queued"), "what was accepted is said to be");
    assert_eq!(receipt.field("job_id"), ask(&attacked, &stays, by_key, &[], "").await.field("job_id"));
}

/// A worker that speaks in bytes.
struct Raw {
    from: FrameReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Raw {
    async fn welcomed(attacked: &Attacked, key: &str) -> Self {
        let (from, to) = TcpStream::connect(attacked.server.workers()).await.unwrap().into_split();
        let mut raw = Self { from: FrameReader::new(from, FRAME_MAX), to };
        raw.send(&FromWorker::Hello(Hello {
            version_min: 1,
            version_max: 1,
            envelope_max: 2,
            role: Role::Worker,
            worker: "raw".parse().unwrap(),
            key: Some(key.to_owned()),
            build: "raw".to_owned(),
            frame_max: FRAME_MAX,
        }))
        .await;
        assert!(matches!(raw.next().await, Some(FromServer::Welcome(_))));
        raw
    }

    async fn send(&mut self, message: &FromWorker) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        self.to.write_all(&bytes).await.unwrap();
    }

    async fn lease(&mut self, id: u64, queue: &str) {
        let (worker, queues) = ("raw".parse().unwrap(), vec![queue.parse().unwrap()]);
        let request = LeaseRequest { worker, queues, max: NonZeroU32::MIN, wait: Duration::from_secs(10) };
        self.send(&FromWorker::Request { id, request: Request::Lease(request) }).await;
    }

    async fn next(&mut self) -> Option<FromServer> {
        self.from.next().await.unwrap().map(|frame| FromServer::decode(&frame).unwrap())
    }
}

#[tokio::test]
async fn a_workers_session_ends_with_its_key_and_its_lease_runs_out() {
    let (attacked, client, hands) = server().await;
    let stolen = new_key(attacked.dir.path(), &["thief", "--role", "worker"]);
    let mut raw = Raw::welcomed(&attacked, &stolen).await;
    let job = submit(&attacked, &client, "q1", "", "x").await;
    raw.lease(1, "q1").await;
    let leased = raw.next().await;
    let deliveries = match &leased {
        Some(FromServer::Response { response: Response::Deliveries { deliveries, .. }, .. }) => deliveries.len(),
        _ => 0,
    };
    assert_eq!(deliveries, 1, "{leased:?}");
    raw.lease(2, "q2").await;
    keys(&attacked, &["revoke", id(&stolen)]);
    match raw.next().await {
        Some(FromServer::Error { id: None, error }) => {
            assert_eq!(&*error.kind, "unauthorized", "{error:?}");
        }
        other => panic!("the session goes on: {other:?}"),
    }
    assert!(raw.next().await.is_none(), "the connection is closed");
    let again = hands.take("q1").await;
    assert_eq!((again.job.id.to_string(), again.attempt), (job, 2), "the job is another worker's");
}
