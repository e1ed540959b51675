//! The way of a new connection to its protocol, whichever that is: the PROXY header of a balancer, and the handshake of TLS. A
//! process may have several listeners, each with a way of its own; what came of them is counted and logged for all together.
//!
//! `secured`: the handshake, and the words to a peer that does not speak TLS.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use relay_bridge::clock::Clock;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::proxy::header::Header;
use super::proxy::{HeaderCounts, HeaderOutcome, Proxy, Source, receive};
use super::strangers::Strangers;
use crate::api::ListenerView;
use crate::audit::Audit;
use crate::auth::bounds::Failures;
use crate::tls::Secured;

mod secured;

/// Everything that stands in front of a protocol on one listener. The default is nothing: connections are taken as they come.
#[derive(Clone, Debug, Default)]
pub struct Front {
    /// Balancers that write a PROXY header on each connection. Without them no header is read, and none is believed.
    pub proxy: Option<Proxy>,
    /// TLS, behind that header.
    pub tls: Option<Secured>,
}

impl Front {
    /// Whether anything stands there.
    pub(super) fn is_any(&self) -> bool {
        self.proxy.is_some() || self.tls.is_some()
    }

    /// Whether a connection from `peer` is to be read at all. One that is none of the balancers is counted.
    pub(super) fn lets_in(&self, peer: IpAddr, arrivals: &Arrivals) -> bool {
        let trusted = self.proxy.as_ref().is_none_or(|proxy| proxy.trusts(peer));
        if !trusted {
            arrivals.closed(
                HeaderOutcome::Untrusted,
                &peer,
                &"its address is none of the trusted ones of its listener",
            );
        }
        trusted
    }

    /// Reads the header of `stream`, whose other end is `peer`, if there has to be one: within its time and `most`, and until
    /// `ended` ends.
    ///
    /// # Errors
    /// If the connection is to be closed, which is counted.
    pub(super) async fn source(
        &self,
        stream: &mut TcpStream,
        peer: IpAddr,
        most: Duration,
        arrivals: &Arrivals,
        ended: impl Future<Output = ()>,
    ) -> Result<Option<(Source, HeaderOutcome)>, Closed> {
        let Some(proxy) = &self.proxy else { return Ok(None) };
        match receive::header(stream, proxy.within.min(most), ended).await {
            Ok(Header::Proxied { address, endpoint }) => {
                Ok(Some((Source { endpoint, address }, HeaderOutcome::Proxied)))
            }
            // The balancer itself, under the address of the socket.
            Ok(Header::Local) => {
                Ok(Some((Source { endpoint: None, address: peer.to_canonical() }, HeaderOutcome::Local)))
            }
            Err(unread) => {
                arrivals.closed(unread.into(), &peer, &unread);
                Err(Closed)
            }
        }
    }
}

/// A connection that is to be closed: the reason is counted and logged already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closed;

/// Has the system ask peers of `listener` that say nothing whether they are there: after 60 s, every 20 s, three times. A network load
/// balancer forgets a silent connection after 350 s, and a peer that is gone without a word holds no place for longer.
/// Connections inherit it from their listener.
pub(crate) fn keep_alive(listener: &TcpListener) {
    let asks =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20)).with_retries(3);
    if let Err(error) = SockRef::from(listener).set_tcp_keepalive(&asks) {
        warn!(%error, "the system does not ask silent peers whether they are there");
    }
}

/// A socket that listens, with what stands in front of it.
#[derive(Debug)]
pub struct Bound {
    /// The socket.
    pub listener: TcpListener,
    /// The way in.
    pub front: Arc<Front>,
}

impl Bound {
    /// The socket as clients are told of it; without TLS it speaks `plain`. `None` if it is closed.
    pub(crate) fn view(&self, plain: &'static [&'static [u8]]) -> Option<ListenerView> {
        let protocols = self.front.tls.as_ref().map_or(plain, Secured::protocols);
        Some(ListenerView {
            address: self.listener.local_addr().ok()?.to_string(),
            protocols: protocols.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect(),
            tls: self.front.tls.is_some(),
        })
    }
}

/// A listener whose connections are taken as they come.
impl From<TcpListener> for Bound {
    fn from(listener: TcpListener) -> Self {
        Self { listener, front: Arc::default() }
    }
}

/// The new connections of a process, by what came of them before their protocol began.
#[derive(Debug)]
pub struct Arrivals {
    headers: HeaderCounts,
    /// The lines of the log about connections that are closed, by the outcome of their header.
    early: [Strangers; HeaderOutcome::ALL.len()],
    /// The lines of the log about handshakes that failed.
    unsecured: Strangers,
    /// The lines about peers that speak TLS where it is not spoken.
    encrypted: Strangers,
    /// Handshakes that failed, by source.
    failures: Failures,
    /// The audit, where clients are refused for their certificates.
    audit: OnceLock<Arc<Audit>>,
}

impl Arrivals {
    pub(crate) fn new(clock: &Clock) -> Arc<Self> {
        Arc::new(Self {
            headers: HeaderCounts::default(),
            early: HeaderOutcome::ALL.map(|_| Strangers::new(clock.clone())),
            unsecured: Strangers::new(clock.clone()),
            encrypted: Strangers::new(clock.clone()),
            failures: Failures::new(clock.clone()),
            audit: OnceLock::new(),
        })
    }

    /// Peers that are refused for their certificates are written there.
    pub(super) fn audits(&self, audit: Arc<Audit>) {
        // A second call would be about the same one.
        self.audit.set(audit).ok();
    }

    /// How often which end the looks for a PROXY header had.
    pub(super) fn headers(&self) -> &HeaderCounts {
        &self.headers
    }

    /// Notes that `peer` speaks TLS to a listener without it: one line a minute.
    pub(crate) fn is_encrypted(&self, peer: IpAddr) {
        if let Some(connections) = self.encrypted.refused() {
            warn!(%peer, connections, "a peer speaks TLS, and this port does not: use another address, or set TLS for its listener");
        }
    }

    /// Counts a connection that is closed. The log has one line a minute of each kind, and of those that say nothing none that
    /// operators see: balancers look whether a port is open, again and again.
    pub(super) fn closed(&self, outcome: HeaderOutcome, source: &dyn Display, reason: &dyn Display) {
        self.headers.add(outcome);
        let name = outcome.as_str();
        if matches!(outcome, HeaderOutcome::Silent | HeaderOutcome::Cut) {
            debug!(%source, outcome = name, %reason, "a connection is closed before its first request");
        } else if let Some(connections) = self.early.get(outcome as usize).and_then(Strangers::refused) {
            warn!(%source, outcome = name, %reason, connections, "a connection is closed before its first request");
        }
    }
}
