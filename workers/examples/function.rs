//! A whole worker in one file: `cargo run -p relay-workers --example function`.
//!
//! An `async fn` becomes a handler, a worker runs it on jobs of the queue `words`, and the results are read back. The
//! broker is the embedded one in memory, so nothing has to be installed; a worker of a real deployment takes its
//! `leasing` from `relay_remote` instead, and everything else stays as it is here.
#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Job, QueueName, Submission};
use relay_bridge::leasing::Progress;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::Lookup;
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Context, Output, QueueOrder, Worker, WorkerConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The handler. It may run again after a crash, so it does nothing that would hurt twice.
async fn count_words(job: Job, context: Context) -> Result<Output, HandlerError> {
    // `?` on any error is a retry with backoff, until the queue's attempts are spent. This text will never get better,
    // so it is rejected: the run ends as `failed`, and the job is kept among the dead letters.
    let text = str::from_utf8(&job.payload).map_err(|error| HandlerError::reject("not-text", error.to_string()))?;

    // Somebody may watch. It is cheap to call often: the latest one wins.
    context.progress(Progress { percent: Some(50.0), message: "counting".to_owned() });

    // Pretend that the first attempt meets trouble which passes.
    if text.contains("flaky") && context.attempt == 1 {
        return Err(HandlerError::retry_after(Duration::from_millis(50), "busy", "the dictionary is in use"));
    }
    Ok(Output::json(&BTreeMap::from([("words", text.split_whitespace().count())]))?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A broker with one queue.
    let store = Embedded::open(EmbeddedConfig::default()).await?;
    let broker = store.broker();
    let queue: QueueName = "words".parse()?;
    let policy = QueuePolicy { max_attempts: 5, ..QueuePolicy::default() };
    broker.policies.put_policy(&queue, &policy, None).await?;

    // A worker that runs up to four jobs at once, in a task of its own until it is told to stop.
    let config = WorkerConfig {
        id: "example-worker".parse()?,
        queues: vec![(queue.clone(), 1)],
        order: QueueOrder::Strict,
        slots: NonZeroU32::MIN.saturating_add(3),
        drain: Duration::from_secs(5),
    };
    let worker = Worker::new(broker.leasing.clone(), Arc::new(function(count_words)), Clock::system(), config);
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run(shutdown.clone()));

    // A client's side: submit, then wait for each result.
    let client: ClientId = "example".parse()?;
    let mut jobs = Vec::new();
    for text in [&b"to be or not to be"[..], b"a flaky text", b"\xff\xfe no text"] {
        let submission = Submission {
            client: client.clone(),
            queue: queue.clone(),
            key: None,
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: BTreeMap::new(),
            payload: text.to_vec().into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        let enqueued = broker.jobs.enqueue(submission.accept(&policy, Clock::system().now())).await?;
        jobs.push(enqueued.status().job_id);
    }
    for job in jobs {
        if let Lookup::Finished(finished) = broker.results.wait(&client, job, Duration::from_secs(10)).await? {
            let result = finished.result;
            println!("{}, attempt {}: {}", result.outcome, result.attempt, String::from_utf8_lossy(&result.payload));
        }
    }

    // Drain: nothing new is taken, running jobs may finish, the rest is handed back.
    shutdown.cancel();
    while let Some(report) = tasks.join_next().await {
        println!("{:#?}", report?);
    }
    store.close().await;
    Ok(())
}
