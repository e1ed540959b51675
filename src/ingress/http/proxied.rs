//! The PROXY header of a new connection, where a balancer in front writes one: how many connections its source may have. Without
//! such a balancer none of it is looked at.

use tokio::net::TcpStream;

use super::Ingress;
use super::connection::Connection;
use crate::ingress::front::Front;

/// Reads the header of `stream` and notes of whom `connection` is; `false` if it is to be closed. Its time is part of the time
/// for a first request, and ends early with `ended`.
pub(super) async fn begins(
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
