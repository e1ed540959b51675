//! The baseline: one stream, one durable pull consumer, and workers that each keep one pull waiting for as many jobs as they
//! have free slots. There are no results, policies, fairness or checks.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self, Context, stream};
use futures_util::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::SLOTS;
use crate::jobs::{Door, Jobs};
use crate::relays::Running;

/// Where jobs are published.
pub(crate) const SUBJECT: &str = "plain.jobs";
const STREAM: &str = "PLAIN";
const CONSUMER: &str = "work";
/// How long a pull waits.
pub(crate) const EXPIRES: Duration = Duration::from_secs(5);

/// Creates the stream and starts workers, each with a connection of its own.
pub(crate) async fn start(url: &str, workers: usize, jobs: &Arc<Jobs>) -> (Door, Running) {
    let context = connect(url).await;
    let config =
        stream::Config { name: STREAM.to_owned(), subjects: vec![SUBJECT.to_owned()], ..stream::Config::default() };
    context.create_stream(config).await.unwrap();
    let config = pull::Config { durable_name: Some(CONSUMER.to_owned()), ..pull::Config::default() };
    context.create_consumer_on_stream(config, STREAM).await.unwrap();
    let mut running = Running::default();
    for worker in 0..workers {
        running.tasks.spawn(work(connect(url).await, worker, Arc::clone(jobs)));
    }
    (Door::Publish(context), running)
}

async fn connect(url: &str) -> Context {
    jetstream::new(async_nats::connect(url).await.unwrap())
}

async fn work(context: Context, worker: usize, jobs: Arc<Jobs>) {
    let consumer = context.get_consumer_from_stream::<pull::Config, _, _>(CONSUMER, STREAM).await.unwrap();
    let (slots, mut handlers) = (Arc::new(Semaphore::new(SLOTS)), JoinSet::new());
    loop {
        drop(slots.acquire().await.unwrap());
        let pull = consumer.batch().max_messages(slots.available_permits()).expires(EXPIRES);
        let mut messages = pull.messages().await.unwrap();
        while let Some(message) = messages.next().await {
            let (message, jobs) = (message.unwrap(), Arc::clone(&jobs));
            // At once: no more was asked for than were free.
            let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
            handlers.spawn(async move {
                jobs.handle(worker, &message.payload).await;
                message.ack().await.unwrap();
                drop(slot);
            });
            while handlers.try_join_next().is_some_and(|end| end.is_ok()) {}
        }
    }
}
