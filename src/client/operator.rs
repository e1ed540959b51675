//! The operator's calls at relay's admin port.

use std::time::Duration;

use relay_bridge::contract::{JobId, QueueName, RunId};
use relay_bridge::dead_letters::LetterPlace;
use reqwest::Method;

use super::error::ClientError;
use super::http::Http;
use super::tls::ClientTls;
use crate::api::Receipt;
use crate::api::operator::{DeadLetterView, DeadLettersPage, PausedView, QueueView, QueuesView, ReloadView};

/// Calls the admin port of one relay, one try each. Cloning is cheap and shares the connections.
#[derive(Clone, Debug)]
pub struct Operator(Http);

/// Which dead letters to list.
#[derive(Clone, Debug, Default)]
pub struct LettersFilter {
    /// Of this queue only.
    pub queue: Option<QueueName>,
    /// Only of jobs whose key begins so. A page may then be short, or empty, and have a `next`.
    pub key_prefix: Option<String>,
    /// Behind this place: the last page's `next`.
    pub before: Option<LetterPlace>,
    /// How many at most, 1 to 500.
    pub limit: u32,
}

impl Operator {
    /// An operator of the relay whose admin port is at `server`, such as `http://127.0.0.1:7412`. A port on loopback may
    /// need no `token`.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if `server` is not an `http` or `https` address.
    pub fn new(server: &str, token: Option<String>) -> Result<Self, ClientError> {
        Self::with_tls(server, token, &ClientTls::default())
    }

    /// The same, which trusts and shows `tls`.
    ///
    /// # Errors
    /// As [`Operator::new`], and if a file of `tls` can't be read.
    pub fn with_tls(server: &str, token: Option<String>, tls: &ClientTls) -> Result<Self, ClientError> {
        Http::new(server, token, tls).map(Self)
    }

    /// Every queue, as it was a few seconds ago.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn queues(&self) -> Result<QueuesView, ClientError> {
        self.call(Method::GET, &["v1", "queues"]).await
    }

    /// One queue, as it was a few seconds ago. On SQS its numbers are about right.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn queue(&self, queue: &QueueName) -> Result<QueueView, ClientError> {
        self.call(Method::GET, &["v1", "queues", queue.as_str()]).await
    }

    /// One queue, its jobs counted one by one now. On SQS that costs about a read unit of DynamoDB for each.
    ///
    /// # Errors
    /// As [`Operator::queue`]; `state-conflict` if more are open than its broker counts.
    pub async fn count_queue(&self, queue: &QueueName) -> Result<QueueView, ClientError> {
        let mut url = self.0.url(&["v1", "queues", queue.as_str()]);
        url.query_pairs_mut().append_pair("exact", "true");
        self.0.send(self.0.request(Method::GET, url, Duration::ZERO)).await?.json()
    }

    /// Stops or resumes taking jobs of a queue.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<PausedView, ClientError> {
        let what = if paused { "pause" } else { "resume" };
        self.call(Method::POST, &["v1", "queues", queue.as_str(), what]).await
    }

    /// A page of dead letters, newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn letters(&self, filter: &LettersFilter) -> Result<DeadLettersPage, ClientError> {
        let mut url = self.0.url(&["v1", "dead"]);
        let given = [
            Some(("limit", filter.limit.to_string())),
            filter.queue.as_ref().map(|queue| ("queue", queue.to_string())),
            filter.key_prefix.clone().map(|prefix| ("key_prefix", prefix)),
            filter.before.as_ref().map(|before| ("before", before.as_str().to_owned())),
        ];
        url.query_pairs_mut().extend_pairs(given.into_iter().flatten());
        self.0.send(self.0.request(Method::GET, url, Duration::ZERO)).await?.json()
    }

    /// The newest dead letter of a job, with its payload up to 64 KiB.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn letter(&self, job: JobId) -> Result<DeadLetterView, ClientError> {
        self.call(Method::GET, &["v1", "dead", &job.to_string()]).await
    }

    /// Starts the run after the dead one. Repeating the call is harmless.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, `state-conflict` if the run succeeded after all, or the server is away.
    pub async fn redrive(&self, job: JobId, run: RunId) -> Result<Receipt, ClientError> {
        self.call(Method::POST, &["v1", "dead", &job.to_string(), &run.to_string(), "redrive"]).await
    }

    /// Removes a dead letter for good.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found`, or the server is away.
    pub async fn purge(&self, job: JobId, run: RunId) -> Result<(), ClientError> {
        let url = self.0.url(&["v1", "dead", &job.to_string(), &run.to_string()]);
        self.0.send(self.0.request(Method::DELETE, url, Duration::ZERO)).await.map(drop)
    }

    /// Has the relay read its files again, and tells each part of it with its mistakes.
    ///
    /// # Errors
    /// [`ClientError`]: `not-found` if the process has no such files, or the server is away.
    pub async fn reload(&self) -> Result<ReloadView, ClientError> {
        self.call(Method::POST, &["v1", "reload"]).await
    }

    async fn call<T: serde::de::DeserializeOwned>(&self, method: Method, path: &[&str]) -> Result<T, ClientError> {
        let url = self.0.url(path);
        self.0.send(self.0.request(method, url, Duration::ZERO)).await?.json()
    }
}
