//! The connection that the door listens on. It comes back for ever, and says what happens to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use serde::Deserialize;
use tracing::{error, info, warn};

use super::Door;
use super::subject::RELAY_INBOX;

/// Messages of one subscription that may wait to be taken. They are taken at once, so this is for moments.
const WAITING_MAX: usize = 8_192;
/// How soon a dead path is noticed: two of these. It also keeps balancers from closing an idle connection.
const PING_EVERY: Duration = Duration::from_secs(15);
/// Where the server says who this connection is and what it may do.
pub(super) const WHO_AM_I: &str = "$SYS.REQ.USER.INFO";
/// How long it may take to ask.
const WHO_AM_I_MAX: Duration = Duration::from_secs(5);

const RECONNECT_MIN: Duration = Duration::from_millis(10);
const RECONNECT_MAX: Duration = Duration::from_secs(4);

/// Connects `door` to one of `servers`. It does not wait until a server is there: that is said, and tried for ever.
/// `options` have credentials and TLS; name, inbox prefix, buffers and events are set here.
///
/// # Errors
/// If the options can't be used: no server among `servers`, or credentials that can't be read.
pub async fn connect(
    servers: &[ServerAddr],
    options: ConnectOptions,
    door: &Arc<Door>,
) -> Result<Client, async_nats::ConnectError> {
    let named: Vec<_> = servers.iter().map(without_credentials).collect();
    info!(servers = named.join(","), "the NATS front door connects");
    let door = Arc::clone(door);
    options
        .name(format!("relay {}", env!("CARGO_PKG_VERSION")))
        .custom_inbox_prefix(RELAY_INBOX)
        .ping_interval(PING_EVERY)
        .subscription_capacity(WAITING_MAX)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            notice(&door, &event);
            std::future::ready(())
        })
        .connect(servers)
        .await
}

/// Before attempt `attempt`: a random part, but a quarter at least, of 10 ms, 20 ms, and so on up to 4 s, so that the
/// clients of a server that ended do not all come at once.
fn reconnect_delay(attempt: usize) -> Duration {
    let ceiling = RECONNECT_MIN.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(RECONNECT_MAX);
    let part = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
    ceiling.mul_f64(0.25 + 0.75 * part)
}

fn without_credentials(server: &ServerAddr) -> String {
    format!("{}://{}:{}", server.scheme(), server.host(), server.port())
}

/// Logs and counts what happened to the connection.
fn notice(door: &Door, event: &Event) {
    match event {
        Event::Connected => {
            info!("connected to NATS");
            door.failures.store(0, Ordering::Relaxed);
            door.connected.notify_one();
        }
        Event::Disconnected => warn!("the connection to NATS is lost; it is tried again until it is back"),
        Event::LameDuckMode => warn!("the NATS server is going away; the connection moves when it closes"),
        Event::SlowConsumer(_) => {
            let dropped = door.service.slow_consumer_events.fetch_add(1, Ordering::Relaxed) + 1;
            // One line each time the number has doubled: this comes in thousands.
            if dropped.is_power_of_two() {
                warn!(dropped, "requests came faster than relay takes them, and were dropped unanswered");
            }
        }
        Event::ServerError(refused) => error!(%refused, "NATS refused something: see `relay nats permissions`"),
        Event::ClientError(failed) => {
            let attempts = door.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if attempts.is_power_of_two() {
                warn!(%failed, attempts, "NATS can't be reached or does not let relay in; it is tried until it does");
            }
        }
        Event::Draining | Event::Closed => {}
    }
}

/// Says, once connected, whether NATS keeps clients apart as far as relay can see.
pub(super) async fn say_who_is_who(client: Client, door: Arc<Door>) {
    if client.connection_state() != State::Connected {
        door.connected.notified().await;
    }
    // The answer comes after the server has handled what came before on this connection: the subscriptions.
    let question = async_nats::Request::new().timeout(Some(WHO_AM_I_MAX));
    let answer = client.send_request(WHO_AM_I, question).await;
    info!(service = door.id(), "the NATS front door is open: relay.submit.CLIENT.QUEUE and the others");
    let restricted = answer.is_ok_and(|answer| {
        serde_json::from_slice::<UserInfo>(&answer.payload).is_ok_and(|info| info.data.permissions.is_some())
    });
    if !client.server_info().auth_required {
        warn!(
            "this NATS server has no users, so anyone is anyone: whoever reaches it can submit and read as any client; \
             `relay nats permissions` prints what to configure"
        );
    } else if !restricted {
        warn!(
            "relay's own user on NATS may do anything, so permissions are not set up as far as relay can see: unless \
             clients have them, anyone is anyone; `relay nats permissions` prints what to configure"
        );
    }
}

/// What of the server's answer matters here.
#[derive(Deserialize)]
struct UserInfo {
    data: UserData,
}

#[derive(Deserialize)]
struct UserData {
    #[serde(default)]
    permissions: Option<serde::de::IgnoredAny>,
}

#[cfg(test)]
mod tests {
    use relay_bridge::clock::Clock;
    use relay_bridge::embedded::{Embedded, EmbeddedConfig};

    use super::*;
    use crate::ingress::budget::Budget;
    use crate::ingress::nats::Limits;

    #[tokio::test]
    async fn dropped_requests_are_counted() {
        let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
        let door = Door::new(store.broker(), Limits::default(), Budget::new(1), Clock::system());
        for _ in 0..3 {
            notice(&door, &Event::SlowConsumer(1));
        }
        assert_eq!(door.slow_consumer_events(), 3);
    }

    #[test]
    fn reconnecting_slows_down_and_never_stops() {
        for (attempt, most) in [(0, 10), (1, 10), (2, 20), (10, 4_000), (usize::MAX, 4_000)] {
            let (delay, most) = (reconnect_delay(attempt), Duration::from_millis(most));
            assert!(most / 4 <= delay && delay <= most, "{attempt}: {delay:?}");
        }
    }
}
