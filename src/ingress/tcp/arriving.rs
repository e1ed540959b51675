//! A new connection before its hello: the header of a balancer and the handshake of TLS, where its listener has them.

use std::net::IpAddr;
use std::time::Duration;

use relay_remote::stream::FrameReader;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use crate::audit::record::Door;
use crate::auth::Presented;
use crate::ingress::front::{Arrivals, Closed, Front};
use crate::ingress::proxy::Source;
use crate::ingress::proxy::header::EndpointId;
use crate::tls::handshake::Holder;
use crate::tls::stream::Stream;

/// A connection whose protocol begins.
pub(super) struct Arrived {
    pub(super) from: FrameReader<ReadHalf<Stream>>,
    pub(super) to: WriteHalf<Stream>,
    pub(super) peer: Peer,
}

/// The other end of a connection, as it is known before its first word.
pub(super) struct Peer {
    /// Of its socket.
    address: IpAddr,
    /// As a balancer in front names it.
    source: Option<Source>,
    /// The holder of its certificate.
    pub(super) holder: Option<Holder>,
}

impl Peer {
    /// Everything that it has shown so far.
    pub(super) fn presented(&self) -> Presented<'_> {
        let source = self.source.as_ref();
        Presented {
            certificate: self.holder.as_ref().map(|holder| &holder.certificate),
            endpoint: source.and_then(|source| source.endpoint.as_ref()).map(EndpointId::as_str),
            address: Some(source.map_or(self.address, |source| source.address)),
            ..Presented::default()
        }
    }
}

/// Goes through `front`, which is that of `door`, within `within` or until `ended` ends; its first frame has `frame_max` bytes at most.
///
/// # Errors
/// If the connection is to be closed, which is counted.
pub(super) async fn arrive(
    front: &Front,
    (door, arrivals): (Door, &Arrivals),
    mut stream: TcpStream,
    address: IpAddr,
    (within, frame_max): (Duration, u32),
    ended: impl Future<Output = ()>,
) -> Result<Arrived, Closed> {
    let mut over = std::pin::pin!(async {
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(within) => {}
        }
    });
    let source = front.source(&mut stream, address, within, arrivals, over.as_mut()).await?;
    let source = source.map(|(source, outcome)| {
        arrivals.headers().add(outcome);
        source
    });
    let (stream, holder) = front.handshake(stream, address, source.as_ref(), (door, arrivals), over).await?;
    let (from, to) = tokio::io::split(stream);
    Ok(Arrived { from: FrameReader::new(from, frame_max), to, peer: Peer { address, source, holder } })
}
