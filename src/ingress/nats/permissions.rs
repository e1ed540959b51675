//! Whether NATS keeps clients apart, as far as relay can see.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use serde::Deserialize;
use tracing::{info, warn};

use super::Ingress;

/// Where the server says who this connection is and what it may do.
pub(super) const WHO_AM_I: &str = "$SYS.REQ.USER.INFO";
/// How long it may take to ask.
const WHO_AM_I_MAX: Duration = Duration::from_secs(5);

/// Says whether NATS keeps clients apart as far as relay can see.
pub(super) async fn say_who_is_who(client: Client, ingress: Arc<Ingress>) {
    // The answer comes after the server has handled what came before on this connection: the subscriptions.
    let question = async_nats::Request::new().timeout(Some(WHO_AM_I_MAX));
    let answer = client.send_request(WHO_AM_I, question).await;
    info!(service = ingress.id(), "the NATS ingress is open: relay.submit.CLIENT.QUEUE and the others");
    let restricted = answer.is_ok_and(|answer| {
        serde_json::from_slice::<UserInfo>(&answer.payload).is_ok_and(|info| info.data.permissions.is_some())
    });
    ingress.keeps_apart.store(client.server_info().auth_required && restricted, Ordering::Relaxed);
    if !client.server_info().auth_required {
        warn!(
            "this NATS server has no users, so everybody who reaches it can act as any client; \
             `relay nats permissions` prints what to configure"
        );
    } else if !restricted {
        warn!(
            "relay's own user on NATS may do anything, so permissions are not set up as far as relay can see: unless \
             clients have them, everybody can act as any client; `relay nats permissions` prints what to configure"
        );
    }
}

/// The part of the server's answer that matters here.
#[derive(Deserialize)]
struct UserInfo {
    data: UserData,
}

#[derive(Deserialize)]
struct UserData {
    #[serde(default)]
    permissions: Option<serde::de::IgnoredAny>,
}
