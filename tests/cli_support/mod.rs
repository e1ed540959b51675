//! The built binary as the tests of the command line use it: run to its end, or running until it is stopped.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::net::TcpSocket;

/// The binary, without what the environment of the tests would set.
pub(crate) fn relay<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_")) {
        command.env_remove(name);
    }
    // Nor what its user keeps.
    command.env("RELAY_CONTEXTS", "/nowhere/contexts.toml");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
pub(crate) fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    relay(args).output().unwrap()
}

/// Runs it to its end with `input` on stdin.
pub(crate) fn run_with<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, input: &[u8]) -> Output {
    let mut child = relay(args).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // Beside reading: neither may wait for the other's end.
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    })
}

/// An address at which nobody listens, and the socket that keeps it free of others: it is bound and does not listen.
pub(crate) fn nobody() -> (TcpSocket, String) {
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = format!("http://{}", held.local_addr().unwrap());
    (held, address)
}

/// The exit code; a panic with everything it said if a signal ended it.
pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// One JSON value per line of stdout.
pub(crate) fn json_lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A process of the binary that serves until it is stopped; killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    /// The line of JSON that it printed when it was ready.
    pub(crate) ready: Value,
    stderr: Option<BufReader<ChildStderr>>,
}

impl Running {
    /// Starts it and waits until it is ready. `args` must ask for `--json`.
    pub(crate) fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::start_command(relay(args))
    }

    /// Starts a command of [`relay`] and waits until it is ready.
    pub(crate) fn start_command(mut command: Command) -> Self {
        // No balancer is in front that has to notice an end; a flag has the last word.
        command.env("RELAY_DRAIN_DELAY", "0s");
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let Ok(ready) = serde_json::from_str(&line) else {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            panic!("not ready: {line:?}; it said:\n{text}");
        };
        Self { child, ready, stderr: Some(stderr) }
    }

    /// A development server whose worker runs `command` in the shell.
    pub(crate) fn dev(more: &[&str], command: &str) -> Self {
        let args = ["dev", "--listen", "127.0.0.1:0", "--json", "--retry-base", "10ms"];
        Self::start(args.iter().chain(more).chain(&["--", "sh", "-c", command]))
    }

    /// The address for `--server`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.ready["listening"]["http"].as_str().unwrap())
    }

    /// The address for `--connect`.
    pub(crate) fn workers(&self) -> String {
        self.ready["listening"]["workers"].as_str().unwrap().to_owned()
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Reads stderr until a line has `text` in it, and gives that line.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = self.stderr.as_mut().unwrap().read_line(&mut line).unwrap();
            assert!(read > 0, "stderr ended without {text:?}");
        }
        line
    }

    /// From here on nobody reads its stderr: writing there fails.
    pub(crate) fn close_stderr(&mut self) {
        self.stderr = None;
    }

    /// Waits for its end and gives the exit code, `None` if a signal ended it, and what it said since the last call.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        if let Some(mut stderr) = self.stderr.take() {
            stderr.read_to_string(&mut text).unwrap();
        }
        (self.child.wait().unwrap().code(), text)
    }

    /// SIGTERM and its end, which must be a drain.
    pub(crate) fn stop(self) {
        self.signal(Signal::SIGTERM);
        let (code, text) = self.wait();
        assert_eq!(code, Some(0), "{text}");
    }

    /// Signals until it has ended, and gives its exit code and its output: a signal that comes within half a second of
    /// the first one is that one again.
    pub(crate) fn force(mut self, signal: Signal) -> (Option<i32>, String) {
        let mut stderr = self.stderr.take().unwrap();
        std::thread::scope(|scope| {
            let (tell, ended) = std::sync::mpsc::channel();
            scope.spawn(move || {
                let mut text = String::new();
                stderr.read_to_string(&mut text).unwrap();
                tell.send(text).unwrap();
            });
            loop {
                self.signal(signal);
                if let Ok(text) = ended.recv_timeout(std::time::Duration::from_millis(50)) {
                    return (self.child.wait().unwrap().code(), text);
                }
            }
        })
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
