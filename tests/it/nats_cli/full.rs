//! An account that others filled: clients are told to come again, and the worker keeps its result and says so.

use async_nats::jetstream;
use relay_conformance::testing::NatsServer;

use super::serving::{http, json};
use crate::cli_support::{Running, code, json_lines, relay, run_with, stdout};

fn start(args: &[&str]) -> Running {
    let mut command = relay(args);
    command.env("RELAY_NATS_PASSWORD", "x");
    Running::start_command(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_account_that_others_filled_a_worker_says_once_that_there_is_no_room_and_keeps_its_result() {
    let limits = "{ max_mem: 64MB, max_file: 40MB, max_streams: 100, max_consumers: 1000 }";
    let account = format!("accounts {{ A: {{ users: [{{ user: relay, password: x }}], jetstream: {limits} }} }}");
    let nats = NatsServer::builder().config(&account).start().await;
    let url = nats.url();
    let as_relay = ["--nats", &url, "--nats-user", "relay"];
    let serve = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--provision"];
    let server = start(&[&serve[..], &as_relay].concat());
    let dir = tempfile::tempdir().unwrap();
    let (begun, go) = (dir.path().join("begun"), dir.path().join("go"));
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let slow = format!("touch {}; cat {}", begun.display(), go.display());
    let run = format!("if [ \"$(cat)\" = slow ]; then {slow}; fi; echo done");
    let worker = ["worker", "--json", "--slots", "1"];
    let mut worker = start(&[&worker[..], &as_relay, &["--", "sh", "-c", &run]].concat());

    let submit = |key, payload: &[u8], more: &[&str]| {
        run_with([&["submit", "--server", &server.url(), "--key", key][..], more].concat(), payload)
    };
    let finished = submit("finished", b"quick", &["--wait=60s", "--json"]);
    let held = submit("held", b"slow", &["--json"]);
    assert_eq!((code(&finished), code(&held)), (0, 0), "{finished:?} {held:?}");
    while !begun.exists() {
        tokio::task::yield_now().await;
    }
    let options = async_nats::ConnectOptions::with_user_and_password("relay".to_owned(), "x".to_owned());
    let other = jetstream::new(options.connect(&url).await.unwrap());
    let stream = jetstream::stream::Config { name: "other".to_owned(), ..Default::default() };
    let stream = other.create_stream(stream).await.unwrap();
    for bytes in [1_000_000, 10_000, 100, 1] {
        while other.publish("other", vec![b'x'; bytes].into()).await.unwrap().await.is_ok() {}
    }
    std::fs::write(&go, "").unwrap();
    let warned = worker.wait_for_line("no room for results");
    for text in ["WARN", "default", "resource limits exceeded", "raise its limit"] {
        assert!(warned.contains(text), "{warned}");
    }
    let job = |output| json_lines(output)[0]["job_id"].as_str().unwrap().to_owned();
    let erase = ("DELETE", format!("/v1/jobs/{}", job(&finished)));
    let cancel = ("POST", format!("/v1/jobs/{}/cancel", job(&held)));
    for (method, path) in [&erase, &cancel] {
        let refused = http(&server, method, path, "");
        assert!(refused.starts_with("HTTP/1.1 503 "), "{method} {path}: {refused}");
        let problem = json(&refused);
        assert_eq!((&problem["slug"], &problem["retry"]), (&"overloaded".into(), &"safe".into()), "{refused}");
    }

    stream.purge().await.unwrap();
    worker.wait_for_line("the broker has room again");
    let result = submit("held", b"slow", &["--wait=60s"]);
    assert_eq!((code(&result), stdout(&result)), (0, "done\n"), "{result:?}");
    let erased = http(&server, erase.0, &erase.1, "");
    assert!(erased.starts_with("HTTP/1.1 204 "), "{erased}");
    worker.stop();
    server.stop();
}
