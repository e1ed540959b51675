//! The Rust client against a real relay: the same calls over both protocols, and what is between is lost, replaced or refused.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{StreamExt as _, stream};
use relay::api::Slug;
use relay::client::{Client, ClientError, NewJob, Patience, Payload, ResultsFilter, Submitted};
use relay::ingress::tcp::client::ClientLimits;
use relay_bridge::contract::wire::FRAME_MAX;
use relay_bridge::contract::wire::client::{FromClient, Request, ToClient, Welcome};
use relay_bridge::contract::{Outcome, Timestamp};
use relay_remote::stream::FrameReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::support::Door;
use crate::http::support::{Relay, Setup};

const LONG: Duration = Duration::from_secs(60);

/// A client over each protocol.
fn both(relay: &Relay, door: &Door) -> [Client; 2] {
    let addresses = [format!("http://{}", relay.address), format!("relay://{}", door.address)];
    addresses.map(|address| Client::new(&address, None).unwrap())
}

fn mail(payload: impl Into<bytes::Bytes>) -> NewJob {
    NewJob::new("mail".parse().unwrap(), payload)
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        frame_max: FRAME_MAX,
        requests_max: 16,
        bytes_max: 1 << 20,
        wait_max: LONG,
        ping: LONG,
        client: "dev".parse().unwrap(),
        server_time: Timestamp::EPOCH,
        build: "test".to_owned(),
    }
}

/// Copies bytes to whoever is the target when a connection comes.
struct Through {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Through {
    /// Of the first connection no more answers come than `answers` reads of them; then it ends.
    async fn to(target: SocketAddr, answers: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, seen) = watch::channel(target);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut connections, mut answers) = (JoinSet::new(), answers);
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let target = *seen.borrow();
                let mut server = TcpStream::connect(target).await.unwrap();
                let cut = answers.take();
                connections.spawn(async move {
                    match cut {
                        None => drop(copy_bidirectional(&mut client, &mut server).await),
                        Some(answers) => cut_after(client, server, answers).await,
                    }
                });
            }
        });
        Self { address, target, _tasks: tasks }
    }
}

/// Lets `answers` reads of answers through; the next answer is lost with the connection.
async fn cut_after(mut client: TcpStream, mut server: TcpStream, mut answers: usize) {
    let (mut asked, mut answered) = ([0; 4096], [0; 4096]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(count) if count > 0 => server.write_all(&asked[..count]).await.unwrap(),
                _ => return,
            },
            read = server.read(&mut answered) => match (read, answers) {
                (Ok(count), 1..) if count > 0 => {
                    answers -= 1;
                    client.write_all(&answered[..count]).await.unwrap();
                }
                _ => return,
            },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_means_the_same_over_both_protocols() {
    let (relay, door) = Door::start().await;
    for client in both(&relay, &door) {
        assert_eq!(client.whoami().await.unwrap().client.as_str(), "dev");
        let Submitted::Accepted(receipt) = client.submit(&mail("")).await.unwrap() else { panic!("no receipt") };
        assert!(receipt.key.is_some(), "a key was made");
        assert_eq!(client.wait(receipt.job_id, Duration::ZERO).await.unwrap(), None);
        assert_eq!(client.wait(receipt.job_id, Duration::from_millis(200)).await.unwrap(), None, "its time is up");
        assert_eq!(client.cancel(receipt.job_id).await.unwrap().outcome, Some(Outcome::Cancelled));
        assert_eq!(client.status(receipt.job_id).await.unwrap().outcome, Some(Outcome::Cancelled));
        assert_eq!(client.rerun(receipt.job_id, 1).await.unwrap().generation, 2);
        client.cancel(receipt.job_id).await.unwrap();

        let most = mail(vec![b'x'; 1_000]);
        let (ran, delivery) = tokio::join!(client.run(&most, LONG), relay.work("text/plain", "done"));
        let Submitted::Finished(result) = ran.unwrap() else { panic!("no result") };
        assert_eq!((result.outcome, &*result.payload), (Outcome::Succeeded, &b"done"[..]));
        assert_eq!(result.job_id, delivery.job.id);
        assert_eq!(client.wait(result.job_id, LONG).await.unwrap().unwrap().run_id, result.run_id);

        let refused = client.submit(&mail(vec![0; 1_001])).await;
        let Err(ClientError::Refused { problem, .. }) = refused else { panic!("taken: {refused:?}") };
        assert_eq!(problem.slug, Slug::PayloadTooLarge);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_gives_up_runs_a_job_and_waits_for_its_result() {
    let (relay, door) = Door::start().await;
    for client in both(&relay, &door) {
        let client = client.patient(Patience { give_up_after: Duration::MAX, ..Patience::default() });
        for within in [LONG, Duration::MAX] {
            let job = mail("x");
            let (ran, _) = tokio::join!(client.run(&job, within), relay.work("text/plain", "done"));
            let Submitted::Finished(result) = ran.unwrap() else { panic!("no result within {within:?}") };
            assert_eq!(client.wait(result.job_id, within).await.unwrap().unwrap().run_id, result.run_id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_go_on_behind_what_was_taken_and_come_again_if_it_was_not_committed() {
    let (relay, door) = Door::start().await;
    let clients = both(&relay, &door);
    for payload in ["a", "b", "c"] {
        clients[0].submit(&mail(payload)).await.unwrap();
        relay.work("text/plain", payload).await;
    }
    for client in clients {
        let mut results = client.results(ResultsFilter::default());
        let a = results.next().await.unwrap().unwrap();
        let b = results.next().await.unwrap().unwrap();
        assert_eq!((&a.payload, &b.payload), (&Payload::Here("a".into()), &Payload::Here("b".into())));
        results.commit(a.view.cursor);
        results.rewind();
        assert_eq!(results.next().await.unwrap().unwrap().view.run_id, b.view.run_id, "it was not committed");
        assert_eq!(results.next().await.unwrap().unwrap().payload, Payload::Here("c".into()));

        let after = results.committed().map(str::to_owned);
        let page = client.page(&ResultsFilter::after(after)).await.unwrap();
        assert!(!page.entries.is_empty() && page.entries[0].run_id == b.view.run_id, "{page:?}");
        let end = client.page(&ResultsFilter::after(Some("now".to_owned()))).await.unwrap();
        let none = client.page(&ResultsFilter::after(Some(end.next.clone()))).await.unwrap();
        assert_eq!((none.entries.len(), none.next), (0, end.next));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_the_protocol_has_not_are_refused_before_anything_is_sent() {
    let client = Client::new("relay://127.0.0.1:9", None).unwrap();
    let job = "018f6f6e-0000-7000-8000-000000000000".parse().unwrap();
    assert!(matches!(client.erase(job).await, Err(ClientError::Unsupported { call: "erase" })));
    let queue = "mail".parse().unwrap();
    assert!(matches!(client.by_key(&queue, "k").await, Err(ClientError::Unsupported { .. })));
    for address in ["relay://", "relays://relay.example", "ftp://relay.example:1", "127.0.0.1:7410", ""] {
        assert!(matches!(Client::new(address, None), Err(ClientError::Invalid(_))), "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_after_acceptance_gives_one_job() {
    let (relay, door) = Door::start().await;
    // Over TCP the welcome comes through, and the receipt does not.
    for (scheme, target, answers, jobs) in [("http", relay.address, 0, 1), ("relay", door.address, 1, 2)] {
        let between = Through::to(target, Some(answers)).await;
        let client = Client::new(&format!("{scheme}://{}", between.address), None).unwrap();
        assert!(client.submit(&mail("once")).await.unwrap().replayed(), "{scheme}: the first answer was lost");
        assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), jobs, "{scheme}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_under_load_fails_no_call() {
    let relay = Relay::start().await;
    let (mut first, second) = (Door::of(&relay).await, Door::of(&relay).await);
    let between = Through::to(first.address, None).await;
    let client = Client::new(&format!("relay://{}", between.address), None).unwrap();
    let jobs = stream::iter((0..1_000).map(|at| mail(at.to_string())));
    let mut sent = std::pin::pin!(client.submit_many(jobs, NonZeroUsize::new(100).unwrap()));
    let mut seen = std::collections::BTreeSet::new();
    while let Some(one) = sent.next().await {
        let submitted = one.answer.unwrap_or_else(|error| panic!("{}: {error}", one.index));
        assert!(seen.insert(submitted.job_id()), "two are one job");
        if seen.len() == 200 {
            between.target.send_replace(second.address);
            first.shutdown.cancel();
        }
    }
    first.drained().await;
    assert_eq!(seen.len(), 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_submissions_in_flight_are_a_thousand_jobs() {
    let (relay, door) = Door::start().await;
    for client in both(&relay, &door) {
        let jobs = stream::iter((0..1_000).map(|at| mail(at.to_string())));
        let sent: Vec<_> = client.submit_many(jobs, NonZeroUsize::new(1_000).unwrap()).collect().await;
        let ids: std::collections::BTreeSet<_> = sent.iter().map(|one| one.answer.as_ref().unwrap().job_id()).collect();
        let indexes: std::collections::BTreeSet<_> = sent.iter().map(|one| one.index).collect();
        assert_eq!((ids.len(), indexes.len()), (1_000, 1_000));
    }
}

type Expected<'a> = &'a dyn Fn(&ClientError) -> bool;

/// A server of something else: it answers the first bytes of a client with `says`, and waits until the client has gone.
async fn impostor(says: Vec<u8>, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut heard = [0; 4096];
        assert!(peer.read(&mut heard).await.unwrap() > 0);
        peer.write_all(&says).await.unwrap();
        while peer.read(&mut heard).await.is_ok_and(|count| count > 0) {}
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_not_relay_ends_a_call_in_a_typed_error_and_leaves_no_connection() {
    let garbled = |error: &ClientError| matches!(error, ClientError::Garbled(_));
    let late = |error: &ClientError| matches!(error, ClientError::TimedOut { .. });
    let cases: [(&str, Vec<u8>, Expected<'_>); 5] = [
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), &garbled),
        ("an empty frame", vec![0; 4], &garbled),
        ("a map of nothing", vec![0, 0, 0, 1, 0x80], &garbled),
        ("silence", Vec::new(), &late),
        ("the beginning of a frame", vec![0, 0, 1, 0, 0x81], &late),
    ];
    for (what, says, expected) in cases {
        let mut tasks = JoinSet::new();
        let address = impostor(says, &mut tasks).await;
        let patience = Patience { give_up_after: Duration::from_millis(500), ..Patience::default() };
        let client = Client::new(&format!("relay://{address}"), None).unwrap().patient(patience);
        let error = client.submit(&mail("x")).await.unwrap_err();
        assert!(expected(&error), "{what}: {error:?}");
        drop(client);
        // The server sees the end of the connection.
        tasks.join_next().await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_not_let_in_is_told_so_over_both_protocols() {
    let dir = tempfile::tempdir().unwrap();
    let file = relay::auth::keys::KeyFile::new(dir.path().join("keys.toml"));
    let clock = relay_bridge::clock::Clock::system();
    let key = file.create(relay::auth::keys::Role::Client, "acme".parse().unwrap(), None, clock.now()).unwrap();
    let authenticator = relay::auth::Authenticator::keys(file.path().to_owned(), clock).unwrap();
    let relay = Setup { authenticator, ..Setup::default() }.start().await;
    let door = Door::of(&relay).await;
    for address in [format!("http://{}", relay.address), format!("relay://{}", door.address)] {
        let stranger = Client::new(&address, Some("rlyk_x".to_owned())).unwrap();
        let error = stranger.whoami().await.unwrap_err();
        let ClientError::Refused { problem, .. } = &error else { panic!("{address}: {error}") };
        assert_eq!(problem.slug, Slug::Unauthenticated);
        let acme = Client::new(&address, Some(key.to_string())).unwrap();
        assert_eq!(acme.whoami().await.unwrap().client.as_str(), "acme");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_given_up_is_stopped_at_the_server_so_that_its_place_is_free() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("relay://{}", listener.local_addr().unwrap()), None).unwrap();
    let (taken, is_taken) = tokio::sync::oneshot::channel();
    let serves = async {
        let (from, mut to) = listener.accept().await.unwrap().0.into_split();
        let mut from = FrameReader::new(from, FRAME_MAX);
        let mut greeting = BytesMut::new();
        ToClient::Welcome(Box::new(welcome())).encode(&mut greeting);
        let (mut taken, mut heard) = (Some(taken), Vec::new());
        loop {
            match FromClient::decode(&from.next().await.unwrap().unwrap()).unwrap() {
                FromClient::Hello(_) => to.write_all(&greeting).await.unwrap(),
                FromClient::Request { id, request: Request::Submit(_) } => {
                    heard.push(id);
                    taken.take().unwrap().send(()).unwrap();
                }
                FromClient::Stop { id } => heard.push(id),
                FromClient::Request { request: Request::Whoami, .. } => return heard,
                other => panic!("{other:?}"),
            }
        }
    };
    let calls = async {
        let job = mail("x");
        tokio::select! {
            ran = client.run(&job, LONG) => panic!("{ran:?}"),
            taken = is_taken => taken.unwrap(),
        }
        client.whoami().await
    };
    tokio::select! {
        heard = serves => assert!(heard.len() == 2 && heard[0] == heard[1], "{heard:?}"),
        answered = calls => panic!("{answered:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_request_counts_among_those_that_the_server_grants() {
    let relay = Relay::start().await;
    let limits = ClientLimits { requests_max: 2, ..ClientLimits::default() };
    let door = Door::with(&relay, limits, LONG).await;
    let client = Client::new(&format!("relay://{}", door.address), None).unwrap().patient(Patience::NONE);
    let mut ids = Vec::new();
    for payload in ["a", "b"] {
        ids.push(client.submit(&mail(payload)).await.unwrap().job_id());
    }
    let mut results = client.results(ResultsFilter::default());
    // It follows, and is told where it stands.
    assert!(futures_util::poll!(results.next()).is_pending());
    while door.clients.in_flight() > 0 || results.committed().is_none() {
        assert!(futures_util::poll!(results.next()).is_pending());
        tokio::task::yield_now().await;
    }
    let works = async {
        relay.work("text/plain", "x").await;
        relay.work("text/plain", "y").await;
    };
    let (a, b, ()) = tokio::join!(client.wait(ids[0], LONG), client.wait(ids[1], LONG), works);
    assert!(a.unwrap().is_some() && b.unwrap().is_some());
    assert_eq!(results.next().await.unwrap().unwrap().view.job_id, ids[0]);
}

/// A server whose log ends at `s.5`, and to which another result comes while somebody waits behind its end: that answer is lost.
async fn answers_lost_at_the_end(listener: TcpListener) -> Infallible {
    let entry = serde_json::json!({
        "job_id": "018f6f6e-0000-7000-8000-000000000000", "run_id": "018f6f6e-0000-7000-8000-000000000001", "generation": 1,
        "queue": "mail", "key": null, "meta": {}, "outcome": "succeeded", "attempt": 1, "content_type": "text/plain", "size": 1,
        "accepted_at": "2026-01-01T00:00:00.000Z", "started_at": null, "finished_at": "2026-01-01T00:00:00.000Z",
        "failure": null, "payload_base64": "eA==", "cursor": "s.6",
    });
    let mut has_lost = false;
    loop {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(peer.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let page = match (head.contains("after=now"), head.contains("wait=")) {
            (true, false) => serde_json::json!({"reset": null, "entries": [], "next": "s.5"}),
            // The result that it waited for is behind `now` from here on.
            (_, true) if !std::mem::replace(&mut has_lost, true) => continue,
            (true, true) => serde_json::json!({"reset": null, "entries": [], "next": "s.6"}),
            (false, _) if head.contains("after=s.5") => {
                serde_json::json!({"reset": null, "entries": [entry], "next": "s.6"})
            }
            other => panic!("{other:?}: {head}"),
        };
        let page = page.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{page}",
            page.len()
        );
        peer.write_all(head.as_bytes()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_begins_at_the_end_misses_nothing_when_its_first_wait_is_lost() {
    let from_now = || ResultsFilter { wait: Duration::from_secs(20), ..ResultsFilter::after(Some("now".to_owned())) };
    for streams in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let patience =
            Patience { base: Duration::from_millis(5), give_up_after: Duration::from_secs(20), ..Patience::default() };
        let client = Client::new(&address, None).unwrap().patient(patience);
        let reads = async {
            if streams {
                let mut results = client.results(from_now());
                let entry = results.next().await.unwrap().unwrap();
                assert_eq!(results.committed(), Some("s.5"), "the place that it began at");
                entry.view.cursor
            } else {
                let page = client.page(&from_now()).await.unwrap();
                page.entries.first().map_or_else(|| "nothing".to_owned(), |entry| entry.cursor.clone())
            }
        };
        let first = async {
            tokio::select! {
                first = reads => first,
                never = answers_lost_at_the_end(listener) => match never {},
            }
        };
        assert_eq!(tokio::time::timeout(LONG, first).await.as_deref(), Ok("s.6"), "the result was lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_begins_at_the_end_never_goes_back_to_results_before_it() {
    let (relay, door) = Door::start().await;
    let clients = both(&relay, &door);
    clients[0].submit(&mail("before")).await.unwrap();
    relay.work("text/plain", "before").await;
    for client in clients {
        let mut results = client.results(ResultsFilter::after(Some("now".to_owned())));
        // It is not known yet where that is.
        results.rewind();
        assert!(futures_util::poll!(results.next()).is_pending());
        while results.committed().is_none() {
            assert!(futures_util::poll!(results.next()).is_pending());
            tokio::task::yield_now().await;
        }
        client.submit(&mail("after")).await.unwrap();
        relay.work("text/plain", "after").await;
        for _ in 0..2 {
            assert_eq!(results.next().await.unwrap().unwrap().payload, Payload::Here("after".into()));
            results.rewind();
        }
    }
}
