//! The reader's half of the broker: one result is read by its job's record, and a client's results by the pages of its
//! log. `recording`, `end` and `finish` are the write side: they end runs.
//!
//! A call that waits is woken by runs that end in this process and, if it waits for one job, by a message from the
//! process that ended the run. It also looks by itself now and then, because messages can be lost.

pub(crate) mod end;
pub(crate) mod finish;
pub(crate) mod log;
pub(crate) mod recording;
pub(crate) mod replies;
pub(crate) mod waiting;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::adapter::results::log::LogReader;
use crate::adapter::results::replies::{Asked, Replies};
use crate::adapter::results::waiting::Wakes;
use crate::adapter::stored::records::Records;
use crate::settings::Settings;
use relay_bridge::contract::{ClientId, JobId, RunId};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::{Finished, Lookup, PAGE_ENTRIES_MAX, Page, ResultFilter, ResultLog, Start};

/// The first time between two looks at a job for which a call waits, while no other process would tell it.
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// The longest wait: a caller that asks for more has long gone away. The limit keeps the sum of times within what a
/// clock can hold.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);

/// The reader's half.
pub(crate) struct Results {
    pub(crate) closing: CancellationToken,
    pub(crate) replies: Arc<Replies>,
    pub(crate) settings: Settings,
    pub(crate) waiting_clients: Wakes<ClientId>,
    pub(crate) waiting_jobs: Wakes<JobId>,
    pub(crate) records: Arc<Records>,
    pub(crate) log: Arc<LogReader>,
    pub(crate) _alive: Arc<DropGuard>,
}

#[async_trait]
impl ResultLog for Results {
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        const OPERATION: &str = "look up";
        let Some(record) = self.records.owned(client, job, OPERATION).await? else { return Ok(Lookup::Absent) };
        if record.ended().is_some() {
            return Ok(Lookup::Finished(Box::new(self.log.finished(&record, OPERATION).await?)));
        }
        Ok(Lookup::Open(Box::new(record.status(self.settings.clock.now())?)))
    }

    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let waiter = self.waiting_jobs.begin(&job);
        let (mut pause, mut asked) = (LOOK_FIRST, None);
        loop {
            let mut woken = pin!(waiter.woken());
            woken.as_mut().enable();
            let found = self.lookup(client, job).await?;
            let now = Instant::now();
            let Lookup::Open(status) = &found else { return Ok(found) };
            if now >= deadline {
                return Ok(found);
            }
            let asked_of = |name: Option<Arc<str>>| name.map(|name| (status.run_id, name));
            if asked.is_none() || asked != asked_of(self.replies.name()) {
                asked = match self.replies.ask(job, status.run_id).await {
                    Asked::Told(name) => asked_of(Some(name)),
                    Asked::Untold => None,
                    // The record changed between the look and the question.
                    Asked::Changed => continue,
                };
            }
            let look_every = self.settings.look_every;
            pause = if asked.is_some() { look_every } else { pause.min(look_every) };
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(deadline.min(now + pause)) => {}
                () = self.closing.cancelled() => return Ok(found),
            }
            pause = pause.mul_f64(1.5);
        }
    }

    async fn wait_ahead(
        &self,
        _: &ClientId,
        _: JobId,
        _: RunId,
        _: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        // There is nothing better than `wait` here.
        Ok(None)
    }

    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        let limit = usize::try_from(limit.clamp(1, PAGE_ENTRIES_MAX)).unwrap_or(1);
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let waiter = self.waiting_clients.begin(client);
        let mut from = from.clone();
        loop {
            let mut woken = pin!(waiter.woken());
            woken.as_mut().enable();
            let (page, passed) = self.log.page_now(client, &from, filter, limit).await?;
            let now = Instant::now();
            if !page.entries.is_empty() || passed > 0 || page.reset.is_some() || now >= deadline {
                return Ok(page);
            }
            // So that `Now` is one moment, and the next look goes on where this one ended.
            from = Start::After(page.next.clone());
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(deadline.min(now + LogReader::LOOK_EVERY)) => {}
                () = self.closing.cancelled() => return Ok(page),
            }
        }
    }
}
