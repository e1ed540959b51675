//! A server to attack, and what an attacker's peer needs.

use std::fs::read_to_string;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;

use crate::cli_support::{Running, code, run, stderr, stdout};

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
