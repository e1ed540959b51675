//! The connections of a process that goes, and those that are old: each is told so by the next answer, or over HTTP/2 at once. A connection over
//! HTTP/1.1 that is idle is not closed then, because its peer may be writing a request.

use std::time::Duration;

use axum::response::Response;
use http::header::{CONNECTION, HeaderValue};
use tracing::info;

use super::Ingress;
use super::connection::{Asked, Connection};
use crate::ingress::leaving;

/// The requests after which a connection is told that came while the process was going already.
const LATE_REQUESTS: u32 = 100;

/// How long a connection over HTTP/1.1 on which nothing is under way stays open at the end.
const LINGER: Duration = Duration::from_millis(250);

impl Ingress {
    /// Has clients go elsewhere for as long as `delay`, in which everything else goes on; ends with it.
    pub async fn leave(&self, delay: Duration) {
        let begun = tokio::time::Instant::now();
        if self.leaving.set(begun).is_err() {
            return;
        }
        let present = self.pools.connections(|_| true);
        info!(connections = present.len(), delay_ms = delay.as_millis(), "clients are told to go elsewhere");
        let tell_late = |from, until| {
            self.pools.connections(|one| one.came_between(from, until)).iter().for_each(|one| one.part());
        };
        leaving::tell(delay, present, |one| one.part(), tell_late).await;
        let (proven, unproven) = self.connections();
        match self.pools.last_came().filter(|came| *came > begun) {
            Some(came) => {
                let after_ms = (came - begun).as_millis();
                info!(after_ms, connections = proven + unproven, "the last connection came so long after the signal");
            }
            None => info!(connections = proven + unproven, "no connection came after the signal"),
        }
    }
}

/// Tells the peer of `connection` with this answer that it is to go elsewhere, if it is.
pub(super) fn part(ingress: &Ingress, connection: &Connection, response: &mut Response) {
    if let Some(begun) = ingress.leaving.get()
        && connection.requests() >= LATE_REQUESTS
        && connection.came_between(*begun, tokio::time::Instant::now())
    {
        connection.part();
    }
    if !connection.is_parting() {
        return;
    }
    if !connection.is_h2() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    } else if ingress.leaving.get().is_some() {
        connection.ask(Asked::Leave);
    }
}

/// How long `connection` stays open once the process stops, because a request may be on its way, which is answered then; `None`
/// if it is told at once.
pub(super) fn linger(ingress: &Ingress, connection: &Connection) -> Option<Duration> {
    let lingers = ingress.leaving.get().is_some() && !connection.is_h2() && !connection.is_busy();
    lingers.then(|| {
        connection.linger();
        LINGER
    })
}
