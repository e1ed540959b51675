//! `relay provision`.

use relay_conformance::testing::NatsServer;
use serde_json::Value;

use crate::cli_support::{code, json_lines, run, stderr, stdout};

fn provision<'a>(server: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["provision", "--nats", server, "--queue", "orders"], more].concat()
}

fn changes(output: &std::process::Output) -> Vec<Value> {
    json_lines(output)[0]["changes"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_dry_run_shows_what_would_change_and_changes_nothing() {
    let server = NatsServer::start().await;
    let url = server.url();
    for _ in 0..2 {
        let shown = run(provision(&url, &["--dry-run"]));
        assert_eq!(code(&shown), 0, "{shown:?}");
        assert!(stdout(&shown).contains("orders: "), "{shown:?}");
    }
    let streams = server.monitor("/jsz?streams=true").await.unwrap();
    assert_eq!(streams["streams"], 0);
}

#[tokio::test]
async fn provisioning_again_changes_nothing() {
    let server = NatsServer::start().await;
    let url = server.url();
    let first = run(provision(&url, &["--json", "--client", "shop"]));
    assert_eq!((code(&first), json_lines(&first)[0]["applied"].as_bool()), (0, Some(true)), "{first:?}");
    assert!(!changes(&first).is_empty());

    let again = run(provision(&url, &["--json", "--client", "shop"]));
    assert_eq!((code(&again), changes(&again).len()), (0, 0), "{again:?}");
}

#[tokio::test]
async fn a_client_that_is_named_has_its_consumer_before_its_first_job() {
    let server = NatsServer::start().await;
    let url = server.url();
    assert_eq!(code(&run(provision(&url, &["--client", "shop"]))), 0);
    let jetstream = async_nats::jetstream::new(async_nats::connect(&url).await.unwrap());
    let stream = jetstream.get_stream("relay-jobs-orders").await.unwrap();
    stream.consumer_info("shop").await.unwrap();

    // One that somebody deleted is told, and made again.
    stream.delete_consumer("shop").await.unwrap();
    let again = run(provision(&url, &["--json"]));
    assert_eq!(changes(&again).len(), 1, "{again:?}");
    assert!(changes(&again)[0]["what"].as_str().unwrap().contains("shop"), "{again:?}");
    stream.consumer_info("shop").await.unwrap();
}

#[tokio::test]
async fn what_shortens_what_clients_rely_on_needs_force() {
    let server = NatsServer::start().await;
    let url = server.url();
    assert_eq!(code(&run(provision(&url, &[]))), 0);

    let refused = run(provision(&url, &["--retention", "1h"]));
    assert_eq!(code(&refused), 2, "{refused:?}");
    assert!(stdout(&refused).contains("needs --force"), "{refused:?}");
    assert!(stderr(&refused).contains("nothing was changed"), "{refused:?}");
    assert!(!changes(&run(provision(&url, &["--retention", "1h", "--dry-run", "--json"]))).is_empty());

    let forced = run(provision(&url, &["--retention", "1h", "--force"]));
    assert_eq!(code(&forced), 0, "{forced:?}");
    assert!(changes(&run(provision(&url, &["--retention", "1h", "--json"]))).is_empty());
}

#[tokio::test]
async fn the_estimate_says_memory_and_disk_for_a_rate() {
    let server = NatsServer::start().await;
    let url = server.url();
    let estimated = run(provision(&url, &["--dry-run", "--json", "--expected-rate", "100/s"]));
    let estimate = &json_lines(&estimated)[0]["estimate"];
    assert!(estimate["ram_bytes_least"].as_u64() > Some(1 << 30), "{estimate}");
    assert!(estimate["disk_bytes"].as_u64() > estimate["ram_bytes_most"].as_u64(), "{estimate}");
    let told = run(provision(&url, &["--dry-run", "--expected-rate", "100/s"]));
    assert!(stdout(&told).contains("of memory"), "{told:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_from_a_mistake() {
    let mut server = NatsServer::start().await;
    let url = server.url();
    server.kill();
    let away = run(provision(&url, &[]));
    assert_eq!(code(&away), 69, "{away:?}");
    assert!(stderr(&away).contains(&url), "{away:?}");

    let nowhere = run(["provision"]);
    assert_eq!(code(&nowhere), 2, "{nowhere:?}");
    assert!(stderr(&nowhere).contains("--nats"), "{nowhere:?}");

    let wrong = run(["provision", "--nats", "ws://x", "--nats-inbox-prefix", "a.>"]);
    assert_eq!(code(&wrong), 2, "{wrong:?}");
    assert!(stderr(&wrong).contains("ws://x") && stderr(&wrong).contains("--nats-inbox-prefix"), "{wrong:?}");
}
