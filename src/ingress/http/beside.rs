//! Connections of another protocol on a port of HTTP, where a client's handshake asks for it: they are accepted, counted and bounded as
//! those of HTTP, and handed over behind their handshake.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pools::Member;
use crate::tls::handshake::Holder;
use crate::tls::stream::Stream;

/// Serves a connection of that protocol to its end.
pub(in crate::ingress) type Beside = Arc<dyn Fn(Handed) -> BoxFuture<'static, ()> + Send + Sync>;

/// A connection whose protocol begins.
pub(in crate::ingress) struct Handed {
    pub(in crate::ingress) stream: Stream,
    /// The holder of its peer's certificate.
    pub(in crate::ingress) holder: Option<Holder>,
    /// Its place in the pools.
    pub(in crate::ingress) member: Member,
    /// When its first message has to be there.
    pub(in crate::ingress) until: Instant,
    pub(in crate::ingress) stop: Stop,
}

/// When the connections of a listener stop.
#[derive(Clone)]
pub(in crate::ingress) struct Stop {
    /// Nothing new is begun, and waits are answered.
    pub(in crate::ingress) shutdown: CancellationToken,
    /// Close now.
    pub(in crate::ingress) now: CancellationToken,
    /// When `now` is after `shutdown`, at the latest.
    pub(in crate::ingress) within: Duration,
}
