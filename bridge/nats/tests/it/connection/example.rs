//! The configuration in `deploy/nats` that people start from: three servers run with it here, with other paths and ports.

use std::num::NonZeroU8;
use std::time::Duration;

use nkeys::KeyPair;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::provision::Wanted;
use relay_conformance::testing::{NatsCluster, NatsServer};
use relay_nats::config::{Credentials, NatsConfig, Secret, Tls};
use relay_nats::{Nats, Settings, StreamSettings, names};
use tokio::time::{sleep, timeout};

use super::open;
use super::tls::Certificates;

const EXAMPLE: &str = include_str!("../../../../../deploy/nats/relay-node.conf");

/// Longer than three nodes need to elect a leader.
const PATIENCE: Duration = Duration::from_secs(60);

/// The example as it stands, but for what is another on each machine.
fn example(certificates: &Certificates, relay: &KeyPair) -> String {
    let file = |name: &str| certificates.path(name).display().to_string();
    let routes = EXAMPLE.split_once("routes: [").unwrap().1.split_once(']').unwrap().0;
    assert_eq!(routes.matches("nats://").count(), 3, "{routes}");
    let text = [
        ("0.0.0.0:4222", "{client}"),
        ("0.0.0.0:8222", "{monitor}"),
        ("0.0.0.0:6222", "{route}"),
        (routes, "{routes}"),
        ("/data/jetstream", "{store}"),
        ("/etc/nats/tls/tls.crt", &file("node.pem")),
        ("/etc/nats/tls/tls.key", &file("node.key")),
        ("/etc/nats/tls/ca.crt", &file("ca.pem")),
    ]
    .iter()
    .fold(EXAMPLE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "the example has no {from}");
        text.replace(from, to)
    });
    // A name that the file defines comes before one of the environment.
    let operator = KeyPair::new_user();
    let (relay, operator) = (relay.public_key(), operator.public_key());
    format!("NATS_NAME: {{name}}\nNATS_ZONE: \"zone:{{name}}\"\nRELAY_NKEY: {relay}\nOPERATOR_NKEY: {operator}\n{text}")
}

#[tokio::test]
async fn the_example_cluster_keeps_three_flushed_copies_and_goes_on_without_one_node() {
    let (certificates, relay) = (Certificates::make(), KeyPair::new_user());
    let builder = NatsServer::builder().file(&example(&certificates, &relay));
    let mut cluster = NatsCluster::start_with(3, builder).await;
    for node in cluster.nodes() {
        let seen = node.monitor("/varz").await.unwrap();
        assert_eq!(seen["jetstream"]["config"]["sync_always"], true, "{}", seen["jetstream"]);
        assert_eq!(seen["tls_required"], true);
    }

    let config = NatsConfig {
        credentials: Credentials::NKey(Secret::Value(relay.seed().unwrap())),
        tls: Tls { required: true, ca: Some(certificates.path("ca.pem")), ..Tls::default() },
        ..NatsConfig::new(cluster.urls())
    };
    let hasty = NatsConfig { tls: Tls { first: true, ..config.tls.clone() }, ..config.clone() };
    open(hasty).await.close().await;
    let connection = open(config).await;
    assert_eq!(connection.client().server_info().connect_urls, Vec::<String>::new(), "nodes are not announced");

    let streams = StreamSettings { replicas: NonZeroU8::new(3).unwrap(), ..StreamSettings::default() };
    let nats = Nats::open(connection.clone(), Settings { streams, ..Settings::default() }).await.unwrap();
    let queue: QueueName = "work".parse().unwrap();
    let wanted = Wanted { queue: queue.clone(), policy: QueuePolicy::default(), seen: None };
    // Three nodes that flush every write may not answer in time on a busy machine: it is run again, as a job that provisions is.
    let provisioned = timeout(PATIENCE, async {
        loop {
            match nats.broker().provision.apply(std::slice::from_ref(&wanted), false).await {
                Err(late) if late.kind() == BrokerErrorKind::Ambiguous => sleep(Duration::from_millis(50)).await,
                answered => break answered,
            }
        }
    });
    provisioned.await.unwrap().unwrap();

    let context = connection.jetstream();
    let stored = context.publish("relay.jobs.work.me.first", "".into()).await.unwrap().await.unwrap();
    let placed = context.get_stream(names::jobs_stream(&queue)).await.unwrap().cached_info().cluster.clone().unwrap();
    assert_eq!(placed.replicas.len(), 2, "two beside the leader");

    cluster.kill(cluster.position(placed.leader.as_deref().unwrap()).unwrap());
    let next = timeout(PATIENCE, async {
        loop {
            // Answered once another node leads; until then there is no answer, or nobody to give one.
            match context.publish("relay.jobs.work.me.second", "".into()).await {
                Ok(sent) => match sent.await {
                    Ok(stored) => break stored,
                    Err(_) => sleep(Duration::from_millis(50)).await,
                },
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    });
    assert!(next.await.unwrap().sequence > stored.sequence, "the other two go on where the leader was");
    nats.close().await;
}
