//! Results for clients that read them from SQS. The process that holds a client's place sends each of the client's
//! results to the client's own queue, in the order of its log.
//!
//! The place is an item of the table: the process that is at work and until when, and the cursor up to which everything
//! was sent. The cursor goes on by compare-and-set, after the messages. If the process dies in between, these messages
//! are sent once more, with the same run: readers deduplicate on the run, and FIFO queues do so themselves for 5
//! minutes.

use futures_util::future::join_all;
use relay_bridge::result_log::ResultLog as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::{Table, Written};
use crate::adapter::others::mailbox::Mailbox;
use crate::adapter::results::Results;
use crate::forward::Forward;
use crate::forward::Render;
use crate::limits::FIFO;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{Cursor, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::{Finished, ResultFilter, Start};

const OPERATION: &str = "forward results";
/// For how long a process holds a client's place. Every step renews this.
const HELD: Duration = Duration::from_secs(60);
/// How long one read waits for results.
const WAIT: Duration = Duration::from_secs(20);
/// How often a process looks whether the process at work is gone.
const STAND_BACK: Duration = Duration::from_secs(20);
/// The most results of one step.
const STEP: u32 = 50;
/// How long to wait after a failure: at first, and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(300);

/// Forwards results.
pub(crate) struct Forwards {
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) table: Table,
    pub(crate) settings: Settings,
    pub(crate) results: Arc<Results>,
}

impl Forwards {
    /// Sends the results of every client in `SqsConfig::forward` to that client's queue, until `stop`. Any number of
    /// processes may do so at once: one of them is at work for each client. A result that a queue refuses is logged and
    /// tried again, and does not hold up other clients' results.
    pub(crate) async fn forward(self: &Arc<Self>, render: Render, stop: CancellationToken) {
        let mut clients = JoinSet::new();
        for to in &self.queues.config().forward {
            let me = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
            let one = Forwarder { all: Arc::clone(self), to: to.clone(), me, render: render.clone() };
            clients.spawn(one.run(stop.clone()));
        }
        stop.cancelled().await;
        while let Some(ended) = clients.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a forwarder of results ended badly");
            }
        }
    }
}

/// Forwards the results of one client.
struct Forwarder {
    all: Arc<Forwards>,
    to: Forward,
    /// Names this forwarder among those of other processes.
    me: String,
    render: Render,
}

/// Why a forwarder is not at work any more.
enum Ended {
    /// Another process is at work.
    Elsewhere,
    /// It was told to stop.
    Stopped,
}

impl Forwarder {
    async fn run(self, stop: CancellationToken) {
        let mut again = AGAIN_FIRST;
        while !stop.is_cancelled() {
            let mut sent = false;
            let pause = match self.work(&stop, &mut sent).await {
                Ok(Ended::Stopped) => break,
                Ok(Ended::Elsewhere) => STAND_BACK,
                Err(error) => {
                    again = if sent { AGAIN_FIRST } else { again };
                    tracing::warn!(
                        client = %self.to.client, queue = self.to.url, %error, again_in = ?again,
                        "results are not sent to the client's queue: is it there, and may relay send to it?"
                    );
                    let pause = again;
                    again = (again * 2).min(AGAIN_LAST);
                    pause
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        // So that another process goes on at once.
        let values = Item::default().text(":me", &self.me).time(":over", Timestamp::EPOCH);
        let key = names::forward(&self.to.client);
        if let Err(error) = self.all.table.update(&key, "SET #until = :over", "#owner = :me", values, OPERATION).await {
            tracing::debug!(client = %self.to.client, %error, "another process goes on in a minute");
        }
    }

    /// Sends the results that exist and those that come, as long as this process holds the client's place.
    async fn work(&self, stop: &CancellationToken, sent: &mut bool) -> Result<Ended, BrokerError> {
        let Some(mut at) = self.hold().await? else { return Ok(Ended::Elsewhere) };
        let mailbox = self.open().await?;
        loop {
            let from = at.clone().map_or(Start::Oldest, Start::After);
            // Only this read ends at `stop`: results that are sent are always noted as well.
            let page = tokio::select! {
                page = self.all.results.page(&self.to.client, &from, &ResultFilter::ALL, STEP, WAIT) => page?,
                () = stop.cancelled() => return Ok(Ended::Stopped),
            };
            if let Some(reset) = page.reset {
                tracing::warn!(client = %self.to.client, ?reset, "results are sent again from the oldest that is kept");
            }
            let (count, refused) = self.send(&mailbox, &page.entries).await;
            let next = if refused.is_none() {
                Some(page.next)
            } else {
                count.checked_sub(1).map(|last| page.entries[last].cursor.clone())
            };
            if let Some(next) = next {
                if !self.advance(at.as_ref(), &next).await? {
                    return Ok(Ended::Elsewhere);
                }
                at = Some(next);
            }
            *sent |= count > 0 || refused.is_none();
            if let Some(refused) = refused {
                return Err(refused);
            }
        }
    }

    /// Takes the client's place, unless another process holds it. Returns where to go on, if anything was sent before.
    async fn hold(&self) -> Result<Option<Option<Cursor>>, BrokerError> {
        let now = self.all.settings.clock.now();
        let values = Item::default()
            .text(":me", &self.me)
            .time(":until", now + HELD)
            .time(":past", now - self.all.settings.skew);
        let condition = "attribute_not_exists(#owner) OR #owner = :me OR #until <= :past";
        let key = names::forward(&self.to.client);
        let written = self.all.table.update(&key, "SET #owner = :me, #until = :until", condition, values, OPERATION);
        let Written::Done(item) = written.await? else { return Ok(None) };
        let cursor = item.get_text("cursor").map(|_| item.need_parsed("cursor")).transpose()?;
        Ok(Some(cursor))
    }

    /// Notes that everything up to `next` was sent. `false` if another process took the place meanwhile.
    async fn advance(&self, before: Option<&Cursor>, next: &Cursor) -> Result<bool, BrokerError> {
        let mut values = Item::default()
            .text(":me", &self.me)
            .text(":next", next.to_string())
            .time(":until", self.all.settings.clock.now() + HELD);
        let condition = match before {
            None => "#owner = :me AND attribute_not_exists(#cursor)",
            Some(before) => {
                values = values.text(":before", before.to_string());
                "#owner = :me AND #cursor = :before"
            }
        };
        let key = names::forward(&self.to.client);
        let change = "SET #cursor = :next, #until = :until";
        Ok(match self.all.table.update(&key, change, condition, values, OPERATION).await? {
            Written::Done(_) => true,
            // The SDK repeated a write whose answer was lost, and found its own cursor.
            Written::Refused(item) => item.is_some_and(|item| {
                item.get_text("owner") == Some(&self.me) && item.get_text("cursor") == Some(&next.to_string())
            }),
        })
    }

    async fn open(&self) -> Result<Mailbox, BrokerError> {
        let queues = &self.all.queues;
        let queue = queues.at(self.to.url.clone(), self.to.url.ends_with(FIFO));
        Mailbox::open(queues.client(), queue, OPERATION).await
    }

    /// Sends these results. Returns how many of them, counted from the first one, were sent, and why not all.
    async fn send(&self, mailbox: &Mailbox, results: &[Finished]) -> (usize, Option<BrokerError>) {
        let mut answers = Vec::with_capacity(results.len());
        if mailbox.fifo {
            // One after the other: a batch may fail in part, and later results would overtake the one that failed.
            for result in results {
                answers.push(mailbox.queue.send(mailbox.message(&self.render, result)).await);
                if answers.last().is_some_and(Result::is_err) {
                    break;
                }
            }
        } else {
            answers =
                join_all(results.iter().map(|result| mailbox.queue.send(mailbox.message(&self.render, result)))).await;
        }
        let sent = answers.iter().take_while(|answer| answer.is_ok()).count();
        (sent, answers.into_iter().find_map(Result::err))
    }
}
