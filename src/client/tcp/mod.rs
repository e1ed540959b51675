//! The transport over relay's TCP protocol: one try of each call.
//!
//! # Layout
//!
//! - `link`: the connection that is up, and how it is made.
//! - `connection`: the table of unanswered requests, and the loops that write and read.
//! - `followed`: a follow request there, whose `credit` the server keeps to.
//! - `following`: results, pushed and as pages.
//! - `answers`: messages as the values that HTTP has.

mod answers;
mod connection;
mod credit;
mod followed;
mod following;
mod link;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::contract::wire::client::{Request, ToClient};
use relay_bridge::contract::{ClientId, JobId};
use relay_bridge::support::without_passwords;
use reqwest::Url;

use super::addresses::Connecting;
use super::error::ClientError;
use super::job::{NewJob, RunResult, Submitted};
use super::tls::ClientTls;
use crate::api::{JobView, Receipt, Whoami};
use answers::other;
pub(super) use following::Following;
use link::Link;

/// Calls one relay. Cloning is cheap and shares the connection.
#[derive(Clone)]
pub(super) struct Tcp(Arc<Link>);

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key, nor a password.
        f.debug_struct("Tcp").field("server", &without_passwords(self.0.server.as_str())).finish_non_exhaustive()
    }
}

impl Tcp {
    /// # Errors
    /// [`ClientError::Invalid`]: no such address, or a file of `tls` is not good.
    pub(super) fn new(server: &str, key: Option<String>, tls: &ClientTls) -> Result<Self, ClientError> {
        Link::new(server, key, tls).map(Arc::new).map(Self)
    }

    pub(super) fn named(&self, client: ClientId) -> Self {
        Self(Arc::new(self.0.named(client)))
    }

    pub(super) fn connecting(&self, connecting: Connecting) -> Self {
        Self(Arc::new(self.0.connecting(connecting)))
    }

    pub(super) fn server(&self) -> &Url {
        &self.0.server
    }

    async fn ask(&self, mut request: Request, wait: Duration) -> connection::Answer {
        for _ in 0..LEFT_MAX {
            match self.0.connection().await?.ask(request, wait).await {
                Ok(answer) => return answer,
                Err(unbegun) => request = *unbegun,
            }
        }
        Err(self.sent_away())
    }

    fn sent_away(&self) -> ClientError {
        ClientError::Interrupted(format!("the server left {LEFT_MAX} connections before it took anything"))
    }

    pub(super) async fn submit(&self, job: &NewJob, wait: Option<Duration>) -> Result<Submitted, ClientError> {
        let request = Request::Submit(Box::new(answers::submit(job, wait.filter(|wait| !wait.is_zero()))));
        match self.ask(request, wait.unwrap_or_default()).await {
            Ok(ToClient::Receipt { receipt, .. }) => Ok(Submitted::Accepted(Box::new(answers::receipt(*receipt)))),
            Ok(ToClient::Result { replayed, result, .. }) => {
                Ok(Submitted::Finished(Box::new(answers::run_result(*result, replayed)?)))
            }
            answer => other("submit", answer),
        }
    }

    pub(super) async fn result(&self, job: JobId, wait: Duration) -> Result<Option<RunResult>, ClientError> {
        match self.ask(Request::Wait { job, wait }, wait).await {
            Ok(ToClient::Result { result, .. }) => answers::run_result(*result, false).map(Some),
            Ok(ToClient::Job { document, .. }) => answers::document::<JobView>(&document).map(|_| None),
            answer => other("wait", answer),
        }
    }

    pub(super) async fn status(&self, job: JobId) -> Result<JobView, ClientError> {
        self.job("status", Request::Status(job)).await
    }

    pub(super) async fn cancel(&self, job: JobId) -> Result<JobView, ClientError> {
        self.job("cancel", Request::Cancel(job)).await
    }

    async fn job(&self, asked: &str, request: Request) -> Result<JobView, ClientError> {
        match self.ask(request, Duration::ZERO).await {
            Ok(ToClient::Job { document, .. }) => answers::document(&document),
            answer => other(asked, answer),
        }
    }

    pub(super) async fn rerun(&self, job: JobId, from: u32) -> Result<Receipt, ClientError> {
        match self.ask(Request::Rerun { job, from }, Duration::ZERO).await {
            Ok(ToClient::Receipt { receipt, .. }) => Ok(answers::receipt(*receipt)),
            answer => other("rerun", answer),
        }
    }

    pub(super) async fn whoami(&self) -> Result<Whoami, ClientError> {
        match self.ask(Request::Whoami, Duration::ZERO).await {
            Ok(ToClient::Whoami { document, .. }) => answers::document(&document),
            answer => other("whoami", answer),
        }
    }
}

/// Connections that are left before a request is begun on them, until it is one more try with its pause.
const LEFT_MAX: usize = 3;
