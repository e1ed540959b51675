//! A server to attack, and what an attacker's peer needs.

use std::fs::read_to_string;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cli_support::{Running, code, json_lines, relay, run, stderr, stdout};

/// The memory of a small pod: no attack takes more, counted at the peak.
pub(crate) const POD_BYTES: usize = 512 * 1024 * 1024;

/// A server with keys, a process of its own.
pub(crate) struct Attacked {
    pub(crate) server: Running,
    /// Its store and its keys.
    pub(crate) dir: TempDir,
}

impl Attacked {
    /// A server for `clients`, and the key of each.
    pub(crate) fn start(clients: &[&str], more: &[&str]) -> (Self, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let keys = clients.iter().map(|client| new_key(dir.path(), &[client])).collect();
        (Self::start_in(dir, more), keys)
    }

    /// The same in a directory whose `keys.toml` is there.
    pub(crate) fn start_in(dir: TempDir, more: &[&str]) -> Self {
        let (file, data) = (dir.path().join("keys.toml"), dir.path().join("data"));
        let args = ["serve", "--json", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"];
        let place = ["--keys", file.to_str().unwrap(), "--data", data.to_str().unwrap()];
        let server = Running::start(args.iter().chain(&place).chain(more));
        Self { server, dir }
    }

    /// The same for a process that may have so many files open and no more.
    pub(crate) fn start_with_files(dir: TempDir, files: usize, more: &[&str]) -> Self {
        let (file, data) = (dir.path().join("keys.toml"), dir.path().join("data"));
        let args = ["serve", "--json", "--listen", "127.0.0.1:0", "--keys", file.to_str().unwrap()];
        let serve = relay(args.iter().chain(&["--data", data.to_str().unwrap()]).chain(more));
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]);
        limited.arg(serve.get_program()).args(serve.get_args()).env("RELAY_CONTEXTS", "/nowhere/contexts.toml");
        limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { server: Running::start_command(limited), dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.url().trim_start_matches("http://").parse().unwrap()
    }

    /// The most that the process ever had in memory, in bytes.
    pub(crate) fn peak(&self) -> usize {
        let status = read_to_string(format!("/proc/{}/status", self.server.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
    }
}

/// Makes a key in `dir`'s `keys.toml`: its name and what else `relay keys new` takes.
pub(crate) fn new_key(dir: &Path, name_and_more: &[&str]) -> String {
    let file = dir.join("keys.toml");
    let made = run(["keys", "new", "--file", file.to_str().unwrap()].iter().chain(name_and_more));
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    stdout(&made).trim().to_owned()
}

/// A request of HTTP/1.1 that a client with this key sends.
pub(crate) fn request(line: &str, key: &str, body: &str) -> String {
    let length = body.len();
    format!("{line} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// A connection of HTTP/2 whose streams have `window` bytes until somebody reads, and the connection `connection` bytes.
pub(crate) async fn h2_peer(address: SocketAddr, window: u32, connection: u32) -> H2 {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(connection).max_concurrent_reset_streams(1_000);
    let (send, connection) = builder.handshake(stream).await.unwrap();
    let mut tasks = JoinSet::new();
    // Ends with an error where the server ends it.
    tasks.spawn(async move { drop(connection.await) });
    H2 { send: send.ready().await.unwrap(), tasks }
}

/// A peer of HTTP/2; its connection ends with it.
pub(crate) struct H2 {
    send: SendRequest<Bytes>,
    tasks: JoinSet<()>,
}

impl H2 {
    /// Sends a request without a body; its answer is read by whoever wants it.
    pub(crate) async fn get(&mut self, path: &str, key: &str, headers: &[(&str, &str)]) -> ResponseFuture {
        let mut request =
            http::Request::get(format!("http://relay{path}")).header("authorization", format!("Bearer {key}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send = self.send.clone().ready().await.unwrap();
        self.send.send_request(request.body(()).unwrap(), true).unwrap().0
    }

    /// Sends a request with a body.
    pub(crate) async fn post(&mut self, path: &str, key: &str, body: &'static str) -> ResponseFuture {
        let request = http::Request::post(format!("http://relay{path}"))
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json");
        self.send = self.send.clone().ready().await.unwrap();
        let (answer, mut to) = self.send.send_request(request.body(()).unwrap(), false).unwrap();
        to.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
        answer
    }

    /// Waits until the server has ended the connection.
    pub(crate) async fn ended(mut self) {
        drop(self.send);
        self.tasks.join_next().await;
    }
}

/// One request over HTTP/1.1 on a connection of its own, and all of the answer.
pub(crate) async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = request.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A worker with a key that runs `command` for each job of all queues of `server`.
pub(crate) fn worker(attacked: &Attacked, command: &[&str]) -> Running {
    let file = attacked.dir.path().join("worker.key");
    std::fs::write(&file, new_key(attacked.dir.path(), &["worker", "--role", "worker"])).unwrap();
    let args =
        ["worker", "--json", "--connect", &attacked.server.workers(), "--key-file", file.to_str().unwrap(), "--"];
    Running::start(args.iter().chain(command))
}

/// Submits a job of `queue` and waits for its result: its id.
pub(crate) fn done(attacked: &Attacked, key: &str) -> String {
    let mut command = relay(["submit", "--wait=60s", "--json", "--server", &attacked.server.url()]);
    let done = command.env("RELAY_API_KEY", key).output().unwrap();
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    json_lines(&done)[0]["job_id"].as_str().unwrap().to_owned()
}

/// Asks for as many open files as there may be, and gives how many of `wanted` connections this process has room for.
pub(crate) fn connections(wanted: usize) -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    wanted.min(usize::try_from(most).unwrap().saturating_sub(500))
}

/// The body of the answer of `address` to a GET without credentials.
pub(crate) fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A request on a connection of its own: status, head and body.
pub(crate) fn ask_for(address: SocketAddr, line: &str, key: &str, body: &str) -> (u16, String, Vec<u8>) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let text = request(line, key, body).replacen("\r\n", "\r\nconnection: close\r\n", 1);
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head, answer[end + 4..].to_vec())
}

/// The body of an answer.
pub(crate) fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}
