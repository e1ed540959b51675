//! `relay = { default-features = false, features = ["client"] }` brings no server, no store and no broker SDK.

use std::process::Command;

/// The crates that a client must not get, as the start of a crate's name or of cargo's `crate feature "name"` lines.
/// reqwest brings hyper as a client, which is fine; its server half is not.
const NEVER: [&str; 13] = [
    "axum",
    "async-nats",
    "aws-config",
    "aws-sdk-",
    "aws-sigv4",
    "aws-smithy-",
    "clap",
    "hyper feature \"server\"",
    "hyper-util feature \"server",
    "libsqlite3-sys",
    "relay-workers",
    "rusqlite",
    "toml ",
];

/// The lines of a tree that are in `NEVER`.
fn unwanted(tree: &str) -> Vec<&str> {
    tree.lines().filter(|line| NEVER.iter().any(|never| line.starts_with(never))).collect()
}

fn tree(features: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "-p", "relay", "--locked", "--offline", "--edges", "normal,features", "--prefix", "none"])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_client_pulls_in_no_server_and_no_broker() {
    let client = tree(&["--no-default-features", "--features", "client"]);
    assert!(client.lines().any(|line| line.starts_with("reqwest v")), "this is not the client's tree: {client}");
    assert_eq!(unwanted(&client), Vec::<&str>::new());
}

#[test]
fn what_a_client_must_not_get_is_found_in_the_server() {
    let server = tree(&[]);
    let found = unwanted(&server);
    for never in NEVER.iter().filter(|never| !never.starts_with("async-nats")) {
        assert!(found.iter().any(|line| line.starts_with(never)), "`{never}` would not be found");
    }
}

#[test]
fn a_server_without_sqs_builds_no_aws_sdk() {
    let of_aws = |tree: &str| {
        tree.lines().filter(|line| line.starts_with("aws-sdk-") || line.starts_with("aws-smithy-")).count()
    };
    let without = tree(&["--no-default-features", "--features", "cli"]);
    assert!(without.lines().any(|line| line.starts_with("axum v")), "this is not a server's tree: {without}");
    assert_eq!(of_aws(&without), 0);
    assert!(of_aws(&tree(&[])) > 0, "it would not be found");
}
