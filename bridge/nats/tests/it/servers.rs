//! The servers that other tests lean on: ready when they say so, the same after a kill, and gone with their test.

use async_nats::jetstream::{self, stream};
use relay_conformance::testing::{NatsCluster, NatsServer};

async fn jetstream(url: &str) -> jetstream::Context {
    let servers: Vec<_> = url.split(',').map(|url| url.parse::<async_nats::ServerAddr>().unwrap()).collect();
    jetstream::new(async_nats::connect(servers).await.unwrap())
}

fn config(replicas: usize) -> stream::Config {
    stream::Config {
        name: "S".to_owned(),
        subjects: vec!["s".to_owned()],
        num_replicas: replicas,
        ..stream::Config::default()
    }
}

#[tokio::test]
async fn a_server_takes_a_stream_as_soon_as_it_is_ready_and_keeps_it_over_a_kill() {
    let mut server = NatsServer::start().await;
    let before = jetstream(&server.url()).await;
    before.create_stream(config(1)).await.unwrap();
    before.publish("s", "kept".into()).await.unwrap().await.unwrap();
    let address = server.address();

    server.kill();
    server.restart().await;

    assert_eq!(server.address(), address);
    let mut stream = jetstream(&server.url()).await.get_stream("S").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
}

#[tokio::test]
async fn a_server_that_is_stopped_starts_again() {
    let mut server = NatsServer::builder().jetstream("sync_interval: always").start().await;
    server.stop().await;
    assert!(tokio::net::TcpStream::connect(server.address()).await.is_err());
    server.restart().await;
    assert_eq!(server.monitor("/varz").await.unwrap()["jetstream"]["config"]["sync_always"], true);
}

#[tokio::test]
#[should_panic(expected = "it said")]
async fn a_server_that_does_not_start_fails_with_its_words() {
    NatsServer::builder().config("no such: setting: here").start().await;
}

#[tokio::test]
async fn a_cluster_takes_three_replicas_as_soon_as_it_is_ready_and_does_without_one_node() {
    let mut cluster = NatsCluster::start(3).await;
    let jetstream = jetstream(&cluster.url()).await;
    let mut stream = jetstream.create_stream(config(3)).await.unwrap();
    let leads = stream.info().await.unwrap().cluster.clone().unwrap().leader.unwrap();

    // Not the one that this client talks to, which is another promise.
    let talks_to = jetstream.client().server_info().server_name;
    let victim = (0..3).find(|node| cluster.nodes()[*node].name() != talks_to).unwrap();
    cluster.kill(victim);
    assert!(cluster.position(&leads).is_some());
    while jetstream.publish("s", "kept".into()).await.unwrap().await.is_err() {}
    cluster.restart(victim).await;

    assert!(cluster.leader().await.is_some());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_does_not_outlive_a_test_that_is_killed() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    // This test again in a process of its own, which starts a server and is killed in the middle.
    if std::env::var_os("RELAY_TEST_HOLDS_A_SERVER").is_some() {
        let server = NatsServer::start().await;
        println!("\nholds {}", server.address());
        return std::future::pending().await;
    }
    let name = "servers::a_server_does_not_outlive_a_test_that_is_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("RELAY_TEST_HOLDS_A_SERVER", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let held = lines.find_map(|line| line.unwrap().strip_prefix("holds ").map(str::to_owned)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    while tokio::net::TcpStream::connect(&held).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
