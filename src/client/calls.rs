//! The client: one method per call. Calls that may be repeated are, up to one deadline over all tries; others are not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::contract::{ClientId, IdempotencyKey, JobId, QueueName};
use reqwest::Url;
use tokio::time::Instant;

use super::addresses::Connecting;
use super::error::ClientError;
use super::job::{JobsFilter, NewJob, ResultsFilter, RunResult, Submitted, WAIT_MAX};
use super::results::{Batch, Place};
use super::retry::{Early, Patience};
use super::tls::ClientTls;
use super::transport::Transport;
use crate::api::{JobView, JobsPage, Receipt, ResultsPage, Whoami};

/// Calls one relay, at an address with `http://`, `https://`, `relay://` (TCP) or `relays://` (TCP with TLS). Cloning is cheap and
/// shares the connections, which end with the last clone.
///
/// Each call is tried again after an error that says that it may be, with full jitter and not before relay asked for it, for as long as
/// the [`Patience`] of the client lasts: by default a minute. That is a deadline over all tries. Dropping a call's future gives it up.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
    patience: Patience,
    retried: Option<Arc<Retried>>,
}

/// Told each error that is followed by another try.
type Retried = dyn Fn(&ClientError) + Send + Sync;

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, patience, .. } = self;
        f.debug_struct("Client").field("transport", transport).field("patience", patience).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the relay at `server`, such as `https://relay.example:443`. `key` is the whole API key, or a token.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if `server` is no such address, or TLS can't be set up.
    pub fn new(server: &str, key: Option<String>) -> Result<Self, ClientError> {
        Self::with_tls(server, key, &ClientTls::default())
    }

    /// The same, which trusts and shows `tls`.
    ///
    /// # Errors
    /// As [`Client::new`], and if a file of `tls` can't be read.
    pub fn with_tls(server: &str, key: Option<String>, tls: &ClientTls) -> Result<Self, ClientError> {
        Ok(Self { transport: Transport::new(server, key, tls)?, patience: Patience::default(), retried: None })
    }

    /// The same as client `client`. Heeded only by a server without authentication.
    #[must_use]
    pub fn named(self, client: ClientId) -> Self {
        Self { transport: self.transport.named(client), ..self }
    }

    /// The same over connections of its own, which are made and renewed so.
    ///
    /// # Errors
    /// [`ClientError::Invalid`]: a file of TLS is not good any more.
    pub fn connecting(self, connecting: Connecting) -> Result<Self, ClientError> {
        Ok(Self { transport: self.transport.connecting(connecting)?, ..self })
    }

    /// The same, which tries for so long. With [`Patience::NONE`] each call is tried once.
    #[must_use]
    pub fn patient(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The same, which tells `retried` each error that is followed by another try.
    #[must_use]
    pub fn telling(self, retried: impl Fn(&ClientError) + Send + Sync + 'static) -> Self {
        Self { retried: Some(Arc::new(retried)), ..self }
    }

    /// The server's address, as it was given.
    #[must_use]
    pub fn server(&self) -> &Url {
        self.transport.server()
    }

    /// Submits a job: a receipt, or the result if an earlier submission under the same key has one.
    ///
    /// # Errors
    /// [`ClientError`]: refused, or out of patience. The job may be accepted if [`ClientError::may_repeat`] is false without a key;
    /// the same key again is the same job.
    pub async fn submit(&self, job: &NewJob) -> Result<Submitted, ClientError> {
        let job = job.with_key();
        self.call(|| self.submit_once(&job, None)).await
    }

    /// Submits a job and waits for its result: the receipt if that does not come `within` that time, which is for all tries together;
    /// the job goes on.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), and [`ClientError`] if the server is away or silent when the time is up.
    pub async fn run(&self, job: &NewJob, within: Duration) -> Result<Submitted, ClientError> {
        if within.is_zero() {
            return self.submit(job).await;
        }
        let job = job.with_key();
        let until = Until::after(within);
        let submitted = self
            .repeat(until.left().min(self.patience.limit().saturating_add(WAIT_MAX)), || {
                self.submit_once(&job, Some(until.to_ask(WAIT_MAX)))
            })
            .await?;
        let Submitted::Accepted(receipt) = submitted else { return Ok(submitted) };
        match self.wait_until(receipt.job_id, until).await? {
            Some(result) => Ok(Submitted::Finished(Box::new(RunResult { replayed: receipt.replayed, ..result }))),
            None => Ok(Submitted::Accepted(receipt)),
        }
    }

    /// The job's result, or `None` while its run is open. Waits for it up to `within`, over all tries and however long relay waits at
    /// a time; zero asks for what there is now.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, `result-expired`, or the server is away or silent when the time is up; what is silent for less
    /// than a second is taken for a server that waits.
    pub async fn wait(&self, job: JobId, within: Duration) -> Result<Option<RunResult>, ClientError> {
        if within.is_zero() {
            return self.call(|| self.result_once(job, Duration::ZERO)).await;
        }
        self.wait_until(job, Until::after(within)).await
    }

    async fn wait_until(&self, job: JobId, until: Until) -> Result<Option<RunResult>, ClientError> {
        let mut early = Early::default();
        loop {
            let (asked, ask) = (Instant::now(), until.to_ask(WAIT_MAX));
            if ask.is_zero() {
                return Ok(None);
            }
            // Patience is for a server that is away, not for one that waits.
            let patience = Patience { give_up_after: self.patience.give_up_after.saturating_add(ask), ..self.patience };
            let patience = if self.patience.give_up_after.is_zero() { self.patience } else { patience };
            let look = || self.result_once(job, until.to_ask(WAIT_MAX));
            let within = until.left().min(ask.saturating_add(self.patience.limit()));
            match patience.repeat_within(within, look, |error| self.tell(error)).await {
                Ok(Some(result)) => return Ok(Some(result)),
                Ok(None) => {
                    early = early.answered(asked.elapsed() < ask / 2);
                    tokio::time::sleep(early.pause().min(until.left())).await;
                }
                Err(ClientError::TimedOut { .. }) if ask < SILENT_AFTER => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the job stands.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn status(&self, job: JobId) -> Result<JobView, ClientError> {
        self.call(|| async { self.transport.status(job).await.and_then(|view| of_job(job, view)) }).await
    }

    /// Ends the job's run as `cancelled`, unless it ended before: the answer says how it ended.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn cancel(&self, job: JobId) -> Result<JobView, ClientError> {
        self.call(|| async { self.transport.cancel(job).await.and_then(|view| of_job(job, view)) }).await
    }

    /// Starts a finished job again, from the run with number `from`. Repeating the call is harmless.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, `state-conflict` if the job is open or in another generation, or the server is away.
    pub async fn rerun(&self, job: JobId, from: u32) -> Result<Receipt, ClientError> {
        let once = || async {
            let receipt = self.transport.rerun(job, from).await?;
            same("job", &job, &receipt.job_id)?;
            Ok(receipt)
        };
        self.call(once).await
    }

    /// The caller as the server knows it, its limits, and how much of them is left.
    ///
    /// # Errors
    /// [`ClientError`]: the key is none, or the server is away.
    pub async fn whoami(&self) -> Result<Whoami, ClientError> {
        self.call(|| self.transport.whoami()).await
    }

    /// A page of the caller's results, oldest first. [`results`](Self::results) is all of them.
    ///
    /// # Errors
    /// [`ClientError`]: a cursor that is not the caller's, or the server is away.
    pub async fn page(&self, filter: &ResultsFilter) -> Result<ResultsPage, ClientError> {
        let within = self.patience.limit().saturating_add(filter.wait.min(WAIT_MAX));
        if !filter.is_from_now() || filter.wait.is_zero() {
            return self.repeat(within, || self.transport.page(filter)).await;
        }
        // The end is asked for without a wait: one that is lost would be asked for again from another end.
        let asked = Instant::now();
        let at_once = ResultsFilter { wait: Duration::ZERO, ..filter.clone() };
        let end = self.repeat(within, || self.transport.page(&at_once)).await?;
        if !end.entries.is_empty() {
            return Ok(end);
        }
        let left = |of: Duration| of.saturating_sub(asked.elapsed());
        let behind = ResultsFilter { after: Some(end.next), wait: left(filter.wait), ..filter.clone() };
        self.repeat(left(within), || self.transport.page(&behind)).await
    }

    /// The job that was submitted to `queue` under `key`. Over HTTP only.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, the server is away, or [`ClientError::Unsupported`].
    pub async fn by_key(&self, queue: &QueueName, key: &str) -> Result<JobView, ClientError> {
        self.call(|| self.transport.by_key(queue, key)).await
    }

    /// A page of the caller's jobs, newest first. Over HTTP only.
    ///
    /// # Errors
    /// [`ClientError`]: a job to begin behind that is not the caller's, the server is away, or [`ClientError::Unsupported`].
    pub async fn jobs(&self, filter: &JobsFilter) -> Result<JobsPage, ClientError> {
        self.call(|| self.transport.jobs(filter)).await
    }

    /// Removes payload and result of a finished job. Over HTTP only.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, `state-conflict` if the job is open, the server is away, or [`ClientError::Unsupported`].
    pub async fn erase(&self, job: JobId) -> Result<(), ClientError> {
        self.call(|| self.transport.erase(job)).await
    }

    /// Sends `body`, of [`ECHO_BYTES_MAX`](crate::api::ECHO_BYTES_MAX) at most, there and back, with one try. Nothing is done with it.
    /// Over HTTP only.
    ///
    /// # Errors
    /// [`ClientError`]: the key is none, the server is away, or [`ClientError::Unsupported`].
    pub async fn echo(&self, body: Bytes) -> Result<Bytes, ClientError> {
        self.transport.echo(body).await
    }

    pub(super) async fn batch(&self, filter: &ResultsFilter, place: &Place) -> Result<Batch, ClientError> {
        let within = self.patience.limit().saturating_add(WAIT_MAX);
        self.repeat(within, || self.transport.follow(filter, place)).await
    }

    async fn submit_once(&self, job: &NewJob, wait: Option<Duration>) -> Result<Submitted, ClientError> {
        let submitted = self.transport.submit(job, wait).await?;
        let key = match &submitted {
            Submitted::Accepted(receipt) => {
                same("queue", &job.queue, &receipt.queue)?;
                &receipt.key
            }
            Submitted::Finished(result) => &result.key,
        };
        if let (Some(asked), Some(answered)) = (&job.key, key) {
            same::<IdempotencyKey>("key", asked, answered)?;
        }
        Ok(submitted)
    }

    async fn result_once(&self, job: JobId, wait: Duration) -> Result<Option<RunResult>, ClientError> {
        let found = self.transport.result(job, wait).await?;
        if let Some(result) = &found {
            same("job", &job, &result.job_id)?;
        }
        Ok(found)
    }

    async fn call<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        call: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        self.repeat(self.patience.limit(), call).await
    }

    async fn repeat<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        within: Duration,
        call: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        self.patience.repeat_within(within, call, |error| self.tell(error)).await
    }

    fn tell(&self, error: &ClientError) {
        if let Some(retried) = &self.retried {
            retried(error);
        }
    }
}

fn of_job(job: JobId, view: JobView) -> Result<JobView, ClientError> {
    same("job", &job, &view.receipt.job_id)?;
    Ok(view)
}

/// A server that answers about something else is not relay.
fn same<T: PartialEq + fmt::Display>(what: &str, asked: &T, answered: &T) -> Result<(), ClientError> {
    if asked == answered {
        return Ok(());
    }
    Err(ClientError::Garbled(format!("the answer is about the {what} {answered}, asked was {asked}")))
}

/// The end of a call; `None` is never.
#[derive(Clone, Copy, Debug)]
struct Until(Option<Instant>);

impl Until {
    fn after(within: Duration) -> Self {
        Self(Instant::now().checked_add(within))
    }

    fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }

    /// How long the server is asked to wait, at most `most`: the answer has to be here before the end. Zero: it is as good as now.
    fn to_ask(self, most: Duration) -> Duration {
        let left = self.left();
        let asked = left.saturating_sub((left / 10).clamp(ANSWERS_LEAST, ANSWERS_MOST));
        if asked < ANSWERS_LEAST { Duration::ZERO } else { asked.min(most) }
    }
}

/// In a shorter wait than this a server that has not answered is taken for one that waits, and not for a silent one.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// The least and the most that is left of a deadline for the answer to a wait to come.
const ANSWERS_LEAST: Duration = Duration::from_millis(20);
const ANSWERS_MOST: Duration = Duration::from_secs(1);
