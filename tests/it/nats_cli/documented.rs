//! Every command of docs/nats.md by the `nats` CLI itself, as a client types it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use relay_conformance::testing::NatsServer;
use tempfile::TempDir;

use super::listen::{OPEN, permissions};
use crate::cli_support::Running;

/// The job of the page: client `me`, queue `mail`, key `order-17`.
const JOB: &str = "8b2b34aa-8929-804d-a16c-dcf6720230e2";
/// SHA-256 of its payload, `hello`.
const DONE: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
/// How long a command may take.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Each command of the page that begins with `nats`, in its order and as it is written.
fn commands() -> Vec<String> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/nats.md")).unwrap();
    let joined = page.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.strip_prefix("$ ").unwrap_or(line));
    let found: Vec<_> = lines.filter(|line| line.starts_with("nats ")).map(str::to_owned).collect();
    // Another way of writing them would leave the test with nothing to run.
    assert!(found.len() >= 24, "{found:#?}");
    found
}

/// The CLI, where Go is installed. With `RELAY_NEED_NATS_CLI=1` the test fails where it can't be had.
fn installed() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let told = Command::new(root.join("tests/install-nats-cli")).output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{told:?}");
    let folder = root.join("target/tools/nats-cli");
    folder.join("nats").exists().then_some(folder)
}

/// Where commands are typed.
struct Shell {
    cli: PathBuf,
    home: TempDir,
    server: NatsServer,
}

impl Shell {
    fn command(&self, line: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new("sh");
        let path = std::env::join_paths(
            std::iter::once(self.cli.clone()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        command.args(["-c", line]).current_dir(self.home.path()).env("PATH", path.unwrap());
        command.env("HOME", self.home.path()).env("XDG_CONFIG_HOME", self.home.path().join("config"));
        for name in ["NATS_URL", "NATS_USER", "NATS_PASSWORD", "NATS_CREDS", "NATS_CONTEXT"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a line to its end; returns its output on both streams.
    fn run(&self, line: &str, variables: &[(&str, &str)]) -> (Output, String) {
        told(line, self.command(line, variables).output().unwrap())
    }

    /// Runs a line that waits for a message, and sends messages with `again` until one was heard.
    fn hear(&self, line: &str, variables: &[(&str, &str)], mut again: impl FnMut(usize)) -> String {
        let mut waiting = self.command(&format!("exec {line} --count=1"), variables).spawn().unwrap();
        let end = Instant::now() + WAIT_MAX;
        let mut sent = 0;
        while waiting.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                waiting.kill().unwrap();
                break;
            }
            again(sent);
            sent += 1;
        }
        let (output, said) = told(line, waiting.wait_with_output().unwrap());
        assert!(output.status.success(), "{line}: {said}");
        said
    }

    /// Every command of the page; `me` and `operator` are the variables that say who types it, until a context does.
    fn run_them_all(&self, me: &[(&str, &str)], operator: &[(&str, &str)]) {
        fs::write(self.home.path().join("order.json"), "{\"text\":\"{{ not a template }}\"}").unwrap();
        let (mut cursor, mut me) = (String::new(), me);
        for line in commands() {
            let written = line.replace("JOB_ID", JOB).replace("CURSOR", &cursor);
            let written = written.replace("nats://nats.example:4222", &self.server.url()).replace("PASSWORD", "secret");
            if written.starts_with("nats sub") {
                let heard = if written.contains("relay.reply") { DONE } else { "halfway" };
                let said = self.hear(written.split(" #").next().unwrap(), me, |sent| {
                    let send = match heard {
                        DONE => format!("nats req relay.submit.me.mail hello -H Idempotency-Key:heard-{sent}"),
                        _ => format!("nats pub relay.events.me.{JOB} {heard}"),
                    };
                    let by = if heard == DONE { me } else { operator };
                    assert!(self.command(&send, by).output().unwrap().status.success(), "{send}");
                });
                assert!(said.contains(heard), "{said}");
                continue;
            }
            let by_operator = written.starts_with("nats micro") || written.contains("$SRV");
            let (output, said) = self.run(&written, if by_operator { operator } else { me });
            assert!(output.status.success(), "{written}: {said}");
            assert!(!said.contains("violation"), "{written}: {said}");
            let expected = match written.split_whitespace().nth(2).unwrap() {
                _ if written.contains("> out") => "",
                _ if written.contains("'other'") => "idempotency-conflict",
                _ if written.contains("Relay-Wait") => DONE,
                "relay.submit.me.mail" if written.contains(" req ") => "job_id",
                "relay.submit.me.mail" => "Published",
                "relay.result.me" => DONE,
                "relay.results.me" => "Relay-Count",
                "relay.status.me" | "relay.cancel.me" => "\"outcome\":\"succeeded\"",
                "add" => "_INBOX_me",
                _ => "relay",
            };
            assert!(said.contains(expected), "{written}: {expected} is not in\n{said}");
            if written.contains("> out") {
                let raw = fs::read_to_string(self.home.path().join("out")).unwrap();
                assert!(raw.starts_with(DONE), "{raw}");
            }
            if written.starts_with("nats context add") {
                me = &[];
            }
            // The result is there before the page asks for it.
            if said.contains(JOB) && written.contains("submit") {
                self.finished(me);
            }
            if let Some((_, rest)) = said.rsplit_once("Relay-Cursor: ") {
                rest.split_whitespace().next().unwrap().clone_into(&mut cursor);
            }
        }
    }

    fn finished(&self, me: &[(&str, &str)]) {
        let end = Instant::now() + WAIT_MAX;
        while !String::from_utf8_lossy(
            &self.command(&format!("nats req relay.result.me {JOB} --raw"), me).output().unwrap().stdout,
        )
        .contains(DONE)
        {
            assert!(Instant::now() < end, "the job did not end");
        }
    }
}

/// Prints a command and what came back: with `--nocapture` the test is the transcript.
fn told(line: &str, output: Output) -> (Output, String) {
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    println!("$ {line}\n{said}");
    (output, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_page_works_with_the_cli_that_clients_have() {
    let Some(cli) = installed() else { return };
    let shell = Shell { cli, home: tempfile::tempdir().unwrap(), server: NatsServer::start().await };
    let url = shell.server.url();
    let mut dev = Running::start([
        "dev",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--nats",
        &url,
        "--queue",
        "mail",
        "--",
        "sha256sum",
    ]);
    dev.wait_for_line(OPEN);
    let anyone = [("NATS_URL", url.as_str())];
    shell.run_them_all(&anyone, &anyone);
    dev.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_page_works_with_the_permissions_of_a_client_and_a_refusal_is_printed() {
    let Some(cli) = installed() else { return };
    let users = permissions(&[]).replace("  users: [", "  users: [\n    { user: operator, password: secret }");
    let server = NatsServer::builder().config(&users).start().await;
    let shell = Shell { cli, home: tempfile::tempdir().unwrap(), server };
    let (url, file) = (shell.server.url(), shell.home.path().join("password"));
    fs::write(&file, "secret").unwrap();
    let who = ["--nats-user", "relay", "--nats-password-file", file.to_str().unwrap()];
    let serve = ["dev", "--json", "--listen", "127.0.0.1:0", "--nats", &url, "--queue", "mail"];
    let mut dev = Running::start(serve.iter().chain(&who).chain(&["--", "sha256sum"]));
    dev.wait_for_line(OPEN);
    // As the page says under Permissions: the CLI remembers who it is.
    let context = commands().into_iter().find(|line| line.starts_with("nats context add")).unwrap();
    let context = context.replace("nats://nats.example:4222", &url).replace("PASSWORD", "secret");
    assert!(shell.run(&context, &[]).0.status.success());
    let operator = [("NATS_URL", url.as_str()), ("NATS_USER", "operator"), ("NATS_PASSWORD", "secret")];
    let operator = [&operator[..], &[("XDG_CONFIG_HOME", "/nowhere")]].concat();
    shell.run_them_all(&[], &operator);
    for (line, what) in [
        ("nats req relay.submit.other.mail x --timeout 1s", "Publish to \"relay.submit.other.mail\""),
        ("nats pub relay.submit.other.mail x", "Publish to \"relay.submit.other.mail\""),
        ("nats sub 'relay.reply.other.*'", "Subscription to \"relay.reply.other.*\""),
        ("nats micro ping relay --timeout 1s", "Publish to \"$SRV.PING.relay\""),
    ] {
        let (_, said) = shell.run(line, &[]);
        assert!(said.contains(&format!("Permissions Violation for {what}")), "{line}: {said}");
    }
    dev.stop();
}
