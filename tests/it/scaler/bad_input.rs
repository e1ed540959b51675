//! Calls that nobody should make, peers that do not read, and brokers that do not answer.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use relay_bridge::clock::Clock;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::policy::QueuePolicy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::support::{Keda, Scaler, add_queue, embedded, next, standing, submit};
use crate::admin::Faulty;

const MAIL: &[(&str, &str)] = &[("queue", "mail")];

async fn started() -> (Scaler, Keda, relay_bridge::broker::Broker, Clock) {
    started_by(Clock::system()).await
}

async fn started_by(clock: Clock) -> (Scaler, Keda, relay_bridge::broker::Broker, Clock) {
    let broker = embedded(&clock).await;
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let keda = scaler.keda().await;
    (scaler, keda, broker, clock)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_metadata_is_refused_by_every_call_with_its_key_and_the_keys_there_are() {
    let (_scaler, keda, ..) = started().await;
    for metadata in [
        &[][..],
        &[("queue", "MAIL!")],
        &[("queue", "mail"), ("lagThreshold", "10")],
        &[("queue", "mail"), ("slotsPerWorker", "eight")],
        &[("queue", "mail"), ("slotsPerWorker", "NaN")],
        &[("queue", "mail"), ("targetDrainSeconds", "0")],
        &[("queue", "mail"), ("targetDrainSeconds", "-60")],
        &[("queue", "mail"), ("leadSeconds", "NaN")],
    ] {
        let key = metadata.last().map_or("queue", |(key, _)| key);
        for refused in [
            keda.metrics(metadata).await.map(drop),
            keda.is_active(metadata).await.map(drop),
            keda.spec(metadata).await.map(drop),
            keda.activity(metadata).await.map(drop),
        ] {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{metadata:?}: {status}");
            let said = status.message();
            assert!(said.contains(&format!("`{key}`")) && said.contains("slotsPerWorker, leadSeconds"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_not_there_is_an_error_and_never_0() {
    let (_scaler, keda, ..) = started().await;
    let nowhere = &[("queue", "nowhere")];
    for refused in [keda.metrics(nowhere).await.map(drop), keda.is_active(nowhere).await.map(drop)] {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("nowhere"), "{status}");
    }
    assert_eq!(keda.activity(nowhere).await.map(drop).unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_names_of_queues_leave_nothing_behind() {
    let (scaler, keda, broker, _) = started().await;
    for many in (0..10_000).collect::<Vec<_>>().chunks(100) {
        let asks = many.iter().map(|at| {
            let keda = keda.clone();
            async move { keda.is_active(&[("queue", &format!("nowhere-{at}"))]).await.map(drop).unwrap_err().code() }
        });
        assert!(join_all(asks).await.iter().all(|code| *code == Code::NotFound));
    }
    assert_eq!(scaler.looks.queues(), 0, "what is not there is forgotten");
    add_queue(&broker, "late", &QueuePolicy::default()).await;
    assert!(!keda.is_active(&[("queue", "late")]).await.unwrap(), "others are answered as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_fails_is_unavailable_with_its_reason() {
    let clock = standing();
    let mut broker = embedded(&clock).await;
    let faulty = Faulty::wrap(&mut broker);
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let keda = scaler.keda().await;
    assert_eq!(keda.wanted(MAIL).await, 0.0);
    faulty.fail(&[("mail", BrokerErrorKind::Ambiguous)]);
    clock.advance(Duration::from_secs(5));
    for refused in [keda.metrics(MAIL).await.map(drop), keda.is_active(MAIL).await.map(drop)] {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("mail"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_is_unavailable_for_every_caller() {
    let clock = Clock::system();
    let mut broker = embedded(&clock).await;
    let faulty = Faulty::wrap(&mut broker);
    let scaler = Scaler::start(&broker, clock).await;
    faulty.hang();
    let keda = scaler.keda().await;
    let asks = (0..20).map(|_| keda.metrics(MAIL));
    for refused in join_all(asks).await {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("did not say within 800ms"), "{status}");
    }
    assert_eq!(keda.activity(MAIL).await.map(drop).unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_leaves_the_last_figure_for_five_seconds() {
    let clock = standing();
    let mut broker = embedded(&clock).await;
    let faulty = Faulty::wrap(&mut broker);
    submit(&broker, "shop", 3, &clock).await;
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let keda = scaler.keda().await;
    assert_eq!(keda.wanted(MAIL).await, 3.0);
    faulty.hang();
    clock.advance(Duration::from_secs(5));
    assert_eq!(keda.wanted(MAIL).await, 3.0);
    clock.advance(Duration::from_secs(1));
    assert_eq!(keda.metrics(MAIL).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_queue() {
    let clock = Clock::system();
    let mut broker = embedded(&clock).await;
    let faulty = Faulty::wrap(&mut broker);
    let scaler = Scaler::start(&broker, clock).await;
    let mut activity = scaler.keda().await.activity(MAIL).await.unwrap();
    assert!(!next(&mut activity).await);
    faulty.fail(&[("mail", BrokerErrorKind::NotFound)]);
    let status = activity.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(activity.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_of_one_connection_are_served_beside_calls() {
    let (scaler, keda, broker, clock) = started().await;
    let mut streams = join_all((0..1_000).map(|_| keda.activity(MAIL))).await;
    for stream in &mut streams {
        assert!(!next(stream.as_mut().unwrap()).await);
    }
    submit(&broker, "shop", 1, &clock).await;
    scaler.looks.came(&"mail".parse().unwrap());
    for stream in &mut streams {
        assert!(next(stream.as_mut().unwrap()).await);
    }
    assert_eq!(keda.wanted(MAIL).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_queue_share_its_looks_whenever_they_were_opened() {
    // So many streams have their queue looked at every 400 ms.
    const STREAMS: usize = 40;
    const EVERY: Duration = Duration::from_millis(400);
    const LOOKS: usize = 10;
    let clock = Clock::system();
    let mut broker = embedded(&clock).await;
    let faulty = Faulty::wrap(&mut broker);
    let scaler = Scaler::start(&broker, clock).await;
    let keda = scaler.keda().await;
    let (mut streams, mut opens) = (Vec::new(), tokio::time::interval(Duration::from_millis(20)));
    for _ in 0..STREAMS {
        opens.tick().await;
        streams.push(keda.activity(MAIL).await.unwrap());
    }
    let (began, before) = (Instant::now(), faulty.looks());
    while faulty.looks() < before + LOOKS {
        opens.tick().await;
    }
    // A machine that is slow looks less often.
    let due = began.elapsed().as_millis() / EVERY.as_millis() + 2;
    assert!(LOOKS as u128 <= due, "{LOOKS} looks where {due} were due");
    drop(streams);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_never_read_hold_up_nobody() {
    let (_scaler, keda, broker, clock) = started_by(standing()).await;
    let unread = join_all((0..500).map(|_| keda.activity(MAIL))).await;
    submit(&broker, "shop", 3, &clock).await;
    clock.advance(Duration::from_secs(5));
    assert_eq!(keda.wanted(MAIL).await, 3.0);
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_closes_its_half_or_speaks_no_http_2_is_let_go() {
    let (scaler, keda, ..) = started().await;
    let mut half = TcpStream::connect(scaler.address).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    half.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    half.shutdown().await.unwrap();
    let mut rest = Vec::new();
    half.read_to_end(&mut rest).await.unwrap();
    let mut other = TcpStream::connect(scaler.address).await.unwrap();
    other.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    rest.clear();
    other.read_to_end(&mut rest).await.ok();
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    assert!(!keda.is_active(MAIL).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_say_nothing_make_room_and_those_that_call_are_served() {
    let (scaler, keda, ..) = started().await;
    assert!(!keda.is_active(MAIL).await.unwrap());
    let mut activity = keda.activity(MAIL).await.unwrap();
    assert!(!next(&mut activity).await);
    let mut silent = join_all((0..300).map(|_| TcpStream::connect(scaler.address))).await;
    let late = scaler.keda().await;
    assert!(!late.is_active(MAIL).await.unwrap());
    assert!(!keda.is_active(MAIL).await.unwrap());
    let mut rest = Vec::new();
    silent[0].as_mut().unwrap().read_to_end(&mut rest).await.ok();
    let more = tokio::time::timeout(Duration::from_millis(100), activity.next()).await;
    assert!(more.is_err(), "the connection that called is still there");
}
