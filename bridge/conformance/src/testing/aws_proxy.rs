//! Between relay and the emulator: forwards calls, and loses, delays or refuses those that a test names. It counts
//! them, and the units that calls of DynamoDB are charged.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::aws_units::{self, Charge};

/// The fault of a call.
#[derive(Clone, Debug)]
pub enum AwsFault {
    /// It takes effect, and its answer is lost with the connection.
    LoseAnswer,
    /// It is answered with this error of AWS and takes no effect.
    Refuse(&'static str),
    /// It is a transaction, and cancelled for this reason of its first item.
    Cancel(&'static str),
    /// It goes on when the test says so: see [`AwsProxy::let_go`].
    Hold,
    /// The first entry of the next batch of more than one takes no effect and is answered as failed; the rest goes through.
    FailFirst,
    /// A receive whose answer is lost; a receive under the same attempt id gets that answer, as from a FIFO queue of AWS.
    LoseAndReplay,
}

/// A listener of its own in front of the emulator. It ends when it is dropped.
#[derive(Debug)]
pub struct AwsProxy {
    url: String,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The next calls whose operation has this name have this fault.
    faults: Mutex<VecDeque<(&'static str, AwsFault)>>,
    /// The fault that every call of an operation has, until it is mended.
    lasting: Mutex<HashMap<&'static str, AwsFault>>,
    /// The units that calls of DynamoDB were charged.
    charges: Mutex<Vec<Charge>>,
    calls: Mutex<Vec<String>>,
    /// The bytes of all answers to calls of an operation.
    answered: Mutex<HashMap<String, usize>>,
    /// Bodies of calls, in their order.
    bodies: Mutex<Vec<(String, Value)>>,
    /// Answers that were lost, by the attempt id of their receive.
    replays: Mutex<HashMap<String, Vec<u8>>>,
    held: Notify,
    let_go: Notify,
    mended: Notify,
}

impl AwsProxy {
    /// In front of the emulator at this address.
    ///
    /// # Panics
    /// If it gets no port.
    pub async fn start(emulator: &str) -> Self {
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

    /// Where it listens: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The next call of `operation` has `fault`; calls of this method add up.
    pub fn fault(&self, operation: &'static str, fault: AwsFault) {
        self.shared.faults.lock().unwrap().push_back((operation, fault));
    }

    /// Every call of `operation` has `fault`, until [`AwsProxy::mend`].
    pub fn fault_all(&self, operation: &'static str, fault: AwsFault) {
        self.shared.lasting.lock().unwrap().insert(operation, fault);
    }

    /// Ends what [`AwsProxy::fault_all`] began, and lets the calls go that are held by it.
    pub fn mend(&self, operation: &'static str) {
        self.shared.lasting.lock().unwrap().remove(operation);
        self.shared.mended.notify_waiters();
    }

    /// Waits until a call is held.
    pub async fn held(&self) {
        self.shared.held.notified().await;
    }

    /// Lets the call go that is held.
    pub fn let_go(&self) {
        self.shared.let_go.notify_one();
    }

    /// The bodies that were sent with the calls of `operation`.
    #[must_use]
    pub fn bodies(&self, operation: &str) -> Vec<Value> {
        let bodies = self.shared.bodies.lock().unwrap();
        bodies.iter().filter(|(of, _)| of == operation).map(|(_, body)| body.clone()).collect()
    }

    /// How many entries all calls of `operation` had, which takes batches.
    #[must_use]
    pub fn entries(&self, operation: &str) -> usize {
        self.bodies(operation).iter().map(|body| body["Entries"].as_array().map_or(0, Vec::len)).sum()
    }

    /// The units of DynamoDB that were consumed by writes, those of indexes included, and by reads.
    #[must_use]
    pub fn units(&self) -> [f64; 2] {
        self.units_of(|_| true)
    }

    /// The same of the calls that were about a partition that `is_one`, which tells a job's calls from those of a process that
    /// looks around meanwhile.
    #[must_use]
    pub fn units_of(&self, is_one: impl Fn(&str) -> bool) -> [f64; 2] {
        let charges = self.shared.charges.lock().unwrap();
        let charges = charges.iter().filter(|charge| is_one(&charge.partition));
        charges.fold([0.0; 2], |[writes, reads], charge| [writes + charge.writes, reads + charge.reads])
    }

    /// How many bytes all answers to calls of `operation` had, heads included.
    #[must_use]
    pub fn bytes_answered(&self, operation: &str) -> usize {
        self.shared.answered.lock().unwrap().get(operation).copied().unwrap_or(0)
    }

    /// How many calls of `operation` there were.
    #[must_use]
    pub fn calls(&self, operation: &str) -> usize {
        self.shared.calls.lock().unwrap().iter().filter(|call| *call == operation).count()
    }
}

impl Shared {
    /// The fault that this call has, and no other.
    fn next_fault(&self, operation: &str, body: &Value) -> Option<AwsFault> {
        let mut faults = self.faults.lock().unwrap();
        let many = body["Entries"].as_array().is_some_and(|entries| entries.len() > 1);
        let meets = |fault: &AwsFault| many || !matches!(fault, AwsFault::FailFirst);
        let at = faults.iter().position(|(name, fault)| *name == operation && meets(fault));
        at.and_then(|at| faults.remove(at)).map(|(_, fault)| fault)
    }
}

async fn connection(mut client: TcpStream, upstream: String, shared: Arc<Shared>) {
    let Ok(mut server) = TcpStream::connect(&upstream).await else { return };
    while let Some(mut request) = message(&mut client).await {
        let text = String::from_utf8_lossy(&request);
        let target = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("x-amz-target").then(|| value.trim().to_owned())
        });
        let target = target.unwrap_or_default();
        let (service, operation) = target.split_once('.').unwrap_or_default();
        let (charged, operation) = (service.starts_with("DynamoDB"), operation.to_owned());
        shared.calls.lock().unwrap().push(operation.clone());
        let body: Value = body_of(&request);
        shared.bodies.lock().unwrap().push((operation.clone(), body.clone()));
        if charged {
            let mut asked = body.clone();
            asked["ReturnConsumedCapacity"] = "TOTAL".into();
            request = with_body(&request, &asked);
        }
        let attempt = body["ReceiveRequestAttemptId"].as_str().unwrap_or_default();
        let replayed = shared.replays.lock().unwrap().remove(attempt);
        if let Some(answer) = replayed {
            if client.write_all(&answer).await.is_err() {
                return;
            }
            continue;
        }
        // Registered before the look, so that a mend in between is noticed.
        let mended = shared.mended.notified();
        let lasting = shared.lasting.lock().unwrap().get(operation.as_str()).cloned();
        let once = shared.next_fault(&operation, &body);
        let lasts = once.is_none();
        let fault = once.or(lasting);
        match &fault {
            Some(AwsFault::Refuse(_) | AwsFault::Cancel(_)) => {
                let (code, reason) = match &fault {
                    Some(AwsFault::Cancel(reason)) => ("TransactionCanceledException", Some(reason)),
                    Some(AwsFault::Refuse(code)) => (*code, None),
                    _ => continue,
                };
                let body = serde_json::json!({
                    "__type": format!("com.amazonaws#{code}"),
                    "message": "as the test wants",
                    "CancellationReasons": reason.map(|reason| [serde_json::json!({"Code": reason})]),
                });
                let body = body.to_string();
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
            Some(AwsFault::Hold) => {
                shared.held.notify_one();
                if lasts {
                    mended.await;
                } else {
                    shared.let_go.notified().await;
                }
            }
            Some(AwsFault::FailFirst) => request = with_body(&request, &without_first(&body)),
            Some(AwsFault::LoseAnswer | AwsFault::LoseAndReplay) | None => {}
        }
        if server.write_all(&request).await.is_err() {
            return;
        }
        let Some(mut answer) = message(&mut server).await else { return };
        *shared.answered.lock().unwrap().entry(operation.clone()).or_default() += answer.len();
        if charged {
            let told = match aws_units::whole(&operation, &body) {
                None => body_of(&answer),
                Some(whole) => {
                    if server.write_all(&with_body(&request, &whole)).await.is_err() {
                        return;
                    }
                    let Some(whole) = message(&mut server).await else { return };
                    body_of(&whole)
                }
            };
            shared.charges.lock().unwrap().push(aws_units::charge(&operation, &body, &told));
        }
        match &fault {
            Some(AwsFault::FailFirst) => {
                let failed = serde_json::json!([{
                    "Id": body["Entries"][0]["Id"], "Code": "InternalError", "SenderFault": false, "Message": "as the test wants",
                }]);
                let mut told = body_of(&answer);
                told["Failed"] = failed;
                answer = with_body(&answer, &told);
            }
            Some(AwsFault::LoseAndReplay) => {
                shared.replays.lock().unwrap().insert(attempt.to_owned(), answer);
                return;
            }
            _ => {}
        }
        if matches!(fault, Some(AwsFault::LoseAnswer)) || client.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// The JSON of a message; `null` if it has none.
fn body_of(message: &[u8]) -> Value {
    let head = message.windows(4).position(|window| window == b"\r\n\r\n").map_or(message.len(), |head| head + 4);
    serde_json::from_slice(&message[head..]).unwrap_or_default()
}

/// The message with another body.
fn with_body(message: &[u8], body: &Value) -> Vec<u8> {
    let head = message.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let body = body.to_string();
    let head = String::from_utf8_lossy(&message[..head]).into_owned();
    let lines = head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("content-length:"));
    let head = lines.collect::<Vec<_>>().join("\r\n");
    format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn without_first(body: &Value) -> Value {
    let mut body = body.clone();
    body["Entries"].as_array_mut().unwrap().remove(0);
    body
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
