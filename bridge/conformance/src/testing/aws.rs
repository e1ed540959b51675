//! One `ministack`: SQS and DynamoDB in a process, kept in its memory.
//!
//! It agrees with AWS on what relay's tests need, and not in everything: it replays no receive attempt, takes delays and
//! visibilities of any length, and never throttles.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::binary::ministack;
use super::process::{Port, Process};

/// How long it may take to become ready on a busy machine.
const READY_MAX: Duration = Duration::from_secs(60);

/// SQS and DynamoDB on loopback, for any credentials. Killed when dropped, with all that was in it.
#[derive(Debug)]
pub struct AwsEmulator {
    dir: TempDir,
    port: Port,
    process: Option<Process>,
}

impl AwsEmulator {
    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready within a minute, with the end of its log.
    pub async fn start() -> Self {
        Self::start_as(false).await
    }

    /// The same with several accounts, which do in each other's queues what the queues' policies say. The id of a caller's key is
    /// the number of its account.
    ///
    /// # Panics
    /// As [`AwsEmulator::start`].
    pub async fn start_with_policies() -> Self {
        Self::start_as(true).await
    }

    async fn start_as(policies: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("relay-aws-").tempdir().unwrap();
        let port = Port::reserve();
        let mut command = Command::new(ministack());
        let address = port.address();
        command
            .env("GATEWAY_PORT", address.port().to_string())
            .env("BIND_HOST", address.ip().to_string())
            .env("SERVICES", "sqs,dynamodb")
            .env("LOG_LEVEL", "WARNING")
            .env("AUTH", policies.to_string())
            .current_dir(dir.path());
        let process = Process::start(&mut command, &dir.path().join("server.log"));
        let mut emulator = Self { dir, port, process: Some(process) };
        emulator.ready().await;
        emulator
    }

    async fn ready(&mut self) {
        let until = Instant::now() + READY_MAX;
        while !self.is_healthy().await {
            let ended = self.process.as_mut().map(Process::ended);
            if !matches!(ended, Some(None)) || Instant::now() > until {
                panic!("ministack is not ready, ended: {ended:?}; it said:\n{}", self.log());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_healthy(&self) -> bool {
        let mut answer = String::new();
        let exchange = async {
            let mut stream = TcpStream::connect(self.port.address()).await.ok()?;
            let request = b"GET /_ministack/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.ok()?;
            stream.read_to_string(&mut answer).await.ok()
        };
        timeout(Duration::from_secs(5), exchange).await.is_ok() && answer.starts_with("HTTP/1.1 200")
    }

    /// `http://127.0.0.1:PORT`, for both services.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log(&self) -> String {
        let text = std::fs::read(self.dir.path().join("server.log")).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(8 * 1024)..];
        String::from_utf8_lossy(tail).into_owned()
    }

    /// SIGKILL, and its end; everything in it is gone.
    pub fn kill(&mut self) {
        drop(self.process.take());
    }
}
