//! Frames that wait leave together.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use relay_bridge::contract::Timestamp;
use relay_bridge::contract::wire::client::{FromClient, Submit, Welcome};
use relay_bridge::contract::wire::{FRAME_MAX, frame};
use tokio::io::AsyncWrite;
use tokio::task::unconstrained;

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

#[tokio::test]
async fn a_thousand_submissions_that_wait_leave_in_as_few_writes_as_their_bytes_need() {
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
    let connection = Connection::new(&welcome, Duration::from_secs(600));
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
