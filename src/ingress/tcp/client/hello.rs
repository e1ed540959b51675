//! The first message: who the client is, and the version that both speak. Everything is refused with a typed error and a
//! close.

use relay_bridge::contract::wire::client::{FromClient, Hello, Welcome};
use relay_bridge::contract::wire::{FRAME_MAX, FRAME_MAX_LEAST, WireError};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_remote::stream::FrameReader;
use tokio::io::AsyncRead;
use tokio::time::Instant;

use super::{Clients, answers, audited};
use crate::api::Slug;
use crate::auth::{self, Caller, Presented};
use crate::ingress::budget::Share;
use crate::ingress::clients::Owner;
use crate::ingress::grants;
use crate::ingress::http::connection::Connection;
use crate::ingress::refusal::{Refusal, scarce};
use crate::ingress::tcp::first::{self, Refused};

/// The terms on which a connection was admitted.
pub(super) struct Admitted {
    pub(super) caller: Caller,
    pub(super) owner: Owner,
    pub(super) welcome: Welcome,
    pub(super) build: String,
    /// Its place among its client's connections.
    pub(super) place: Share,
}

/// Reads the hello and judges it.
pub(super) async fn admit<R: AsyncRead + Unpin>(
    clients: &Clients,
    from: &mut FrameReader<R>,
    connection: &Connection,
    until: Instant,
) -> Result<Admitted, Refused> {
    let invalid = |detail: String| Refused::Told(WireError::new(Kind::Invalid, detail));
    let (presented, arrivals) = (connection.presented(), &clients.ingress.arrivals);
    let frame = first::frame(from, "client", until, &presented, arrivals).await?;
    let hello = match FromClient::decode(&frame) {
        Ok(FromClient::Hello(hello)) => hello,
        Ok(_) => return Err(invalid("the first message has to be a hello".to_owned())),
        Err(error) => return Err(invalid(format!("not a hello: {error}"))),
    };
    judge(clients, hello, connection).await.map_err(Refused::Told)
}

async fn judge(clients: &Clients, hello: Hello, connection: &Connection) -> Result<Admitted, WireError> {
    let version = first::version("client", hello.version_min, hello.version_max)?;
    let caller =
        identify(clients, &hello, connection.presented()).await.map_err(|refusal| answers::error(&refusal.0))?;
    if hello.frame_max < FRAME_MAX_LEAST {
        let detail = format!("`frame_max` is {}, it has to be {FRAME_MAX_LEAST} at least", hello.frame_max);
        return Err(WireError::new(Kind::Invalid, detail));
    }
    let ingress = &clients.ingress;
    let owner = match ingress.authenticator.is_development() {
        // Names that anybody can take are no bound.
        true => Owner::Connection(connection.id),
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
    let shown = first::shown(hello.key.as_deref(), presented.certificate.is_some());
    let refused = match ingress.authenticator.authenticate(presented).await {
        Ok(caller) => {
            ingress.authentications.add(caller.method(), true);
            return Ok(caller);
        }
        Err(refused) => refused,
    };
    ingress.authentications.add(shown, false);
    match &refused {
        auth::Refused::Unauthenticated(detail) => {
            audited::refused(clients, &presented, (Slug::Unauthenticated, detail), shown)
        }
        auth::Refused::Forbidden(detail) => audited::refused(clients, &presented, (Slug::Forbidden, detail), shown),
        auth::Refused::Malformed(_) | auth::Refused::TooMany { .. } | auth::Refused::Unavailable(_) => {}
    }
    Err(grants::not_let_in(refused))
}
