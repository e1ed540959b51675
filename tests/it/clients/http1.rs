//! A scripted server over HTTP/1.1: one connection.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::http::{self, Message, Reply, Requested};
use super::scenario::Cut;
use super::script::Script;

/// Serves a connection to the address `at` until its peer, or the script, ends it.
pub(super) async fn serve(script: Arc<Script>, at: usize, stream: TcpStream) {
    Connection { script, at, stream, read: Vec::new() }.converse().await;
}

struct Connection {
    script: Arc<Script>,
    at: usize,
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// `None` at the end of the connection.
    async fn converse(&mut self) -> Option<()> {
        loop {
            let requested = self.requested().await?;
            let (step, reply) = http::attend(&self.script, self.at, &requested).await;
            let is_raw = matches!(reply, Reply::Raw(_));
            let answer = match reply {
                Reply::Never => break,
                Reply::Lost => {
                    self.script.end();
                    return None;
                }
                Reply::Untaken => panic!("streams are refused over HTTP/2"),
                Reply::Raw(text) => text.into_bytes(),
                Reply::Message(message) => bytes(&message, step.leaves),
            };
            if step.unknown_message {
                self.stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </novel>\r\n\r\n").await.ok()?;
            }
            self.script.end();
            self.write(&answer, step.bytes_every_ms).await?;
            if step.leaves || is_raw {
                self.stream.shutdown().await.ok()?;
                break;
            }
        }
        // Until the client has gone.
        while self.stream.read_buf(&mut self.read).await.is_ok_and(|count| count > 0) {}
        None
    }

    async fn requested(&mut self) -> Option<Requested> {
        let most = if self.script.may_cut_request() { self.script.cut_at } else { usize::MAX };
        loop {
            if let Some((requested, length)) = parse(&self.read) {
                if most < usize::MAX {
                    self.script.cuts(Cut::Request, length);
                }
                self.read.drain(..length);
                return Some(requested);
            }
            if self.read.len() >= most {
                self.script.cuts(Cut::Request, usize::MAX);
                return None;
            }
            let mut chunk = vec![0; (most - self.read.len()).min(64 * 1024)];
            let count = self.stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
            self.read.extend_from_slice(&chunk[..count]);
        }
    }

    async fn write(&mut self, bytes: &[u8], every_ms: Option<u64>) -> Option<()> {
        let cut = self.script.cuts(Cut::Answer, bytes.len());
        let bytes = &bytes[..cut.unwrap_or(bytes.len())];
        match every_ms {
            None => self.stream.write_all(bytes).await.ok()?,
            Some(every) => {
                for byte in bytes {
                    tokio::time::sleep(Duration::from_millis(every)).await;
                    self.stream.write_all(&[*byte]).await.ok()?;
                }
            }
        }
        cut.is_none().then_some(())
    }
}

/// A whole request at the beginning of `read`, and how long it is.
fn parse(read: &[u8]) -> Option<(Requested, usize)> {
    let end = read.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&read[..end]).unwrap();
    let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
    let mut words = lines.next().unwrap().split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let pairs = lines.map(|line| line.split_once(':').unwrap());
    let headers: Vec<_> = pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let mut requested = Requested { method, target, headers, bytes: 0 };
    requested.bytes = requested.header("content-length").map_or(0, |length| length.parse().unwrap());
    let length = end + requested.bytes;
    (read.len() >= length).then_some((requested, length))
}

fn bytes(message: &Message, leaves: bool) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} As It Is\r\ncontent-length: {}\r\n", message.status, message.body.len());
    for (name, value) in &message.headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    if leaves {
        head += "connection: close\r\n";
    }
    [(head + "\r\n").as_bytes(), &message.body].concat()
}
