//! Files that a running server reads again: when it is asked to, and the mistakes that it tells then.

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::tempdir;

use crate::admin::send;
use crate::cli_support::{Running, code, json_lines, run, stderr, stdout};
use crate::tls_support::Files;

/// The answer of `POST /v1/reload`, and the part of it that is about `part`.
fn part(answer: &(u16, String), part: &str) -> Value {
    let answer: Value = serde_json::from_str(&answer.1).unwrap();
    answer["parts"].as_array().unwrap().iter().find(|found| found["part"] == part).unwrap().clone()
}

#[test]
fn a_mistake_in_the_keys_is_told_with_its_file_and_those_read_before_stand() {
    let folder = tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let made = run(["keys", "new", "orders", "--file", keys.to_str().unwrap()]);
    let bearer = format!("Authorization: Bearer {}\r\n", stdout(&made).trim());
    let args = ["serve", "--memory", "--keys", keys.to_str().unwrap(), "--listen", "127.0.0.1:0", "--json"];
    let mut relay = Running::start(args.iter().chain(&["--admin", "127.0.0.1:0"]));
    let address = |which: &str| relay.ready["listening"][which].as_str().unwrap().to_owned();
    let (http, admin) = (address("http"), address("admin"));
    let reload = || send(&admin, "POST", "/v1/reload", "", "");
    let metric = |line: &str| send(&admin, "GET", "/metrics", "", "").1.contains(line);

    let right = reload();
    assert_eq!((right.0, &part(&right, "keys")["ok"]), (200, &true.into()));
    assert!(metric("relay_reload_ok{part=\"keys\"} 1\n"));
    assert!(right.1.contains("relay.toml"), "what is not read again is named: {right:?}");

    let good = std::fs::read_to_string(&keys).unwrap();
    std::fs::write(&keys, format!("{good}\nnonsense\n")).unwrap();
    let wrong = reload();
    let of_keys = part(&wrong, "keys");
    assert_eq!((wrong.0, &of_keys["ok"]), (200, &false.into()));
    assert!(of_keys["mistakes"][0].as_str().unwrap().contains("keys.toml"), "{of_keys}");
    assert!(metric("relay_reload_ok{part=\"keys\"} 0\n"));
    assert_eq!(send(&http, "GET", "/v1/whoami", &bearer, "").0, 200, "the key that was read before stands");

    let asked = run(["reload", "--admin-server", &format!("http://{admin}"), "--json"]);
    assert_eq!((code(&asked), &json_lines(&asked)[0]["ok"]), (1, &false.into()));
    std::fs::write(&keys, &good).unwrap();
    relay.signal(Signal::SIGHUP);
    relay.wait_for_line("SIGHUP: files are read again");
    while !relay.wait_for_line("files were read again").contains("keys") {}
    assert!(metric("relay_reload_ok{part=\"keys\"} 1\n"));
    let asked = run(["reload", "--admin-server", &format!("http://{admin}")]);
    assert_eq!(code(&asked), 0, "{}", stderr(&asked));
    relay.stop();
}

#[test]
fn a_mistake_in_keys_or_certificates_is_told_by_the_metrics_although_nobody_asked() {
    let tls = Files::new();
    let keys = tls.write("keys.toml", "");
    let certificate = tls.files.certificate.to_str().unwrap();
    let args = ["serve", "--memory", "--keys", keys.to_str().unwrap(), "--listen", "127.0.0.1:0", "--json"];
    let secured = ["--tls-cert", certificate, "--tls-key", tls.files.key.to_str().unwrap(), "--admin", "127.0.0.1:0"];
    let mut relay = Running::start(args.iter().chain(&secured));
    let admin = relay.ready["listening"]["admin"].as_str().unwrap().to_owned();
    let metrics = || send(&admin, "GET", "/metrics", "", "").1;
    for part in ["keys", "certificates"] {
        assert!(metrics().contains(&format!("relay_reload_ok{{part=\"{part}\"}} 1\n")), "{part}");
    }
    let good = std::fs::read_to_string(certificate).unwrap();
    std::fs::write(certificate, "no certificate").unwrap();
    relay.wait_for_line("there is no certificate in it");
    // The line is written before the figure is.
    while metrics().contains("relay_reload_ok{part=\"certificates\"} 1\n") {}
    std::fs::write(certificate, good).unwrap();
    relay.wait_for_line("files were read again");
    while !metrics().contains("relay_reload_ok{part=\"certificates\"} 1\n") {}
    std::fs::write(&keys, "nonsense").unwrap();
    relay.wait_for_line("keys.toml");
    while metrics().contains("relay_reload_ok{part=\"keys\"} 1\n") {}
    relay.stop();
}

#[test]
fn a_token_of_the_admin_port_is_replaced_while_it_runs_and_by_itself_once_its_file_changes() {
    let folder = tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef-one").unwrap();
    let args = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--admin", "127.0.0.1:0"];
    let mut relay = Running::start(args.iter().chain(&["--admin-token-file", token.to_str().unwrap()]));
    let admin = relay.ready["listening"]["admin"].as_str().unwrap().to_owned();
    let metrics =
        |of: &str| send(&admin, "GET", "/metrics", &format!("Authorization: Bearer 0123456789abcdef-{of}\r\n"), "").0;
    assert_eq!((metrics("one"), metrics("two")), (200, 401));
    std::fs::write(&token, "0123456789abcdef-two").unwrap();
    while !relay.wait_for_line("files were read again").contains("admin") {}
    assert_eq!((metrics("one"), metrics("two")), (401, 200));
    std::fs::write(&token, "short").unwrap();
    relay.wait_for_line("at least 16");
    assert_eq!(metrics("two"), 200, "what was read before stands");
    relay.stop();
}

#[test]
fn a_hangup_ends_no_server_and_drains_one_that_somebody_tries_out() {
    let mut relay = Running::start(["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json"]);
    relay.signal(Signal::SIGHUP);
    relay.wait_for_line("SIGHUP");
    relay.stop();
    // Its terminal is gone.
    let dev = Running::dev(&[], "cat");
    dev.signal(Signal::SIGHUP);
    assert_eq!(dev.wait().0, Some(0));
}

#[test]
fn a_hangup_has_a_worker_read_the_token_of_its_admin_port_again() {
    let folder = tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef").unwrap();
    let args = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"];
    let server = Running::start(args.iter().chain(&["--json"]));
    let connect = server.workers();
    let worker = |more: &[&str]| {
        let args = ["worker", "--connect", &connect, "--json", "--admin", "127.0.0.1:0"];
        Running::start(args.iter().chain(more).chain(&["--", "cat"]))
    };
    let mut with_token = worker(&["--admin-token-file", token.to_str().unwrap()]);
    with_token.signal(Signal::SIGHUP);
    with_token.wait_for_line("SIGHUP: files are read again");
    assert!(with_token.wait_for_line("files were read again").contains("admin"));
    let mut without = worker(&[]);
    without.signal(Signal::SIGHUP);
    without.wait_for_line("no files that it could read again");
    with_token.stop();
    without.stop();
    server.stop();
}

#[test]
fn a_changed_share_of_a_client_counts_without_a_restart() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (keys, clients) = (path("keys.toml"), path("clients.toml"));
    let made = run(["keys", "new", "shop", "--file", &keys]);
    let bearer = format!("Authorization: Bearer {}\r\n", stdout(&made).trim());
    let write = |share: u8| {
        let text = format!("[[client]]\nname = \"shop\"\nany = [[\"key\"]]\nshare = {share}\n");
        std::fs::write(&clients, text).unwrap();
    };
    write(10);
    let args = ["serve", "--memory", "--keys", &keys, "--clients", &clients, "--listen", "127.0.0.1:0", "--json"];
    let relay = Running::start(args.iter().chain(&["--requests", "1000", "--admin", "127.0.0.1:0"]));
    let address = |which: &str| relay.ready["listening"][which].as_str().unwrap().to_owned();
    let requests = || {
        let answer: Value = serde_json::from_str(&send(&address("http"), "GET", "/v1/whoami", &bearer, "").1).unwrap();
        answer["limits"]["share"]["requests"].clone()
    };
    assert_eq!(requests(), 100);
    write(40);
    assert_eq!(send(&address("admin"), "POST", "/v1/reload", "", "").0, 200);
    assert_eq!(requests(), 400);
    relay.stop();
}
