//! How a worker starts its handlers, from outside: it reports commands that it can't start, and processes that it
//! started do not outlive it.
//!
//! A fifo shows that a process lived and is gone: the process holds its writing end, and the test reads to its end.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::cli_support::{Running, code, json_lines, relay, run, run_with, stderr, stdout};
use nix::errno::Errno;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, mkfifo};
use tempfile::{TempDir, tempdir};

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
    script(&dir.path().join("bare"), "cat\n");
    let [plain, orphaned, bare, missing] = [at("plain"), at("orphaned"), at("bare"), at("missing")];
    for (program, says, hint) in [
        ("no-such-program", "no program `no-such-program` in PATH, which is /", "name it by its path"),
        ("./no-such-program", "no program at `./no-such-program`, looked for in /", "an absolute one"),
        (&missing, "missing`", "spelled right"),
        (&plain, "plain` can't be run: this user may not execute it", "chmod +x"),
        (dir.path().to_str().unwrap(), "can't be run: it is no file", "name a program file"),
        (&orphaned, "orphaned` is for `/no/such/interpreter`, which is not there", "first line"),
        (&bare, "bare` can't be run: it is no binary, and does not begin with `#!`", "begin it with #!/bin/sh"),
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

/// A fifo whose writing end a process under test holds.
struct Witness {
    dir: TempDir,
    events: mpsc::Receiver<Event>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Lives,
    Gone,
}

impl Witness {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let (tell, events) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(File::open(fifo).unwrap());
            reader.read_line(&mut String::new()).unwrap();
            tell.send(Event::Lives).ok();
            reader.read_to_end(&mut Vec::new()).unwrap();
            tell.send(Event::Gone).ok();
        });
        Self { dir, events }
    }

    /// A script whose child says that it lives, and then goes on until it is killed; so does the script.
    fn script(&self) -> String {
        let fifo = self.dir.path().join("fifo");
        format!("(exec 3>{}; echo lives >&3; trap '' TERM; exec sleep 100000) & wait", fifo.display())
    }

    fn lives(&self) {
        assert_eq!(self.events.recv_timeout(LIMIT), Ok(Event::Lives));
    }

    fn gone(&self) {
        assert_eq!(self.events.recv_timeout(LIMIT), Ok(Event::Gone), "what the worker started is still there");
    }
}

/// The guard's process: the worker's child that is told so.
fn guard_of(worker: &Running) -> Pid {
    let of = |id: &str| fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let children = fs::read_dir(format!("/proc/{}/task", worker.id())).unwrap().flatten().flat_map(|task| {
        let ids = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        ids.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>()
    });
    let guard = children.into_iter().find(|id| of(id).split('\0').nth(1) == Some("guard")).expect("no guard");
    // A process that has just begun does not ignore signals yet.
    let blocked = || {
        let status = fs::read_to_string(format!("/proc/{guard}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap()
    };
    while blocked() & (1 << (Signal::SIGTERM as u32 - 1)) == 0 {
        std::thread::yield_now();
    }
    Pid::from_raw(guard.parse().unwrap())
}

#[test]
fn handlers_and_their_children_do_not_outlive_a_worker_that_is_killed() {
    let witness = Witness::new();
    let worker = Running::dev(&[], &witness.script());
    submit(&worker);
    witness.lives();
    worker.kill();
    witness.gone();
}

#[test]
fn a_guard_that_somebody_starts_at_a_terminal_says_what_it_is_and_ends() {
    let terminal = openpty(None, None).unwrap();
    // This ends the input of a guard that reads it all the same.
    File::from(terminal.master.try_clone().unwrap()).write_all(b"\x04").unwrap();
    let output = relay(["guard"]).stdin(terminal.slave).output().unwrap();
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("`relay worker`"), "{}", stderr(&output));
}

#[test]
fn what_stops_a_worker_does_not_stop_its_guard_and_the_guard_ends_after_it() {
    // A process that loses its parent becomes a child of this process, which can wait for its end then.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let witness = Witness::new();
    let worker = Running::dev(&[], &witness.script());
    submit(&worker);
    witness.lives();
    let guard = guard_of(&worker);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        kill(guard, signal).unwrap();
    }
    assert_ne!(nix::unistd::getpgid(Some(guard)), nix::unistd::getpgid(Some(Pid::from_raw(worker.id() as i32))));
    worker.kill();
    witness.gone();
    assert_eq!(waitpid(guard, None), Ok(WaitStatus::Exited(guard, 0)));

    let drained = Running::dev(&[], "cat");
    assert_eq!(code(&run_with(["submit", "--wait", "--server", &drained.url()], b"x")), 0);
    let guard = guard_of(&drained);
    drained.stop();
    // The worker has collected it already, if there was time for that.
    let ended = waitpid(guard, None);
    assert!(matches!(ended, Ok(WaitStatus::Exited(_, 0)) | Err(Errno::ECHILD)), "{ended:?}");
}

#[test]
fn a_guard_that_was_killed_is_started_again_and_knows_what_runs() {
    let (first, second) = (Witness::new(), Witness::new());
    let turns = tempdir().unwrap();
    let turn = turns.path().join("turn");
    let script = format!("if mkdir {}; then {}; else {}; fi", turn.display(), first.script(), second.script());
    let worker = Running::dev(&["--slots", "2"], &script);
    submit(&worker);
    first.lives();
    let guard = guard_of(&worker);
    kill(guard, Signal::SIGKILL).unwrap();
    submit(&worker);
    second.lives();
    assert_ne!(guard_of(&worker), guard);
    worker.kill();
    first.gone();
    second.gone();
}

/// A guard that a test speaks to as a worker would.
fn guard() -> Child {
    let mut command = relay(["guard"]);
    command.stdin(Stdio::piped()).process_group(0);
    command.spawn().unwrap()
}

/// A command of that worker, in a group of its own.
fn command(mark: &str) -> Child {
    Command::new("sleep").arg("100000").env("RELAY_GUARD", mark).process_group(0).spawn().unwrap()
}

/// Says this, is gone, and waits for the guard's end.
fn say_and_go(mut guard: Child, text: &str) {
    guard.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(guard.wait().unwrap().success());
}

#[test]
fn a_command_whose_group_the_guard_was_not_told_of_is_killed_too() {
    let (mut announced, mut other) = (command("token-1"), command("token-11"));
    say_and_go(guard(), "token token\n? 1\n");
    assert_eq!(announced.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    assert_eq!(other.try_wait().unwrap(), None, "another start's command was killed");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_group_that_has_ended_is_not_killed_by_its_number() {
    // A token of its own: a guard of another test kills what it finds under its own.
    let (mut ended, mut left) = (command("numbered-1"), command("numbered-2"));
    say_and_go(guard(), &format!("token numbered\n? 1\n+ 1 {}\n? 2\n+ 2 {}\n- 1\n", ended.id(), left.id()));
    assert_eq!(left.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    assert_eq!(ended.try_wait().unwrap(), None, "a group that had ended was killed");
    ended.kill().unwrap();
    ended.wait().unwrap();
}

/// relay as the first process of a namespace of its own.
struct FirstProcess {
    unshare: Running,
    relay: Pid,
}

impl FirstProcess {
    fn dev(command: &str) -> Self {
        let mut unshare = Command::new("unshare");
        // With root of its own where the test's user is not root.
        let root = fs::metadata("/proc/self").unwrap().uid() == 0;
        let user = if root { &[][..] } else { &["--user", "--map-root-user"] };
        unshare.args(user).args(["--pid", "--mount-proc", "--fork", "--kill-child", env!("CARGO_BIN_EXE_relay")]);
        unshare.args(["dev", "--listen", "127.0.0.1:0", "--json", "--max-attempts", "1", "--", "sh", "-c", command]);
        unshare.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Where namespaces are not permitted this fails with what unshare says.
        let unshare = Running::start_command(unshare);
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let relay = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        Self { unshare, relay: Pid::from_raw(relay) }
    }
}

/// Processes that have ended and that their parent did not collect.
fn zombies_of(parent: Pid) -> Vec<PathBuf> {
    let is_zombie = |process: &PathBuf| {
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace().take(2).collect::<Vec<_>>());
        fields.is_some_and(|fields| fields == ["Z", parent.to_string().as_str()])
    };
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(is_zombie).collect()
}

#[test]
fn the_first_process_of_a_container_collects_orphans_and_only_orphans() {
    // Each handler leaves a child behind, which loses its parent and is killed with the group; the exit code is the
    // handler's own.
    let script = "sleep 100000 & read -r code; exit \"$code\"";
    let first = FirstProcess::dev(script);
    let ended = |code: u32| {
        let (input, server) = (format!("{code}\n"), first.unshare.url());
        let output = run_with(["submit", "--wait", "--json", "--server", &server], input.as_bytes());
        json_lines(&output).remove(0)
    };
    for job in 0..40 {
        let code = [0, 65, 3, 70][job % 4];
        let result = ended(code);
        let (outcome, detail) = match code {
            0 => ("succeeded", None),
            65 => ("failed", Some("exited with 65")),
            3 => ("exhausted", Some("exited with 3")),
            _ => ("exhausted", Some("exited with 70")),
        };
        assert_eq!(result["outcome"], outcome, "{result}");
        let says = result["failure"]["detail"].as_str();
        assert!(detail.is_none_or(|detail| says.is_some_and(|says| says.contains(detail))), "{result}");
    }
    // The last ones may be on their way: their end and its collection are nothing that anybody is told of.
    let begin = std::time::Instant::now();
    while !zombies_of(first.relay).is_empty() {
        assert!(begin.elapsed() < LIMIT, "zombies: {:?}", zombies_of(first.relay));
        std::thread::yield_now();
    }
    kill(first.relay, Signal::SIGTERM).unwrap();
    assert_eq!(first.unshare.wait().0, Some(0));
}
