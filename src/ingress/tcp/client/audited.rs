//! The audit of clients over TCP: the ones that were not let in, and a line for each request as over HTTP.

use relay_bridge::contract::JobId;
use relay_bridge::contract::wire::client::Request;

use super::Clients;
use super::session::Session;
use crate::api::Slug;
use crate::audit::Line;
use crate::audit::record::{Action, Door, Record, key_hash};
use crate::auth::Presented;
use crate::ingress::refusal::Refusal;

/// A request as the audit sees it.
pub(super) struct Audited {
    line: Option<Line>,
    action: Action,
}

impl Audited {
    /// Holds a line for the request, if it is to have one.
    ///
    /// # Errors
    /// `overloaded`, where every call has to be on record and there is no room for another one.
    pub(super) fn begin(session: &Session, request: &Request, request_id: &str) -> Result<Self, Refusal> {
        let action = match request {
            Request::Submit(_) => Action::Submit,
            Request::Wait { .. } | Request::Status(_) | Request::Whoami => Action::Read,
            Request::Cancel(_) => Action::Cancel,
            Request::Rerun { .. } => Action::Rerun,
            Request::Follow(_) => Action::Follow,
        };
        let Some(audit) = session.clients.ingress.audit.get() else { return Ok(Self { line: None, action }) };
        let line = audit.begin(Door::Tcp, action).map_err(|full| Refusal::new(Slug::Overloaded, full.to_string()))?;
        let mut audited = Self { line, action };
        audited.note(|record| {
            let (queue, key, job) = about(request);
            *record = Record {
                queue: queue.and_then(|queue| queue.parse().ok()),
                key_hash: key.map(|key| key_hash(key.as_bytes())),
                job,
                ..named(session, record.clone(), request_id)
            };
        });
        Ok(audited)
    }

    /// Adds to the line, if there is one.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(line) = &mut self.line {
            line.set(change);
        }
    }

    /// Writes now that the request is allowed, of which the end says nothing: one that lasts must not hold its line.
    pub(super) fn allow(&mut self) {
        if let Some(line) = self.line.take() {
            line.end(200, None);
        }
    }

    /// Writes the line, or that the caller may not do what it asked for.
    pub(super) fn end(self, session: &Session, refused: Option<(u16, Slug)>, request_id: &str) {
        let slug = refused.map(|(_, slug)| slug);
        if let Some(line) = self.line {
            line.end(refused.map_or(200, |(status, _)| status), slug);
        } else if let (Some(audit), Some(Slug::Forbidden)) = (session.clients.ingress.audit.get(), slug) {
            let action = self.action;
            audit.refused(Door::Tcp, Slug::Forbidden, |record| Record { action, ..named(session, record, request_id) });
        }
    }
}

fn named(session: &Session, record: Record, request_id: &str) -> Record {
    Record {
        who: Some(session.caller.client.to_string()),
        method: Some(session.caller.method()),
        credential: session.caller.credential_names(),
        endpoint: session.endpoint.clone(),
        source: Some(session.peer),
        request_id: Some(request_id.to_owned()),
        ..record
    }
}

/// The queue, the key and the job that a request names.
fn about(request: &Request) -> (Option<&str>, Option<&str>, Option<JobId>) {
    match request {
        Request::Submit(submit) => (Some(&submit.queue), submit.key.as_deref(), None),
        Request::Wait { job, .. } | Request::Status(job) | Request::Cancel(job) | Request::Rerun { job, .. } => {
            (None, None, Some(*job))
        }
        Request::Follow(follow) => (follow.queue.as_ref().map(|queue| queue.as_str()), None, None),
        Request::Whoami => (None, None, None),
    }
}

/// Writes that somebody was not let in.
pub(super) fn refused(
    clients: &Clients,
    presented: &Presented<'_>,
    (slug, detail): (Slug, &str),
    method: &'static str,
) {
    let Some(audit) = clients.ingress.audit.get() else { return };
    audit.refused(Door::Tcp, slug, |record| Record {
        method: Some(method),
        endpoint: presented.endpoint.map(str::to_owned),
        source: presented.address,
        detail: Some(detail.to_owned()),
        ..record
    });
}
