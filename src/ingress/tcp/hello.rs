//! The first message: the worker's name, the version that both speak, and the queues that the worker may touch.
//! Everything is refused with a typed error and a close.

use std::net::IpAddr;

use relay_bridge::contract::WorkerId;
use relay_bridge::contract::envelope::{self, WireVersion};
use relay_bridge::contract::wire::frame::FrameError;
use relay_bridge::contract::wire::{
    self, FRAME_MAX, FRAME_MAX_LEAST, FromWorker, Hello, VERSION_MAX, VERSION_MIN, Welcome, WireError,
};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_remote::stream::{FrameReader, ReadError};
use tokio::io::AsyncRead;
use tokio::time;

use super::{WorkerGrant, WorkerListener, audited};
use crate::auth::Presented;

/// The beginning of the length that a handshake of TLS reads like: its type, and its version.
const TLS_RECORD: u32 = 0x1603;

/// The terms on which a connection was admitted.
pub(super) struct Admitted {
    pub(super) hello: Hello,
    /// The name by which the server knows the worker.
    pub(super) worker: WorkerId,
    pub(super) welcome: Welcome,
    pub(super) grant: WorkerGrant,
    pub(super) envelope: WireVersion,
    /// What it showed, as metrics and the audit name it.
    pub(super) method: &'static str,
}

/// Why a connection goes no further.
pub(super) enum Refused {
    /// The peer is told.
    Told(WireError),
    /// There is nobody to tell.
    Silent(&'static str),
}

/// Reads the hello and judges it.
pub(super) async fn admit<R: AsyncRead + Unpin>(
    server: &WorkerListener,
    from: &mut FrameReader<R>,
    presented: Presented<'_>,
) -> Result<Admitted, Refused> {
    let invalid = |detail: String| Refused::Told(WireError::new(Kind::Invalid, detail));
    let frame = match time::timeout(server.limits.hello_timeout, from.next()).await {
        Err(_) => {
            let detail = format!("no hello came in {:?}; the worker speaks first", server.limits.hello_timeout);
            return Err(Refused::Told(WireError::new(Kind::Invalid, detail).with_slug("request-timeout")));
        }
        Ok(Err(ReadError::Frame(FrameError::TooLong { length, .. }))) if length >> 16 == TLS_RECORD => {
            server.arrivals.is_encrypted(presented.address.unwrap_or(IpAddr::from([0; 4])));
            // In clear text, by which the peer finds out: it would try again for ever if the connection just ended.
            return Err(invalid("the peer speaks TLS, and this port does not: connect without tls://".to_owned()));
        }
        Ok(Err(ReadError::Frame(error))) => {
            return Err(invalid(format!("{error} before the hello: is the peer a relay worker?")));
        }
        Ok(Err(ReadError::Broken(_)) | Ok(None)) => return Err(Refused::Silent("it left before its hello")),
        Ok(Ok(Some(frame))) => frame,
    };
    let hello = match FromWorker::decode(&frame) {
        Ok(FromWorker::Hello(hello)) => hello,
        Ok(_) => return Err(invalid("the first message has to be a hello".to_owned())),
        Err(error) => return Err(invalid(format!("not a hello: {error}"))),
    };
    judge(server, hello, presented).await.map_err(Refused::Told)
}

async fn judge(server: &WorkerListener, hello: Hello, presented: Presented<'_>) -> Result<Admitted, WireError> {
    let Some(version) = wire::negotiate(hello.version_min, hello.version_max) else {
        let (min, max) = (hello.version_min, hello.version_max);
        let kind = if min > VERSION_MAX {
            Kind::NewerVersion { found: min, newest: VERSION_MAX }
        } else {
            Kind::NewerVersion { found: VERSION_MIN, newest: max }
        };
        let detail = format!(
            "the worker speaks protocol versions {min} to {max}, this server {VERSION_MIN} to {VERSION_MAX}: upgrade the older one"
        );
        return Err(WireError::new(kind, detail).with_slug("malformed-request"));
    };
    let envelope = match hello.envelope_max {
        0 => {
            let kind = Kind::NewerVersion { found: envelope::OLDEST, newest: 0 };
            return Err(WireError::new(kind, "the worker reads no envelope version").with_slug("malformed-request"));
        }
        1 => WireVersion::V1,
        _ => WireVersion::V2,
    };
    let grant = server.auth.authorize(&hello.worker, hello.key.as_deref(), presented).await;
    let shown = match (hello.key.as_deref(), presented.certificate) {
        (Some(_), Some(_)) => "several",
        // Keys have one dot.
        (Some(key), None) if key.matches('.').count() == 2 => "jwt",
        (Some(_), None) => "key",
        (None, Some(_)) => "mtls",
        (None, None) => "none",
    };
    server.authentications.add(shown, grant.is_ok());
    let grant = grant.map_err(|why| {
        audited::refused(server, &presented, shown, &why);
        WireError::new(Kind::Unauthorized, why).with_slug("unauthenticated")
    })?;
    if hello.frame_max < FRAME_MAX_LEAST {
        let detail = format!("`frame_max` is {}, it has to be {FRAME_MAX_LEAST} at least", hello.frame_max);
        return Err(WireError::new(Kind::Invalid, detail));
    }
    let welcome = Welcome {
        version,
        envelope_max: envelope::NEWEST,
        frame_max: server.limits.frame_max.clamp(FRAME_MAX_LEAST, FRAME_MAX).min(hello.frame_max),
        requests_max: server.limits.requests_max.max(1),
        ping: server.limits.ping,
        server_time: server.clock.now(),
        build: concat!("relay/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    // Its own word is good for a part of the name only.
    let worker = match &grant.key {
        Some(key) => WorkerId::under_key(key, &hello.worker),
        None => hello.worker.clone(),
    };
    Ok(Admitted { hello, worker, welcome, grant, envelope, method: shown })
}
