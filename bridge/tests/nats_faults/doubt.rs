//! Jobs of which can't be found out for a while whether their run has ended.

use std::collections::BTreeSet;
use std::time::Duration;

use relay_bridge::nats::config::{Credentials, NatsConfig, Secret};
use relay_bridge::nats::names;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::testing::{NatsServer, NatsServerBuilder};

use super::support::{PATIENCE, Stage};

/// A server whose only user may do everything but publish on `denied`.
fn server(denied: &str) -> NatsServerBuilder {
    let user = format!("{{ user: relay, password: x, permissions: {{ publish: {{ deny: \"{denied}\" }} }} }}");
    NatsServer::builder().config(&format!("authorization {{ users: [{user}] }}"))
}

async fn open(server: &NatsServer) -> Stage {
    let credentials = Credentials::User { name: "relay".to_owned(), password: Secret::Value("x".to_owned()) };
    let config = NatsConfig { credentials, ..NatsConfig::new([server.url()]) };
    Stage::open_as(config, 1, QueuePolicy::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_may_have_ended_is_given_out_once_that_is_known_and_spends_no_attempt_until_then() {
    let everything = server("nothing");
    let mut nats = everything.clone().start().await;
    let before = open(&nats).await;
    before.submit("acme", "ended").await;
    before.run(1).await;
    let options = async_nats::ConnectOptions::with_user_and_password("relay".to_owned(), "x".to_owned());
    let jetstream = async_nats::jetstream::new(options.connect(nats.url()).await.unwrap());
    let stream = jetstream.get_stream(names::jobs_stream(&before.queue)).await.unwrap();
    // Its client's next job makes it again, and it delivers everything anew.
    stream.delete_consumer("acme").await.unwrap();

    nats.configure(server(&format!("$JS.API.STREAM.MSG.GET.{}", names::RESULTS_STREAM)));
    nats.restart().await;
    let stage = open(&nats).await;
    let open = stage.submit("acme", "open").await.status().job_id;
    let set_aside = async {
        while stage.broker.jobs.depth(&stage.queue).await.unwrap().parked < 2 {
            assert!(stage.lease(10, Duration::ZERO).await.is_empty(), "it may have ended");
        }
    };
    tokio::time::timeout(PATIENCE, set_aside).await.unwrap();

    nats.configure(everything);
    nats.reload();
    let mut given = Vec::new();
    while given.is_empty() {
        given = stage.lease(10, Duration::from_secs(5)).await;
    }
    assert_eq!(
        given.iter().map(|delivery| (delivery.job.id, delivery.attempt)).collect::<BTreeSet<_>>(),
        [(open, 1)].into()
    );
    stage.succeed(&given[0], "done").await;
    let settled = async {
        loop {
            let depth = stage.broker.jobs.depth(&stage.queue).await.unwrap();
            if (depth.waiting, depth.leased, depth.parked) == (0, 0, 0) {
                return;
            }
            assert!(stage.lease(10, Duration::ZERO).await.is_empty(), "a run that ended came again");
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
}
