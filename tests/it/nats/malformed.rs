//! Messages that no client library sends: headers and subjects that are none. NATS passes them on as they are.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::support::Relay;

/// A client of NATS that sends what it is told, byte by byte.
struct Raw(BufReader<TcpStream>);

impl Raw {
    /// A client that listens on `_INBOX.raw.>`.
    async fn connect(url: &str) -> Self {
        let address = url.strip_prefix("nats://").unwrap();
        let mut raw = Self(BufReader::new(TcpStream::connect(address).await.unwrap()));
        assert!(raw.line().await.starts_with("INFO "));
        raw.send(b"CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB _INBOX.raw.> 1\r\n").await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).await.unwrap();
        String::from_utf8(line).unwrap()
    }

    /// Sends a message with `headers` as they are, with an inbox of its own for the answer.
    async fn publish(&mut self, subject: &[u8], reply: &[u8], headers: &[u8], body: &[u8]) {
        let lengths = format!(" {} {}\r\n", headers.len(), headers.len() + body.len());
        self.send(&[b"HPUB ", subject, b" ", reply, lengths.as_bytes(), headers, body, b"\r\n"].concat()).await;
    }

    /// The next message, headers and body.
    async fn answer(&mut self) -> (String, String) {
        loop {
            let line = self.line().await;
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["HMSG", subject, _, _, bytes] = words[..] {
                let mut message = vec![0; bytes.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut message).await.unwrap();
                return (subject.to_owned(), String::from_utf8(message).unwrap());
            }
            assert!(!line.is_empty() && !line.starts_with("-ERR"), "the server says {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_none_are_refused_and_disturb_nobody_else() {
    let relay = Relay::start().await;
    let mut raw = Raw::connect(&relay.server.url()).await;
    let headers: [&[u8]; 9] = [
        b"NATS/1.0\r\nA: b\rc\r\n\r\n",
        b"NATS/1.0\r\nA: b\r\n c\rd\r\n\r\n",
        b"NATS/1.0\r\nA: \xff\r\n\r\n",
        b"NATS/1.0\r\na b: c\r\n\r\n",
        b"NATS/1.0\r\n: c\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0 what\r\nA: b\r\n\r\n",
        b"NATS/1.0 503\r\nIdempotency-Key: b\r\n\r\n",
        b"HTTP/1.1\r\nA: b\r\n\r\n",
    ];
    for (number, headers) in headers.into_iter().enumerate() {
        let reply = format!("_INBOX.raw.{number}");
        raw.publish(b"relay.submit.me.mail", reply.as_bytes(), headers, b"x").await;
        let (subject, answer) = tokio::time::timeout(Duration::from_secs(30), raw.answer()).await.unwrap();
        assert_eq!(subject, reply);
        assert!(answer.contains("Nats-Service-Error: malformed-request"), "{}: {answer}", headers.escape_ascii());
        relay.submit(&[], "of somebody else").await.job();
    }
    assert_eq!(relay.connection.counts().losses, 0, "the connection was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn subjects_that_are_no_text_disturb_nobody() {
    let relay = Relay::start().await;
    let mut raw = Raw::connect(&relay.server.url()).await;
    let subjects: [(&[u8], &[u8]); 4] = [
        (b"relay.submit.me.\xff", b"_INBOX.raw.0"),
        ("relay.submit.me.a\u{a0}b".as_bytes(), b"_INBOX.raw.1"),
        (b"relay.submit.\xc3\x28.mail", b"_INBOX.raw.2"),
        (b"relay.submit.me.mail", b"_INBOX.raw.\xff"),
    ];
    for (subject, reply) in subjects {
        raw.publish(subject, reply, b"NATS/1.0\r\nA: b\r\n\r\n", b"x").await;
        raw.send(&[b"PUB ", subject, b" ", reply, b" 1\r\nx\r\n"].concat()).await;
        if reply.is_ascii() {
            for _ in 0..2 {
                let (to, answer) = tokio::time::timeout(Duration::from_secs(30), raw.answer()).await.unwrap();
                assert_eq!(to.as_bytes(), reply);
                assert!(answer.contains("Nats-Service-Error: malformed-request"), "{answer}");
            }
        }
        relay.submit(&[], "of somebody else").await.job();
    }
    assert_eq!(relay.connection.counts().losses, 0, "the connection was lost");
}
