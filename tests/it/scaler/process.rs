//! The scaler of a process: its flags, and the same figure at the admin port.

use relay_conformance::testing::NatsServer;
use serde_json::Value;

use super::support::keda_at;
use crate::admin::send;
use crate::cli_support::{Running, code, run, stderr};
use crate::tls_support::Files;

fn address(server: &Running, which: &str) -> String {
    server.ready["listening"][which].as_str().unwrap().to_owned()
}

const SERVE: &[&str] =
    &["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--admin", "127.0.0.1:0"];

#[tokio::test(flavor = "multi_thread")]
async fn keda_metrics_and_the_admin_port_say_the_same() {
    let server = Running::start(SERVE.iter().chain(&["--scaler", "127.0.0.1:0"]));
    let (http, admin) = (address(&server, "http"), address(&server, "admin"));
    for _ in 0..20 {
        assert_eq!(send(&http, "POST", "/v1/queues/default/jobs", "", "x").0, 202);
    }
    let keda = keda_at(&address(&server, "scaler")).await.unwrap();
    let metadata = [("queue", "default"), ("slotsPerWorker", "4")];
    while keda.wanted(&metadata).await < 8.0 {}
    let scale = |query: &str| send(&admin, "GET", &format!("/v1/queues/default/scale{query}"), "", "");
    let told: Value = serde_json::from_str(&scale("?slotsPerWorker=4").1).unwrap();
    assert_eq!(
        (&told["slots_wanted"], &told["workers_wanted"], &told["waiting"]),
        (&8.0.into(), &2.0.into(), &20.into())
    );
    assert_eq!(told["service_seconds"], Value::Null);
    let refused = scale("?slotsPerWorker=none");
    assert_eq!(refused.0, 400);
    assert!(refused.1.contains("slotsPerWorker"), "{}", refused.1);
    assert_eq!(send(&admin, "GET", "/v1/queues/nowhere/scale", "", "").0, 404);
    while !send(&admin, "GET", "/metrics", "", "").1.contains("relay_queue_slots_wanted{queue=\"default\"} 16\n") {}
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_its_own_answers_for_the_broker_of_servers() {
    let nats = NatsServer::start().await;
    let refused = run(["scaler", "--nats", &nats.url(), "--scaler", "127.0.0.1:0"]);
    assert_eq!(code(&refused), 2, "nobody has provisioned anything: {}", stderr(&refused));
    let serve = ["serve", "--nats", &nats.url(), "--provision", "--no-auth", "--no-nats-listen"];
    let server = Running::start(serve.iter().chain(&["--listen", "127.0.0.1:0", "--json"]));
    let scaler = ["scaler", "--nats", &nats.url(), "--scaler", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json"];
    let scaler = Running::start(scaler);
    let keda = keda_at(&address(&scaler, "scaler")).await.unwrap();
    assert!(!keda.is_active(&[("queue", "default")]).await.unwrap());
    assert_eq!(send(&address(&server, "http"), "POST", "/v1/queues/default/jobs", "", "x").0, 202);
    while !keda.is_active(&[("queue", "default")]).await.unwrap() {}
    let admin = address(&scaler, "admin");
    while !send(&admin, "GET", "/metrics", "", "").1.contains("relay_queue_slots_wanted{queue=\"default\"} 1\n") {}
    scaler.stop();
    server.stop();
}

#[test]
fn a_scaler_that_others_can_reach_speaks_tls_or_is_told_not_to() {
    let at = |flags: &[&str]| {
        let args = SERVE.iter().chain(&["--scaler", "0.0.0.0:0"]).chain(flags).copied().collect::<Vec<_>>();
        run(args)
    };
    let refused = at(&[]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("--scaler-tls off"), "{}", stderr(&refused));
    for wrong in [
        &["--scaler-tls", "off", "--scaler-client-ca", "ca.pem"][..],
        &["--scaler-client-ca", "ca.pem"],
        &["--scaler-tls", "elsewhere"],
    ] {
        assert_eq!(code(&at(wrong)), 2, "{wrong:?}");
    }
    let plain = Running::start(SERVE.iter().chain(&["--scaler", "0.0.0.0:0", "--scaler-tls", "off"]));
    plain.stop();
    let files = Files::new();
    let (certificate, key) = (files.files.certificate.to_str().unwrap(), files.files.key.to_str().unwrap());
    let secured = ["--scaler", "0.0.0.0:0", "--tls-cert", certificate, "--tls-key", key];
    Running::start(SERVE.iter().chain(&secured)).stop();
}
