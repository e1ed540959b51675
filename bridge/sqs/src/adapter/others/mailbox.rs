//! A queue of SQS from which others read results: the largest message that it takes, and the form of a message about a
//! result.

use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;

use crate::adapter::aws::connect::{Effect, failed};
use crate::adapter::aws::queue::{Outgoing, SqsQueue};
use crate::forward::Render;
use crate::limits::FIFO;
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::Finished;

/// Bytes of a message that its attributes take.
const ATTRIBUTES: usize = 1_024;
/// The most bytes of a message in a queue that does not tell its limit: this was the limit of every queue once.
const MESSAGE_MAX: usize = 256 * 1_024;

/// The queue, and the largest body that it takes.
pub(crate) struct Mailbox {
    pub(crate) queue: SqsQueue,
    pub(crate) fifo: bool,
    body_max: usize,
}

impl Mailbox {
    /// Asks the queue for the largest message that it takes.
    ///
    /// # Errors
    /// As AWS says.
    pub(crate) async fn open(
        client: &aws_sdk_sqs::Client,
        queue: SqsQueue,
        operation: &'static str,
    ) -> Result<Self, BrokerError> {
        let body_max = largest(client, &queue.url, operation).await?.saturating_sub(ATTRIBUTES);
        Ok(Self { fifo: queue.url.ends_with(FIFO), queue, body_max })
    }

    /// The message about a result. A FIFO queue takes the message about a run once within 5 minutes; readers of any
    /// other queue deduplicate on the run.
    pub(crate) fn message(&self, render: &Render, finished: &Finished) -> Outgoing {
        let result = &finished.result;
        let mut attributes = vec![
            ("Relay-Job-Id", result.job_id.to_string()),
            ("Relay-Run-Id", result.run_id.to_string()),
            ("Relay-Outcome", result.outcome.to_string()),
            ("Relay-Queue", result.queue.to_string()),
        ];
        attributes.extend(result.key.as_ref().map(|key| ("Relay-Key", key.to_string())));
        attributes.extend((result.hops > 0).then(|| ("Relay-Hops", result.hops.to_string())));
        Outgoing {
            body: render(finished, self.body_max),
            group: self.fifo.then(|| result.client.to_string()),
            deduplication: self.fifo.then(|| result.run_id.to_string()),
            delay: Duration::ZERO,
            attributes,
        }
    }
}

/// The most bytes of a message, attributes included, that the queue at `url` takes.
///
/// # Errors
/// As AWS says.
pub(crate) async fn largest(
    client: &aws_sdk_sqs::Client,
    url: &str,
    operation: &'static str,
) -> Result<usize, BrokerError> {
    let call = client.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::MaximumMessageSize);
    let output = call.send().await.map_err(|error| failed(operation, Effect::None, error))?;
    let found = output.attributes.and_then(|all| all.get(&QueueAttributeName::MaximumMessageSize)?.parse().ok());
    Ok(found.unwrap_or(MESSAGE_MAX))
}
