//! The command handler against real commands.
//!
//! A `Witness` shows that a process lived and is gone: it holds a named pipe open, whose other end the test reads to
//! its end. No process table is asked, and nothing sleeps.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use relay_bridge::contract::result::DETAIL_BYTES_MAX;
use relay_bridge::policy::QueuePolicy;
use relay_workers::handler::exec::{Exec, ExecConfig};
use relay_workers::{Attempt, Context, Handler};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::job;

const LONG: Duration = Duration::from_secs(600);

fn shell(script: &str) -> ExecConfig {
    let command = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
    ExecConfig { command, ..ExecConfig::default() }
}

fn context(cancel: CancellationToken) -> Context {
    let policy = QueuePolicy { result_max: 1024 * 1024, ..QueuePolicy::default() };
    Context::detached(3, &policy, LONG, cancel)
}

async fn run(config: ExecConfig, payload: impl Into<Vec<u8>>) -> Attempt {
    Exec::new(config).unwrap().handle(&job(payload), &context(CancellationToken::new())).await
}

fn output(attempt: Attempt) -> Vec<u8> {
    match attempt {
        Attempt::Done(output) => output.payload.to_vec(),
        other => panic!("not done: {other:?}"),
    }
}

/// The outcome of an attempt, in three words: how, reason, detail.
fn failed(attempt: Attempt) -> (&'static str, String, String) {
    match attempt {
        Attempt::Retry { failure, after } => {
            assert_eq!(after, None);
            ("retry", failure.reason, failure.detail)
        }
        Attempt::Reject { failure } => ("reject", failure.reason, failure.detail),
        other => panic!("{other:?}"),
    }
}

struct Witness {
    _directory: tempfile::TempDir,
    pipe: PathBuf,
    alive: oneshot::Receiver<()>,
    gone: oneshot::Receiver<()>,
}

impl Witness {
    /// A script that writes a line to `$WITNESS` and keeps it open is watched.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("witness");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let ((lives, alive), (goes, gone)) = (oneshot::channel(), oneshot::channel());
        let path = pipe.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(std::fs::File::open(path).unwrap());
            reader.read_line(&mut String::new()).unwrap();
            lives.send(()).ok();
            reader.read_to_end(&mut Vec::new()).unwrap();
            goes.send(()).ok();
        });
        Self { _directory: directory, pipe, alive, gone }
    }

    /// Waits until nobody holds the pipe any more, also if nobody ever did.
    async fn gone(self) {
        // Opens and closes the pipe once: the reader sees an end as soon as nobody else holds it. For reading and
        // writing, because opening for writing alone waits for a reader, which may have seen its end already.
        let mut knock = OpenOptions::new().read(true).write(true).open(&self.pipe).unwrap();
        knock.write_all(b"knock\n").unwrap();
        drop(knock);
        timeout(Duration::from_secs(60), self.gone).await.expect("the process is still alive").unwrap();
    }

    fn watch(&self, mut config: ExecConfig) -> ExecConfig {
        config.environment.push(("WITNESS".into(), self.pipe.clone().into()));
        config
    }
}

#[tokio::test]
async fn every_byte_goes_in_and_comes_out_unchanged() {
    let payload: Vec<u8> = (0..256 * 1024_u32).map(|n| u8::try_from((n ^ (n >> 8)) & 0xff).unwrap()).collect();
    let Attempt::Done(output) = run(shell("cat"), payload.clone()).await else { panic!() };
    assert!(output.payload == payload);
    assert_eq!(output.content_type, "application/octet-stream");
}

#[tokio::test]
async fn an_empty_payload_is_an_empty_input() {
    assert_eq!(output(run(shell("wc -c"), "").await).trim_ascii(), b"0");
}

#[tokio::test]
async fn a_command_that_prints_nothing_has_an_empty_result() {
    assert_eq!(output(run(shell("exit 0"), "x").await), b"");
}

#[tokio::test]
async fn results_have_the_content_type_that_is_configured() {
    let config = ExecConfig { content_type: "text/plain".to_owned(), ..shell("echo hi") };
    let Attempt::Done(output) = run(config, "").await else { panic!() };
    assert_eq!(output.content_type, "text/plain");
}

#[tokio::test]
async fn the_environment_tells_about_the_job() {
    let job = job("x");
    let exec = Exec::new(shell("env")).unwrap();
    let text = output(exec.handle(&job, &context(CancellationToken::new())).await);
    let text = String::from_utf8(text).unwrap();
    for line in [
        format!("RELAY_JOB_ID={}", job.id),
        format!("RELAY_RUN_ID={}", job.run_id),
        format!("RELAY_ACCEPTED_AT={}", job.accepted_at),
        format!("RELAY_EXPIRES_AT={}", job.expires_at),
        "RELAY_GENERATION=1".to_owned(),
        "RELAY_CLIENT=acme".to_owned(),
        "RELAY_QUEUE=work".to_owned(),
        "RELAY_ATTEMPT=3".to_owned(),
        "RELAY_MAX_ATTEMPTS=10".to_owned(),
        "RELAY_CONTENT_TYPE=application/x-test".to_owned(),
        "RELAY_IDEMPOTENCY_KEY=order-7".to_owned(),
        "RELAY_META_ORDER_ID=42".to_owned(),
        "TRACEPARENT=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
    ] {
        assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("RELAY_DEADLINE="));
}

#[tokio::test]
async fn metadata_that_no_environment_can_hold_is_left_out() {
    let mut job = job("x");
    job.headers.insert("relay-meta-evil".to_owned(), "a\0b".to_owned());
    let exec = Exec::new(shell("echo \"[$RELAY_META_EVIL]\"")).unwrap();
    assert_eq!(output(exec.handle(&job, &context(CancellationToken::new())).await), b"[]\n");
}

#[tokio::test]
async fn every_exit_code_has_its_place_in_the_table() {
    for (script, how, reason) in [
        ("exit 1", "retry", "exit-code"),
        ("exit 2", "retry", "exit-code"),
        ("exit 64", "reject", "exit-code"),
        ("exit 65", "reject", "exit-code"),
        ("exit 66", "reject", "exit-code"),
        ("exit 69", "retry", "exit-code"),
        ("exit 75", "retry", "exit-code"),
        ("exit 126", "retry", "spawn-failed"),
        ("exit 127", "retry", "spawn-failed"),
        ("no-such-command-anywhere", "retry", "spawn-failed"),
        ("exit 255", "retry", "exit-code"),
        ("kill -KILL $$", "retry", "signal"),
        ("kill -TERM $$", "retry", "signal"),
    ] {
        let (is, because, detail) = failed(run(shell(script), "x").await);
        assert_eq!((is, because.as_str()), (how, reason), "{script}: {detail}");
    }
}

#[tokio::test]
async fn a_program_that_this_host_cannot_start_is_no_failure_of_the_job() {
    assert!(Exec::new(ExecConfig::default()).is_err());
    let directory = tempfile::tempdir().unwrap();
    let [plain, busy, other] = ["plain", "busy", "other-machine"].map(|name| directory.path().join(name));
    for (file, mode) in [(&plain, 0o644), (&busy, 0o755), (&other, 0o755)] {
        std::fs::write(file, "\x7fELF of no machine").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    // A program that is being written, as in a deployment, is ETXTBSY.
    let _writing = OpenOptions::new().write(true).open(&busy).unwrap();
    for (program, directory) in [
        ("/no/such/program".into(), None),
        (plain, None),
        (busy, None),
        (other, None),
        ("/bin/true".into(), Some("/no/such/directory".into())),
    ] {
        let config = ExecConfig { command: vec![program.clone().into()], directory, ..ExecConfig::default() };
        let attempt = run(config, "x").await;
        let Attempt::NotStarted { failure } = attempt else { panic!("{}: {attempt:?}", program.display()) };
        assert_eq!(failure.reason, "spawn-failed");
        assert!(failure.detail.starts_with("the command did not start: "), "{}", failure.detail);
    }
}

#[tokio::test]
async fn metadata_that_is_too_long_for_a_start_is_that_jobs_failure() {
    let mut job = job("x");
    // More than one string of an environment may have on Linux, and more than all of it elsewhere.
    job.headers.insert("relay-meta-long".to_owned(), "x".repeat(4 * 1024 * 1024));
    let attempt = Exec::new(shell("true")).unwrap().handle(&job, &context(CancellationToken::new())).await;
    let (how, reason, detail) = failed(attempt);
    assert_eq!((how, reason.as_str()), ("retry", "spawn-failed"), "{detail}");
}

#[tokio::test]
async fn the_failure_keeps_the_end_of_stderr() {
    let (_, _, detail) = failed(run(shell("seq 1 200000 >&2; echo the end >&2; exit 3"), "x").await);
    assert!(detail.starts_with("the command exited with 3: ..."), "{}", &detail[..60]);
    assert!(detail.ends_with("200000\nthe end"));
    assert!(detail.len() <= 4 * 1024 + 100);
}

#[tokio::test]
async fn stderr_that_is_no_text_stays_within_the_detail() {
    let config =
        ExecConfig { stderr_max: 1024 * 1024, ..shell("head -c 100000 /dev/urandom >&2; echo END >&2; exit 3") };
    let (_, _, detail) = failed(run(config, "x").await);
    assert!(detail.len() <= DETAIL_BYTES_MAX && detail.ends_with("END"));
}

#[tokio::test]
async fn a_flood_on_stdout_is_killed_and_rejected() {
    let witness = Witness::new();
    let config = witness.watch(shell("exec 3>\"$WITNESS\"; echo alive >&3; yes"));
    let (how, reason, _) = failed(run(config, "x").await);
    assert_eq!((how, reason.as_str()), ("reject", "result-too-large"));
    witness.gone().await;
}

#[tokio::test]
async fn a_flood_on_stderr_is_read_away_and_does_not_hide_the_timeout() {
    let config = ExecConfig { timeout: Some(Duration::from_millis(200)), ..shell("yes >&2") };
    let (how, reason, detail) = failed(run(config, "x").await);
    assert_eq!((how, reason.as_str()), ("retry", "timeout"));
    assert!(detail.ends_with("y\ny"));
}

#[tokio::test]
async fn a_command_that_does_not_read_its_input_is_fine() {
    let payload = vec![b'x'; 4 * 1024 * 1024];
    assert_eq!(output(run(shell("echo done"), payload.clone()).await), b"done\n");
    assert_eq!(output(run(shell("exec 0<&-; echo closed"), payload).await), b"closed\n");
}

#[tokio::test]
async fn output_is_read_while_input_is_written() {
    // A filter fills both pipes at once: writing all before reading would hang.
    let payload = vec![b'x'; 1024 * 1024];
    assert!(output(run(shell("cat"), payload.clone()).await) == payload);
}

#[tokio::test]
async fn something_left_behind_that_holds_stdout_open_is_killed_and_hides_nothing() {
    let witness = Witness::new();
    let script = "exec 3>\"$WITNESS\"; echo alive >&3; sleep 1000 & echo result";
    assert_eq!(output(run(witness.watch(shell(script)), "x").await), b"result\n");
    witness.gone().await;
}

#[tokio::test]
async fn a_command_that_ends_on_sigterm_may_say_why() {
    let mut witness = Witness::new();
    let script = "trap 'echo bye >&2; exit 0' TERM; exec 3>\"$WITNESS\"; echo alive >&3; while :; do sleep 0.01; done";
    let config = ExecConfig { grace: Duration::from_secs(30), ..witness.watch(shell(script)) };
    let cancel = CancellationToken::new();
    let (exec, job, context) = (Exec::new(config).unwrap(), job("x"), context(cancel.clone()));
    let alive = &mut witness.alive;
    let cancelling = async {
        alive.await.unwrap();
        cancel.cancel();
    };
    let (attempt, ()) = tokio::join!(exec.handle(&job, &context), cancelling);
    let (how, reason, detail) = failed(attempt);
    // The command was stopped, so its output is not trusted to be whole, whatever it exits with.
    assert_eq!((how, reason.as_str()), ("retry", "cancelled"));
    assert!(detail.ends_with("bye"), "{detail}");
    witness.gone().await;
}

#[tokio::test]
async fn a_command_that_ignores_sigterm_is_killed_after_its_grace_with_its_children() {
    let mut witness = Witness::new();
    // The child of the child holds the witness.
    let script = "trap '' TERM; (exec 3>\"$WITNESS\"; (echo alive >&3; while :; do sleep 0.01; done) ) & wait";
    let config = ExecConfig { grace: Duration::from_millis(100), ..witness.watch(shell(script)) };
    let cancel = CancellationToken::new();
    let (exec, job, context) = (Exec::new(config).unwrap(), job("x"), context(cancel.clone()));
    let alive = &mut witness.alive;
    let cancelling = async {
        alive.await.unwrap();
        cancel.cancel();
    };
    let (attempt, ()) = tokio::join!(exec.handle(&job, &context), cancelling);
    assert_eq!(failed(attempt).1, "cancelled");
    witness.gone().await;
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_stopped_with_its_children() {
    let witness = Witness::new();
    let script = "(exec 3>\"$WITNESS\"; echo alive >&3; exec sleep 1000) & wait";
    let config = ExecConfig { timeout: Some(Duration::from_millis(500)), ..witness.watch(shell(script)) };
    let (how, reason, detail) = failed(run(config, "x").await);
    assert_eq!((how, reason.as_str()), ("retry", "timeout"), "{detail}");
    witness.gone().await;
}

#[tokio::test]
async fn dropping_the_attempt_kills_the_whole_group() {
    let mut witness = Witness::new();
    let script = "(exec 3>\"$WITNESS\"; trap '' TERM; echo alive >&3; exec sleep 1000) & wait";
    let (exec, job) = (Exec::new(witness.watch(shell(script))).unwrap(), job("x"));
    let context = context(CancellationToken::new());
    tokio::select! {
        attempt = exec.handle(&job, &context) => panic!("{attempt:?}"),
        alive = &mut witness.alive => alive.unwrap(),
    }
    witness.gone().await;
}

#[tokio::test]
async fn the_runtime_waits_longer_than_the_commands_grace() {
    let exec = Exec::new(ExecConfig { grace: Duration::from_secs(7), ..shell("true") }).unwrap();
    assert!(exec.grace() > Duration::from_secs(7));
}

#[tokio::test]
async fn a_result_above_8_mib_is_taken_where_the_queue_takes_it() {
    let policy = QueuePolicy { result_max: 12 * 1024 * 1024, ..QueuePolicy::default() };
    let context = Context::detached(3, &policy, LONG, CancellationToken::new());
    let handler = Exec::new(shell("head -c 10485760 /dev/zero")).unwrap();
    assert_eq!(output(handler.handle(&job(""), &context).await).len(), 10 * 1024 * 1024);
}
