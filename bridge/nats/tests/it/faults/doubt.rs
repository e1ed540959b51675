//! Jobs for which it can't be found out for a while whether their run has ended.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use relay_bridge::contract::{JobState, Outcome};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{NatsServer, NatsServerBuilder};
use relay_nats::config::{Credentials, NatsConfig, Secret};
use relay_nats::names;

use super::support::{PATIENCE, Stage};

/// A server whose only user may do everything but publish on `denied`.
fn server(denied: &str) -> NatsServerBuilder {
    let user = format!("{{ user: relay, password: x, permissions: {{ publish: {{ deny: \"{denied}\" }} }} }}");
    NatsServer::builder().config(&format!("authorization {{ users: [{user}] }}"))
}

async fn open(server: &NatsServer) -> Stage {
    open_with(server, QueuePolicy::default()).await
}

async fn open_with(server: &NatsServer, policy: QueuePolicy) -> Stage {
    let credentials = Credentials::User { name: "relay".to_owned(), password: Secret::Value("x".to_owned()) };
    let config = NatsConfig { credentials, ..NatsConfig::new([server.url()]) };
    Stage::open_as(config, 1, policy).await
}

async fn jobs_stream(server: &NatsServer, stage: &Stage) -> async_nats::jetstream::stream::Stream {
    let options = async_nats::ConnectOptions::with_user_and_password("relay".to_owned(), "x".to_owned());
    let jetstream = async_nats::jetstream::new(options.connect(server.url()).await.unwrap());
    jetstream.get_stream(names::jobs_stream(&stage.queue)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_may_have_ended_is_given_out_once_that_is_known_and_spends_no_attempt_until_then() {
    let everything = server("nothing");
    let mut nats = everything.clone().start().await;
    let before = open(&nats).await;
    before.submit("acme", "ended").await;
    before.run(1).await;
    let stream = jobs_stream(&nats, &before).await;
    // Its client's next job makes it again, and it delivers everything anew.
    stream.delete_consumer("acme").await.unwrap();

    nats.configure(server(&format!("$JS.API.STREAM.INFO.{}", names::RESULTS_STREAM)));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_rerun_that_broke_off_before_the_old_record_went_from_another_lane_runs_once() {
    let everything = server("nothing");
    let mut nats = everything.clone().start().await;
    let before = open(&nats).await;
    let (acme, job) = ("acme".parse().unwrap(), before.submit("acme", "again").await.status().job_id);
    before.run(1).await;

    // From here on all clients share one lane; and the call breaks off between its two writes.
    nats.configure(server(&format!("$JS.API.STREAM.MSG.DELETE.{}", names::jobs_stream(&before.queue))));
    nats.restart().await;
    let one_lane = QueuePolicy { fair: false, ..QueuePolicy::default() };
    let stage = open_with(&nats, one_lane).await;
    let broken = stage.broker.jobs.rerun(&acme, job, 1).await.unwrap_err();
    assert_eq!(broken.kind(), BrokerErrorKind::Ambiguous, "{broken}");
    let stream = jobs_stream(&nats, &stage).await;
    let records = stream.info_with_subjects(format!("relay.*.work.acme.{job}")).await.unwrap().count().await;
    assert_eq!(records, 2, "the next run is in line, and the old record where it was");

    nats.configure(everything);
    nats.reload();
    let again = stage.broker.jobs.rerun(&acme, job, 1).await.unwrap();
    assert!(matches!(again, Enqueued::Known(_)), "{again:?}");
    assert_eq!(stage.run(1).await, [job]);
    // With turns again, its client's next job makes its old lane, which delivers what is left there.
    stream.delete_consumer("acme").await.unwrap();
    let stage = open(&nats).await;
    let other = stage.submit("acme", "other").await.status().job_id;
    assert_eq!(stage.run(1).await, [other]);
    assert!(stage.lease(10, Duration::ZERO).await.is_empty(), "the old record was given out");
    let status = stage.broker.jobs.status(&acme, job).await.unwrap().unwrap();
    assert_eq!((status.state, status.generation), (JobState::Finished(Outcome::Succeeded), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_job_records_and_settles_it_without_reading_its_record() {
    let nats = server("$JS.API.STREAM.MSG.GET.relay-jobs-work").start().await;
    let stage = open(&nats).await;
    stage.submit("acme", "key").await;
    let delivery = stage.lease(1, PATIENCE).await.remove(0);
    let result = stage.success(&delivery, "done");
    assert_eq!(stage.broker.leasing.record(&result).await.unwrap(), relay_bridge::leasing::Recorded::First);
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
}
