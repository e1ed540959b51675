//! The baselines: what somebody would write with async-nats alone. The streams and subjects are relay's; there are no
//! envelopes, policies, fairness or checks.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, Republish};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use relay_bridge::contract::JobId;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::figures::Latencies;
use crate::support::load::{Connection, Server, listen};

const JOBS: &str = "BARE_JOBS";
const RESULTS: &str = "BARE_RESULTS";
/// The messages in flight at a time, on each of the two sides.
pub(crate) const WINDOW: usize = 512;
/// The bytes that relay adds to a job's payload, and to a result's headers.
const JOB_ENVELOPE: usize = 220;
const RESULT_ENVELOPE: usize = 410;
/// The longest wait for a message that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a delivery is acknowledged.
#[derive(Clone, Copy)]
pub(crate) enum Ack {
    /// Sent, and on: a message whose acknowledgement is lost is delivered again.
    Sent,
    /// Answered by the server, as relay's are.
    Confirmed,
}

/// The form of the published messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The payload, if its subject has none yet.
    Plain,
    /// The server operations that relay's promises need, written by hand: as many bytes as its envelopes, one condition
    /// over all subjects that a record may have, a time to live for results, and one message in 2 ms that tells
    /// workers.
    Contract,
}

/// A connection, for streams of its own.
pub(crate) struct Bare {
    client: Client,
    context: Context,
}

impl Bare {
    /// Connects, and creates the streams.
    pub(crate) async fn create(url: &str) -> Self {
        Self::create_replicated(url, 1).await
    }

    /// The same with `replicas` copies of each message.
    pub(crate) async fn create_replicated(url: &str, replicas: usize) -> Self {
        let bare = Self::connect(url).await;
        for config in [jobs_stream(), results_stream()] {
            bare.context.create_stream(Config { num_replicas: replicas, ..config }).await.unwrap();
        }
        bare
    }

    async fn connect(url: &str) -> Self {
        let client = async_nats::connect(url).await.unwrap();
        let context = jetstream::new(client.clone());
        Self { client, context }
    }

    /// Publishes jobs, each if its subject has none yet.
    pub(crate) async fn publish(&self, jobs: u64) {
        self.publish_as(Shape::Plain, jobs).await;
    }

    /// The same in another shape.
    pub(crate) async fn publish_as(&self, shape: Shape, jobs: u64) {
        let told = Mutex::new(Instant::now());
        let put = async |number| match shape {
            Shape::Plain => self.put(subject("jobs", number), payload(256)).await,
            Shape::Contract => {
                let due = {
                    let mut told = told.lock().unwrap();
                    let due = told.elapsed() >= Duration::from_millis(2);
                    if due {
                        *told = Instant::now();
                    }
                    due
                };
                if due {
                    self.client.publish("bare.hint.work.bench", Bytes::from_static(b"50")).await.unwrap();
                }
                self.put_conditionally("jobs", number, payload(256 + JOB_ENVELOPE), None).await;
            }
        };
        stream::iter(0..jobs).map(put).buffer_unordered(WINDOW).collect::<()>().await;
    }

    /// Publishes as many results as there are jobs.
    pub(crate) async fn publish_results(&self, jobs: u64) {
        stream::iter(0..jobs)
            .map(|number| self.put(subject("results", number), payload(32)))
            .buffer_unordered(WINDOW)
            .collect::<()>()
            .await;
    }

    async fn put(&self, subject: String, payload: Bytes) {
        let message = PublishMessage::build().expected_last_subject_sequence(0).payload(payload);
        self.context.send_publish(subject, message).await.unwrap().await.unwrap();
    }

    async fn put_conditionally(&self, kind: &str, number: u64, payload: Bytes, envelope: Option<&str>) {
        let anywhere = subject(kind, number).replace(".bench.", ".*.");
        let message = PublishMessage::build()
            .expected_last_subject_sequence(0)
            .header("Nats-Expected-Last-Subject-Sequence-Subject", anywhere.as_str());
        let message = match envelope {
            Some(envelope) => message.header("Relay-Envelope", envelope).header("Nats-TTL", "86406s"),
            None => message,
        };
        self.context.send_publish(subject(kind, number), message.payload(payload)).await.unwrap().await.unwrap();
    }

    /// Takes deliveries, publishes a result for each and acknowledges it.
    pub(crate) async fn work(&self, shape: Shape, jobs: u64, ack: Ack) {
        let envelope = "x".repeat(RESULT_ENVELOPE);
        let consumer = self.consumer().await;
        let messages = consumer.stream().max_messages_per_batch(WINDOW).messages().await.unwrap();
        messages
            .take(jobs as usize)
            .try_for_each_concurrent(WINDOW, async |message| {
                match shape {
                    Shape::Plain => self.answer(&message).await,
                    Shape::Contract => {
                        let number = message.info().unwrap().stream_sequence;
                        self.put_conditionally("results", number, payload(32), Some(&envelope)).await;
                    }
                }
                self.acknowledge(&message, ack).await;
                Ok(())
            })
            .await
            .unwrap();
    }

    async fn answer(&self, message: &jetstream::Message) {
        let job = message.subject.rsplit('.').next().unwrap();
        self.put(format!("bare.results.bench.{job}"), payload(32)).await;
    }

    async fn acknowledge(&self, message: &jetstream::Message, ack: Ack) {
        match ack {
            Ack::Sent => message.ack().await.unwrap(),
            Ack::Confirmed => {
                let reply = message.reply.clone().unwrap();
                self.client.request(reply, Bytes::from_static(b"+ACK")).await.unwrap();
            }
        }
    }

    async fn consumer(&self) -> Consumer<pull::Config> {
        let config = pull::Config {
            durable_name: Some("work".to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: PATIENCE,
            max_ack_pending: 2 * WINDOW as i64,
            ..pull::Config::default()
        };
        self.context.create_consumer_on_stream(config, JOBS).await.unwrap()
    }

    /// From the publishing of a job until its result arrives, one at a time; an idle worker on a connection of its own,
    /// whose pull is there before the job is. The first `warm_up` are not counted.
    pub(crate) async fn round_trips(&self, url: &str, warm_up: u64, rounds: u64) -> Latencies {
        let (stop, work) = idle_worker(url).await;
        let mut replies = self.client.subscribe("bare.reply.bench.>").await.unwrap();
        self.client.flush().await.unwrap();
        let mut taken = Vec::new();
        for number in 0..warm_up + rounds {
            let start = Instant::now();
            let reply = async {
                match tokio::time::timeout(PATIENCE, replies.next()).await {
                    Ok(reply) => reply.expect("the subscription to replies goes on"),
                    Err(_) => panic!("no reply to job {number} came within {PATIENCE:?}: {}", self.standing().await),
                }
            };
            // The reply may come before the confirmation, which is awaited all the same.
            let ((), answered) = tokio::join!(self.put(subject("jobs", number), payload(256)), async {
                reply.await;
                start.elapsed()
            });
            if number >= warm_up {
                taken.push(answered);
            }
        }
        drop(stop);
        work.join_all().await;
        Latencies::of(taken)
    }

    /// The same for who asks over HTTP: the hops that relay's clients have, too.
    pub(crate) async fn round_trips_over_http(&self, url: &str, warm_up: u64, rounds: u64) -> Latencies {
        let (stop, work) = idle_worker(url).await;
        let server = Server::start(&["serve-bare-wait", url]);
        let mut connection = Connection::open(server.address).await;
        let mut taken = Vec::new();
        for number in 0..warm_up + rounds {
            let start = Instant::now();
            assert_eq!(connection.submit("").await, 200, "the result came");
            if number >= warm_up {
                taken.push(start.elapsed());
            }
        }
        drop(stop);
        work.join_all().await;
        Latencies::of(taken)
    }

    /// The server's report on the consumer, for a message that did not come.
    async fn standing(&self) -> String {
        let consumer = self.context.get_consumer_from_stream::<pull::Config, _, _>("work", JOBS).await.unwrap();
        format!("{:?}", consumer.get_info().await.unwrap())
    }
}

/// A worker that waits for jobs on a connection of its own, until what is returned beside it is dropped.
async fn idle_worker(url: &str) -> (oneshot::Sender<()>, JoinSet<()>) {
    let worker = Bare::connect(url).await;
    // One pull for many messages: a pull for each races with the job that it is to bring.
    let consumer = worker.consumer().await;
    let mut messages = consumer.stream().max_messages_per_batch(WINDOW).messages().await.unwrap();
    let (stop, mut stopped) = oneshot::channel::<()>();
    let mut work = JoinSet::new();
    work.spawn(async move {
        while let Some(message) = tokio::select! { _ = &mut stopped => None, message = messages.next() => message } {
            let message = message.expect("the worker's pull goes on");
            worker.answer(&message).await;
            worker.acknowledge(&message, Ack::Confirmed).await;
        }
    });
    (stop, work)
}

/// An HTTP server that publishes a job on a subject of its own, if absent, and answers with its reply, for which it
/// listened before.
pub(crate) async fn serve_wait(url: &str) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::routing::post;

    let (bare, next) = (Arc::new(Bare::connect(url).await), Arc::new(AtomicU64::new(0)));
    let submit = async move |body: Bytes| {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let mut replies = bare.client.subscribe(subject("reply", number)).await.unwrap();
        bare.put(subject("jobs", number), body).await;
        replies.next().await.unwrap().payload
    };
    let app = axum::Router::new().route("/v1/queues/{queue}/jobs", post(submit));
    axum::serve(listen().await, app).await.unwrap();
}

/// An HTTP server that awaits one publish a request, on a subject of its own: `create` asks that the subject is new.
pub(crate) async fn serve(url: &str, create: bool) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::http::StatusCode;
    use axum::routing::post;

    let bare = Bare::connect(url).await;
    let (context, next) = (bare.context, Arc::new(AtomicU64::new(0)));
    let submit = async move |body: Bytes| {
        let subject = subject("jobs", next.fetch_add(1, Ordering::Relaxed));
        let message = PublishMessage::build().payload(body);
        let message = if create { message.expected_last_subject_sequence(0) } else { message };
        let sent = context.send_publish(subject, message).await.unwrap();
        sent.await.unwrap();
        StatusCode::ACCEPTED
    };
    let app = axum::Router::new().route("/v1/queues/{queue}/jobs", post(submit));
    axum::serve(listen().await, app).await.unwrap();
}

fn jobs_stream() -> Config {
    Config {
        name: JOBS.to_owned(),
        subjects: vec!["bare.jobs.>".to_owned()],
        max_messages_per_subject: 1,
        max_age: Duration::from_secs(86_400),
        allow_message_ttl: true,
        allow_direct: true,
        ..Config::default()
    }
}

fn results_stream() -> Config {
    Config {
        name: RESULTS.to_owned(),
        subjects: vec!["bare.results.>".to_owned()],
        republish: Some(Republish {
            source: "bare.results.>".to_owned(),
            destination: "bare.reply.>".to_owned(),
            headers_only: false,
        }),
        ..jobs_stream()
    }
}

/// As long as relay's, and as random: a look-up by subject costs the server as much.
fn subject(kind: &str, number: u64) -> String {
    let key = format!("key-{number}").parse().unwrap();
    let job = JobId::derive(&"bench".parse().unwrap(), &"work".parse().unwrap(), &key);
    format!("bare.{kind}.bench.{job}")
}

fn payload(bytes: usize) -> Bytes {
    Bytes::from(vec![b'x'; bytes])
}
