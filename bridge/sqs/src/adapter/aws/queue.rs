//! The queues of SQS: sending, receiving, hiding and deleting messages. Entries of a batch fail one by one.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_sqs::operation::get_queue_url::GetQueueUrlError;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName, SendMessageBatchRequestEntry,
};
use tokio_util::task::TaskTracker;

use crate::adapter::aws::coalesce::{Bounds, Coalesce};
use crate::adapter::aws::connect::{Clients, Effect, failed};
use crate::adapter::aws::table::malformed;
use crate::config::SqsConfig;
use crate::names;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::support::lock;

/// The most entries of one call, and the most messages of one receive.
pub(crate) const BATCH_MAX: usize = 10;
/// The most bytes that the bodies of one call may have together: AWS takes 1 MiB with everything about them.
const BATCH_BYTES_MAX: usize = 1_000 * 1_024;
/// The most calls of one kind to one queue at once.
const AT_ONCE: usize = 2;
/// How often an entry of a batch is tried if AWS refuses it alone, and the wait after the first try.
const TRIES: u32 = 3;
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// The longest that a message may be hidden, and that it may be delayed.
pub(crate) const HIDE_MAX: Duration = Duration::from_secs(12 * 3_600);
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(900);
/// The longest that a receive waits.
pub(crate) const RECEIVE_WAIT_MAX: Duration = Duration::from_secs(20);

/// A message to send.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) body: String,
    /// The message's group. On a standard queue, groups take turns. A FIFO queue needs a group, and keeps its messages
    /// in order.
    pub(crate) group: Option<String>,
    /// On a FIFO queue: the id by which two sends count as one.
    pub(crate) deduplication: Option<String>,
    /// On a standard queue: how long the message is delayed.
    pub(crate) delay: Duration,
    /// Attributes that are text: up to ten small ones.
    pub(crate) attributes: Vec<(&'static str, String)>,
}

/// One queue of SQS.
pub(crate) struct SqsQueue {
    clients: Clients,
    pub(crate) url: String,
    fifo: bool,
    sends: Coalesce<Outgoing, ()>,
    deletes: Coalesce<String, ()>,
    hides: Coalesce<(String, i32), ()>,
}

/// Whole seconds, at least as long as `time`.
pub(crate) fn whole_seconds(time: Duration) -> i32 {
    let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

impl SqsQueue {
    pub(crate) fn new(clients: Clients, tasks: &TaskTracker, url: String, fifo: bool) -> Self {
        let bounds = || (BATCH_MAX, BATCH_BYTES_MAX, AT_ONCE);
        let (entries, weight, at_once) = bounds();
        let (sender, sends_to) = (clients.queues.clone(), url.clone());
        let sends = Coalesce::new(
            "send",
            tasks,
            Bounds {
                entries,
                weight,
                weigh: |message: &Outgoing| message.body.len() + 512,
                clash: |_, _| false,
                at_once,
            },
            move |messages| send(sender.clone(), sends_to.clone(), fifo, messages),
        );
        let (deleter, deletes_from) = (clients.queues.clone(), url.clone());
        let deletes = Coalesce::new(
            "delete",
            tasks,
            Bounds { entries, weight, weigh: String::len, clash: |_, _| false, at_once },
            move |handles| delete(deleter.clone(), deletes_from.clone(), handles),
        );
        let (hider, hides_in) = (clients.queues.clone(), url.clone());
        let hides = Coalesce::new(
            "hide",
            tasks,
            Bounds {
                entries,
                weight,
                weigh: |(handle, _): &(String, i32)| handle.len(),
                clash: |a, b| a.0 == b.0,
                at_once,
            },
            move |handles| hide(hider.clone(), hides_in.clone(), handles),
        );
        Self { clients, url, fifo, sends, deletes, hides }
    }

    /// Puts a message in line.
    pub(crate) async fn send(&self, message: Outgoing) -> Result<(), BrokerError> {
        self.sends.add(message).await
    }

    /// Takes a received message out of line for good.
    pub(crate) async fn delete(&self, handle: &str) -> Result<(), BrokerError> {
        self.deletes.add(handle.to_owned()).await
    }

    /// Makes a received message come again after `time`, rounded up to a second; zero means at once.
    pub(crate) async fn hide(&self, handle: &str, time: Duration) -> Result<(), BrokerError> {
        self.hides.add((handle.to_owned(), whole_seconds(time.min(HIDE_MAX)))).await
    }

    /// Receives up to `max` messages, hidden from others for `hidden`; waits for the first one up to `wait`.
    pub(crate) async fn receive(
        &self,
        max: usize,
        hidden: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, BrokerError> {
        let call = self
            .clients
            .receiving
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(max.clamp(1, BATCH_MAX)).unwrap_or(1))
            .visibility_timeout(whole_seconds(hidden.min(HIDE_MAX)))
            .wait_time_seconds(whole_seconds(wait.min(RECEIVE_WAIT_MAX)))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            // The SDK's own repetition of a receive whose answer was lost gets the same messages.
            .set_receive_request_attempt_id(self.fifo.then(|| uuid::Uuid::new_v4().to_string()));
        let output = call.send().await.map_err(|error| failed("lease", Effect::None, error))?;
        Ok(output.messages.unwrap_or_default())
    }

    /// About how many messages are in line, hidden, and delayed.
    pub(crate) async fn counts(&self, operation: &'static str) -> Result<[u64; 3], BrokerError> {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let call = self.clients.queues.get_queue_attributes().queue_url(&self.url);
        let call = call.set_attribute_names(Some(names.to_vec()));
        let output = call.send().await.map_err(|error| failed(operation, Effect::None, error))?;
        let found = output.attributes.unwrap_or_default();
        Ok(names.map(|name| found.get(&name).and_then(|count| count.parse().ok()).unwrap_or(0)))
    }
}

/// The entries that failed, by their numbers; all other entries succeeded.
type Failures = HashMap<usize, (BrokerErrorKind, String)>;

fn failures(operation: &'static str, failed: &[BatchResultErrorEntry]) -> Failures {
    let mut failures = Failures::new();
    for entry in failed {
        let Ok(number) = entry.id.parse() else { continue };
        let kind = match entry.sender_fault {
            true => BrokerErrorKind::Invalid,
            false => BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) },
        };
        tracing::debug!(operation, code = entry.code, "an entry of a batch failed");
        failures
            .insert(number, (kind, format!("SQS refused: {}: {}", entry.code, entry.message().unwrap_or_default())));
    }
    failures
}

/// Tries `call` with the entries that have not succeeded, until all have or the tries are spent.
async fn each<T: Clone, F>(
    operation: &'static str,
    entries: Vec<T>,
    call: impl Fn(Vec<(usize, T)>) -> F,
) -> Vec<Result<(), BrokerError>>
where
    F: Future<Output = Result<Failures, BrokerError>>,
{
    let mut answers: Vec<Result<(), BrokerError>> = entries.iter().map(|_| Ok(())).collect();
    let mut left: Vec<_> = entries.into_iter().enumerate().collect();
    for tried in 1..=TRIES {
        let failed = match call(left.clone()).await {
            Ok(failed) => failed,
            Err(error) => {
                for (number, _) in &left {
                    let again = BrokerError::new(error.kind(), operation, error.detail());
                    answers[*number] = Err(again);
                }
                return answers;
            }
        };
        left.retain(|(number, _)| {
            let Some((kind, why)) = failed.get(number) else { return false };
            answers[*number] = Err(BrokerError::new(*kind, operation, why));
            *kind != BrokerErrorKind::Invalid
        });
        if left.is_empty() || tried == TRIES {
            break;
        }
        tokio::time::sleep(TRY_AGAIN * tried).await;
        left.iter().for_each(|(number, _)| answers[*number] = Ok(()));
    }
    answers
}

async fn send(
    client: aws_sdk_sqs::Client,
    url: String,
    fifo: bool,
    messages: Vec<Outgoing>,
) -> Vec<Result<(), BrokerError>> {
    each("send", messages, |left| async {
        let mut call = client.send_message_batch().queue_url(&url);
        for (number, message) in left {
            let mut attributes = HashMap::with_capacity(message.attributes.len());
            for (name, text) in message.attributes {
                let value = MessageAttributeValue::builder().data_type("String").string_value(text).build();
                attributes.insert(name.to_owned(), value.map_err(|error| malformed("send", error))?);
            }
            let entry = SendMessageBatchRequestEntry::builder()
                .id(number.to_string())
                .message_body(message.body)
                .set_message_attributes(Some(attributes).filter(|attributes| !attributes.is_empty()))
                .set_message_group_id(message.group)
                .set_message_deduplication_id(message.deduplication)
                .set_delay_seconds((!fifo).then(|| whole_seconds(message.delay.min(DELAY_MAX))));
            call = call.entries(entry.build().map_err(|error| malformed("send", error))?);
        }
        let output = call.send().await.map_err(|error| failed("send", Effect::Write, error))?;
        Ok(failures("send", output.failed()))
    })
    .await
}

async fn delete(client: aws_sdk_sqs::Client, url: String, handles: Vec<String>) -> Vec<Result<(), BrokerError>> {
    each("delete", handles, |left| async {
        let mut call = client.delete_message_batch().queue_url(&url);
        for (number, handle) in left {
            let entry = DeleteMessageBatchRequestEntry::builder().id(number.to_string()).receipt_handle(handle);
            call = call.entries(entry.build().map_err(|error| malformed("delete", error))?);
        }
        let output = call.send().await.map_err(|error| failed("delete", Effect::Write, error))?;
        Ok(failures("delete", output.failed()))
    })
    .await
}

async fn hide(client: aws_sdk_sqs::Client, url: String, handles: Vec<(String, i32)>) -> Vec<Result<(), BrokerError>> {
    each("hide", handles, |left| async {
        let mut call = client.change_message_visibility_batch().queue_url(&url);
        for (number, (handle, seconds)) in left {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(number.to_string())
                .receipt_handle(handle)
                .visibility_timeout(seconds);
            call = call.entries(entry.build().map_err(|error| malformed("hide", error))?);
        }
        let output = call.send().await.map_err(|error| failed("hide", Effect::Write, error))?;
        Ok(failures("hide", output.failed()))
    })
    .await
}

/// The queues of SQS that this process uses, by their names in relay.
pub(crate) struct SqsQueues {
    clients: Clients,
    config: SqsConfig,
    tasks: TaskTracker,
    known: Mutex<HashMap<QueueName, Arc<SqsQueue>>>,
}

impl SqsQueues {
    pub(crate) fn new(clients: Clients, config: SqsConfig, tasks: TaskTracker) -> Self {
        Self { clients, config, tasks, known: Mutex::default() }
    }

    pub(crate) fn client(&self) -> &aws_sdk_sqs::Client {
        &self.clients.queues
    }

    pub(crate) fn config(&self) -> &SqsConfig {
        &self.config
    }

    /// The queue of SQS for `queue`.
    ///
    /// # Errors
    /// `NotFound` if SQS has none.
    pub(crate) async fn of(&self, queue: &QueueName, operation: &'static str) -> Result<Arc<SqsQueue>, BrokerError> {
        if let Some(known) = lock(&self.known).get(queue) {
            return Ok(known.clone());
        }
        let url = self.find(queue, operation).await?.ok_or_else(|| {
            let why = format!("SQS has no queue for `{queue}`: `relay provision` creates it");
            BrokerError::new(BrokerErrorKind::NotFound, operation, why)
        })?;
        let found = Arc::new(self.at(url, self.config.fifo));
        let mut known = lock(&self.known);
        Ok(known.entry(queue.clone()).or_insert(found).clone())
    }

    /// The address of the queue of SQS for `queue`, if it exists.
    pub(crate) async fn find(&self, queue: &QueueName, operation: &'static str) -> Result<Option<String>, BrokerError> {
        self.find_named(&names::sqs_queue(&self.config, queue, operation)?, operation).await
    }

    /// The queue of SQS at `url`.
    pub(crate) fn at(&self, url: String, fifo: bool) -> SqsQueue {
        SqsQueue::new(self.clients.clone(), &self.tasks, url, fifo)
    }

    /// The address of the queue that is called `name` in SQS, if it exists.
    pub(crate) async fn find_named(&self, name: &str, operation: &'static str) -> Result<Option<String>, BrokerError> {
        match self.clients.queues.get_queue_url().queue_name(name).send().await {
            Ok(output) => Ok(output.queue_url),
            Err(error) if matches!(error.as_service_error(), Some(GetQueueUrlError::QueueDoesNotExist(_))) => Ok(None),
            Err(error) => Err(failed(operation, Effect::None, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_never_cut_short_by_whole_seconds() {
        for (millis, seconds) in [(0, 0), (1, 1), (999, 1), (1_000, 1), (1_001, 2)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
        assert_eq!(whole_seconds(Duration::MAX), i32::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_sqs_failed_is_tried_again_alone_and_one_that_relay_got_wrong_is_not() {
        let calls = Mutex::new(Vec::new());
        let answers = each("test", vec!["good", "throttled", "wrong"], |left| {
            let numbers: Vec<_> = left.iter().map(|(number, _)| *number).collect();
            let first = calls.lock().unwrap().is_empty();
            calls.lock().unwrap().push(numbers);
            async move {
                let overloaded = BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) };
                Ok(match first {
                    true => Failures::from([
                        (1, (overloaded, "later".to_owned())),
                        (2, (BrokerErrorKind::Invalid, "never".to_owned())),
                    ]),
                    false => Failures::new(),
                })
            }
        })
        .await;
        let kinds: Vec<_> = answers.into_iter().map(|answer| answer.err().map(|error| error.kind())).collect();
        assert_eq!(kinds, [None, None, Some(BrokerErrorKind::Invalid)]);
        assert_eq!(*calls.lock().unwrap(), [vec![0, 1, 2], vec![1]]);
    }
}
