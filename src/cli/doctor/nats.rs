//! The way to relay over NATS, as a client goes it: a connection, the rights of the client's user, and somebody who answers.

use std::time::{Duration, Instant};

use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use relay_bridge::error::BrokerError;
use relay_nats::config::NatsConfig;
use relay_nats::connection::{Connection, Wait};
use tokio::time::timeout;

use super::step::Failure;

/// How long a connection and an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// No job has this id.
const NOBODYS_JOB: &str = "00000000-0000-8000-8000-000000000000";

/// Asks relay for a job that is not there, as `client`.
///
/// # Errors
/// There is no connection, no right to ask or to hear the answer, or nobody who answers.
pub(super) async fn asked(config: NatsConfig, client: &str) -> Result<((), String), Failure> {
    let connection =
        Connection::open_core(config, Wait::AtMost(PATIENCE)).await.map_err(|error| unconnected(&error))?;
    let asked = ask(&connection, client).await;
    connection.close().await;
    asked
}

async fn ask(connection: &Connection, client: &str) -> Result<((), String), Failure> {
    let (subject, begun) = (format!("relay.status.{client}"), Instant::now());
    let asked = connection.client().request(subject.clone(), Bytes::from_static(NOBODYS_JOB.as_bytes()));
    let answer = match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
            return Err(Failure::new(
                format!("nobody answers on {subject}: the NATS server is there, and no relay listens on it"),
                "look whether relay serves clients there (--nats-listen, or --nats without --nats-no-listen), in the account that \
                 this user is in",
            ));
        }
        Ok(Err(_)) | Err(_) => {
            return Err(Failure::new(
                format!("a request on {subject} has no answer"),
                "the user may not publish on it, or not subscribe to its inbox: give --nats-inbox-prefix as `relay nats permissions` \
                 names it for this client",
            ));
        }
    };
    let headers = answer.headers.unwrap_or_default();
    let slug = headers.get("Nats-Service-Error").map_or("none", |slug| slug.as_str());
    if slug != "not-found" {
        return Err(Failure::new(
            format!("the answer on {subject} is not relay's: {slug}"),
            "another service answers on relay's subjects, or relay refuses this client: look at its log",
        ));
    }
    let (info, ms) = (connection.client().server_info(), begun.elapsed().as_secs_f64() * 1_000.0);
    Ok((
        (),
        format!(
            "through nats-server {} ({}), relay answered on {subject} after {ms:.1} ms",
            info.version, info.server_name
        ),
    ))
}

fn unconnected(error: &BrokerError) -> Failure {
    Failure::new(
        error.to_string(),
        "look at the port, its listener without PROXY headers, TLS (--nats-tls, --nats-tls-first, --nats-ca) and the credentials",
    )
}
