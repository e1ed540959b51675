//! Reads a request, apart from its body. A part that can't be read is refused by name.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Query};
use http::request::Parts;
use http::{HeaderMap, Uri};
use relay_bridge::contract::JobId;

use super::Served;
use super::answer::Refusal;
use super::audited;
use super::connection::{Connection, Peer};
use crate::api::{DurationText, Slug, header};
use crate::auth::rights::Right;
use crate::auth::{Caller, Presented, Refused};
use crate::ingress::grants;
pub(super) use crate::ingress::grants::{credential_ended, queue, queues, require};
use crate::ingress::headers::single;

/// The caller as the gate found it, on the way to the handler.
#[derive(Clone)]
pub(super) struct Identified(pub(super) Result<Caller, Refusal>);

impl FromRequestParts<Arc<Served>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Served>) -> Result<Self, Refusal> {
        match parts.extensions.remove() {
            Some(Identified(identified)) => identified,
            None => Err(Refusal::new(Slug::Internal, "the request came past the gate: tell the operator of relay")),
        }
    }
}

impl FromRequestParts<Arc<Served>> for Peer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Served>) -> Result<Self, Refusal> {
        let peer = parts.extensions.remove();
        peer.ok_or_else(|| Refusal::new(Slug::Internal, "the request came past the gate: tell the operator of relay"))
    }
}

/// The caller of a request.
pub(super) async fn identify(served: &Served, headers: &HeaderMap, connection: &Connection) -> Result<Caller, Refusal> {
    let presented = Presented {
        authorization: single(headers, "authorization")?,
        named: single(headers, header::CLIENT)?,
        ..connection.presented()
    };
    let shown = match presented.authorization {
        // Keys have one dot.
        Some(text) if text.matches('.').count() == 2 => "jwt",
        Some(_) => "key",
        None if presented.certificate.is_some() => "mtls",
        None => "none",
    };
    let ingress = &served.ingress;
    let refused = match ingress.authenticator.authenticate(presented).await {
        Ok(caller) => {
            ingress.authentications.add(caller.method(), true);
            return Ok(caller);
        }
        Err(refused) => refused,
    };
    ingress.authentications.add(shown, false);
    match &refused {
        Refused::Unauthenticated(detail) => {
            if let Some(count) = ingress.strangers.refused() {
                tracing::info!(count, detail, "requests without a valid key were refused");
            }
            audited::refused(ingress, connection, (Slug::Unauthenticated, detail), shown);
        }
        Refused::Forbidden(detail) => audited::refused(ingress, connection, (Slug::Forbidden, detail), shown),
        Refused::Malformed(_) | Refused::TooMany { .. } | Refused::Unavailable(_) => {}
    }
    Err(grants::not_let_in(refused))
}

/// The job of a path, for a call that needs `right`. A job of a queue that the caller may not use looks like one that is
/// not there.
pub(super) async fn job(
    served: &Served,
    (peer, caller): (&Peer, &Caller),
    text: &str,
    right: Right,
) -> Result<JobId, Refusal> {
    require(caller, right)?;
    let id = text.parse()?;
    if let Some(queues) = &caller.queues {
        // In its turn; a broker that does not keep queues apart from payloads reads one.
        let _room = peer.room_to_read(&served.ingress).await?;
        if !served.ingress.broker.jobs.is_in(&caller.client, id, queues).await? {
            return Err(Refusal::no_job());
        }
    }
    Ok(id)
}

/// The parameters of a query. Each may be there once; one that the call does not have is refused.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn read(uri: &Uri, allowed: &[&str]) -> Result<Self, Refusal> {
        if uri.query().is_none() {
            return Ok(Self(Vec::new()));
        }
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|_| Refusal::malformed("the query can't be read: write name=value&name=value, percent-encoded"))?;
        for (at, (name, _)) in pairs.iter().enumerate() {
            let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
            if !allowed.contains(&name.as_str()) {
                let has = match allowed {
                    [] => "none; leave it out".to_owned(),
                    some => some.join(", "),
                };
                let detail = format!("this call has no parameter `{shown}`: it has {has}");
                return Err(Refusal::malformed(detail));
            }
            if pairs[..at].iter().any(|(before, _)| before == name) {
                return Err(Refusal::malformed(format!("parameter `{shown}` is there more than once: send one")));
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// A duration with its unit, at most `max`; zero if it is not there.
    pub(super) fn wait(&self, max: Duration) -> Result<Duration, Refusal> {
        let Some(text) = self.get("wait") else { return Ok(Duration::ZERO) };
        let wait: DurationText =
            text.parse().map_err(|error| Refusal::malformed(format!("parameter `wait`: {error}")))?;
        Ok(wait.0.min(max))
    }

    /// A number from 1 to `max`; `default` if it is not there.
    pub(super) fn limit(&self, default: u32, max: u32) -> Result<u32, Refusal> {
        let Some(text) = self.get("limit") else { return Ok(default) };
        let limit = text.parse().ok().filter(|limit| (1..=max).contains(limit));
        limit.ok_or_else(|| Refusal::malformed(format!("parameter `limit` must be a number from 1 to {max}")))
    }
}
