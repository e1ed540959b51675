//! Server-sent events: how one is written, and what every stream of them has in common. A stream is read out of its source
//! when its peer has room for more, so that a peer that does not read holds one small chunk and no task.

use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use relay_bridge::backoff::random;
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};
use tokio_util::sync::CancellationToken;

use super::Served;
use super::answer::Refusal;
use super::connection::Peer;
use super::held::Streamed;
use super::request;
use crate::auth::credential::Credential;
use crate::ingress::budget::Share;
use crate::ingress::refusal::scarce;

/// The content type of a stream.
pub(super) const EVENT_STREAM: &str = "text/event-stream";
/// When to connect again after the end of a stream, at least; a random part of as much again is added.
const RETRY: Duration = Duration::from_millis(500);

/// Whether the caller asks for a stream, where there is another form as well.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let essence = parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case(EVENT_STREAM));
        essence && !parts.any(|part| part.starts_with("q=0") && part[3..].bytes().all(|b| matches!(b, b'.' | b'0')))
    })
}

/// One event. `id` is what the reader sends as `Last-Event-ID` when it comes back.
pub(super) fn event(name: &str, id: Option<&str>, data: &impl Serialize) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    // Without line breaks: serde_json writes none.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("{id}event: {name}\ndata: {data}\n\n").into()
}

/// The last event of a stream that can't go on.
pub(super) fn problem(Refusal(problem): &Refusal) -> Bytes {
    event("problem", None, problem)
}

/// The answer that `events` are.
pub(super) fn answer(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(events.map(Ok::<_, std::convert::Infallible>)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    // This header asks nginx not to collect events before it passes them on.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response.extensions_mut().insert(Streamed);
    response
}

/// The duties of a stream beside telling events: it pings, and it ends after some minutes or with the drain, so that
/// readers spread again over the relays that there are. It also ends with the credential that it began with.
pub(super) struct Pulse {
    shutdown: CancellationToken,
    /// Cancelled when its connection is to go elsewhere.
    parts: CancellationToken,
    credential: Credential,
    ping: Interval,
    end: Pin<Box<Sleep>>,
    retry: Duration,
    _place: Share,
}

/// The next action that a [`Pulse`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Something to send, so that nobody between takes the connection for dead.
    Ping,
    /// The end, on purpose.
    End,
    /// The end, because the credential ended: see [`Pulse::refused`].
    Refused,
}

impl Pulse {
    /// The pulse of a new stream of a caller, which ends with the caller's credential.
    ///
    /// # Errors
    /// `overloaded` if there are as many streams as relay serves, `rate-limited` if the caller has its share of them.
    pub(super) fn start(served: &Served, peer: &Peer) -> Result<Self, Refusal> {
        let limits = &served.ingress.limits;
        let place = served.ingress.followers.take(&peer.owner, 1);
        let place = place.map_err(|full| Refusal::full(full, scarce::STREAMS))?;
        // Between 0.8 and 1.2 times as long: streams that began together do not end together.
        let life = limits.follow_for.mul_f64(0.8 + 0.4 * random());
        let mut ping = tokio::time::interval_at(Instant::now() + limits.ping_every, limits.ping_every);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            shutdown: served.shutdown.clone(),
            parts: peer.connection.parts(),
            credential: peer.credential.clone(),
            ping,
            end: Box::pin(tokio::time::sleep(life)),
            retry: RETRY + RETRY.mul_f64(random()),
            _place: place,
        })
    }

    /// The beginning of a stream; `id` is where it stands if it has nothing to tell yet.
    pub(super) fn opening(&self, id: Option<&str>) -> Bytes {
        let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
        format!("retry: {}\n{id}\n", self.retry.as_millis()).into()
    }

    /// Waits until something is to be done. Dropping it loses nothing.
    pub(super) async fn beat(&mut self) -> Beat {
        tokio::select! {
            _ = self.ping.tick() => Beat::Ping,
            () = &mut self.end => Beat::End,
            () = self.shutdown.cancelled() => Beat::End,
            () = self.parts.cancelled() => Beat::End,
            () = self.credential.ended() => Beat::Refused,
        }
    }

    /// The last event of a stream whose credential has ended: whatever waited to be sent is not sent any more.
    pub(super) fn refused(&self) -> Option<Bytes> {
        self.credential.has_ended().then(|| problem(&request::credential_ended()))
    }

    /// The text with which a stream ends on purpose.
    pub(super) fn closing(&self) -> Bytes {
        format!(": the end of this connection, not of the stream: come back\nretry: {}\n\n", self.retry.as_millis())
            .into()
    }
}

/// A ping; `id` is where the reader stands, if that has changed without an event.
pub(super) fn ping(id: Option<&str>) -> Bytes {
    match id {
        Some(id) => format!("id: {id}\n: ping\n\n").into(),
        None => Bytes::from_static(b": ping\n\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_sent_to_who_asks_for_one() {
        for (accept, wanted) in [
            ("text/event-stream", true),
            ("Text/Event-Stream;q=0.9, */*;q=0.1", true),
            ("application/json, text/event-stream", true),
            ("text/event-stream;q=0", false),
            ("text/event-stream; q=0.0", false),
            ("*/*", false),
            ("application/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(is_wanted(&headers), wanted, "{accept}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn an_event_is_one_block_of_lines() {
        let text = event("x", Some("7"), &"a\nb");
        assert_eq!(text, "id: 7\nevent: x\ndata: \"a\\nb\"\n\n");
    }
}
