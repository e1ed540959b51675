//! One `nats-server` with JetStream.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::binary::nats_server;
use super::process::{Port, Process};

/// How long a server may take to become ready on a busy machine, recovery of a large store included.
const READY_MAX: Duration = Duration::from_secs(60);

/// A server on loopback. Killed when dropped; its store goes with it.
#[derive(Debug)]
pub struct NatsServer {
    name: String,
    dir: TempDir,
    args: Vec<OsString>,
    tls_first: bool,
    client: Port,
    monitor: Port,
    process: Option<Process>,
}

/// The settings of a [`NatsServer`] that differ from the usual ones.
#[derive(Clone, Debug, Default)]
pub struct NatsServerBuilder {
    file: Option<String>,
    config: String,
    jetstream: String,
    routes: Option<(SocketAddr, Vec<SocketAddr>)>,
    args: Vec<OsString>,
}

impl NatsServerBuilder {
    /// A whole configuration file instead of the usual one, in which `{name}`, `{client}`, `{monitor}` and `{store}` stand
    /// for the node's own, and in a cluster `{route}` and `{routes}` for where nodes talk to each other.
    #[must_use]
    pub fn file(mut self, text: &str) -> Self {
        self.file = Some(text.to_owned());
        self
    }

    /// Lines of the configuration file's top level: `authorization { … }`, `tls { … }`, `max_payload: 64KB`.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Lines of the file's `jetstream` block: `sync_interval: always`, `max_file_store: 10MB`.
    #[must_use]
    pub fn jetstream(mut self, text: &str) -> Self {
        self.jetstream.push_str(text);
        self.jetstream.push('\n');
        self
    }

    /// In a cluster: where this node listens to the others, and where all of them do.
    pub(super) fn routed(mut self, own: SocketAddr, all: &[SocketAddr]) -> Self {
        self.routes = Some((own, all.to_vec()));
        self
    }

    /// An argument of the command line, such as `-DV` for a log of everything that is said.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready within a minute, with the end of its log.
    pub async fn start(self) -> NatsServer {
        let mut server = NatsServer::prepare(self);
        server.launch();
        server.ready().await;
        server
    }
}

impl NatsServer {
    /// One node without accounts, users or TLS, ready.
    ///
    /// # Panics
    /// If it does not become ready within a minute, with the end of its log.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// For one that is not as usual.
    #[must_use]
    pub fn builder() -> NatsServerBuilder {
        NatsServerBuilder::default()
    }

    /// Its directory, its ports and its configuration; it does not run yet.
    pub(super) fn prepare(builder: NatsServerBuilder) -> Self {
        let dir = tempfile::Builder::new().prefix("relay-nats-").tempdir().unwrap();
        let (client, monitor) = (Port::reserve(), Port::reserve());
        let name = format!("relay-test-{}", client.address().port());
        let mut server = Self { name, dir, args: Vec::new(), tls_first: false, client, monitor, process: None };
        server.configure(builder);
        server
    }

    /// Sets what holds from its next start on. Ports and store stay.
    pub fn configure(&mut self, builder: NatsServerBuilder) {
        let config = builder.file.unwrap_or_else(|| {
            let cluster = "cluster {\nname: relay-test\nlisten: \"{route}\"\nroutes: [{routes}]\n}";
            format!(
                "server_name: {{name}}\nlisten: \"{{client}}\"\nhttp: \"{{monitor}}\"\n\
                 jetstream {{\nstore_dir: \"{{store}}\"\nmax_file_store: 8GB\nmax_memory_store: 512MB\n{}}}\n{}{}",
                builder.jetstream,
                builder.config,
                if builder.routes.is_some() { cluster } else { "" },
            )
        });
        let mut places = vec![
            ("{name}", self.name.clone()),
            ("{client}", self.client.address().to_string()),
            ("{monitor}", self.monitor.address().to_string()),
            ("{store}", self.store().display().to_string()),
        ];
        if let Some((own, all)) = builder.routes {
            let all: Vec<_> = all.iter().map(|address| format!("\"nats://{address}\"")).collect();
            places.extend([("{route}", own.to_string()), ("{routes}", all.join(", "))]);
        }
        let config = places.iter().fold(config, |text, (place, value)| text.replace(place, value));
        // Such a server says nothing in the clear that it could be known by.
        self.tls_first = config.contains("handshake_first");
        std::fs::write(self.dir.path().join("server.conf"), config).unwrap();
        self.args = builder.args;
    }

    /// Starts the process and does not wait for it.
    pub(super) fn launch(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let mut command = Command::new(nats_server());
        command.arg("--config").arg(self.dir.path().join("server.conf")).args(&self.args);
        self.process = Some(Process::start(&mut command, &self.log_path()));
    }

    /// Waits until clients are let in and JetStream answers for everything in the store; in a cluster also until this node
    /// is current with the leader.
    pub(super) async fn ready(&mut self) {
        let until = Instant::now() + READY_MAX;
        while !(self.is_healthy().await && self.lets_clients_in().await) {
            let ended = self.process.as_mut().map(|process| process.ended());
            if !matches!(ended, Some(None)) || Instant::now() > until {
                panic!("{} is not ready, ended: {ended:?}; it said:\n{}", self.name, self.log());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_healthy(&self) -> bool {
        self.monitor("/healthz").await.is_some_and(|answer| answer["status"] == "ok")
    }

    /// Whether the server that answers on the port for clients is this one.
    async fn lets_clients_in(&self) -> bool {
        if self.tls_first {
            return TcpStream::connect(self.address()).await.is_ok();
        }
        let mut first = String::new();
        let info = async {
            let stream = TcpStream::connect(self.address()).await.ok()?;
            BufReader::new(stream).read_line(&mut first).await.ok()?;
            serde_json::from_str::<Value>(first.strip_prefix("INFO ")?).ok()
        };
        let info = timeout(Duration::from_secs(2), info).await.ok().flatten();
        info.is_some_and(|info| info["server_name"] == self.name.as_str() && info["jetstream"] == true)
    }

    /// The answer of the monitoring port on `path`, such as `/varz` or `/jsz?streams=true`; `None` if there is none.
    pub async fn monitor(&self, path: &str) -> Option<Value> {
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let mut answer = String::new();
        let exchange = async {
            let mut stream = TcpStream::connect(self.monitor.address()).await.ok()?;
            stream.write_all(request.as_bytes()).await.ok()?;
            stream.read_to_string(&mut answer).await.ok()
        };
        timeout(Duration::from_secs(5), exchange).await.ok().flatten()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// `nats://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// Where clients connect. It stays the same over restarts.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.client.address()
    }

    /// The name that it goes by in a cluster and in INFO.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of its process, for a look at its CPU time and memory; `None` while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The directory of its store, for a look or a copy while it is down.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log(&self) -> String {
        let text = std::fs::read(self.log_path()).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(8 * 1024)..];
        String::from_utf8_lossy(tail).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    pub(super) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL, and its end. It may be started again.
    pub fn kill(&mut self) {
        drop(self.process.take());
    }

    /// SIGTERM, and its end once it has closed its store. It may be started again.
    pub async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop().await;
        }
    }

    /// Starts it again, with the same port and store, and waits until it is ready. Kills it first if it runs.
    ///
    /// # Panics
    /// If it does not become ready within a minute, with the end of its log.
    pub async fn restart(&mut self) {
        self.kill();
        self.launch();
        self.ready().await;
    }

    /// Tells it to enter lame duck mode: it says so to its clients, lets nobody in, and ends later.
    pub fn lame_duck(&self) {
        self.signal(Signal::SIGUSR2);
    }

    /// Has it take over what [`Self::configure`] set, without a restart; it does so a little later.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Stops it from running without closing a connection, as a machine that hangs. See [`Self::resume`].
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it run on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).signal(signal);
    }
}
