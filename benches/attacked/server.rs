//! The server under attack, a process of its own, and peers that ask and do not read.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The binary that this tree builds.
pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_relay");
/// Requests of one connection over HTTP/2.
const STREAMS: usize = 200;
/// The bytes of the result that attackers ask for.
const RESULT: usize = 1024 * 1024;

pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) http: SocketAddr,
    pub(crate) workers: String,
    /// Of the attacker, of an honest client, and of a worker.
    pub(crate) keys: [String; 3],
    binary: String,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Server {
    /// The server that `binary` is, with a store on disk.
    pub(crate) fn start(binary: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let relay = || Command::new(binary);
        let keys = dir.path().join("keys.toml");
        let key = |args: &[&str]| {
            let made = relay().args(["keys", "new", "--file"]).arg(&keys).args(args).output().unwrap();
            String::from_utf8(made.stdout).unwrap().trim().to_owned()
        };
        let keys_of = [key(&["attacker"]), key(&["honest"]), key(&["worker", "--role", "worker"])];
        let mut command = relay();
        command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"]);
        command.args(["--payload-max", "8MiB", "--result-max", "1MiB", "--log", "error", "--keys"]).arg(&keys);
        let mut child = command.arg("--data").arg(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |name: &str| ready["listening"][name].as_str().unwrap().to_owned();
        Self {
            child,
            http: address("http").parse().unwrap(),
            workers: address("workers"),
            keys: keys_of,
            binary: binary.to_owned(),
            dir,
        }
    }

    /// A finished job of the attacker with a large result.
    pub(crate) async fn done(&self) -> String {
        let file = self.dir.path().join("worker.key");
        std::fs::write(&file, &self.keys[2]).unwrap();
        let mut worker = Command::new(&self.binary);
        worker.args(["worker", "--log", "error", "--connect", &self.workers, "--key-file"]).arg(&file);
        let mut worker = worker.args(["--", "head", "-c", &RESULT.to_string(), "/dev/zero"]).spawn().unwrap();
        let submit = format!(
            "{}prefer: wait=30\r\ncontent-length: 1\r\n\r\nx",
            head("POST", "/v1/queues/default/jobs", &self.keys[0])
        );
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(submit.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        worker.kill().unwrap();
        worker.wait().unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let id = text.lines().find_map(|line| line.strip_prefix("relay-job-id: "));
        id.unwrap_or_else(|| panic!("{text}")).to_owned()
    }
}

/// The beginning of a request.
pub(crate) fn head(method: &str, path: &str, key: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {key}\r\n")
}

/// Connections that say `text` and stay, ten new ones a second of each peer.
pub(crate) async fn flood(http: SocketAddr, text: &str) {
    let mut held = Vec::new();
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        every.tick().await;
        if let Ok(mut stream) = TcpStream::connect(http).await {
            stream.write_all(text.as_bytes()).await.ok();
            held.push(stream);
        }
        if held.len() > 60 {
            held.remove(0);
        }
    }
}

/// A connection whose streams ask for `path`, and of which nothing is read beyond `window`; those that were refused ask again.
pub(crate) async fn streams(http: SocketAddr, path: &str, key: &str, window: u32) {
    loop {
        let Ok(stream) = TcpStream::connect(http).await else { continue };
        let builder = h2::client::Builder::new().initial_window_size(window).clone();
        let Ok((mut send, connection)) = builder.handshake::<_, Bytes>(stream).await else { continue };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let mut answers = Vec::new();
        for _ in 0..STREAMS {
            let request =
                http::Request::get(format!("http://relay{path}")).header("authorization", format!("Bearer {key}"));
            let Ok(ready) = send.clone().ready().await else { break };
            send = ready;
            let Ok((answer, _)) = send.send_request(request.body(()).unwrap(), true) else { break };
            answers.push(answer);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(answers);
    }
}
