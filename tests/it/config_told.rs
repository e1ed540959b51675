//! What commands tell of their configuration: variables that nobody reads, and the authorities of a file.

use std::fs;

use crate::cli_support::{code, relay, run, stderr, stdout};
use serde_json::Value;
use tempfile::tempdir;

#[test]
fn a_variable_that_nobody_reads_is_named_by_every_command_that_has_settings_and_those_of_kubernetes_are_not() {
    for args in [
        &["serve", "--memory", "--no-auth", "--listen", "192.0.2.7:1"][..],
        &["dev", "--listen", "127.0.0.1:0", "--", "/no/such/program"],
        &["worker", "--", "/no/such/program"],
        &["bridge", "--from-tcp", "127.0.0.1:1"],
        &["scaler", "--nats", "ws://a", "--scaler", "127.0.0.1:0"],
        &["provision"],
        &["doctor", "--broker"],
    ] {
        let mut command = relay(args);
        // A slip, and what a pod has for the Service `relay` and its port `https`.
        command.env("RELAY_NATS_REPLICA", "3").env("RELAY_PORT", "tcp://10.0.0.1:443");
        for (name, value) in [
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT", "443"),
            ("SERVICE_PORT_HTTPS", "443"),
            ("PORT_443_TCP", "tcp://10.0.0.1:443"),
            ("PORT_443_TCP_PROTO", "tcp"),
            ("PORT_443_TCP_ADDR", "10.0.0.1"),
            ("NLB_PORT_443_TCP_PORT", "443"),
        ] {
            command.env(format!("RELAY_{name}"), value);
        }
        let ended = command.output().unwrap();
        assert_eq!(code(&ended), 2, "{args:?}: {}", stderr(&ended));
        let named: Vec<_> = stderr(&ended).lines().filter(|line| line.contains("nobody reads")).collect();
        assert_eq!(named.len(), 1, "{args:?}: {}", stderr(&ended));
        assert!(named[0].contains("RELAY_NATS_REPLICA: did you mean RELAY_NATS_REPLICAS?"), "{named:?}");
    }
    let mut slip = relay(["provision"]);
    let slip = slip.env("RELAY_ADMIN_PORT", "7412").output().unwrap();
    assert!(stderr(&slip).contains("nobody reads the variable RELAY_ADMIN_PORT"), "{}", stderr(&slip));
}

#[test]
fn authorities_are_shown_with_the_place_of_each_value() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    let text = "[listen]\ntls_cert = \"c\"\ntls_key = \"k\"\nclient_auth = \"optional\"\n\
                [[client_ca]]\nfile = \"a.pem\"\nnames = [\"spiffe://a.example/*\", \"dns.a.example\"]\ncrl = \"a.crl\"\n\
                [[client_ca]]\nfile = \"b.pem\"\nnames = [\"*.b.example\"]\n";
    fs::write(&file, text).unwrap();
    let output = run(["config", "show", "--json", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let shown: Value = serde_json::from_str(stdout(&output)).unwrap();
    let of_authority = |setting: &&Value| setting["key"].as_str().unwrap().starts_with("client_ca.");
    let settings = shown["settings"].as_array().unwrap().iter().filter(of_authority);
    let mut found: Vec<_> =
        settings.map(|of| ["key", "value", "origin"].map(|word| of[word].as_str().unwrap().to_owned())).collect();
    found.sort();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut expected = [
        ["client_ca.file".to_owned(), place("a.pem"), place("relay.toml:6")],
        ["client_ca.names".to_owned(), "spiffe://a.example/*,dns.a.example".to_owned(), place("relay.toml:7")],
        ["client_ca.crl".to_owned(), place("a.crl"), place("relay.toml:8")],
        ["client_ca.file".to_owned(), place("b.pem"), place("relay.toml:10")],
        ["client_ca.names".to_owned(), "*.b.example".to_owned(), place("relay.toml:11")],
    ];
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_variable_that_nobody_reads_is_named() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    fs::write(&file, "").unwrap();
    let mut command = relay(["config", "check", file.to_str().unwrap()]);
    let output = command.env("RELAY_LISTN", "127.0.0.1:1").env("RELAY_DATA", "x").output().unwrap();
    assert_eq!(code(&output), 0);
    let said = stderr(&output);
    assert!(said.contains("RELAY_LISTN") && said.contains("did you mean RELAY_LISTEN?"), "{said}");
    assert!(!said.contains("RELAY_DATA"), "{said}");
}
