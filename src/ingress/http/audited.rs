//! The audit of a request: a line that is held before anything is done, and ends with the answer.

use std::net::IpAddr;

use axum::response::Response;
use http::header::{ACCEPT, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Uri};

use super::Ingress;
use super::answer::Refusal;
use super::connection::Connection;
use crate::api::{Slug, header};
use crate::audit::record::{Action, Door, Record, header_key_hash};
use crate::audit::{Audit, Line};
use crate::auth::Caller;
use crate::ingress::proxy::header::EndpointId;

/// The entries of a batch, on the way to its line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries {
    pub(super) accepted: u64,
    pub(super) refused: u64,
}

/// A request as the audit sees it.
#[derive(Default)]
pub(super) struct Audited {
    line: Option<Line>,
    /// Where a refusal is all that would be written.
    asked: Option<Asked>,
}

/// The caller of a request, and what it asked for.
struct Asked {
    caller: Caller,
    action: Action,
    uri: Uri,
    key: Option<HeaderValue>,
}

impl Asked {
    fn record(&self, connection: &Connection, record: Record) -> Record {
        let (endpoint, source) = origin(connection);
        Record {
            action: self.action,
            who: Some(self.caller.client.to_string()),
            method: Some(self.caller.method()),
            credential: self.caller.credential_names(),
            endpoint,
            source,
            key_hash: self.key.as_ref().map(|key| header_key_hash(key.as_bytes())),
            ..record.about(self.uri.path())
        }
    }
}

impl Audited {
    /// Holds a line for the request of `caller`, if it is to have one.
    ///
    /// # Errors
    /// `overloaded`, where every call has to be on record and there is no room for another one.
    pub(super) fn begin(
        &mut self,
        audit: &Audit,
        parts: &Parts,
        connection: &Connection,
        caller: &Caller,
    ) -> Result<(), Refusal> {
        let path = parts.uri.path();
        let accept =
            || parts.headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"));
        let action = Action::of_client(&parts.method, path, path == "/v1/results" && accept());
        let key = parts.headers.get(header::IDEMPOTENCY_KEY).cloned();
        let asked = Asked { caller: caller.clone(), action, uri: parts.uri.clone(), key };
        let line = audit.begin(Door::Http, action).map_err(|full| Refusal::new(Slug::Overloaded, full.to_string()))?;
        match line {
            Some(mut line) => {
                line.set(|record| *record = asked.record(connection, record.clone()));
                self.line = Some(line);
            }
            None => self.asked = Some(asked),
        }
        Ok(())
    }

    /// Writes the line, or that the caller may not do what it asked for.
    pub(super) fn end(self, ingress: &Ingress, connection: &Connection, response: &Response, request_id: &str) {
        let slug = response.extensions().get::<Slug>().copied();
        if let Some(mut line) = self.line {
            line.set(|record| {
                record.request_id = Some(request_id.to_owned());
                let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
                let job = location.and_then(|location| location.strip_prefix("/v1/jobs/")?.parse().ok());
                record.job = record.job.or(job);
                if let Some(Entries { accepted, refused }) = response.extensions().get() {
                    (record.count, record.refused) = (Some(*accepted), Some(*refused));
                }
            });
            line.end(response.status().as_u16(), slug);
        } else if let (Some(audit), Some(asked), Some(Slug::Forbidden)) = (ingress.audit.get(), self.asked, slug) {
            let request_id = Some(request_id.to_owned());
            audit.refused(Door::Http, Slug::Forbidden, |record| Record {
                request_id,
                ..asked.record(connection, record)
            });
        }
    }
}

/// Writes that somebody was not let in.
pub(super) fn refused(ingress: &Ingress, connection: &Connection, (slug, detail): (Slug, &str), method: &'static str) {
    let Some(audit) = ingress.audit.get() else { return };
    audit.refused(Door::Http, slug, |record| {
        let (endpoint, source) = origin(connection);
        Record { method: Some(method), endpoint, source, detail: Some(detail.to_owned()), ..record }
    });
}

fn origin(connection: &Connection) -> (Option<String>, Option<IpAddr>) {
    let source = connection.source.get();
    let endpoint = source.and_then(|source| source.endpoint.as_ref()).map(EndpointId::as_str).map(ToOwned::to_owned);
    (endpoint, Some(source.map_or(connection.peer, |source| source.address)))
}
