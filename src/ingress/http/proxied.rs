//! A new connection before its protocol: the PROXY header, where a balancer in front writes one, with how many connections its source
//! may have; and the handshake of TLS. Whichever protocol comes behind them.

use tokio::net::TcpStream;

use super::Ingress;
use super::connection::Connection;
use crate::audit::record::Door;
use crate::ingress::front::{Closed, Front};
use crate::tls::handshake::Holder;
use crate::tls::stream::Stream;

/// Reads the header of `stream` and notes of whom `connection` is; `false` if it is to be closed. Its time is part of the time
/// for a first request, and ends early with `ended`.
pub(in crate::ingress) async fn begins(
    ingress: &Ingress,
    front: &Front,
    stream: &mut TcpStream,
    connection: &Connection,
    ended: impl Future<Output = ()>,
) -> bool {
    let (arrivals, most) = (&ingress.arrivals, ingress.limits.first_request);
    let Ok(found) = front.source(stream, connection.peer, most, arrivals, ended).await else { return false };
    let Some((source, outcome)) = found else { return true };
    if let Err(full) = ingress.pools.name(connection, source.clone()) {
        arrivals.closed(full, &source, &"there are as many connections from there as may be");
        return false;
    }
    arrivals.headers().add(outcome);
    true
}

/// Does the handshake of `stream` at the front of `door`, if there is to be one, and notes the certificate of `connection`. Ends early with `ended`.
///
/// # Errors
/// If the connection is to be closed, which is counted.
pub(in crate::ingress) async fn secured(
    ingress: &Ingress,
    (door, front): (Door, &Front),
    stream: TcpStream,
    connection: &Connection,
    ended: impl Future<Output = ()>,
) -> Result<(Stream, Option<Holder>), Closed> {
    let (source, arrivals) = (connection.source.get(), (door, &*ingress.arrivals));
    let (stream, holder) = front.handshake(stream, connection.peer, source, arrivals, ended).await?;
    if let Some(holder) = &holder {
        connection.certificate.set(holder.certificate.clone()).ok();
    }
    Ok((stream, holder))
}
