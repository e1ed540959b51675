//! The first message: who the client is, and the version that both speak. Everything is refused with a typed error and a
//! close.

use std::sync::atomic::Ordering;

use relay_bridge::contract::wire::client::{FromClient, Hello, Welcome};
use relay_bridge::contract::wire::frame::FrameError;
use relay_bridge::contract::wire::{self, FRAME_MAX, FRAME_MAX_LEAST, VERSION_MAX, VERSION_MIN, WireError};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_remote::stream::{FrameReader, ReadError};
use tokio::io::AsyncRead;
use tokio::time;

use super::{Clients, answers, audited};
use crate::api::Slug;
use crate::auth::{Caller, Presented, Refused};
use crate::ingress::budget::Share;
use crate::ingress::clients::Owner;
use crate::ingress::grants;
use crate::ingress::refusal::{Refusal, scarce};

/// The terms on which a connection was admitted.
pub(super) struct Admitted {
    pub(super) caller: Caller,
    pub(super) owner: Owner,
    pub(super) welcome: Welcome,
    pub(super) build: String,
    /// Its place among its client's connections.
    pub(super) place: Share,
}

/// Why a connection goes no further.
pub(super) enum Turned {
    /// The peer is told.
    Told(WireError),
    /// The peer speaks HTTP, and is told so in HTTP.
    Http,
    /// There is nobody to tell.
    Silent(&'static str),
}

/// Reads the hello and judges it.
pub(super) async fn admit<R: AsyncRead + Unpin>(
    clients: &Clients,
    from: &mut FrameReader<R>,
    presented: Presented<'_>,
) -> Result<Admitted, Turned> {
    let invalid = |detail: String| Turned::Told(WireError::new(Kind::Invalid, detail));
    let frame = match time::timeout(clients.limits.hello_timeout, from.next()).await {
        Err(_) => {
            let detail = format!("no hello came in {:?}; the client speaks first", clients.limits.hello_timeout);
            return Err(Turned::Told(WireError::new(Kind::Invalid, detail).with_slug("request-timeout")));
        }
        Ok(Err(ReadError::Frame(FrameError::TooLong { length, .. }))) if is_http(length) => return Err(Turned::Http),
        Ok(Err(ReadError::Frame(error))) => {
            return Err(invalid(format!("{error} before the hello: is the peer a client of relay's TCP protocol?")));
        }
        Ok(Err(ReadError::Broken(_)) | Ok(None)) => return Err(Turned::Silent("it left before its hello")),
        Ok(Ok(Some(frame))) => frame,
    };
    let hello = match FromClient::decode(&frame) {
        Ok(FromClient::Hello(hello)) => hello,
        Ok(_) => return Err(invalid("the first message has to be a hello".to_owned())),
        Err(error) => return Err(invalid(format!("not a hello: {error}"))),
    };
    judge(clients, hello, presented).await.map_err(Turned::Told)
}

/// Whether these are the first four bytes of a request of HTTP.
fn is_http(length: u32) -> bool {
    let methods: [&[u8; 4]; 8] = [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"PRI "];
    methods.contains(&&length.to_be_bytes())
}

async fn judge(clients: &Clients, hello: Hello, presented: Presented<'_>) -> Result<Admitted, WireError> {
    let Some(version) = wire::negotiate(hello.version_min, hello.version_max) else {
        let (min, max) = (hello.version_min, hello.version_max);
        let kind = if min > VERSION_MAX {
            Kind::NewerVersion { found: min, newest: VERSION_MAX }
        } else {
            Kind::NewerVersion { found: VERSION_MIN, newest: max }
        };
        let detail = format!(
            "the client speaks protocol versions {min} to {max}, this server {VERSION_MIN} to {VERSION_MAX}: upgrade the older one"
        );
        return Err(WireError::new(kind, detail).with_slug("malformed-request"));
    };
    let caller = identify(clients, &hello, presented).await.map_err(|refusal| answers::error(&refusal.0))?;
    if hello.frame_max < FRAME_MAX_LEAST {
        let detail = format!("`frame_max` is {}, it has to be {FRAME_MAX_LEAST} at least", hello.frame_max);
        return Err(WireError::new(Kind::Invalid, detail));
    }
    let ingress = &clients.ingress;
    let owner = match ingress.authenticator.is_development() {
        // Names that anybody can take are no bound. Connections over HTTP are numbered from below.
        true => Owner::Connection(u64::MAX - clients.last.fetch_add(1, Ordering::Relaxed)),
        false => Owner::Client(caller.client.clone()),
    };
    let place = ingress.proven.take(&owner, 1).map_err(|full| Refusal::full(full, scarce::CONNECTIONS));
    let place = place.map_err(|refusal| answers::error(&refusal.0))?;
    let share = u32::try_from(ingress.requests.share_of(&owner)).unwrap_or(u32::MAX);
    let welcome = Welcome {
        version,
        frame_max: clients.limits.frame_max.clamp(FRAME_MAX_LEAST, FRAME_MAX).min(hello.frame_max),
        requests_max: clients.limits.requests_max.min(share).max(1),
        bytes_max: ingress.body_bytes.share_of(&owner) as u64,
        wait_max: ingress.limits.wait_max,
        ping: clients.limits.ping,
        client: caller.client.clone(),
        server_time: ingress.clock.now(),
        build: concat!("relay/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    Ok(Admitted { caller, owner, welcome, build: hello.build, place })
}

async fn identify(clients: &Clients, hello: &Hello, presented: Presented<'_>) -> Result<Caller, Refusal> {
    let ingress = &clients.ingress;
    let authorization = hello.key.as_ref().map(|key| format!("Bearer {key}"));
    let presented = Presented {
        authorization: authorization.as_deref(),
        named: hello.client.as_ref().map(|client| client.as_str()),
        ..presented
    };
    let shown = match &hello.key {
        // Keys have one dot.
        Some(text) if text.matches('.').count() == 2 => "jwt",
        Some(_) => "key",
        None if presented.certificate.is_some() => "mtls",
        None => "none",
    };
    let refused = match ingress.authenticator.authenticate(presented).await {
        Ok(caller) => {
            ingress.authentications.add(caller.method(), true);
            return Ok(caller);
        }
        Err(refused) => refused,
    };
    ingress.authentications.add(shown, false);
    match &refused {
        Refused::Unauthenticated(detail) => {
            audited::refused(clients, &presented, (Slug::Unauthenticated, detail), shown)
        }
        Refused::Forbidden(detail) => audited::refused(clients, &presented, (Slug::Forbidden, detail), shown),
        Refused::Malformed(_) | Refused::TooMany { .. } | Refused::Unavailable(_) => {}
    }
    Err(grants::not_let_in(refused))
}
