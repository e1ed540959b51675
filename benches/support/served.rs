//! `relay serve` of any binary as a process: on the embedded store, or on a NATS server.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use relay_conformance::testing::NatsServer;
use tempfile::TempDir;

/// The file of counts, beside the store.
const COUNTS: &str = "instructions";

/// A server with one queue, `work`, killed when it is dropped.
pub struct Served {
    child: Child,
    /// Where clients connect.
    pub http: SocketAddr,
    /// Where workers connect.
    pub workers: SocketAddr,
    /// Where clients connect over TCP, if they can.
    pub tcp: Option<SocketAddr>,
    data: TempDir,
}

/// Whether instructions are counted, some fifty times slower than the server is: `RELAY_BENCH_COUNT` is set.
pub fn counts() -> bool {
    std::env::var_os("RELAY_BENCH_COUNT").is_some()
}

impl Served {
    /// Starts the binary `relay` on `nats`, or on a fresh embedded store, and waits until it says where it listens.
    pub fn start(relay: &str, nats: Option<&NatsServer>) -> Self {
        Self::start_on(relay, nats.map(|nats| (nats.url(), 1)))
    }

    /// The same with a listener for clients over TCP, which older binaries do not know.
    pub fn start_with_tcp(relay: &str, nats: Option<&NatsServer>) -> Self {
        Self::start_with(relay, nats.map(|nats| (nats.url(), 1)), &["--tcp", "127.0.0.1:0"])
    }

    /// The same on the NATS at these addresses, which commas separate, with so many copies of each message.
    pub fn start_on(relay: &str, nats: Option<(String, usize)>) -> Self {
        Self::start_with(relay, nats, &[])
    }

    fn start_with(relay: &str, nats: Option<(String, usize)>, flags: &[&str]) -> Self {
        let data = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new(if counts() { "valgrind" } else { relay });
        if counts() {
            let file = data.path().join(COUNTS);
            command.args(["-q", "--tool=callgrind", &format!("--callgrind-out-file={}", file.display()), relay]);
        }
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_")) {
            command.env_remove(name);
        }
        command.args(["serve", "--no-auth", "--json", "--log", "error", "--queue", "work"]);
        command.args(["--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"]).args(flags);
        match nats {
            Some((url, replicas)) => {
                command.args(["--provision", "--nats", &url, "--nats-replicas", &replicas.to_string()])
            }
            None => command.arg("--data").arg(data.path()),
        };
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |of: &str| ready["listening"][of].as_str().map(|address| address.parse().unwrap());
        let (http, workers) = (address("http").unwrap(), address("workers").unwrap());
        Self { http, workers, tcp: address("tcp"), child, data }
    }

    /// Instructions of the process since they were asked for last, the kernel's not counted. Only while they are counted.
    pub fn instructions(&self) -> u64 {
        let dumped = Command::new("callgrind_control").args(["--dump", &self.pid().to_string()]).output().unwrap();
        assert!(dumped.status.success(), "valgrind's callgrind_control counts: {dumped:?}");
        // Dumps are numbered from 1.
        let newest = (1..).map(|at| self.data.path().join(format!("{COUNTS}.{at}"))).take_while(|path| path.exists());
        let text = std::fs::read_to_string(newest.last().unwrap()).unwrap();
        let totals = text.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap();
        totals.trim().parse().unwrap()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
