//! How a worker starts its handlers, from outside: what it can't start it says.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod cli_support;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use cli_support::{Running, code, json_lines, relay, run, run_with, stderr, stdout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::tempdir;

/// How long a test waits for what must happen, before it fails.
const LIMIT: Duration = Duration::from_secs(60);

fn script(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
}

/// Kills a process that goes on for longer than anything here may take, so that a test fails and does not hang.
struct Watchdog {
    _good: mpsc::Sender<()>,
}

impl Watchdog {
    fn of(process: u32) -> Self {
        let (good, gone) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if gone.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                kill(Pid::from_raw(process.try_into().unwrap()), Signal::SIGKILL).ok();
            }
        });
        Self { _good: good }
    }
}

/// Runs a command that must end by itself.
fn ends(mut command: Command) -> Output {
    let child = command.spawn().unwrap();
    let _watchdog = Watchdog::of(child.id());
    child.wait_with_output().unwrap()
}

/// Where a job stands, as its client sees it.
fn job(server: &Running, id: &str) -> serde_json::Value {
    json_lines(&run(["jobs", "show", id, "--json", "--server", &server.url()])).remove(0)
}

/// Submits a job and gives its id.
fn submit(server: &Running) -> String {
    let output = run_with(["submit", "--json", "--server", &server.url()], b"x");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    json_lines(&output)[0]["job_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_command_that_cannot_be_started_is_exit_code_2_at_the_start() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("plain"), "no program").unwrap();
    script(&dir.path().join("orphaned"), "#!/no/such/interpreter\n");
    let [plain, orphaned, missing] = [at("plain"), at("orphaned"), at("missing")];
    for (program, says, hint) in [
        ("no-such-program", "no program `no-such-program` in PATH, which is /", "name it by its path"),
        ("./no-such-program", "no program at `./no-such-program`, looked for in /", "an absolute one"),
        (&missing, "missing`", "spelled right"),
        (&plain, "plain` can't be run: this user may not execute it", "chmod +x"),
        (dir.path().to_str().unwrap(), "can't be run: it is no file", "name a program file"),
        (&orphaned, "orphaned` is for `/no/such/interpreter`, which is not there", "first line"),
    ] {
        for command in [&["worker", "--connect", "127.0.0.1:1"][..], &["dev", "--listen", "127.0.0.1:0"]] {
            let output = ends(relay(command.iter().chain(&["--", program])));
            assert_eq!(code(&output), 2, "{command:?} {program}: {output:?}");
            assert!(stderr(&output).contains(says), "{command:?} {program}: {}", stderr(&output));
            let hints = stderr(&output).lines().filter(|line| line.starts_with("hint: ")).collect::<Vec<_>>();
            assert!(hints.len() == 1 && hints[0].contains(hint), "{command:?} {program}: {}", stderr(&output));
        }
    }
}

#[test]
fn a_program_is_looked_for_where_the_worker_was_started() {
    let dir = tempdir().unwrap();
    script(&dir.path().join("handle"), "#!/bin/sh\ncat\n");
    let mut here = relay(["dev", "--listen", "127.0.0.1:0", "--json", "--", "./handle"]);
    let server = Running::start_command({
        here.current_dir(dir.path());
        here
    });
    let answer = run_with(["submit", "--wait", "--server", &server.url()], b"found");
    assert_eq!(stdout(&answer), "found", "{}", stderr(&answer));
    server.stop();
    let mut without_path = relay(["worker", "--", "handle"]);
    without_path.current_dir(dir.path());
    let output = ends(without_path);
    assert!(stderr(&output).contains("write ./handle"), "{}", stderr(&output));
}

#[test]
fn a_worker_whose_directory_is_gone_ends_with_exit_code_2() {
    let dir = tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "rmdir \"$PWD\" && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_relay"), "worker", "--", "true"]);
    shell.current_dir(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = ends(shell);
    assert_eq!(code(&output), 2, "{output:?}");
    assert!(stderr(&output).contains("the directory `.` that the command shall run in"), "{}", stderr(&output));
}

#[test]
fn a_program_that_vanishes_costs_no_attempt_and_its_jobs_run_once_it_is_back() {
    let dir = tempdir().unwrap();
    let handle = dir.path().join("handle");
    script(&handle, "#!/bin/sh\necho \"attempt $RELAY_ATTEMPT\"\n");
    let dev = ["dev", "--listen", "127.0.0.1:0", "--json", "--max-attempts", "1", "--", handle.to_str().unwrap()];
    let mut server = Running::start(dev);
    let _watchdog = Watchdog::of(server.id());
    fs::rename(&handle, dir.path().join("away")).unwrap();
    let jobs: Vec<String> = (0..5).map(|_| submit(&server)).collect();
    server.wait_for_line("WARN");
    server.wait_for_line("the handler can't be started here: the command did not start: No such file");
    for id in &jobs {
        let state = job(&server, id)["state"].clone();
        assert!(state == "queued" || state == "leased", "{id} is {state}");
    }
    fs::rename(dir.path().join("away"), &handle).unwrap();
    server.wait_for_line("the handler can be started again");
    for id in &jobs {
        let answer = run(["result", id, "--wait", "--server", &server.url()]);
        assert_eq!((code(&answer), stdout(&answer)), (0, "attempt 1\n"), "{}", stderr(&answer));
    }
    server.stop();
}

#[test]
fn a_service_that_refuses_connections_costs_no_attempt_and_its_jobs_run_once_it_is_back() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}/");
    let dev = ["dev", "--listen", "127.0.0.1:0", "--json", "--max-attempts", "1", "--http", &url];
    let mut server = Running::start(dev);
    let _watchdog = Watchdog::of(server.id());
    let id = submit(&server);
    server.wait_for_line("the handler can't be started here: the service can't be reached");
    let listener = TcpListener::bind(address).unwrap();
    let (mut connection, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let head: Vec<String> = reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    assert!(head.iter().any(|line| line == "relay-attempt: 1"), "{head:?}");
    // The body as well, or closing the connection would take the answer back.
    reader.read_exact(&mut [0]).unwrap();
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nback").unwrap();
    let answer = run(["result", &id, "--wait", "--server", &server.url()]);
    assert_eq!((code(&answer), stdout(&answer)), (0, "back"), "{}", stderr(&answer));
    server.stop();
}
