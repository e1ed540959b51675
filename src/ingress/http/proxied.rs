//! The PROXY header of a new connection, where a balancer in front writes one: from whom it is believed, and how many
//! connections its source may have. Without such a balancer none of it is looked at.

use std::fmt::Display;
use std::net::IpAddr;

use tokio::net::TcpStream;
use tracing::{debug, warn};

use super::Ingress;
use super::connection::Connection;
use crate::ingress::proxy::header::Header;
use crate::ingress::proxy::{HeaderOutcome, Source, receive};

/// Whether a connection from `peer` is to be read at all. One that is none of the balancers is counted.
pub(super) fn is_let_in(ingress: &Ingress, peer: IpAddr) -> bool {
    let trusted = ingress.limits.proxy.as_ref().is_none_or(|proxy| proxy.trusts(peer));
    if !trusted {
        closed(ingress, HeaderOutcome::Untrusted, &peer, &"its address is none of `listen.proxy_trusted`");
    }
    trusted
}

/// Reads the header of `stream` and notes of whom `connection` is; `false` if it is to be closed. Its time is part of the time
/// for a first request, and ends early with `ended`.
pub(super) async fn begins(
    ingress: &Ingress,
    stream: &mut TcpStream,
    connection: &Connection,
    ended: impl Future<Output = ()>,
) -> bool {
    let Some(proxy) = &ingress.limits.proxy else { return true };
    let within = proxy.within.min(ingress.limits.first_request);
    let (source, outcome) = match receive::header(stream, within, ended).await {
        Ok(Header::Proxied { address, endpoint }) => (Source { endpoint, address }, HeaderOutcome::Proxied),
        // The balancer itself, under the address of the socket.
        Ok(Header::Local) => (Source { endpoint: None, address: connection.peer.to_canonical() }, HeaderOutcome::Local),
        Err(unread) => {
            closed(ingress, unread.into(), &connection.peer, &unread);
            return false;
        }
    };
    if let Err(full) = ingress.pools.name(connection, source.clone()) {
        closed(ingress, full, &source, &"there are as many connections from there as may be");
        return false;
    }
    ingress.proxy_headers.add(outcome);
    true
}

/// Counts a connection that is closed. The log has one line a minute of each kind, and of those that say nothing none that
/// operators see: balancers look whether a port is open, again and again.
fn closed(ingress: &Ingress, outcome: HeaderOutcome, source: &dyn Display, reason: &dyn Display) {
    ingress.proxy_headers.add(outcome);
    let name = outcome.as_str();
    if matches!(outcome, HeaderOutcome::Silent | HeaderOutcome::Cut) {
        debug!(%source, outcome = name, %reason, "a connection is closed before its first request");
    } else if let Some(connections) = ingress.closed_early.get(outcome as usize).and_then(|kind| kind.refused()) {
        warn!(%source, outcome = name, %reason, connections, "a connection is closed before its first request");
    }
}
