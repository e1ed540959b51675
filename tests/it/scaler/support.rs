//! A scaler on a port of its own, and KEDA as it calls one.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use relay::scaler::proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricValue, ScaledObjectRef,
};
use relay::scaler::{Looks, serve};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Job, JobResult, Submission, Timestamp};
use relay_bridge::leasing::{Delivery, LeaseRequest};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_embedded::{Embedded, EmbeddedConfig};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// A scaler that serves until it is dropped.
pub(super) struct Scaler {
    pub(super) address: SocketAddr,
    pub(super) looks: Arc<Looks>,
    pub(super) stop: CancellationToken,
    _serving: JoinSet<()>,
}

impl Scaler {
    pub(super) async fn start(broker: &Broker, clock: Clock) -> Self {
        Self::secured(broker, clock, None).await
    }

    pub(super) async fn secured(broker: &Broker, clock: Clock, tls: Option<relay::tls::Secured>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (looks, stop) = (Looks::new(broker, clock), CancellationToken::new());
        let mut serving = JoinSet::new();
        let (served, stopped) = (Arc::clone(&looks), stop.clone());
        serving.spawn(async move { serve(listener, tls, served, stopped).await.unwrap() });
        Self { address, looks, stop, _serving: serving }
    }

    pub(super) async fn keda(&self) -> Keda {
        keda_at(&self.address.to_string()).await.unwrap()
    }
}

/// A clock that stands still until the test moves it.
pub(super) fn standing() -> Clock {
    Clock::manual(Timestamp::from_millis(1_800_000_000_000))
}

/// A broker in memory with the queue `mail`.
pub(super) async fn embedded(clock: &Clock) -> Broker {
    let config = EmbeddedConfig { clock: clock.clone(), ..EmbeddedConfig::default() };
    let broker = Embedded::open(config).await.unwrap().broker();
    add_queue(&broker, "mail", &QueuePolicy::default()).await;
    broker
}

pub(super) async fn add_queue(broker: &Broker, queue: &str, policy: &QueuePolicy) {
    broker.policies.put_policy(&queue.parse().unwrap(), policy, None).await.unwrap();
}

/// Puts `count` jobs of `client` in line.
pub(super) async fn submit(broker: &Broker, client: &str, count: usize, clock: &Clock) {
    for _ in 0..count {
        broker.jobs.enqueue(job(client, clock)).await.unwrap();
    }
}

/// A job of `client` for the queue `mail`.
pub(super) fn job(client: &str, clock: &Clock) -> Job {
    delayed(client, Duration::ZERO, clock)
}

/// The same, due after `delay`.
pub(super) fn delayed(client: &str, delay: Duration, clock: &Clock) -> Job {
    let submission = Submission::plain(client.parse().unwrap(), "mail".parse().unwrap(), "text/plain", Bytes::new());
    Submission { delay, ..submission }.accept(&QueuePolicy::default(), clock.now())
}

/// Takes as many as `count` jobs of `mail`.
pub(super) async fn lease(broker: &Broker, count: u32) -> Vec<Delivery> {
    let request = LeaseRequest {
        worker: "worker".parse().unwrap(),
        queues: vec!["mail".parse().unwrap()],
        max: NonZeroU32::new(count).unwrap(),
        wait: Duration::from_secs(30),
    };
    broker.leasing.lease(&request).await.unwrap()
}

/// Ends the run of a delivery well.
pub(super) async fn finish(broker: &Broker, delivery: &Delivery, clock: &Clock) {
    let end = End { attempt: delivery.attempt, started_at: Some(clock.now()), finished_at: clock.now() };
    let result = JobResult::succeeded(&delivery.job, end, "text/plain", Bytes::new());
    broker.leasing.record(&result).await.unwrap();
    broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
}

/// KEDA, connected in clear text.
pub(super) async fn keda_at(address: &str) -> Result<Keda, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.map(Keda)
}

/// KEDA.
#[derive(Clone)]
pub(super) struct Keda(pub(super) Channel);

/// The metadata of a trigger.
pub(super) fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let scaler_metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ScaledObjectRef { name: "workers".to_owned(), namespace: "jobs".to_owned(), scaler_metadata }
}

impl Keda {
    async fn grpc(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }

    async fn ask<Q, A>(&self, method: &'static str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let codec = ProstCodec::<Q, A>::default();
        Ok(self.grpc().await?.unary(Request::new(message), path(method), codec).await?.into_inner())
    }

    pub(super) async fn is_active(&self, metadata: &[(&str, &str)]) -> Result<bool, Status> {
        self.ask::<_, IsActiveResponse>("IsActive", object(metadata)).await.map(|answer| answer.result)
    }

    pub(super) async fn spec(&self, metadata: &[(&str, &str)]) -> Result<GetMetricSpecResponse, Status> {
        self.ask("GetMetricSpec", object(metadata)).await
    }

    pub(super) async fn metrics(&self, metadata: &[(&str, &str)]) -> Result<MetricValue, Status> {
        let request = GetMetricsRequest { scaled_object_ref: Some(object(metadata)), metric_name: String::new() };
        let answer: GetMetricsResponse = self.ask("GetMetrics", request).await?;
        let [value] = &answer.metric_values[..] else { panic!("one value: {answer:?}") };
        Ok(value.clone())
    }

    pub(super) async fn wanted(&self, metadata: &[(&str, &str)]) -> f64 {
        self.metrics(metadata).await.unwrap().metric_value_float
    }

    pub(super) async fn stream<A>(
        &self,
        method: &'static str,
        metadata: &[(&str, &str)],
    ) -> Result<Streaming<A>, Status>
    where
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let codec = ProstCodec::<ScaledObjectRef, A>::default();
        let request = Request::new(object(metadata));
        Ok(self.grpc().await?.server_streaming(request, path(method), codec).await?.into_inner())
    }

    pub(super) async fn activity(&self, metadata: &[(&str, &str)]) -> Result<Streaming<IsActiveResponse>, Status> {
        self.stream("StreamIsActive", metadata).await
    }
}

fn path(method: &'static str) -> PathAndQuery {
    format!("/externalscaler.ExternalScaler/{method}").parse().unwrap()
}

/// The next state of a stream.
pub(super) async fn next(activity: &mut Streaming<IsActiveResponse>) -> bool {
    let next = tokio::time::timeout(Duration::from_secs(60), activity.next()).await;
    next.unwrap().unwrap().unwrap().result
}
