//! The answers to a client when the broker behind relay fails.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::load::{KeptPace, Load};

use super::support::{Relay, Reply, Setup};

/// Fails every call that is about a job, but for looking one up and for lists, with one error, or panics.
pub(crate) struct Failing(pub(crate) Fault);

/// The way in which it fails.
pub(crate) enum Fault {
    /// Every call is answered with this error.
    Fails(Kind),
    /// Every call panics.
    Panics,
    /// A submission is never answered; other calls are, with an error.
    Hangs,
}

impl Failing {
    fn fail<T>(&self) -> Result<T, BrokerError> {
        let kind = match self.0 {
            Fault::Fails(kind) => kind,
            Fault::Panics => panic!("a bug in an adapter"),
            Fault::Hangs => Kind::Unavailable,
        };
        Err(BrokerError::new(kind, "test", "as told"))
    }
}

#[async_trait]
impl JobQueue for Failing {
    async fn enqueue(&self, _: Job) -> Result<Enqueued, BrokerError> {
        if matches!(self.0, Fault::Hangs) {
            std::future::pending::<()>().await;
        }
        self.fail()
    }
    async fn status(&self, _: &ClientId, _: JobId) -> Result<Option<JobStatus>, BrokerError> {
        Ok(None)
    }
    async fn is_in(&self, _: &ClientId, _: JobId, _: &[QueueName]) -> Result<bool, BrokerError> {
        Ok(false)
    }
    async fn cancel(&self, _: &ClientId, _: JobId) -> Result<JobStatus, BrokerError> {
        self.fail()
    }
    async fn rerun(&self, _: &ClientId, _: JobId, _: u32) -> Result<Enqueued, BrokerError> {
        self.fail()
    }
    async fn erase(&self, _: &ClientId, _: JobId) -> Result<(), BrokerError> {
        self.fail()
    }
    async fn list(&self, _: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        Ok(Listed { after_known: filter.after.is_some(), ..Listed::default() })
    }
    async fn depth(&self, _: &QueueName) -> Result<Depth, BrokerError> {
        self.fail()
    }
    async fn waiting(&self, _: &ClientId, _: &QueueName) -> Result<Option<u64>, BrokerError> {
        Ok(None)
    }

    async fn stored(&self, _: &ClientId, _: &QueueName) -> Result<Option<u64>, BrokerError> {
        Ok(None)
    }
    async fn oldest(&self, _: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        Ok(None)
    }
    async fn count(&self, _: &QueueName) -> Result<Exact, BrokerError> {
        self.fail()
    }
    async fn load(&self, _: &QueueName, _: Duration) -> Result<Load, BrokerError> {
        self.fail()
    }
    async fn kept_pace(&self, _: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        Ok(None)
    }
    async fn keep_pace(&self, _: &QueueName, _: &KeptPace) -> Result<(), BrokerError> {
        self.fail()
    }
    async fn sweep(&self, _: u32) -> Result<Swept, BrokerError> {
        self.fail()
    }
}

async fn submit_to(break_broker: fn(&mut relay_bridge::broker::Broker)) -> (Relay, Reply) {
    let relay = Setup { break_broker: Box::new(break_broker), ..Setup::default() }.start().await;
    let reply = relay.submit(&[("Idempotency-Key", "k")], "x").await;
    (relay, reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_broker_is_a_503_that_may_be_repeated() {
    let (_relay, reply) = submit_to(|broker| broker.jobs = Arc::new(Failing(Fault::Fails(Kind::Unavailable)))).await;
    assert_eq!(reply.is_problem(503, "broker-unavailable").field("retry"), "safe");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_begins_behind_any_job_whose_place_the_broker_knows_also_one_past_its_keeping() {
    let (relay, _) = submit_to(|broker| broker.jobs = Arc::new(Failing(Fault::Fails(Kind::Unavailable)))).await;
    // It has no record of the job to show.
    let reply = relay.get(&format!("/v1/jobs?after={}", JobId::mint())).await;
    assert_eq!((reply.status, reply.field("next")), (200, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unconfirmed_write_names_the_job_and_asks_for_the_key() {
    let (_relay, reply) = submit_to(|broker| broker.jobs = Arc::new(Failing(Fault::Fails(Kind::Ambiguous)))).await;
    assert_eq!(reply.is_problem(504, "unconfirmed").field("retry"), "with-idempotency-key");
    let id = JobId::derive(&"dev".parse().unwrap(), &"mail".parse().unwrap(), &"k".parse().unwrap());
    assert_eq!(reply.field("job_id"), id.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unconfirmed_rerun_cancel_or_erasure_may_be_sent_again_as_it_is() {
    let (relay, _) = submit_to(|broker| broker.jobs = Arc::new(Failing(Fault::Fails(Kind::Ambiguous)))).await;
    let id = JobId::mint();
    for (method, path) in [("POST", "/rerun?from=1"), ("POST", "/cancel"), ("DELETE", "")] {
        let reply = relay.ask(&format!("{method} /v1/jobs/{id}{path}"), &[], "").await;
        assert_eq!(reply.is_problem(504, "unconfirmed").field("retry"), "safe", "{method} {path}");
        assert_eq!(reply.field("job_id"), id.to_string());
        assert!(!reply.field("detail").contains("Idempotency-Key"), "{}", reply.field("detail"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_broker_says_when_to_come_back() {
    let (_relay, reply) = submit_to(|broker| {
        broker.jobs = Arc::new(Failing(Fault::Fails(Kind::Overloaded { retry_after: Duration::from_millis(6_500) })));
    })
    .await;
    assert_eq!(reply.is_problem(503, "overloaded").header("retry-after"), "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_500_and_relay_goes_on() {
    let (relay, reply) = submit_to(|broker| broker.jobs = Arc::new(Failing(Fault::Panics))).await;
    reply.is_problem(500, "internal");
    assert_eq!(relay.get("/v1/whoami").await.status, 200);
}
