//! A queue without turns from end to end, for users who may do what `relay nats permissions` prints and nothing else.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Lines};
use std::process::Command;
use std::time::Duration;

use async_nats::ConnectOptions;
use nix::sys::signal::Signal;
use relay_conformance::testing::NatsServer;

use super::listen::{OPEN, SERVE, permissions, request};
use crate::cli_support::Running;

/// Far longer than anything takes on a busy machine, and far shorter than the third of a lease.
const PATIENCE: Duration = Duration::from_secs(60);
/// Its first attempt fails. The second says that it runs, and that it was stopped.
const HANDLER: &str = "test $RELAY_ATTEMPT = 1 && exit 1
trap 'echo stopped > $0; exit 1' TERM
echo started > $0
while :; do sleep 1 & wait $!; done";

/// The handlers' words through a named pipe.
struct Said(Option<Lines<BufReader<fs::File>>>);

impl Said {
    async fn next(&mut self) -> String {
        let mut lines = self.0.take().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let line = lines.next().unwrap().unwrap();
            (lines, line)
        });
        let (lines, line) = tokio::time::timeout(PATIENCE, reading).await.expect("nothing was said").unwrap();
        self.0 = Some(lines);
        line
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_turns_permissions_are_enough_and_a_cancel_stops_a_handler_before_its_heartbeat() {
    let nats = NatsServer::builder().config(&permissions(&[])).start().await;
    let dir = tempfile::tempdir().unwrap();
    let [password, config, pipe] = ["password", "relay.toml", "pipe"].map(|name| dir.path().join(name));
    fs::write(&password, "secret").unwrap();
    let queue = "[[queue]]\nname = \"default\"\nfair = false\nlease = \"1h\"\nretry_base = \"1ms\"\n";
    fs::write(&config, format!("[nats]\nservers = [\"{}\"]\n{queue}", nats.url())).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Open for writing as well: then it is there before the first handler, and ends with none.
    let reader = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mut said = Said(Some(BufReader::new(reader).lines()));

    let [password, config, pipe] = [&password, &config, &pipe].map(|path| path.to_str().unwrap());
    let url = nats.url();
    let who = |user| [url.as_str(), "--nats-user", user, "--nats-password-file", password];
    let more = ["--provision", "--config", config];
    let mut server = Running::start(SERVE.iter().copied().chain(who("relay")).chain(more));
    server.wait_for_line(OPEN);
    let on_nats = ["worker", "--json", "--id", "gpu", "--nats"].into_iter().chain(who("gpu"));
    let worker = Running::start(on_nats.chain(["--", "sh", "-c", HANDLER, pipe]));
    let options = ConnectOptions::with_user_and_password("me".to_owned(), "secret".to_owned());
    let me = options.custom_inbox_prefix("_INBOX_me").connect(&url).await.unwrap();

    let receipt = request(&me, "relay.submit.me.default", "hello").await;
    assert_eq!(said.next().await, "started");
    let job = request(&me, "relay.cancel.me", receipt["job_id"].as_str().unwrap()).await;
    assert_eq!(job["outcome"], "cancelled");
    assert_eq!(said.next().await, "stopped");

    for process in [worker, server] {
        process.signal(Signal::SIGTERM);
        let (code, said) = process.wait();
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("refused") && !said.contains("ermissions"), "{said}");
    }
}
