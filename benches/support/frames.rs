//! Submissions over TCP, as the bare frames of docs/protocol.md: the client costs as little as it can.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use relay_bridge::contract::wire::client::{FromClient, Hello, Request, Submit, ToClient};
use relay_bridge::contract::wire::{FRAME_MAX, VERSION_MAX, VERSION_MIN, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Submits `jobs` jobs of 256 bytes under keys that are numbered from `first`, over so many connections with `in_flight` unanswered
/// submissions each.
pub async fn submit(address: SocketAddr, connections: u64, in_flight: u64, jobs: u64, first: u64) {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await;
            let (mut free, mut unanswered) = (in_flight, 0);
            loop {
                while free > 0 {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= jobs {
                        break;
                    }
                    connection.put(number, format!("key-{}", first + number));
                    (free, unanswered) = (free - 1, unanswered + 1);
                }
                if unanswered == 0 {
                    break;
                }
                let answered = connection.exchange().await;
                (free, unanswered) = (free + answered, unanswered - answered);
            }
        });
    }
    tasks.join_all().await;
}

struct Connection {
    stream: TcpStream,
    out: BytesMut,
    into: BytesMut,
    payload: Bytes,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (version_min, version_max) = (VERSION_MIN, VERSION_MAX);
        let build = "bench".to_owned();
        let hello = Hello { version_min, version_max, client: None, key: None, build, frame_max: FRAME_MAX };
        let payload = vec![b'x'; 256].into();
        let mut connection = Self { stream, out: BytesMut::new(), into: BytesMut::with_capacity(65_536), payload };
        FromClient::Hello(hello).encode(&mut connection.out);
        assert_eq!(connection.exchange().await, 0);
        connection
    }

    fn put(&mut self, id: u64, key: String) {
        let payload = self.payload.clone();
        let submit = Submit { queue: "work".to_owned(), key: Some(key), payload, ..Submit::default() };
        FromClient::Request { id, request: Request::Submit(Box::new(submit)) }.encode(&mut self.out);
    }

    /// Writes what there is, and reads until a whole frame was there: how many of them are receipts.
    async fn exchange(&mut self) -> u64 {
        self.stream.write_all(&self.out).await.unwrap();
        self.out.clear();
        loop {
            assert!(self.stream.read_buf(&mut self.into).await.unwrap() > 0, "the server closed the connection");
            let (mut frames, mut receipts) = (0, 0);
            while let Some(frame) = frame::take(&mut self.into, FRAME_MAX).unwrap() {
                frames += 1;
                match ToClient::decode(&frame).unwrap() {
                    ToClient::Receipt { .. } => receipts += 1,
                    ToClient::Welcome(_) => {}
                    ToClient::Ping(number) => FromClient::Pong(number).encode(&mut self.out),
                    other => panic!("no receipt: {other:?}"),
                }
            }
            if frames > 0 {
                return receipts;
            }
        }
    }
}
