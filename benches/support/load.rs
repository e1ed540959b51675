//! HTTP load on a server that is a process of its own, started from the benchmark's binary.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Keep-alive connections, one request at a time each.
pub const CONNECTIONS: u64 = 64;

/// A server in a process of its own, killed when it is dropped.
pub struct Server {
    child: Child,
    /// Where it listens, as it said.
    pub address: SocketAddr,
}

impl Server {
    /// Starts this binary with `arguments`, and waits until it says where it listens.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap_or_else(|_| panic!("{arguments:?} listens nowhere: {line:?}"));
        Self { child, address }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// In the server's process: a port, said to whoever started it.
pub async fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    listener
}

/// Submits `requests` jobs of 256 bytes over [`CONNECTIONS`]; under keys that are numbered from `first`, or without.
pub async fn submit(address: SocketAddr, keyed: bool, requests: u64, first: u64) {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    break;
                }
                let key = keyed.then(|| format!("idempotency-key: key-{}\r\n", first + number));
                connection.submit(&key.unwrap_or_default()).await;
            }
        });
    }
    tasks.join_all().await;
}

/// Jobs of one batch of [`submit_batches`].
pub const BATCH: u64 = 100;

/// Submits `batches` batches of [`BATCH`] jobs without keys, of 256 bytes each, over [`CONNECTIONS`].
pub async fn submit_batches(address: SocketAddr, batches: u64) {
    let next = Arc::new(AtomicU64::new(0));
    let line = format!("{{\"text\":\"{}\"}}\n", "x".repeat(256));
    let body: Arc<str> = line.repeat(BATCH as usize).into();
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, body) = (Arc::clone(&next), Arc::clone(&body));
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await;
            while next.fetch_add(1, Ordering::Relaxed) < batches {
                connection.batch(&body).await;
            }
        });
    }
    tasks.join_all().await;
}

/// One client's connection.
pub struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, request: Vec::new(), answer: vec![0; 8192] }
    }

    /// Submits a job of 256 bytes with `headers`, each ended by its line break, and reads the answer, which must be a good one.
    pub async fn submit(&mut self, headers: &str) -> u16 {
        self.submit_payload(headers, &[b'x'; 256]).await
    }

    /// The same with a payload of its own.
    pub async fn submit_payload(&mut self, headers: &str, payload: &[u8]) -> u16 {
        self.post("/v1/queues/work/jobs", headers, payload).await
    }

    /// Posts `payload` to `path`, and reads the answer, which must be a good one.
    pub async fn post(&mut self, path: &str, headers: &str, payload: &[u8]) -> u16 {
        self.request.clear();
        write!(
            self.request,
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}\
             content-length: {}\r\n\r\n",
            payload.len()
        )
        .unwrap();
        self.request.extend_from_slice(payload);
        self.stream.write_all(&self.request).await.unwrap();
        self.read_answer().await
    }

    /// Submits the lines of `body` as jobs, and reads the answer, which must be a good one.
    pub async fn batch(&mut self, body: &str) {
        self.request.clear();
        write!(
            self.request,
            "POST /v1/queues/work/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        self.answer.resize(256 * 1024, 0);
        self.stream.write_all(&self.request).await.unwrap();
        assert_eq!(self.read_answer().await, 200);
    }

    /// Gets `path`, whose answer must be a good one, and gives its body.
    pub async fn get(&mut self, path: &str) -> &[u8] {
        self.request.clear();
        write!(self.request, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        self.answer.resize(1024 * 1024, 0);
        self.stream.write_all(&self.request).await.unwrap();
        let (_, body) = self.read_whole().await;
        &self.answer[body]
    }

    /// Reads one answer and gives its status.
    async fn read_answer(&mut self) -> u16 {
        self.read_whole().await.0
    }

    /// Reads one answer: a head, and as much body as its `content-length` says.
    async fn read_whole(&mut self) -> (u16, Range<usize>) {
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.answer[filled..]).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            filled += read;
            let buffer = &self.answer[..filled];
            let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let text = std::str::from_utf8(&buffer[..head]).unwrap();
            assert!(text.starts_with("HTTP/1.1 20"), "{}", String::from_utf8_lossy(buffer));
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |l| l.parse().unwrap());
            if filled == head + 4 + length {
                return (text["HTTP/1.1 ".len()..][..3].parse().unwrap(), head + 4..filled);
            }
        }
    }
}
