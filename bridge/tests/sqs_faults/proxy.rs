//! Between relay and the emulator: forwards calls, and loses, delays or refuses those that a test names.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What happens to a call.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It takes effect, and its answer is lost with the connection.
    LoseAnswer,
    /// It is answered with this error of AWS and takes no effect.
    Refuse(&'static str),
    /// It goes on when the test says so: see [`Proxy::let_go`].
    Hold,
}

/// A listener of its own in front of the emulator.
pub(crate) struct Proxy {
    url: String,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    /// The next calls whose operation has this name have this fault.
    faults: Mutex<VecDeque<(&'static str, Fault)>>,
    calls: Mutex<Vec<String>>,
    held: Notify,
    let_go: Notify,
}

impl Proxy {
    pub(crate) async fn start(emulator: &str) -> Self {
        let upstream = emulator.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let mut serving = JoinSet::new();
        let of_all = shared.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(connection(stream, upstream.clone(), of_all.clone()));
            }
        });
        Self { url, shared, _serving: serving }
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// The next call of `operation` has `fault`; calls of this method add up.
    pub(crate) fn fault(&self, operation: &'static str, fault: Fault) {
        self.shared.faults.lock().unwrap().push_back((operation, fault));
    }

    /// Waits until a call is held.
    pub(crate) async fn held(&self) {
        self.shared.held.notified().await;
    }

    /// Lets the call go that is held.
    pub(crate) fn let_go(&self) {
        self.shared.let_go.notify_one();
    }

    /// How many calls of `operation` there were.
    pub(crate) fn calls(&self, operation: &str) -> usize {
        self.shared.calls.lock().unwrap().iter().filter(|call| *call == operation).count()
    }
}

async fn connection(mut client: TcpStream, upstream: String, shared: Arc<Shared>) {
    let Ok(mut server) = TcpStream::connect(&upstream).await else { return };
    while let Some(request) = message(&mut client).await {
        let text = String::from_utf8_lossy(&request);
        let target = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("x-amz-target").then(|| value.trim().rsplit('.').next().unwrap_or("").to_owned())
        });
        let operation = target.unwrap_or_default();
        shared.calls.lock().unwrap().push(operation.clone());
        let fault = {
            let mut faults = shared.faults.lock().unwrap();
            let at = faults.iter().position(|(name, _)| *name == operation);
            at.and_then(|at| faults.remove(at)).map(|(_, fault)| fault)
        };
        match &fault {
            Some(Fault::Refuse(code)) => {
                let body = format!("{{\"__type\":\"com.amazonaws#{code}\",\"message\":\"as the test wants\"}}");
                let answer = format!(
                    "HTTP/1.1 400 Bad Request\r\nContent-Type: application/x-amz-json-1.0\r\nx-amzn-errortype: {code}\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                if client.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                continue;
            }
            Some(Fault::Hold) => {
                shared.held.notify_one();
                shared.let_go.notified().await;
            }
            Some(Fault::LoseAnswer) | None => {}
        }
        if server.write_all(&request).await.is_err() {
            return;
        }
        let Some(answer) = message(&mut server).await else { return };
        if matches!(fault, Some(Fault::LoseAnswer)) || client.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// One message of HTTP/1.1 with a length, head and body.
async fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        if let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            if bytes.len() >= head + 4 + length.unwrap_or(0) {
                return Some(bytes);
            }
        }
        match tokio::time::timeout(Duration::from_secs(60), stream.read(&mut chunk)).await {
            Ok(Ok(read)) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
}
