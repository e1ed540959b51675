//! The first message of a connection, whichever role it speaks: it comes in time, or the peer is told the reason; and the version of
//! the protocol that both speak.

use std::net::IpAddr;

use bytes::Bytes;
use relay_bridge::contract::wire::frame::FrameError;
use relay_bridge::contract::wire::{self, VERSION_MAX, VERSION_MIN, WireError};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_remote::stream::{FrameReader, ReadError};
use tokio::io::AsyncRead;
use tokio::time::{self, Instant};

use crate::auth::Presented;
use crate::ingress::front::Arrivals;

/// The beginning of the length that a handshake of TLS reads like: its type, and its version.
const TLS_RECORD: u32 = 0x1603;

/// Why a connection goes no further.
pub(super) enum Refused {
    /// The peer is told.
    Told(WireError),
    /// The peer speaks HTTP, and is told so in HTTP.
    Http,
    /// There is nobody to tell.
    Silent(&'static str),
}

/// Reads the first frame of a `worker` or a `client`, which has to be there by `until`.
pub(super) async fn frame<R: AsyncRead + Unpin>(
    from: &mut FrameReader<R>,
    role: &'static str,
    until: Instant,
    presented: &Presented<'_>,
    arrivals: &Arrivals,
) -> Result<Bytes, Refused> {
    let invalid = |detail: String| Refused::Told(WireError::new(Kind::Invalid, detail));
    match time::timeout_at(until, from.next()).await {
        Err(_) => {
            let detail = format!("no hello came in time; the {role} speaks first: connect again");
            Err(Refused::Told(WireError::new(Kind::Unavailable, detail).with_slug("request-timeout")))
        }
        Ok(Err(ReadError::Frame(FrameError::TooLong { length, .. }))) if length >> 16 == TLS_RECORD => {
            arrivals.is_encrypted(presented.address.unwrap_or(IpAddr::from([0; 4])));
            // In clear text, by which the peer finds out: it would try again for ever if the connection just ended.
            Err(invalid("the peer speaks TLS, and this port does not: connect without it".to_owned()))
        }
        Ok(Err(ReadError::Frame(FrameError::TooLong { length, .. }))) if is_http(length) => Err(Refused::Http),
        Ok(Err(ReadError::Frame(error))) => {
            Err(invalid(format!("{error} before the hello: is the peer a {role} of relay's TCP protocol?")))
        }
        Ok(Err(ReadError::Broken(_)) | Ok(None)) => Err(Refused::Silent("it left before its hello")),
        Ok(Ok(Some(frame))) => Ok(frame),
    }
}

/// Whether these are the first four bytes of a request of HTTP.
fn is_http(length: u32) -> bool {
    let methods: [&[u8; 4]; 8] = [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"PRI "];
    methods.contains(&&length.to_be_bytes())
}

/// The answer to a peer that speaks HTTP, after its handshake `agreed` on relay's protocol or without one.
pub(super) fn no_http(agreed: bool) -> String {
    let text = match agreed {
        true => {
            "this connection agreed on relay/1 (ALPN) and speaks HTTP: offer h2, http/1.1 or nothing at the address of --listen\n"
        }
        false => "this port speaks relay's TCP protocol and no HTTP: use the address of --listen\n",
    };
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    )
}

/// The newest version between `min` and `max` that this server speaks as well.
///
/// # Errors
/// There is none.
pub(super) fn version(role: &'static str, min: u16, max: u16) -> Result<u16, WireError> {
    wire::negotiate(min, max).ok_or_else(|| {
        let (found, newest) = if min > VERSION_MAX { (min, VERSION_MAX) } else { (VERSION_MIN, max) };
        let detail = format!(
            "the {role} speaks protocol versions {min} to {max}, this server {VERSION_MIN} to {VERSION_MAX}: upgrade the older one"
        );
        WireError::new(Kind::NewerVersion { found, newest }, detail).with_slug("malformed-request")
    })
}

/// The credential that `key` and a certificate are, as metrics and the audit name it.
pub(super) fn shown(key: Option<&str>, has_certificate: bool) -> &'static str {
    match (key, has_certificate) {
        (Some(_), true) => "several",
        (Some(key), false) if key.matches('.').count() == 2 => "jwt",
        (Some(_), false) => "key",
        (None, true) => "mtls",
        (None, false) => "none",
    }
}
