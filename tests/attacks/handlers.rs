//! A handler that looks for relay's credentials in its environment, and text of handlers that a terminal would obey.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use nix::pty::openpty;

use crate::cli_support::{Running, json_lines, nobody, relay, run, run_with, stdout};
use crate::support::get;

/// The environment of a worker with credentials of all kinds.
const CREDENTIALS: [(&str, &str); 4] = [
    ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hush"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=hush"),
    ("AWS_SECRET_ACCESS_KEY", "hush"),
    ("RELAY_WORKER_KEY", "hush"),
];

/// A development server with these credentials whose handler prints its environment.
fn with_credentials(more: &[&str]) -> Running {
    let args = ["dev", "--listen", "127.0.0.1:0", "--json"];
    let mut command = relay(args.iter().chain(more).chain(&["--", "env"]));
    command.envs(CREDENTIALS);
    Running::start_command(command)
}

fn environment(dev: &Running) -> String {
    stdout(&run_with(["submit", "--wait", "--server", &dev.url()], b"x")).to_owned()
}

#[test]
fn a_handler_is_given_no_credentials_of_relay_and_the_log_names_what_is_withheld() {
    let mut dev = with_credentials(&[]);
    let line = dev.wait_for_line("do not inherit");
    for name in ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"] {
        assert!(line.contains(name), "{name}: {line}");
    }
    assert!(line.contains("--pass-env") && !line.contains("hush") && !line.contains("AWS_"), "{line}");
    let seen = environment(&dev);
    assert!(!seen.contains("HEADERS=") && !seen.contains("RELAY_WORKER_KEY"), "{seen}");
    assert!(seen.contains("RELAY_JOB_ID=") && seen.contains("AWS_SECRET_ACCESS_KEY=hush"), "{seen}");
    dev.stop();
}

/// The command as a user without privileges starts it: root may look into every process.
fn without_privileges(whole: &Command) -> Command {
    // The program is opened before, because that user may not be let into the folder that it is in.
    let drop = "exec 9<\"$0\"; exec setpriv --reuid=65534 --regid=65534 --clear-groups /proc/self/fd/9 \"$@\"";
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let run = if is_root { drop } else { "exec \"$0\" \"$@\"" };
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(run).arg(whole.get_program()).args(whole.get_args()).envs(CREDENTIALS);
    shell.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

#[test]
fn a_handler_can_not_look_into_the_process_that_started_it() {
    let look = "for file in environ maps fd/0; do head -c 1 /proc/$PPID/$file >&2 && echo $file; done; head -c 1 /proc/self/environ >&2 && echo its own; true";
    let args = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json", "--", "sh", "-c", look];
    let dev = Running::start_command(without_privileges(&relay(args)));
    let seen = environment(&dev);
    assert_eq!(seen.trim(), "its own");
    // The process still reads about itself what it has to.
    let metrics = get(dev.ready["listening"]["admin"].as_str().unwrap(), "/metrics");
    for metric in ["process_open_fds ", "process_resident_memory_bytes "] {
        assert!(metrics.contains(metric), "{metric}: {metrics}");
    }
    dev.stop();
}

#[test]
fn an_operator_passes_variables_on_and_never_those_of_relay() {
    let dev = with_credentials(&["--pass-env", "OTEL_*_TRACES_HEADERS"]);
    let seen = environment(&dev);
    assert!(seen.contains("OTEL_EXPORTER_OTLP_TRACES_HEADERS=") && !seen.contains("OTLP_HEADERS="), "{seen}");
    dev.stop();
    let dev = with_credentials(&["--pass-env", "*"]);
    let seen = environment(&dev);
    assert!(seen.contains("OTLP_HEADERS=") && !seen.contains("RELAY_WORKER_KEY"), "{seen}");
    dev.stop();
    for pattern in ["RELAY_WORKER_KEY", "AWS-*"] {
        let refused = run(["dev", "--pass-env", pattern, "--", "cat"]);
        assert_eq!(refused.status.code(), Some(2), "{pattern}");
    }
}

#[test]
fn a_worker_on_sqs_keeps_its_aws_credentials() {
    let (_held, address) = nobody();
    let args = ["worker", "--sqs", "--sqs-region", "us-east-1", "--sqs-endpoint", &address];
    let start = |more: &[&str]| {
        let mut command = relay(args.iter().chain(more).chain(&["--", "env"]));
        let mut worker = command.envs(CREDENTIALS).spawn().unwrap();
        let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines().map(Result::unwrap);
        // It waits for AWS, which is not there.
        let line = lines.find(|line| line.contains("do not inherit")).unwrap();
        worker.kill().unwrap();
        worker.wait().unwrap();
        line
    };
    assert!(start(&[]).contains("AWS_SECRET_ACCESS_KEY"));
    let line = start(&["--pass-env", "AWS_*"]);
    assert!(!line.contains("AWS_") && line.contains("OTLP_HEADERS"), "{line}");
}

/// The text that a person sees whose terminal is stdout and stderr of the command.
fn on_a_terminal(mut command: Command) -> String {
    let pty = openpty(None, None).unwrap();
    command.env("NO_COLOR", "1").stdout(pty.slave.try_clone().unwrap()).stderr(pty.slave);
    let mut child = command.spawn().unwrap();
    // The terminal ends when nobody has it open.
    drop(command);
    let mut seen = Vec::new();
    // Its end is an error on Linux.
    File::from(pty.master).read_to_end(&mut seen).ok();
    child.wait().unwrap();
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn a_terminal_obeys_nothing_that_a_handler_or_a_client_says() {
    let attack = r"printf '\033]0;title\007\033[2Jone\ttwo\n\302\2332J'";
    let handler = format!("if [ \"$(cat)\" = fail ]; then {attack} >&2; exit 65; fi; {attack}");
    let dev = Running::dev(&["--admin", "127.0.0.1:0"], &handler);
    let url = dev.url();
    let admin = format!("http://{}", dev.ready["listening"]["admin"].as_str().unwrap());
    let submit = |input: &str, more: &[&str]| {
        let mut command = relay(["submit", "--wait", "--server", &url].iter().chain(more));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input.as_bytes()).unwrap();
        file.rewind().unwrap();
        command.stdin(file);
        command
    };
    let (done, failed) = (on_a_terminal(submit("x", &[])), on_a_terminal(submit("fail", &[])));
    let as_json = on_a_terminal(submit("fail", &["--json"]));
    let listed = run(["dead", "list", "--admin-server", &admin, "--json"]);
    let job = json_lines(&listed)[0]["job_id"].as_str().unwrap().to_owned();
    let letter = on_a_terminal(relay(["dead", "show", &job, "--admin-server", &admin]));
    for seen in [&done, &failed, &as_json, &letter] {
        let obeyed = seen.chars().find(|c| c.is_control() && !"\r\n\t".contains(*c));
        assert_eq!(obeyed, None, "{seen:?}");
        assert!(seen.contains(r"\u001b]0;title\u0007\u001b[2J") && seen.contains(r"\u009b2J"), "{seen:?}");
    }
    assert!(done.contains("one\ttwo\r\n"), "lines and columns stay: {done:?}");
    // A program gets the bytes as they are.
    let raw = submit("x", &[]).output().unwrap();
    assert_eq!(raw.stdout, b"\x1b]0;title\x07\x1b[2Jone\ttwo\n\xc2\x9b2J");
    dev.stop();
}
