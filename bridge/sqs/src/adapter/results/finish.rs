//! The one place where runs end. One transaction writes a result and its place in the client's log: the first
//! transaction for a run wins, and page n + 1 of a log can't exist before page n.
//!
//! Runs of one client that end together in this process share a transaction and a page.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{
    CancellationReason, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update,
};
use tokio_util::task::TaskTracker;

use crate::adapter::aws::coalesce::{Bounds, Coalesce};
use crate::adapter::aws::connect::{Effect, THROTTLED_FOR};
use crate::adapter::aws::item::{Item, expires, names_in};
use crate::adapter::aws::table::{Attributes, Table, malformed};
use crate::adapter::results::log::{Entry, TOGETHER_MAX, write_entries};
use crate::adapter::results::replies::Replies;
use crate::adapter::stored::record::{ENDED, Record, told_claim};
use crate::names;
use relay_bridge::backoff::random;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, JobResult, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::rules;
use relay_bridge::support::lock;

const OPERATION: &str = "record";
/// The most bytes of one transaction: AWS takes 4 MiB.
const BYTES_MAX: usize = 2 * 1_024 * 1_024;
/// How often a transaction is tried while other processes are faster, and the longest wait in between.
const TRIES: u32 = 40;
const WAIT_MAX: Duration = Duration::from_millis(400);
/// Clients whose logs are remembered; a forgotten one costs a read.
const CLIENTS_MAX: usize = 10_000;

/// One run's end, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) result: Arc<JobResult>,
    /// When the run could begin.
    pub(crate) due_at: Timestamp,
    /// The envelope, unless it has an item of its own.
    pub(crate) inline: Option<Vec<u8>>,
    /// Names the call that records the result: no two calls have the same name, even if they record the same result.
    pub(crate) by: String,
}

/// The outcome of ending one run.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// This call ended the run.
    Now,
    /// The record refused the result, and is as given; `None` if there is none that is kept.
    Refused(Option<Record>),
}

/// The logs that this process writes.
pub(crate) struct Endings {
    table: Table,
    clock: Clock,
    tasks: TaskTracker,
    replies: Arc<Replies>,
    clients: Mutex<HashMap<ClientId, Arc<Coalesce<Ending, Ended>>>>,
}

impl Endings {
    pub(crate) fn new(table: Table, clock: Clock, tasks: TaskTracker, replies: Arc<Replies>) -> Self {
        Self { table, clock, tasks, replies, clients: Mutex::default() }
    }

    pub(crate) fn of(&self, client: &ClientId) -> Arc<Coalesce<Ending, Ended>> {
        let mut clients = lock(&self.clients);
        if clients.len() >= CLIENTS_MAX {
            // Logs that nobody uses now are forgotten.
            clients.retain(|_, log| Arc::strong_count(log) > 1);
        }
        let log = clients.entry(client.clone()).or_insert_with(|| {
            let log = Arc::new(Log {
                table: self.table.clone(),
                clock: self.clock.clone(),
                client: client.clone(),
                replies: self.replies.clone(),
                last: Mutex::default(),
            });
            let bounds = Bounds {
                entries: TOGETHER_MAX,
                weight: BYTES_MAX,
                weigh: |ending: &Ending| ending.inline.as_ref().map_or(0, Vec::len) + 1_024,
                // A transaction changes an item once.
                clash: |a, b| a.result.job_id == b.result.job_id,
                // The order of pages is the order of transactions.
                at_once: 1,
            };
            Arc::new(Coalesce::new(OPERATION, &self.tasks, bounds, move |endings| {
                let log = log.clone();
                async move { log.end(endings).await }
            }))
        });
        log.clone()
    }
}

/// One client's log, as its writer in this process knows it.
struct Log {
    table: Table,
    clock: Clock,
    client: ClientId,
    replies: Arc<Replies>,
    /// The number of the last page, if it is known; others may have written more.
    last: Mutex<Option<u64>>,
}

/// The outcome of a transaction.
enum Transacted {
    Done,
    /// Another process was faster: at the head of the log, or at the records of these numbers, which are as given.
    Refused {
        head: bool,
        records: Vec<(usize, Option<Item>)>,
    },
    /// Nothing was written, or it is not known whether something was.
    Failed(BrokerError),
}

impl Log {
    fn last(&self) -> MutexGuard<'_, Option<u64>> {
        lock(&self.last)
    }

    /// Ends these runs, each unless it has ended already; returns an answer for each.
    async fn end(&self, endings: Vec<Ending>) -> Vec<Result<Ended, BrokerError>> {
        let mut answers: Vec<Option<Result<Ended, BrokerError>>> = endings.iter().map(|_| None).collect();
        let mut failure: Option<BrokerError> = None;
        for tried in 0..TRIES {
            let left: Vec<_> = (0..endings.len()).filter(|number| answers[*number].is_none()).collect();
            if left.is_empty() {
                break;
            }
            if tried > 0 {
                tokio::time::sleep(jittered(tried)).await;
            }
            let now = self.clock.now();
            let chosen: Vec<_> = left.iter().map(|number| &endings[*number]).collect();
            match self.transact(&chosen, now).await {
                Transacted::Done => left.iter().for_each(|number| answers[*number] = Some(Ok(Ended::Now))),
                Transacted::Refused { head, records } => {
                    if head {
                        *self.last() = None;
                    }
                    for (place, item) in records {
                        answers[left[place]] = Some(chosen[place].found(item, now));
                    }
                }
                // The caller tries again for as long as there is reason to, so this loop does not multiply the tries.
                // It tries once more only if the outcome is in doubt or AWS is unavailable: the transaction may have
                // taken effect, and then the second try finds its own result; or the second try may have new
                // credentials.
                Transacted::Failed(error) => {
                    *self.last() = None;
                    let once_more = matches!(error.kind(), BrokerErrorKind::Ambiguous | BrokerErrorKind::Unavailable);
                    let looks = failure.is_none() && once_more;
                    // A later refusal says nothing of a try whose answer was lost.
                    let in_doubt = |failure: &BrokerError| failure.kind() == BrokerErrorKind::Ambiguous;
                    failure = failure.filter(in_doubt).or(Some(error));
                    if !looks {
                        break;
                    }
                }
            }
        }
        let ended = |(number, ending): (usize, &Ending)| {
            matches!(answers[number], Some(Ok(Ended::Now))).then_some(ending.result.job_id)
        };
        let ended: Vec<_> = endings.iter().enumerate().filter_map(ended).collect();
        if !ended.is_empty() {
            self.replies.announce(ended);
        }
        let failed = || {
            let (kind, why) = match &failure {
                Some(error) => (error.kind(), error.detail().to_owned()),
                None => (BrokerErrorKind::Unavailable, "others keep writing to the client's log".to_owned()),
            };
            BrokerError::new(kind, OPERATION, why)
        };
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(failed()))).collect()
    }

    /// The number of the last page as this process knows it, else as it is in the table.
    async fn last_page(&self) -> Result<u64, BrokerError> {
        let known = *self.last();
        if let Some(last) = known {
            return Ok(last);
        }
        let head = self.table.get(&names::log_head(&self.client), OPERATION).await?;
        let last = head.and_then(|head| head.get_number("last")).unwrap_or(0);
        *self.last() = Some(last);
        Ok(last)
    }

    async fn transact(&self, endings: &[&Ending], now: Timestamp) -> Transacted {
        let last = match self.last_page().await {
            Ok(last) => last,
            Err(error) => return Transacted::Failed(error),
        };
        let items = match self.items(endings, last, now) {
            Ok(items) => items,
            Err(error) => return Transacted::Failed(error),
        };
        // The SDK gives each call a token, so that its own repetition of one has one effect.
        let call = self.table.client().transact_write_items().set_transact_items(Some(items));
        let error = match call.send().await {
            Ok(_) => {
                *self.last() = Some(last + 1);
                return Transacted::Done;
            }
            Err(error) => error,
        };
        let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) = error.as_service_error() else {
            return Transacted::Failed(self.table.failed(OPERATION, Effect::Write, error));
        };
        let refused = |reason: &CancellationReason| reason.code() == Some("ConditionalCheckFailed");
        let reasons = cancelled.cancellation_reasons();
        if let Some(code) = reasons.iter().filter_map(CancellationReason::code).find(|code| is_throttled(code)) {
            let kind = BrokerErrorKind::Overloaded { retry_after: THROTTLED_FOR };
            return Transacted::Failed(BrokerError::new(kind, OPERATION, format!("AWS refused: {code}")));
        }
        let records = reasons.iter().skip(2).enumerate().filter(|(_, reason)| refused(reason));
        Transacted::Refused {
            head: reasons.first().is_some_and(refused),
            records: records.map(|(place, reason)| (place, reason.item.clone().map(Item))).collect(),
        }
    }

    /// The items of the transaction: the log's head, its next page, and each record.
    fn items(&self, endings: &[&Ending], last: u64, now: Timestamp) -> Result<Vec<TransactWriteItem>, BrokerError> {
        let page = last + 1;
        let head_condition = if last == 0 { "attribute_not_exists(#last)" } else { "#last = :before" };
        let mut head_values = Item::default().number(":last", page);
        if last > 0 {
            head_values = head_values.number(":before", last);
        }
        let mut items = Vec::with_capacity(endings.len() + 2);
        let head = Item::at(&names::log_head(&self.client)).0;
        items.push(self.update(head, "SET #last = :last", head_condition, head_values)?);
        let entries: Vec<_> = endings
            .iter()
            .map(|ending| Entry { job: ending.result.job_id, run: ending.result.run_id, at: now })
            .collect();
        let kept = endings.iter().map(|ending| ending.kept_until(now)).max().unwrap_or(now);
        let written = Item::at(&names::log_page(&self.client, page)).binary("entries", write_entries(&entries));
        let put = Put::builder().table_name(self.table.name()).set_item(Some(written.kept_until(kept).0));
        let put = put.build().map_err(|error| malformed(OPERATION, error))?;
        items.push(TransactWriteItem::builder().put(put).build());
        for (place, ending) in endings.iter().enumerate() {
            let record = Item::at(&names::record(ending.result.job_id)).0;
            let (change, values) = ending.change(crate::adapter::results::log::sequence(page, place), now);
            items.push(self.update(record, &change, CONDITION, values)?);
        }
        Ok(items)
    }

    fn update(
        &self,
        key: Attributes,
        change: &str,
        condition: &str,
        values: Item,
    ) -> Result<TransactWriteItem, BrokerError> {
        let update = Update::builder()
            .table_name(self.table.name())
            .set_key(Some(key))
            .update_expression(change)
            .condition_expression(condition)
            .set_expression_attribute_names(Some(names_in(&[change, condition])))
            .set_expression_attribute_values(Some(values.0))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build();
        Ok(TransactWriteItem::builder().update(update.map_err(|error| malformed(OPERATION, error))?).build())
    }
}

/// The run is the record's, it has no result yet, and everything that names it is right. The condition never asks for
/// the attempt or the lease.
const CONDITION: &str = "#run = :run AND #client = :client AND #queue = :queue AND #keep > :now \
                         AND (attribute_not_exists(#result_run) OR #result_run < :run)";

impl Ending {
    /// The change of the record, which also takes it out of the index by time.
    fn change(&self, sequence: u64, now: Timestamp) -> (String, Item) {
        let result = &self.result;
        let until = self.kept_until(now);
        let mut change = "SET #result_run = :run, #result_by = :by, #result_claim = :claim, #result_size = :size, \
                          #outcome = :outcome, #log = :log, #log_at = :now, #ended = :ended, #was = #state, #state = :state, \
                          #keep = :keep, #expires = :expires"
            .to_owned();
        let mut values = Item::default()
            .text(":run", result.run_id.to_string())
            .text(":client", result.client.as_str())
            .text(":queue", result.queue.as_str())
            .text(":by", &self.by)
            .binary(":claim", told_claim(result, &self.by))
            .number(":size", result.payload.len())
            .text(":outcome", result.outcome.as_str())
            .number(":log", sequence)
            .time(":now", now)
            .time(":ended", result.finished_at)
            .text(":state", ENDED)
            .time(":keep", until)
            .number(":expires", expires(until));
        let mut gone = "#ix, #ix_at, #lease, #lease_end, #erased".to_owned();
        match &self.inline {
            Some(envelope) => {
                change.push_str(", #result = :result");
                values = values.binary(":result", envelope.clone());
            }
            None => gone.push_str(", #result"),
        }
        (format!("{change} REMOVE {gone}"), values)
    }

    /// The answer if the record refused the result. The result in the record may be this call's own: the transaction
    /// took effect and its answer was lost.
    fn found(&self, item: Option<Item>, now: Timestamp) -> Result<Ended, BrokerError> {
        let record = Record::read_kept(item, now)?;
        let is_own = |record: &Record| record.item.get_text("result_by") == Some(&self.by);
        Ok(if record.as_ref().is_some_and(is_own) { Ended::Now } else { Ended::Refused(record) })
    }

    /// Until when the result is kept if it is recorded at `now`.
    pub(crate) fn kept_until(&self, now: Timestamp) -> Timestamp {
        rules::record::keep_until(&self.result, self.due_at, now)
    }
}

/// Whether this reason says that a transaction was throttled; the transaction's error does not say so.
fn is_throttled(code: &str) -> bool {
    matches!(code, "ThrottlingError" | "ProvisionedThroughputExceeded")
}

/// A random part of a wait that grows, so that writers of one log don't meet again.
fn jittered(tried: u32) -> Duration {
    let most = Duration::from_millis(5).saturating_mul(1 << tried.min(8)).min(WAIT_MAX);
    most.mul_f64(random())
}
