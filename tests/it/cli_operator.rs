//! An operator's work at the command line, from outside: the built binary against the admin port of its own server.

use std::fs;
use std::process::Output;

use crate::cli_support::{Running, code, json_lines, relay, run, run_with, stderr, stdout};
use serde_json::Value;
use tempfile::tempdir;

fn admin(dev: &Running) -> String {
    format!("http://{}", dev.ready["listening"]["admin"].as_str().unwrap())
}

fn ask(dev: &Running, args: &[&str]) -> Output {
    run(args.iter().chain(&["--admin-server", &admin(dev)]))
}

/// Submits `body` and waits for its end; the job's id.
fn end(dev: &Running, queue: &str, body: &str) -> String {
    let args = ["submit", "--wait", "--json", "--queue", queue, "--key", body, "--server", &dev.url()];
    json_lines(&run_with(args, body.as_bytes()))[0]["job_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_paused_queue_gives_out_nothing_until_it_is_resumed() {
    let dev = Running::dev(&["--admin", "127.0.0.1:0"], "cat");
    let paused = ask(&dev, &["queues", "pause", "default", "--json"]);
    assert_eq!(json_lines(&paused)[0]["paused"], true, "{paused:?}");
    let submitted = run_with(["submit", "--server", &dev.url()], b"x");
    let id = stdout(&submitted).trim_end();
    let early = run(["result", id, "--wait=300ms", "--server", &dev.url()]);
    assert_eq!(code(&early), 75, "{early:?}");
    assert_eq!(code(&ask(&dev, &["queues", "resume", "default"])), 0);
    assert_eq!(stdout(&run(["result", id, "--wait", "--server", &dev.url()])), "x");

    let unknown = ask(&dev, &["queues", "pause", "nobody"]);
    assert_eq!(code(&unknown), 1, "{unknown:?}");
    dev.stop();
}

#[test]
fn queues_are_listed_and_shown_with_what_holds_for_them() {
    let more = ["--admin", "127.0.0.1:0", "--queue", "mail", "--queue", "sms", "--max-attempts", "3"];
    let dev = Running::dev(&more, "cat");
    let submitted = run_with(["submit", "--queue", "sms", "--delay", "1h", "--server", &dev.url()], b"x");
    assert_eq!(code(&submitted), 0, "{submitted:?}");
    // The admin port looks at the broker every few seconds.
    let sms = loop {
        let listed = ask(&dev, &["queues", "list", "--json"]);
        assert_eq!(code(&listed), 0, "{listed:?}");
        if let Some(sms) = json_lines(&listed).iter().find(|queue| queue["name"] == "sms" && queue["parked"] == 1) {
            break sms.clone();
        }
    };
    assert_eq!((&sms["waiting"], &sms["policy"]["max_attempts"]), (&0.into(), &3.into()));
    let table = ask(&dev, &["queues", "list"]);
    assert!(stdout(&table).lines().next().unwrap().contains("waiting"), "{table:?}");
    let shown = ask(&dev, &["queues", "show", "sms"]);
    assert!(stdout(&shown).contains("max_attempts    3"), "{shown:?}");
    let counted = ask(&dev, &["queues", "show", "sms", "--exact", "--json"]);
    assert_eq!(json_lines(&counted)[0]["parked"], 1, "{counted:?}");
    dev.stop();
}

#[test]
fn dead_letters_are_read_redriven_and_purged_and_other_clients_are_seen_too() {
    let dir = tempdir().unwrap();
    let mended = dir.path().join("mended");
    let more = ["--admin", "127.0.0.1:0", "--queue", "mail", "--queue", "sms"];
    let command = format!("test -e {} && cat && exit 0; echo out of paper >&2; exit 65", mended.display());
    let dev = Running::dev(&more, &command);
    let [first, second] = ["one", "two"].map(|body| end(&dev, "mail", body));
    let third = end(&dev, "sms", "three");

    let ids = |args: &[&str]| {
        let output = ask(&dev, &[&["dead", "list", "--json"], args].concat());
        assert_eq!(code(&output), 0, "{output:?}");
        json_lines(&output).iter().map(|letter| letter["job_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]), [third.clone(), second.clone(), first.clone()], "newest first");
    assert_eq!(ids(&["--limit", "1"]), std::slice::from_ref(&third));
    assert_eq!(ids(&["--queue", "mail"]), [second.clone(), first.clone()]);
    assert_eq!(ids(&["--key-prefix", "t"]), [third.clone(), second.clone()], "keys that begin so");
    assert_eq!(ids(&["--key-prefix", "tw", "--queue", "sms"]), [""; 0]);
    let shown = ask(&dev, &["dead", "show", &first]);
    assert!(stdout(&shown).contains("out of paper"), "{shown:?}");
    assert_eq!(ask(&dev, &["dead", "show", &first, "--payload"]).stdout, b"one");

    fs::write(&mended, "").unwrap();
    let all = ask(&dev, &["dead", "redrive", "--queue", "mail", "--all"]);
    assert_eq!((code(&all), stdout(&all).lines().count()), (0, 2), "{all:?}");
    assert_eq!(ids(&[]), std::slice::from_ref(&third));
    for (id, body) in [(&first, "one"), (&second, "two")] {
        let result = run(["result", id, "--wait", "--server", &dev.url()]);
        assert_eq!((code(&result), stdout(&result)), (0, body), "{result:?}");
    }
    let gone = ask(&dev, &["dead", "redrive", &first, &third]);
    assert_eq!(code(&gone), 1, "{gone:?}");
    assert!(stderr(&gone).contains("1 started again, 1 not"), "the others go on: {gone:?}");
    assert_eq!(stdout(&run(["result", &third, "--wait", "--server", &dev.url()])), "three");
    fs::remove_file(&mended).unwrap();
    let fourth = end(&dev, "sms", "four");
    let purged = ask(&dev, &["dead", "purge", &fourth, "--json"]);
    assert_eq!((code(&purged), &json_lines(&purged)[0]["purged"]), (0, &Value::from(fourth)));
    assert_eq!(ids(&[]), Vec::<String>::new());
    dev.stop();
}

#[test]
fn a_queue_that_is_not_there_is_told_to_an_operator_who_asks_for_its_dead_letters() {
    let dev = Running::dev(&["--admin", "127.0.0.1:0", "--queue", "mail"], "cat");
    for command in
        [&["dead", "list"][..], &["dead", "list", "--json"], &["dead", "redrive", "--all"], &["dead", "purge", "--all"]]
    {
        let empty = ask(&dev, &[command, &["--queue", "mail"]].concat());
        assert_eq!(code(&empty), 0, "{empty:?}");
        let refused = ask(&dev, &[command, &["--queue", "mial"]].concat());
        assert_eq!((code(&refused), stdout(&refused)), (1, ""), "{refused:?}");
        assert!(stderr(&refused).contains("there is no queue mial"), "{refused:?}");
    }
    dev.stop();
}

#[test]
fn a_context_has_the_admin_port_and_its_token() {
    let dir = tempdir().unwrap();
    let [file, token] = ["contexts.toml", "token"].map(|name| dir.path().join(name));
    fs::write(&token, "0123456789abcdef0123").unwrap();
    let token = token.to_str().unwrap();
    let dev = Running::dev(&["--admin", "127.0.0.1:0", "--admin-token-file", token], "cat");
    let refused = ask(&dev, &["queues", "list"]);
    assert_eq!(code(&refused), 2, "{refused:?}");
    let admin = admin(&dev);
    let run = |args: &[&str]| relay(args).env("RELAY_CONTEXTS", &file).output().unwrap();
    let add = ["context", "add", "here", "--server", &dev.url(), "--admin", &admin, "--admin-token-file", token];
    assert_eq!(code(&run(&add)), 0);
    let listed = run(&["queues", "list"]);
    assert_eq!(code(&listed), 0, "{listed:?}");
    assert_eq!(code(&run(&["queues", "list", "--admin-server", &admin])), 2, "named by itself it gets no token");
    dev.stop();
}

#[test]
fn a_token_and_a_workers_key_are_taken_with_the_line_end_of_the_files_that_filled_their_variables() {
    let dir = tempdir().unwrap();
    let [keys, token] = ["keys.toml", "token"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    fs::write(&token, "0123456789abcdef\n").unwrap();
    let key = run(["keys", "new", "gpu", "--role", "worker", "--file", &keys]);
    let args = ["serve", "--memory", "--json", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"];
    let server =
        Running::start(args.iter().chain(&["--keys", &keys, "--admin", "127.0.0.1:0", "--admin-token-file", &token]));
    let mut worker = relay(["worker", "--connect", &server.workers(), "--json", "--", "cat"]);
    worker.env("RELAY_WORKER_KEY", stdout(&key));
    Running::start_command(worker).stop();
    let mut asked = relay(["queues", "list", "--admin-server", &admin(&server)]);
    let asked = asked.env("RELAY_ADMIN_TOKEN", "0123456789abcdef\n").output().unwrap();
    assert_eq!(code(&asked), 0, "{}", stderr(&asked));
    server.stop();
}
