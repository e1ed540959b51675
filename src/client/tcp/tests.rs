//! One connection by itself: frames that wait leave together, and whatever a server may send finds room.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::contract::wire::client::{Follow, FromClient, Submit, Welcome, WireResult};
use relay_bridge::contract::wire::{FRAME_MAX, frame};
use relay_bridge::contract::{Outcome, RunId, Timestamp};
use relay_remote::stream::FrameReader;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::task::unconstrained;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{BATCH_BYTES, Connection};
use super::*;

/// The bytes that were written, and in how many writes.
#[derive(Default)]
struct Written {
    bytes: BytesMut,
    writes: usize,
}

impl AsyncWrite for &mut Written {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.bytes.extend_from_slice(bytes);
        self.writes += 1;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection to a server of the usual settings.
fn connection() -> Connection {
    let welcome = Welcome {
        version: 1,
        frame_max: FRAME_MAX,
        requests_max: 1_024,
        bytes_max: 1 << 30,
        wait_max: Duration::ZERO,
        ping: Duration::from_secs(20),
        client: "dev".parse().unwrap(),
        server_time: Timestamp::from_millis(0),
        build: String::new(),
    };
    Connection::new(&welcome, Duration::from_secs(600))
}

/// A result of a job that succeeded.
pub(super) fn result(cursor: &str, payload: Body) -> WireResult {
    WireResult {
        cursor: cursor.to_owned(),
        job: JobId::from_bytes([1; 16]),
        run: RunId::from_bytes([2; 16]),
        generation: 1,
        queue: "mail".parse().unwrap(),
        key: None,
        meta: Default::default(),
        outcome: Outcome::Succeeded,
        attempt: 1,
        content_type: "text/plain".to_owned(),
        payload,
        failure: None,
        accepted_at: Timestamp::EPOCH,
        started_at: None,
        finished_at: Timestamp::EPOCH,
        traceparent: None,
    }
}

#[tokio::test]
async fn a_thousand_submissions_that_wait_leave_in_as_few_writes_as_their_bytes_need() {
    let connection = connection();
    let submit = Submit { queue: "mail".to_owned(), payload: vec![b'x'; 256].into(), ..Submit::default() };
    let request = || Request::Submit(Box::new(submit.clone()));
    let mut asked: Vec<_> =
        (0..1_000).map(|_| Box::pin(unconstrained(connection.ask(request(), Duration::ZERO)))).collect();
    for ask in &mut asked {
        assert!(futures_util::poll!(ask).is_pending());
    }
    let mut written = Written::default();
    {
        let mut writing = Box::pin(unconstrained(connection.write(&mut written)));
        assert!(futures_util::poll!(&mut writing).is_pending(), "it waits for more");
    }
    assert!(written.writes <= written.bytes.len() / BATCH_BYTES + 1, "{} writes", written.writes);
    let mut frames = 0;
    while let Some(one) = frame::take(&mut written.bytes, FRAME_MAX).unwrap() {
        assert!(matches!(FromClient::decode(&one).unwrap(), FromClient::Request { request: Request::Submit(_), .. }));
        frames += 1;
    }
    assert_eq!((frames, written.bytes.len()), (1_000, 0));
}

#[tokio::test]
async fn a_reader_that_takes_nothing_while_others_results_are_passed_over_still_gets_its_own() {
    let connection = connection();
    let follow = Follow { results: 2, bytes: 100, ..Follow::default() };
    let Ok((id, mut receiver)) = connection.follow(follow).await else { panic!("it is not begun") };
    let mut sent = BytesMut::new();
    for passed in 0..100 {
        // As a server tells it for each result that the filter leaves out.
        ToClient::Position { id, cursor: format!("p.{passed}") }.encode(&mut sent);
        if passed >= 98 {
            ToClient::Result {
                id,
                replayed: false,
                result: Box::new(result(&format!("s.{passed}"), Body::Here(Default::default()))),
            }
            .encode(&mut sent);
        }
    }
    ToClient::Followed { id, cursor: None, reason: "going-away".to_owned() }.encode(&mut sent);
    // Until the end of what was sent.
    connection.read(FrameReader::new(&sent[..], FRAME_MAX), CancellationToken::new()).await;
    let (mut results, mut is_told) = (Vec::new(), false);
    while let Some(answer) = receiver.recv().await {
        match answer.unwrap() {
            ToClient::Position { .. } => assert!(!is_told),
            ToClient::Result { result, .. } => results.push(result.cursor),
            ToClient::Followed { .. } => is_told = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(is_told, "and the end of the reading");
    assert_eq!(results, ["s.98", "s.99"]);
}

#[tokio::test(start_paused = true)]
async fn a_large_answer_that_comes_slowly_is_no_silence_and_one_that_stops_coming_is() {
    let connection = connection();
    let (mut to, from) = tokio::io::duplex(1 << 20);
    let wait = Request::Wait { job: JobId::from_bytes([1; 16]), wait: Duration::ZERO };
    let mut asked = std::pin::pin!(connection.ask(wait, Duration::from_secs(3_600)));
    assert!(futures_util::poll!(&mut asked).is_pending());
    let mut answer = BytesMut::new();
    ToClient::Result { id: 1, replayed: false, result: Box::new(result("s.1", Body::Here(Default::default()))) }
        .encode(&mut answer);
    let reads = connection.read(FrameReader::new(from, FRAME_MAX), CancellationToken::new());
    let sends = async {
        for part in answer.chunks(answer.len().div_ceil(4)) {
            // Pings are 20 s apart.
            tokio::time::sleep(Duration::from_secs(50)).await;
            to.write_all(part).await.unwrap();
        }
        to.write_all(&answer[..10]).await.unwrap();
    };
    let begun = Instant::now();
    let (answered, (), ()) = tokio::join!(asked, sends, reads);
    assert!(matches!(answered, Ok(Ok(ToClient::Result { .. }))), "{answered:?}");
    let silent = Duration::from_secs(3 * 20);
    let last = Duration::from_secs(4 * 50);
    assert!(begun.elapsed() > last && begun.elapsed() <= last + 2 * silent, "{:?}", begun.elapsed());
}
