//! The baseline: one stream, one durable pull consumer, and workers that each keep one pull waiting for as many jobs as
//! they have free slots. There are no results, policies, fairness or checks. Behind an ingress, submissions come to it
//! and jobs go to their handlers over HTTP, as relay's do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self, Context, stream};
use axum::Router;
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::SLOTS;
use crate::jobs::{Jobs, Submitter};
use crate::nodes::Nodes;
use crate::relays::{self, Running};
use crate::support::load::Connection;

/// Where jobs are published.
pub(crate) const SUBJECT: &str = "plain.jobs";
const STREAM: &str = "PLAIN";
const CONSUMER: &str = "work";
/// How long a pull waits.
pub(crate) const EXPIRES: Duration = Duration::from_secs(5);

/// How a worker has a job handled.
#[derive(Clone)]
enum Handler {
    Here(Arc<Jobs>),
    /// Connections to a service that handles jobs, one for each slot.
    Http(Arc<Mutex<Vec<Connection>>>),
}

impl Handler {
    async fn handle(&self, worker: usize, payload: &[u8]) {
        match self {
            Self::Here(jobs) => drop(jobs.handle(worker, payload).await),
            Self::Http(connections) => {
                let mut connection = connections.lock().unwrap().pop().expect("no more jobs than slots");
                connection.post(&format!("/{worker}"), "", payload).await;
                connections.lock().unwrap().push(connection);
            }
        }
    }
}

/// Starts it with workers that handle jobs themselves.
pub(crate) async fn start(nodes: &Nodes, workers: usize, jobs: &Arc<Jobs>) -> (Submitter, Running) {
    let mut running = Running::default();
    let context = create(nodes).await;
    for worker in 0..workers {
        running.tasks.spawn(work(jetstream::new(nodes.client().await), worker, Handler::Here(Arc::clone(jobs))));
    }
    (Submitter::Publish(context), running)
}

/// Starts it behind an ingress.
pub(crate) async fn start_behind_doors(nodes: &Nodes, workers: usize, jobs: &Arc<Jobs>) -> (Submitter, Running) {
    let mut running = Running::default();
    let context = create(nodes).await;
    let handlers = relays::serve_handlers(&mut running.tasks, jobs).await;
    for worker in 0..workers {
        let mut connections = Vec::new();
        for _ in 0..SLOTS {
            connections.push(Connection::open(handlers).await);
        }
        let handler = Handler::Http(Arc::new(Mutex::new(connections)));
        running.tasks.spawn(work(jetstream::new(nodes.client().await), worker, handler));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let publish = async move |body: Bytes| {
        context.publish(SUBJECT, body).await.unwrap().await.unwrap();
        (StatusCode::ACCEPTED, "accepted")
    };
    running.tasks.spawn(async move { axum::serve(listener, Router::new().fallback(publish)).await.unwrap() });
    (relays::submitter_at(address).await, running)
}

/// Creates the stream and its consumer.
async fn create(nodes: &Nodes) -> Context {
    let context = jetstream::new(nodes.client().await);
    let config = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec![SUBJECT.to_owned()],
        num_replicas: nodes.replicas(),
        ..stream::Config::default()
    };
    context.create_stream(config).await.unwrap();
    let config = pull::Config { durable_name: Some(CONSUMER.to_owned()), ..pull::Config::default() };
    context.create_consumer_on_stream(config, STREAM).await.unwrap();
    context
}

async fn work(context: Context, worker: usize, handler: Handler) {
    let consumer = context.get_consumer_from_stream::<pull::Config, _, _>(CONSUMER, STREAM).await.unwrap();
    let (slots, mut handlers) = (Arc::new(Semaphore::new(SLOTS)), JoinSet::new());
    loop {
        drop(slots.acquire().await.unwrap());
        let pull = consumer.batch().max_messages(slots.available_permits()).expires(EXPIRES);
        let mut messages = pull.messages().await.unwrap();
        while let Some(message) = messages.next().await {
            // Of several servers one may not have heard of the consumer yet: the next pull tells.
            let (Ok(message), handler) = (message, handler.clone()) else {
                break;
            };
            // At once: no more was asked for than were free.
            let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
            handlers.spawn(async move {
                handler.handle(worker, &message.payload).await;
                message.ack().await.unwrap();
                drop(slot);
            });
            while handlers.try_join_next().is_some_and(|end| end.is_ok()) {}
        }
    }
}
