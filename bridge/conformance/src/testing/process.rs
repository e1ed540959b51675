//! A child process that never outlives its test, and ports that nobody else takes while it is down.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpSocket;

/// A running child, killed when it is dropped. Where the test itself is killed and drops nothing, a guard sees that its
/// end of a pipe closes, and kills the child.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    guard: Child,
}

impl Process {
    /// Starts `command` with its output appended to the file at `log`.
    pub(super) fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().append(true).create(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // Pipes are closed on exec, so that no other child holds this one open.
        let guard = Command::new("/bin/sh")
            .args(["-c", "read -r line; kill -9 \"$1\"", "guard", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, guard }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGTERM, and its end.
    pub(super) async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        tokio::task::spawn_blocking(move || {
            self.child.wait().unwrap();
        })
        .await
        .unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard first: once the child is waited for, its number may be another process's.
        self.guard.kill().ok();
        self.guard.wait().ok();
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A port on loopback, kept for its owner for as long as this lives: while no server listens on it, the kernel gives it
/// to nobody else, neither to a listener nor as the near end of a connection.
#[derive(Debug)]
pub(super) struct Port {
    held: TcpSocket,
}

impl Port {
    pub(super) fn reserve() -> Self {
        let held = TcpSocket::new_v4().unwrap();
        held.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        // Set after the bind: a server that sets it too, as Go's listeners do, may then listen on the same port.
        held.set_reuseaddr(true).unwrap();
        Self { held }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.held.local_addr().unwrap()
    }
}
