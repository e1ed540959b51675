//! The first message: the worker's name, the version that both speak, and the queues that the worker may touch.
//! Everything is refused with a typed error and a close.

use relay_bridge::contract::WorkerId;
use relay_bridge::contract::envelope::{self, WireVersion};
use relay_bridge::contract::wire::{FRAME_MAX, FRAME_MAX_LEAST, FromWorker, Hello, Welcome, WireError};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_remote::stream::FrameReader;
use tokio::io::AsyncRead;
use tokio::time::Instant;

use super::client::answers;
use super::first::{self, Refused};
use super::{WorkerGrant, WorkerListener, audited};
use crate::auth::{Presented, Refused as Refusal};
use crate::ingress::grants;

/// The terms on which a connection was admitted.
pub(super) struct Admitted {
    pub(super) hello: Hello,
    /// The name by which the server knows the worker.
    pub(super) worker: WorkerId,
    pub(super) welcome: Welcome,
    pub(super) grant: WorkerGrant,
    pub(super) envelope: WireVersion,
    /// The credentials that it showed, as metrics and the audit name them.
    pub(super) method: &'static str,
}

/// Reads the hello and judges it.
pub(super) async fn admit<R: AsyncRead + Unpin>(
    server: &WorkerListener,
    from: &mut FrameReader<R>,
    presented: Presented<'_>,
) -> Result<Admitted, Refused> {
    let invalid = |detail: String| Refused::Told(WireError::new(Kind::Invalid, detail));
    let limits = &server.limits;
    let until = Instant::now() + limits.hello_timeout;
    let frame = first::frame(from, "worker", until, &presented, &server.arrivals).await?;
    let hello = match FromWorker::decode(&frame) {
        Ok(FromWorker::Hello(hello)) => hello,
        Ok(_) => return Err(invalid("the first message has to be a hello".to_owned())),
        Err(error) => return Err(invalid(format!("not a hello: {error}"))),
    };
    judge(server, hello, presented).await.map_err(Refused::Told)
}

async fn judge(server: &WorkerListener, hello: Hello, presented: Presented<'_>) -> Result<Admitted, WireError> {
    let version = first::version("worker", hello.version_min, hello.version_max)?;
    let envelope = match hello.envelope_max {
        0 => {
            let kind = Kind::NewerVersion { found: envelope::OLDEST, newest: 0 };
            return Err(WireError::new(kind, "the worker reads no envelope version").with_slug("malformed-request"));
        }
        1 => WireVersion::V1,
        _ => WireVersion::V2,
    };
    let grant = server.auth.authorize(&hello.worker, hello.key.as_deref(), presented).await;
    let shown = first::shown(hello.key.as_deref(), presented.certificate.is_some());
    server.authentications.add(shown, grant.is_ok());
    let grant = grant.map_err(|refused| match refused {
        // Relay can't tell now who it is: the worker comes again by itself.
        Refusal::TooMany { .. } | Refusal::Unavailable(_) => answers::error(&grants::not_let_in(refused).0),
        Refusal::Unauthenticated(why) | Refusal::Forbidden(why) | Refusal::Malformed(why) => {
            audited::refused(server, &presented, shown, &why);
            WireError::new(Kind::Unauthorized, why).with_slug("unauthenticated")
        }
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
