//! The handshake of a new connection, where the listener speaks TLS, and the words to a peer that does not.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tracing::{debug, warn};

use super::{Arrivals, Closed, Front};
use crate::audit::record::{Door, Record};
use crate::ingress::proxy::Source;
use crate::tls::handshake::{Handshake, Holder, Refused};
use crate::tls::stream::Stream;

/// The answer to HTTP without TLS. Not in the form of other refusals: nothing was read of the request.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\
    content-length: 55\r\n\r\nthis port speaks TLS: use https:// in the address of it";
/// How long a peer that is told so has to read it.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// The reads of bytes that it had sent, at most: bytes that stay unread make the system send a reset, which overtakes the words.
const READS_MAX: usize = 64;

impl Front {
    /// Does the handshake of `stream`, whose other end is `peer`, if there is to be one, until `ended` ends. The holder of a
    /// client certificate is given back. A source, which is `peer` unless a balancer named another one, of which too many failed is
    /// closed before its handshake. A peer that is refused for its certificate has a line of the audit, as one that comes to `door`.
    ///
    /// # Errors
    /// If the connection is to be closed, which is counted.
    pub(crate) async fn handshake(
        &self,
        stream: TcpStream,
        peer: IpAddr,
        source: Option<&Source>,
        (door, arrivals): (Door, &Arrivals),
        ended: impl Future<Output = ()>,
    ) -> Result<(Stream, Option<Holder>), Closed> {
        let Some(secured) = &self.tls else { return Ok((Stream::Plain(stream), None)) };
        let of = (
            source.and_then(|source| source.endpoint.as_ref()).map(ToString::to_string),
            Some(source.map_or(peer, |source| source.address)),
        );
        if !arrivals.failures.has_room(&of) {
            secured.is_limited();
            debug!(%peer, "too many handshakes of this source failed: the connection is closed before its own");
            return Err(Closed);
        }
        let Refused { end, why, certificate, plain } = match secured.accept(stream, ended).await {
            Ok((stream, holder)) => return Ok((Stream::Tls(Box::new(stream)), holder)),
            Err(refused) => refused,
        };
        let end_name = end.as_str();
        // These cost what is checked of a certificate and its signature. Peers that speak no TLS, another protocol of it, or hang up cost
        // no more than those that go on.
        if end == Handshake::Certificate {
            arrivals.failures.take(&of).ok();
        }
        if let Some((audit, reason)) = arrivals.audit.get().zip(certificate) {
            let (endpoint, source) = of;
            let (method, detail) = (Some("certificate"), Some(reason));
            audit.refused_handshake(door, |record| Record { method, endpoint, source, detail, ..record });
        }
        let seldom = matches!(end, Handshake::Plaintext | Handshake::Certificate | Handshake::Failed);
        if let Some(handshakes) = seldom.then(|| arrivals.unsecured.refused()).flatten() {
            warn!(%peer, outcome = end_name, reason = why, handshakes, "TLS handshakes failed: the last is named");
        } else {
            debug!(%peer, outcome = end_name, reason = why, "a TLS handshake failed");
        }
        if let Some(plain) = plain {
            tokio::time::timeout(TOLD_WITHIN, tell(plain)).await.ok();
        }
        Err(Closed)
    }
}

/// Tells a peer that speaks HTTP to speak TLS; others would not read it.
async fn tell(mut plain: TcpStream) {
    let told = async {
        let mut first = [0];
        // Methods begin so, and no worker's hello does.
        if plain.peek(&mut first).await? == 0 || !first[0].is_ascii_uppercase() {
            return Ok(());
        }
        plain.write_all(SPEAK_TLS).await?;
        plain.shutdown().await?;
        let mut rest = [0; 4 * 1024];
        for _ in 0..READS_MAX {
            if plain.read(&mut rest).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    if let Err(error) = told.await {
        debug!(%error, "a peer left before it was told to speak TLS");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plaintext_is_whole() {
        let text = std::str::from_utf8(SPEAK_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{text:?}");
    }
}
