//! One try of each call, over the protocol that the server's address names.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use relay_bridge::contract::{ClientId, JobId, QueueName};
use relay_bridge::support::without_passwords;
use reqwest::Url;

use super::addresses::Connecting;
use super::error::ClientError;
use super::http::Http;
use super::job::{JobsFilter, NewJob, Payload, ResultEntry, ResultsFilter, RunResult, Submitted, WAIT_MAX};
use super::results::{Batch, Place};
use super::tcp::Tcp;
use super::tls::ClientTls;
use crate::api::{JobView, JobsPage, Receipt, ResultView, ResultsPage, Whoami};

/// A protocol, with its connections.
#[derive(Clone, Debug)]
pub(super) enum Transport {
    Http(Http),
    Tcp(Tcp),
}

impl Transport {
    pub(super) fn new(server: &str, key: Option<String>, tls: &ClientTls) -> Result<Self, ClientError> {
        let scheme = server.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("http" | "https") => Http::new(server, key, tls).map(Self::Http),
            Some("relay" | "relays") => Tcp::new(server, key, tls).map(Self::Tcp),
            _ => {
                let server = without_passwords(server);
                Err(ClientError::Invalid(format!(
                    "`{server}` is not a server address such as http://127.0.0.1:7410 or relays://relay.example:7413"
                )))
            }
        }
    }

    pub(super) fn named(self, client: ClientId) -> Self {
        match self {
            Self::Http(http) => Self::Http(http.named(client)),
            Self::Tcp(tcp) => Self::Tcp(tcp.named(client)),
        }
    }

    pub(super) fn connecting(self, connecting: Connecting) -> Result<Self, ClientError> {
        Ok(match self {
            Self::Http(http) => Self::Http(http.connecting(connecting)?),
            Self::Tcp(tcp) => Self::Tcp(tcp.connecting(connecting)),
        })
    }

    pub(super) fn server(&self) -> &Url {
        match self {
            Self::Http(http) => http.server(),
            Self::Tcp(tcp) => tcp.server(),
        }
    }

    pub(super) async fn submit(&self, job: &NewJob, wait: Option<Duration>) -> Result<Submitted, ClientError> {
        match self {
            Self::Http(http) => http.submit(job, wait).await,
            Self::Tcp(tcp) => tcp.submit(job, wait).await,
        }
    }

    pub(super) async fn result(&self, job: JobId, wait: Duration) -> Result<Option<RunResult>, ClientError> {
        match self {
            Self::Http(http) => http.result(job, wait).await,
            Self::Tcp(tcp) => tcp.result(job, wait).await,
        }
    }

    pub(super) async fn status(&self, job: JobId) -> Result<JobView, ClientError> {
        match self {
            Self::Http(http) => http.status(job).await,
            Self::Tcp(tcp) => tcp.status(job).await,
        }
    }

    pub(super) async fn cancel(&self, job: JobId) -> Result<JobView, ClientError> {
        match self {
            Self::Http(http) => http.cancel(job).await,
            Self::Tcp(tcp) => tcp.cancel(job).await,
        }
    }

    pub(super) async fn rerun(&self, job: JobId, from: u32) -> Result<Receipt, ClientError> {
        match self {
            Self::Http(http) => http.rerun(job, from).await,
            Self::Tcp(tcp) => tcp.rerun(job, from).await,
        }
    }

    pub(super) async fn whoami(&self) -> Result<Whoami, ClientError> {
        match self {
            Self::Http(http) => http.whoami().await,
            Self::Tcp(tcp) => tcp.whoami().await,
        }
    }

    pub(super) async fn page(&self, filter: &ResultsFilter) -> Result<ResultsPage, ClientError> {
        match self {
            Self::Http(http) => http.page(filter).await,
            Self::Tcp(tcp) => tcp.page(filter).await,
        }
    }

    pub(super) async fn by_key(&self, queue: &QueueName, key: &str) -> Result<JobView, ClientError> {
        self.http("by_key")?.by_key(queue, key).await
    }

    pub(super) async fn jobs(&self, filter: &JobsFilter) -> Result<JobsPage, ClientError> {
        self.http("jobs")?.jobs(filter).await
    }

    pub(super) async fn erase(&self, job: JobId) -> Result<(), ClientError> {
        self.http("erase")?.erase(job).await
    }

    pub(super) async fn echo(&self, body: Bytes) -> Result<Bytes, ClientError> {
        self.http("echo")?.echo(body).await
    }

    /// The results behind `filter.after`, and where to go on: at least one, or a place that moved, or none for a while.
    pub(super) async fn follow(&self, filter: &ResultsFilter, place: &Place) -> Result<Batch, ClientError> {
        match self {
            Self::Http(http) => page_with_payloads(http, filter).await,
            Self::Tcp(tcp) => {
                let mut kept = place.lock().await;
                tcp.batch(filter, &mut kept.following).await
            }
        }
    }

    fn http(&self, call: &'static str) -> Result<&Http, ClientError> {
        match self {
            Self::Http(http) => Ok(http),
            Self::Tcp(_) => Err(ClientError::Unsupported { call }),
        }
    }
}

/// A page of results with their payloads, of which it ends behind the one that makes them many bytes.
async fn page_with_payloads(http: &Http, filter: &ResultsFilter) -> Result<Batch, ClientError> {
    // The end is asked for without a wait: one that is lost is asked for again from another end.
    let wait = if filter.is_from_now() { Duration::ZERO } else { WAIT_MAX };
    let ResultsPage { reset, entries, next } = http.page(&ResultsFilter { wait, ..filter.clone() }).await?;
    let (mut batch, mut bytes) = (Batch { entries: Vec::with_capacity(entries.len()), next: Some(next), reset }, 0);
    for mut view in entries {
        let payload = match (view.payload_base64.take(), view.link.take()) {
            (Some(inline), _) => {
                let payload = STANDARD.decode(inline).map_err(|error| not_base64(&view, &error))?;
                Payload::Here(payload.into())
            }
            (None, None) => Payload::Erased,
            (None, Some(_)) => match http.result(view.job_id, Duration::ZERO).await {
                Ok(Some(result)) if result.run_id == view.run_id => Payload::Here(result.payload),
                // It was run again: its new result has a place further on.
                Ok(_) => continue,
                Err(ClientError::Refused { problem, .. }) if matches!(problem.status, 404 | 410) => Payload::Erased,
                Err(error) => return Err(error),
            },
        };
        bytes += if let Payload::Here(payload) = &payload { payload.len() } else { 0 };
        let cursor = view.cursor.clone();
        batch.entries.push(ResultEntry { view, payload, reset: batch.reset.take() });
        if bytes >= BATCH_BYTES {
            batch.next = Some(cursor);
            break;
        }
    }
    Ok(batch)
}

fn not_base64(view: &ResultView, error: &base64::DecodeError) -> ClientError {
    let detail = format!("the payload of job {} can't be read: {error}", view.job_id);
    ClientError::NotRelay { status: 200, detail, retry_after: None }
}

/// Payloads of results that are held for a reader, in bytes; a larger one is held alone.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
