//! Subscriptions, bounded concurrency, and the drain.
//!
//! Messages are taken from the connection as they come: the client library drops messages that wait there when its
//! buffer is full, so a request beyond the limits is answered `overloaded` instead. The reader never waits for long
//! until the connection takes that: while it takes nothing, requests beyond the limits are counted and not answered.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use relay_nats::connection::Connection;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::desk::Desk;
use super::gate::Visit;
use super::stats::{QUEUE_GROUP, Verb};
use super::subject::{self, Address, Endpoint};
use super::{Ingress, permissions};
use crate::ingress::clients::Owner;

/// How long the last answers may take to leave the process.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// How long reading may stand still until the connection takes that a request is too many.
const TURN_AWAY_MAX: Duration = Duration::from_millis(100);

/// More messages than a subscription ever has, and more than the server can read: it takes nine digits.
const NEVER: u64 = 10_000_000_000;
/// How long the server may take to say that it has sent its last message.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Serves `ingress` on `connection` until `shutdown`, then drains: the subscriptions end, requests that came before their
/// end are answered. Requests that are left after `drain` are cut off. The connection may be lost and come back any
/// number of times.
///
/// # Errors
/// If the connection was closed for good, which only this process does.
pub async fn serve(
    connection: Connection,
    ingress: Arc<Ingress>,
    shutdown: CancellationToken,
    drain: Duration,
) -> io::Result<()> {
    let client = Arc::new(connection.client().clone());
    let closed = |what: String| io::Error::new(io::ErrorKind::NotConnected, what);
    let listening = Listening {
        ingress,
        client,
        connection,
        tasks: TaskTracker::new(),
        drain: shutdown.clone(),
        kill: CancellationToken::new(),
    };
    let mut endpoints = JoinSet::new();
    for endpoint in Endpoint::ALL {
        let subscribed = listening.client.queue_subscribe(endpoint.subject(), QUEUE_GROUP.to_owned()).await;
        let subscriber = subscribed.map_err(|error| closed(format!("{}: {error}", endpoint.subject())))?;
        endpoints.spawn(listening.clone().take(endpoint, subscriber));
    }
    let mut verbs = JoinSet::new();
    for verb in Verb::ALL {
        let mut subscribers = Vec::new();
        for subject in verb.subjects(listening.ingress.id()) {
            let subscribed = listening.client.subscribe(subject.clone()).await;
            subscribers.push(subscribed.map_err(|error| closed(format!("{subject}: {error}")))?);
        }
        verbs.spawn(listening.clone().describe(verb, select_all(subscribers)));
    }
    verbs.spawn(permissions::say_who_is_who(Client::clone(&listening.client), Arc::clone(&listening.ingress)));

    let ended = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = endpoints.join_next() => ended,
    };
    if ended.is_some() && !shutdown.is_cancelled() {
        return Err(closed("the subscriptions ended".to_owned()));
    }
    info!(requests = listening.tasks.len(), "the NATS ingress drains");
    drop(verbs);
    listening.tasks.close();
    let drained = async {
        while endpoints.join_next().await.is_some() {}
        listening.tasks.wait().await;
    };
    if tokio::time::timeout(drain, drained).await.is_err() {
        warn!(requests = listening.tasks.len(), "the drain took too long; the rest is cut off");
        listening.kill.cancel();
        endpoints.shutdown().await;
        listening.tasks.wait().await;
    }
    if tokio::time::timeout(FLUSH_MAX, listening.client.flush()).await.is_err() {
        debug!("the last answers may not have left: NATS is not there");
    }
    Ok(())
}

#[derive(Clone)]
struct Listening {
    ingress: Arc<Ingress>,
    client: Arc<Client>,
    connection: Connection,
    tasks: TaskTracker,
    /// Cancelled at the beginning of a drain.
    drain: CancellationToken,
    /// Cancelled when the drain's time is over.
    kill: CancellationToken,
}

impl Listening {
    /// Takes the requests of one endpoint until the drain, and then those that were on their way.
    async fn take(self, endpoint: Endpoint, mut requests: Subscriber) {
        if self.admit_until(endpoint, &mut requests, self.drain.cancelled()).await {
            return;
        }
        // The client library's own drain forgets the subscription before the server's last messages are there, and drops
        // them. So the server ends it first, while the library still knows it: a number too large for the server means
        // at once to it, and never to the library.
        requests.unsubscribe_after(NEVER).await.ok();
        let last_words = async {
            let question = async_nats::Request::new().timeout(Some(LAST_WORDS_MAX));
            // Any answer will do, also that there is nobody to ask: what the server sent before it is here.
            self.client.send_request(permissions::WHO_AM_I, question).await.ok();
        };
        if self.admit_until(endpoint, &mut requests, last_words).await {
            return;
        }
        requests.unsubscribe().await.ok();
        self.admit_until(endpoint, &mut requests, std::future::pending()).await;
    }

    /// Whether the subscription ended before `until` did.
    async fn admit_until(
        &self,
        endpoint: Endpoint,
        requests: &mut Subscriber,
        until: impl Future<Output = ()>,
    ) -> bool {
        let mut until = std::pin::pin!(until);
        let mut stuck = false;
        loop {
            tokio::select! {
                message = requests.next() => match message {
                    Some(message) => stuck = !self.admit(endpoint, message, stuck).await,
                    None => return true,
                },
                () = &mut until => return false,
            }
        }
    }

    /// Whether the connection takes refusals; `stuck` if it did not when last seen.
    async fn admit(&self, endpoint: Endpoint, message: Message, stuck: bool) -> bool {
        let (ingress, line) = (Arc::clone(&self.ingress), Mutex::default());
        let desk = Desk { ingress, endpoint, came: Instant::now(), until_wait: None, line };
        let visit = Visit { desk, client: Arc::clone(&self.client), message, drain: self.drain.clone() };
        let owner = match Address::client(&visit.message.subject) {
            Ok(client) => self.ingress.owner(&client),
            Err(_) => Owner::Anybody,
        };
        let place = match self.ingress.requests.take(&owner, 1) {
            Ok(place) => place,
            Err(full) => return visit.turn_away(full, if stuck { Duration::ZERO } else { TURN_AWAY_MAX }).await,
        };
        let kill = self.kill.clone();
        // Boxed, so that nothing of it is left of a request that waits.
        let visit = Box::pin(visit.attend());
        self.tasks.spawn(async move {
            let waiting = kill.run_until_cancelled(visit).await;
            drop(place);
            if let Some(Some(waiting)) = waiting {
                waiting.attend(&kill).await;
            }
        });
        !stuck
    }

    /// Answers what is asked about the service.
    async fn describe(self, verb: Verb, mut questions: SelectAll<Subscriber>) {
        while let Some(question) = questions.next().await {
            let Some(reply) = question.reply.filter(|reply| subject::may_reply_to_service(reply)) else { continue };
            let answer = self.ingress.service.describe(verb, self.connection.counts().slow_consumers);
            if let Err(error) = self.client.publish(reply, answer.into()).await {
                debug!(%error, "a question about the service can't be answered");
            }
        }
    }
}
