//! A new connection, from its first byte to the end of its handshake.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::Error;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::stream::{HTTP, RELAY};
use super::{ClientAuth, Tls, authorities, expiry};
use crate::auth::presented::Certificate;
use crate::evicting::EvictingPool;

/// How long a handshake may take, from the first byte that is waited for.
const WITHIN: Duration = Duration::from_secs(5);
/// Handshakes at a time. One more takes the place of the oldest, so that those that do not go on keep nobody out.
const AT_A_TIME: usize = 256;
/// How often the holder of a certificate is judged again without a change: a list of revoked ones may be overdue by then.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// The bytes that TLS keeps of answers that a peer has not read, beside those that are counted before they come to it.
const BUFFER_MAX: usize = 32 * 1024;
/// How each handshake begins: the type of its record.
const HANDSHAKE: u8 = 0x16;

/// TLS as one listener speaks it.
#[derive(Clone, Debug)]
pub struct Secured {
    tls: Arc<Tls>,
    protocols: &'static [&'static [u8]],
    clients: ClientAuth,
    places: EvictingPool,
}

/// The end of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It went well.
    Done,
    /// Not a byte came: a balancer that looks whether the port is open, or a client that says nothing.
    Silent,
    /// It ended early, took too long, or its place was needed.
    Cut,
    /// The first byte was not one of TLS.
    Plaintext,
    /// The client's certificate is not good, or there is none where one is required.
    Certificate,
    /// Something else: no common version or protocol, an alert, or bytes that are no TLS.
    Failed,
    /// Too many of its source failed: it was closed before it began.
    Limited,
}

impl Handshake {
    /// All of them, in their order.
    pub const ALL: [Self; 7] =
        [Self::Done, Self::Silent, Self::Cut, Self::Plaintext, Self::Certificate, Self::Failed, Self::Limited];

    /// Its name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Silent => "silent",
            Self::Cut => "cut",
            Self::Plaintext => "plaintext",
            Self::Certificate => "certificate",
            Self::Failed => "failed",
            Self::Limited => "limited",
        }
    }
}

/// How often which end was.
#[derive(Debug, Default)]
pub struct HandshakeCounts([AtomicU64; Handshake::ALL.len()]);

impl HandshakeCounts {
    fn add(&self, end: Handshake) {
        // Ends are numbered in the order of `ALL`.
        if let Some(counter) = self.0.get(end as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many handshakes ended so.
    #[must_use]
    pub fn count(&self, end: Handshake) -> u64 {
        self.0.get(end as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// Why a connection does not go on.
pub(crate) struct Refused {
    pub(crate) end: Handshake,
    pub(crate) why: String,
    /// The reason in relay's own words, where it is about the certificate of a client.
    pub(crate) certificate: Option<String>,
    /// The connection, where its peer does not speak TLS and can be told so.
    pub(crate) plain: Option<TcpStream>,
}

impl Refused {
    fn new(end: Handshake, why: impl Into<String>) -> Self {
        Self { end, why: why.into(), certificate: None, plain: None }
    }

    /// The handshake was ended by `error`; a reason that is about the client's certificate is told in relay's own words as well.
    fn by(error: &io::Error) -> Self {
        let end = end_of(error);
        let known = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
        let certificate = known.filter(|_| end == Handshake::Certificate).map(authorities::reason);
        Self { certificate, ..Self::new(end, error.to_string()) }
    }
}

impl Secured {
    /// TLS with the certificates of `tls`, over which HTTP is spoken.
    #[must_use]
    pub fn http(tls: Arc<Tls>, clients: ClientAuth) -> Self {
        Self::new(tls, HTTP, clients)
    }

    /// The same, over which clients speak HTTP or relay's own protocol, as their handshake says.
    #[must_use]
    pub fn clients(tls: Arc<Tls>, clients: ClientAuth) -> Self {
        Self::new(tls, &[b"h2", b"http/1.1", RELAY], clients)
    }

    /// The same, over which relay's own protocol is spoken, by workers or by clients.
    #[must_use]
    pub fn relay(tls: Arc<Tls>, clients: ClientAuth) -> Self {
        Self::new(tls, &[RELAY], clients)
    }

    /// The same, over which KEDA speaks gRPC.
    #[must_use]
    pub fn scaler(tls: Arc<Tls>, clients: ClientAuth) -> Self {
        Self::new(tls, &[b"h2"], clients)
    }

    fn new(tls: Arc<Tls>, protocols: &'static [&'static [u8]], clients: ClientAuth) -> Self {
        Self { tls, protocols, clients, places: EvictingPool::new(AT_A_TIME) }
    }

    /// The protocols that are offered, the one that is preferred first.
    pub(crate) fn protocols(&self) -> &'static [&'static [u8]] {
        self.protocols
    }

    /// Counts a handshake that is not begun, because too many of its source failed.
    pub(crate) fn is_limited(&self) {
        self.tls.handshakes.add(Handshake::Limited);
    }

    /// Does the handshake of `stream`, until its time is over or `ended` ends.
    ///
    /// # Errors
    /// If the connection is to be closed.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
        ended: impl Future<Output = ()>,
    ) -> Result<(TlsStream<TcpStream>, Option<Holder>), Refused> {
        let accepted = tokio::select! {
            accepted = self.within(stream) => accepted,
            () = ended => Err(Refused::new(Handshake::Cut, "the connection's time is over")),
        };
        self.tls.handshakes.add(accepted.as_ref().map_or_else(|refused| refused.end, |_| Handshake::Done));
        accepted
    }

    /// The same within its time. A handshake takes one of the places once its first byte came: a peer that says nothing has none, and
    /// is bounded as a connection.
    async fn within(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, Option<Holder>), Refused> {
        let until = Instant::now() + WITHIN;
        let mut first = [0];
        match tokio::time::timeout_at(until, stream.peek(&mut first)).await {
            Ok(Ok(1..)) if first[0] == HANDSHAKE => {}
            Ok(Ok(1..)) => {
                let why = "the peer does not speak TLS, and this port does";
                return Err(Refused { plain: Some(stream), ..Refused::new(Handshake::Plaintext, why) });
            }
            Ok(Ok(0) | Err(_)) => return Err(Refused::new(Handshake::Silent, "it ended before its first byte")),
            Err(_) => return Err(Refused::new(Handshake::Silent, "its first byte did not come")),
        }
        let place = self.places.enter();
        tokio::select! {
            accepted = tokio::time::timeout_at(until, self.handshake(stream)) => {
                accepted.unwrap_or_else(|_| Err(Refused::new(Handshake::Cut, "the handshake took too long")))
            }
            () = place.evicted.cancelled() => Err(Refused::new(Handshake::Cut, "a newer handshake needs its place")),
        }
    }

    async fn handshake(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, Option<Holder>), Refused> {
        // Before the handshake: a change of authorities that comes meanwhile is one for the connection.
        let changes = self.tls.changes.subscribe();
        let config = self.tls.snapshot().config(self.protocols, self.clients);
        let config = config.map_err(|error| Refused::new(Handshake::Failed, error.to_string()))?;
        let acceptor = TlsAcceptor::from(config);
        let stream = acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(BUFFER_MAX))).await;
        let stream = stream.map_err(|error| Refused::by(&error))?;
        let Some(chain) = stream.get_ref().1.peer_certificates() else { return Ok((stream, None)) };
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let tls = Arc::clone(&self.tls);
        let certificate = tls.snapshot().authorities.judge(&chain, UnixTime::now());
        let certificate =
            certificate.map_err(|error| Refused::by(&io::Error::new(io::ErrorKind::InvalidData, error)))?;
        Ok((stream, Some(Holder { certificate, chain, tls, changes })))
    }
}

/// The client behind a connection, by its certificate.
pub(crate) struct Holder {
    pub(crate) certificate: Certificate,
    chain: Vec<CertificateDer<'static>>,
    tls: Arc<Tls>,
    changes: watch::Receiver<()>,
}

impl Holder {
    /// Waits until the authorities that vouched for the certificate do so no more, or say something else of it: because they or their
    /// lists changed, or a certificate or a list has come to its end.
    pub(crate) async fn ended(mut self) {
        loop {
            let wait = expiry::left(&self.chain).map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN));
            if let Ok(Err(_)) = tokio::time::timeout(wait, self.changes.changed()).await {
                return pending().await;
            }
            let found = self.tls.snapshot().authorities.judge(&self.chain, UnixTime::now());
            if found.ok().as_ref() != Some(&self.certificate) {
                return;
            }
        }
    }
}

fn end_of(error: &io::Error) -> Handshake {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Handshake::Cut;
    }
    match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)) => Handshake::Certificate,
        _ => Handshake::Failed,
    }
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;

    use super::*;

    #[test]
    fn every_end_has_a_counter_of_its_own_and_a_bad_certificate_is_told_from_other_failures() {
        let counts = HandshakeCounts::default();
        for end in Handshake::ALL {
            counts.add(end);
        }
        assert!(Handshake::ALL.iter().all(|end| counts.count(*end) == 1));
        let revoked = Error::InvalidCertificate(CertificateError::Revoked);
        assert_eq!(end_of(&io::Error::new(io::ErrorKind::InvalidData, revoked)), Handshake::Certificate);
        assert_eq!(end_of(&io::ErrorKind::UnexpectedEof.into()), Handshake::Cut);
        assert_eq!(end_of(&io::ErrorKind::InvalidData.into()), Handshake::Failed);
    }
}
