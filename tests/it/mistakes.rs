//! Mistakes that operators make, from outside: none is taken in silence, and what is said of each says what to do.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::cli_support::{Running, code, relay, run, stderr, stdout};
use crate::config::check;
use crate::tls_support::Authority;
use nix::sys::signal::Signal;
use tempfile::tempdir;

#[test]
fn one_port_for_two_listeners_is_a_mistake() {
    for (text, line, parts) in [
        (
            "[listen]\nhttp = \"127.0.0.1:1\"\nworkers = \"127.0.0.1:1\"",
            3,
            &["listen.workers: 127.0.0.1:1", "listen.http"][..],
        ),
        ("[listen]\nworkers = \"127.0.0.1:7410\"", 2, &["listen.workers", "listen.http"]),
        ("[listen]\ntcp = \"127.0.0.1:1\"\nworkers = \"127.0.0.1:1\"", 3, &["listen.workers", "listen.tcp"]),
        ("[admin]\nlisten = \"127.0.0.1:7410\"", 2, &["admin.listen", "listen.http"]),
        ("[admin]\nlisten = \"127.0.0.1:1\"\nhealth = \"0.0.0.0:1\"", 3, &["admin.health: 0.0.0.0:1", "admin.listen"]),
        ("[admin]\nhealth = \"[::]:7410\"", 2, &["admin.health: [::]:7410", "listen.http"]),
        (
            "[admin]\nhealth = \"127.0.0.1:1\"\n[scaler]\nlisten = \"127.0.0.1:1\"",
            4,
            &["scaler.listen", "admin.health"],
        ),
        (
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[listener]]\nname = \"b\"\nprotocol = \"worker\"\n\
             address = \"0.0.0.0:1\"\ntls = \"terminated-in-front\"",
            4,
            &["listener.b.address", "listener a listens on 127.0.0.1:1 already"],
        ),
        (
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[admin]\nlisten = \"127.0.0.1:1\"",
            5,
            &["admin.listen", "listener a"],
        ),
    ] {
        let (code, said) = check(text);
        assert_eq!(code, 2, "{text}: {said}");
        for part in parts.iter().chain(&["a port of its own", format!("relay.toml:{line}: ").as_str()]) {
            assert!(said.contains(part), "{text}: does not say {part}: {said}");
        }
    }
    for text in [
        "[listen]\nhttp = \"127.0.0.1:0\"\nworkers = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"",
        "[listen]\nhttp = \"127.0.0.1:1\"\nworkers = \"127.0.0.2:1\"\n[admin]\nlisten = \"[::1]:1\"",
    ] {
        assert_eq!(check(text).0, 0, "{text}: {}", check(text).1);
    }
    let flags = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:1", "--admin", "127.0.0.1:1"];
    let refused = run(flags);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("--admin: 127.0.0.1:1") && stderr(&refused).contains("--listen"), "{refused:?}");
    // Another process has the default address of a server.
    let other = run(["worker", "--admin", "127.0.0.1:7410", "--", "/no/such/program"]);
    assert!(!stderr(&other).contains("a port of its own"), "{other:?}");
}

#[test]
fn an_address_of_another_server_that_can_be_none_is_a_mistake() {
    for (text, parts) in [
        (
            "[nats]\nservers = [\"http://nats:4222\"]",
            &["relay.toml:2: nats.servers", "`http://nats:4222`", "nats://HOST:PORT"][..],
        ),
        ("[nats]\nservers = [\"nats://nats:99999\"]", &["nats.servers", "invalid port"]),
        ("[listen]\nnats = [\"nats://\"]", &["relay.toml:2: listen.nats", "has no host"]),
        ("[worker]\nconnect = \"server\"", &["relay.toml:2: worker.connect", "`server`", "HOST:PORT"]),
        ("[worker]\nconnect = \"tls://server:99999\"", &["worker.connect", "HOST:PORT"]),
        ("[worker]\nconnect = \"http://server:7411\"", &["worker.connect", "http://", "HOST:PORT"]),
        ("[sqs]\nenabled = true\nendpoint = \"localhost:4566\"", &["relay.toml:3: sqs.endpoint", "http://HOST"]),
        ("[sqs]\nenabled = true\nregion = \"us east\"", &["relay.toml:3: sqs.region", "eu-central-1"]),
        ("[sqs]\nenabled = true\ntable = \"a b\"", &["relay.toml:3: sqs.table", "3 to 255"]),
        ("[sqs]\nenabled = true\nforward = [\"shop\"]", &["relay.toml:3: sqs.forward", "CLIENT=URL"]),
        ("[telemetry]\notlp_endpoint = \"collector\"", &["relay.toml:2: telemetry.otlp_endpoint", "4318"]),
    ] {
        let (code, said) = check(text);
        assert_eq!(code, 2, "{text}: {said}");
        for part in parts {
            assert!(said.contains(part), "{text}: does not say {part}: {said}");
        }
    }
    for text in [
        "[nats]\nservers = [\"nats://a:4222\", \"b:4222\", \"tls://[::1]:4222\"]",
        "[worker]\nconnect = \"tls://server.example:7411\"",
        "[worker]\nconnect = \"[::1]:7411\"",
        "[telemetry]\notlp_endpoint = \"https://collector:4318/otlp\"",
    ] {
        assert_eq!(check(text).0, 0, "{text}: {}", check(text).1);
    }
}

#[test]
fn a_list_in_a_flag_or_a_variable_is_told_as_it_is_typed_there_and_not_as_in_a_file() {
    for (variable, flag, wrong, command) in [
        ("RELAY_WORKER_QUEUE", "--queue", "A B", &["worker", "--", "cat"][..]),
        ("RELAY_PROXY_TRUSTED", "--proxy-trusted", "balancer", &["serve", "--memory", "--no-auth"]),
        ("RELAY_CLIENT_SHARE_OF", "--client-share-of", "shop", &["serve", "--memory", "--no-auth"]),
        ("RELAY_WORKER_PASS_ENV", "--pass-env", "A-B", &["worker", "--", "cat"]),
    ] {
        let by_variable = relay(command).env(variable, wrong).output().unwrap();
        let by_flag = run([&command[..1], &[flag, wrong], &command[1..]].concat());
        for refused in [by_variable, by_flag] {
            assert_eq!(code(&refused), 2, "{variable}: {refused:?}");
            let said = stderr(&refused);
            let example = said.trim_end().rsplit(": write ").next().unwrap().to_owned();
            assert!(!example.contains(['[', '"']), "{variable}: {said}");
            let again = relay(["config", "show"]).env(variable, &example).output().unwrap();
            assert!(!stderr(&again).contains(&format!("variable {variable}: ")), "{variable}={example}: {again:?}");
        }
    }
}

#[test]
fn a_limit_of_nothing_is_a_mistake() {
    for (table, key) in
        [("limits", "body_bytes"), ("limits", "answer_bytes"), ("limits", "body_rate"), ("listen", "worker_bytes")]
    {
        let (code, said) = check(&format!("[{table}]\n{key} = \"0B\""));
        assert_eq!(code, 2);
        assert!(said.contains(&format!("relay.toml:2: {table}.{key}: `\"0B\"` is too little")), "{said}");
    }
    let refused = run(["serve", "--memory", "--no-auth", "--body-bytes", "0B"]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("--body-bytes") && stderr(&refused).contains("too little"), "{refused:?}");
    let (code, said) = check("[limits]\nbody_bytes = \"1MiB\"\n[[queue]]\nname = \"q\"\npayload_max = \"2MiB\"");
    assert_eq!(code, 2);
    assert!(said.contains("relay.toml:5: queue.q.payload_max") && said.contains("limits.body_bytes"), "{said}");
}

#[test]
fn a_key_file_that_lets_no_client_in_is_told_at_the_start() {
    let dir = tempdir().unwrap();
    let (keys, key) = (dir.path().join("keys.toml"), dir.path().join("w.key"));
    let [keys, key] = [&keys, &key].map(|path| path.to_str().unwrap());
    let serve = ["serve", "--memory", "--listen", "127.0.0.1:0", "--json", "--keys", keys];
    let starts = || {
        let server = Running::start(serve);
        server.signal(Signal::SIGTERM);
        server.wait().1
    };
    assert_eq!(code(&run(["keys", "new", "w", "--role", "worker", "--file", keys, "--out", key])), 0);
    let said = starts();
    assert!(said.contains(&format!("{keys} has no key of a client")) && said.contains("relay keys new"), "{said}");
    assert_eq!(code(&run(["keys", "new", "shop", "--file", keys])), 0);
    let said = starts();
    assert!(!said.contains("no key of a client"), "{said}");
}

#[test]
fn a_folder_for_jobs_that_can_be_none_is_told_with_what_to_do() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.db");
    fs::write(&file, "").unwrap();
    let inside = file.join("data");
    for data in [&file, &inside] {
        let refused = run(["serve", "--no-auth", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
        assert_eq!(code(&refused), 2);
        let said = stderr(&refused);
        assert!(said.contains(&format!("--data {}: {} is a file", data.display(), file.display())), "{said}");
        assert!(said.contains("hint: name a folder"), "{said}");
    }
}

#[test]
fn a_restore_from_a_file_that_is_not_there_says_so_and_leaves_nothing() {
    let dir = tempdir().unwrap();
    let [data, backup] = ["data", "backup.db"].map(|name| dir.path().join(name));
    let args = ["store", "restore", "--data", data.to_str().unwrap(), backup.to_str().unwrap()];
    let refused = run(args);
    assert_eq!(code(&refused), 2, "{refused:?}");
    assert!(!data.exists(), "it left {:?}", fs::read_dir(&data).unwrap().collect::<Vec<_>>());
    let said = stderr(&refused);
    assert!(said.contains(&format!("there is no file {}", backup.display())) && !said.contains("folder"), "{said}");
    fs::write(&backup, "no store").unwrap();
    assert_ne!(code(&run(args)), 0);
    assert!(!data.exists(), "it left {:?}", fs::read_dir(&data).unwrap().collect::<Vec<_>>());
}

#[test]
fn a_certificate_that_is_over_or_not_yet_good_is_told_so() {
    let dir = tempdir().unwrap();
    let [certificate, key] = ["c.pem", "c.key"].map(|name| dir.path().join(name));
    let authority = Authority::new("a");
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json"];
    for (from, until, told, never) in [
        (2020, 2021, "the server's certificate has expired, and clients refuse it: replace it", "days=-"),
        (4000, 4001, "the server's certificate is not good yet, and clients refuse it until then", "expire"),
    ] {
        let identity = authority.signs_between(&["localhost"], from, until);
        fs::write(&certificate, identity.certificate).unwrap();
        fs::write(&key, identity.key).unwrap();
        let files = ["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
        let mut server = Running::start(serve.iter().chain(&files));
        let line = server.wait_for_line("server's certificate");
        assert!(line.contains(told) && !line.contains(never), "{line}");
        server.stop();
    }
}

#[test]
fn a_context_that_is_changed_keeps_its_key_for_its_server_alone() {
    let dir = tempdir().unwrap();
    let [file, key] = ["contexts.toml", "a.key"].map(|name| dir.path().join(name));
    let run = |args: &[&str]| relay(args).env("RELAY_CONTEXTS", &file).output().unwrap();
    let keys = dir.path().join("keys.toml");
    let made = ["keys", "new", "a", "--file", keys.to_str().unwrap(), "--out", key.to_str().unwrap()];
    assert_eq!(code(&run(&made)), 0);
    let secret = fs::read_to_string(&key).unwrap();
    let is_kept = || fs::read_to_string(&file).unwrap().contains(secret.trim());
    let (one, two) = ("http://127.0.0.1:1", "http://127.0.0.1:2");
    let add = ["context", "add", "prod", "--server", one, "--api-key-file", key.to_str().unwrap(), "--admin", two];
    assert_eq!(code(&run(&add)), 0);

    assert_eq!(code(&run(&["context", "add", "prod", "--server", one, "--admin", one])), 0);
    assert!(is_kept(), "{}", fs::read_to_string(&file).unwrap());
    assert!(!fs::read_to_string(&file).unwrap().contains(two), "the new address of the admin port holds");

    let refused = run(&["context", "add", "prod", "--server", two]);
    assert_eq!(code(&refused), 2, "{refused:?}");
    assert!(stderr(&refused).contains(one) && stderr(&refused).contains("--api-key-file"), "{refused:?}");
    assert!(is_kept(), "nothing is lost");

    assert_eq!(code(&run(&["context", "add", "prod", "--server", one, "--client", "me"])), 0);
    assert!(!is_kept(), "a name instead of the key");
    assert_eq!(code(&run(&["context", "add", "prod", "--server", two])), 0);
    let listed = run(&["context", "list", "--json"]);
    assert!(stdout(&listed).contains(two) && stdout(&listed).contains("\"client\":null"), "{listed:?}");
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_request_and_no_end_and_says_later_what_it_lost() {
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--log", "debug"];
    for format in ["text", "json"] {
        let mut server = Running::start(serve.iter().chain(&["--log-format", format]));
        let address = server.url().trim_start_matches("http://").to_owned();
        // Each is a line of the log, and together they are more than a pipe holds.
        let ask = || {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let path = "x".repeat(4_000);
            write!(stream, "GET /{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        };
        (0..40).for_each(|_| ask());
        // With some room for what comes. Each of these lines has two places of sixteen.
        (0..4).for_each(|_| drop(server.wait_for_line("request answered")));
        ask();
        server.signal(Signal::SIGTERM);
        let (code, text) = server.wait();
        assert_eq!(code, Some(0), "{text}");
        let lost = text.lines().find(|line| line.contains("lines of the log before this one are lost")).unwrap();
        if format == "json" {
            let lost: serde_json::Value = serde_json::from_str(lost).unwrap();
            assert!(lost["level"] == "WARN" && lost["lines"].as_u64() > Some(0), "{lost}");
        }
    }
}
