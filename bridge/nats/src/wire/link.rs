//! The state of a connection, kept from the client library's events: up or down, since when and why, and whether
//! messages may have been missed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_nats::{Event, ServerError, Statistics};
use relay_bridge::support::lock;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The state of a connection, as its users see it change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Why it is down; `None` while it is up.
    pub down: Option<String>,
    /// When it went up or down.
    pub since: Instant,
    /// Grows whenever announcements may have been missed: after each reconnect, and after the client dropped messages
    /// that nobody fetched. A caller that waits for announcements then looks for itself.
    pub epoch: u64,
}

impl Link {
    /// Whether it is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.down.is_none()
    }
}

/// Counts of failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The connection was lost.
    pub losses: u64,
    /// A server said that it is about to stop.
    pub lame_ducks: u64,
    /// A message was dropped because a subscriber of ours was slow.
    pub slow_consumers: u64,
    /// The server refused what relay's user may not do.
    pub refusals: u64,
    /// Other errors that the server reported.
    pub server_errors: u64,
}

/// The state that the client's events, the keeper and the users of a connection share.
#[derive(Debug)]
pub(crate) struct Shared {
    link: watch::Sender<Link>,
    /// [`Link::epoch`] by itself: a caller that waits for announcements is not woken by a loss, which it can do nothing
    /// about.
    epoch: watch::Sender<u64>,
    lame_duck: Notify,
    /// The server is of no use, although the connection stands.
    refused: AtomicBool,
    /// The client's own count of connections, once there is a client.
    statistics: OnceLock<Arc<Statistics>>,
    /// Connections that the epoch knows of.
    connects: AtomicU64,
    losses: AtomicU64,
    lame_ducks: AtomicU64,
    slow_consumers: AtomicU64,
    refusals: AtomicU64,
    server_errors: AtomicU64,
    /// The newest refusal, and when it was.
    refusal: watch::Sender<Option<(Instant, String)>>,
    told: [Throttle; 4],
}

/// The kinds of log lines that are limited, so that a storm of events does not fill the log.
#[derive(Clone, Copy)]
enum Line {
    Refusal,
    ServerError,
    SlowConsumer,
    StillDown,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let link = Link { down: Some("it was never up".to_owned()), since: Instant::now(), epoch: 0 };
        Self {
            link: watch::Sender::new(link),
            epoch: watch::Sender::new(0),
            lame_duck: Notify::new(),
            refused: AtomicBool::new(false),
            statistics: OnceLock::new(),
            connects: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            lame_ducks: AtomicU64::new(0),
            slow_consumers: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            server_errors: AtomicU64::new(0),
            refusal: watch::Sender::new(None),
            told: [(); 4].map(|()| Throttle::default()),
        }
    }

    /// The client counts connections by itself, also those whose event it dropped.
    pub(crate) fn watch(&self, statistics: Arc<Statistics>) {
        self.statistics.get_or_init(|| statistics);
    }

    fn connects_now(&self) -> u64 {
        self.statistics.get().map_or(0, |statistics| statistics.connects.load(Ordering::Relaxed))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    pub(crate) fn missed(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    fn missed_something(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
        let epoch = *self.epoch.borrow();
        self.link.send_modify(|link| link.epoch = link.epoch.max(epoch));
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            losses: read(&self.losses),
            lame_ducks: read(&self.lame_ducks),
            slow_consumers: read(&self.slow_consumers),
            refusals: read(&self.refusals),
            server_errors: read(&self.server_errors),
        }
    }

    /// Why it is down, if it is.
    pub(crate) fn down(&self) -> Option<String> {
        self.link.borrow().down.clone()
    }

    /// Resolves once per notice that the server is about to stop.
    pub(crate) async fn lame_duck(&self) {
        self.lame_duck.notified().await;
    }

    /// The server's newest refusal, if it was in the last seconds.
    pub(crate) fn lately_refused(&self) -> Option<String> {
        let refusal = self.refusal.borrow();
        refusal.as_ref().filter(|(at, _)| at.elapsed() < LATELY).map(|(_, text)| text.clone())
    }

    /// Resolves when the newest refusal is of a publish whose subject ends with `subject`.
    pub(crate) async fn refused_publish(&self, subject: &str) {
        let end = format!("{subject}\"");
        let mut refusals = self.refusal.subscribe();
        let is_it = |newest: &Option<(Instant, String)>| newest.as_ref().is_some_and(|(_, text)| text.contains(&end));
        // The sender is this one, so that it does not go away.
        refusals.wait_for(is_it).await.ok();
    }

    /// Takes an event of the client library. It must not wait: the library keeps 128 events and drops the rest.
    pub(crate) fn event(&self, event: Event) {
        match event {
            Event::Connected => {
                self.connects.fetch_max(self.connects_now(), Ordering::Relaxed);
                self.up();
            }
            Event::Disconnected => self.lost("the connection was lost"),
            Event::LameDuckMode => {
                self.lame_ducks.fetch_add(1, Ordering::Relaxed);
                self.lame_duck.notify_one();
            }
            Event::SlowConsumer(subscription) => {
                self.slow_consumers.fetch_add(1, Ordering::Relaxed);
                self.missed_something();
                if let Some(more) = self.due(Line::SlowConsumer) {
                    tracing::warn!(subscription, more, "a message from NATS was dropped: nobody fetched it in time");
                }
            }
            Event::ServerError(error) => self.server_error(&error),
            Event::ClientError(error) => self.still_down(&error.to_string()),
            Event::Draining => {}
            Event::Closed => self.closed(),
        }
    }

    fn server_error(&self, error: &ServerError) {
        let text = error.to_string();
        let is_refusal = text.to_ascii_lowercase().contains("permissions violation");
        if !is_refusal {
            self.server_errors.fetch_add(1, Ordering::Relaxed);
            if let Some(more) = self.due(Line::ServerError) {
                tracing::warn!(more, "NATS reports: {text}");
            }
            return;
        }
        self.refusals.fetch_add(1, Ordering::Relaxed);
        self.refusal.send_replace(Some((Instant::now(), text.clone())));
        if let Some(more) = self.due(Line::Refusal) {
            tracing::error!(
                more,
                "NATS refused what relay's user may not do: give that user this permission. It said: {text}"
            );
        }
    }

    /// The connection stands, and messages that it missed are to be looked for.
    pub(crate) fn up(&self) {
        if self.refused.load(Ordering::Relaxed) {
            return;
        }
        let mut before = None;
        self.link.send_modify(|link| {
            let up = Link { down: None, since: Instant::now(), epoch: link.epoch };
            before = Some(std::mem::replace(link, up));
        });
        // After the state is up, because the callers that this wakes look at once.
        self.missed_something();
        if let Some(before) = before.filter(|before| before.epoch > 0 && !before.is_up()) {
            tracing::info!(away_ms = before.since.elapsed().as_millis(), "NATS is back");
        }
    }

    /// The connection is gone.
    pub(crate) fn lost(&self, why: &str) {
        let was_up = self.link.send_if_modified(|link| {
            let was_up = link.is_up();
            if was_up {
                (link.down, link.since) = (Some(why.to_owned()), Instant::now());
            }
            was_up
        });
        if was_up {
            self.losses.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("NATS is away: {why}; trying again until it is back");
        }
    }

    /// The connection was closed by its owner, for good.
    pub(crate) fn closed(&self) {
        self.link.send_if_modified(|link| {
            let was_up = link.is_up();
            link.down = Some("the connection was closed".to_owned());
            was_up
        });
    }

    /// An attempt to come back failed.
    fn still_down(&self, why: &str) {
        let mut since = None;
        self.link.send_if_modified(|link| {
            if link.is_up() {
                return false;
            }
            since = Some(link.since);
            let changed = link.down.as_deref() != Some(why);
            link.down = Some(why.to_owned());
            changed
        });
        if let Some(since) = since
            && let Some(more) = self.due(Line::StillDown)
        {
            tracing::warn!(away_ms = since.elapsed().as_millis(), more, "NATS is still away: {why}");
        }
    }

    /// The connection stands, but the server is of no use, until [`Self::accept`].
    pub(crate) fn refuse(&self, why: String) {
        self.refused.store(true, Ordering::Relaxed);
        self.lost(&why);
        self.still_down(&why);
    }

    /// The server is one that relay works with.
    pub(crate) fn accept(&self) {
        if self.refused.swap(false, Ordering::Relaxed) {
            self.up();
        }
    }

    /// Catches up with events that were dropped: whether it is connected, and how often it connected since the start.
    pub(crate) fn reconcile(&self, connected: bool) {
        let connects = self.connects_now();
        let known = self.connects.fetch_max(connects, Ordering::Relaxed);
        let up = self.link.borrow().is_up();
        if connected && (!up || known < connects) {
            self.up();
        } else if !connected && up {
            self.lost("the connection was lost");
        }
    }

    /// Whether a line of this kind is due, and how many were left out since the last one.
    fn due(&self, line: Line) -> Option<u64> {
        self.told.get(line as usize)?.due(Instant::now())
    }
}

/// Lets a line through every [`TELL_EVERY`], and counts the others.
#[derive(Debug, Default)]
struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    fn due(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.0);
        let (last, left_out) = &mut *state;
        if last.is_some_and(|last| now.duration_since(last) < TELL_EVERY) {
            *left_out += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(left_out))
    }
}

/// How often a line of one kind is logged.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// For how long a refusal is a likely reason for a call without an answer.
const LATELY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_up_and_down_with_the_connection_and_says_why() {
        let shared = Shared::new();
        let link = shared.subscribe();
        assert!(!link.borrow().is_up());
        shared.event(Event::Connected);
        let first = link.borrow().clone();
        assert!(first.is_up());
        shared.event(Event::Disconnected);
        shared.event(Event::ClientError(async_nats::ClientError::Other("connection refused".to_owned())));
        assert_eq!(link.borrow().down.as_deref(), Some("nats: connection refused"));
        shared.event(Event::Connected);
        assert!(link.borrow().is_up() && link.borrow().epoch > first.epoch);
        assert_eq!(shared.counts(), Counts { losses: 1, ..Counts::default() });
    }

    #[test]
    fn a_dropped_message_makes_everybody_look_for_themselves() {
        let shared = Shared::new();
        shared.event(Event::Connected);
        let before = shared.subscribe().borrow().epoch;
        let mut missed = shared.missed();
        shared.event(Event::Disconnected);
        assert!(!missed.has_changed().unwrap(), "a loss alone is nothing to look for");
        shared.event(Event::Connected);
        assert!(missed.has_changed().unwrap());
        missed.mark_unchanged();
        shared.event(Event::SlowConsumer(7));
        assert!(missed.has_changed().unwrap());
        assert!(shared.subscribe().borrow().epoch > before);
        assert!(shared.subscribe().borrow().is_up());
        assert_eq!(shared.counts().slow_consumers, 1);
    }

    #[test]
    fn a_refusal_is_remembered_as_a_likely_reason() {
        let shared = Shared::new();
        assert_eq!(shared.lately_refused(), None);
        let text = "Permissions Violation for Publish to \"relay.jobs.q.a.1\"".to_owned();
        shared.event(Event::ServerError(ServerError::Other(text)));
        shared.event(Event::ServerError(ServerError::Other("maximum subscriptions exceeded".to_owned())));
        assert!(shared.lately_refused().unwrap().contains("relay.jobs.q.a.1"));
        assert_eq!((shared.counts().refusals, shared.counts().server_errors), (1, 1));
    }

    #[test]
    fn events_that_were_dropped_are_made_up_for() {
        let shared = Shared::new();
        let statistics = Arc::new(Statistics::default());
        shared.watch(Arc::clone(&statistics));
        statistics.connects.store(1, Ordering::Relaxed);
        shared.event(Event::Connected);
        let before = shared.subscribe().borrow().epoch;
        shared.reconcile(true);
        assert_eq!(shared.subscribe().borrow().epoch, before);
        statistics.connects.store(3, Ordering::Relaxed);
        shared.reconcile(true);
        assert!(shared.subscribe().borrow().epoch > before);
        shared.reconcile(false);
        assert!(!shared.subscribe().borrow().is_up());
        shared.reconcile(true);
        assert!(shared.subscribe().borrow().is_up());
    }

    #[test]
    fn a_server_of_no_use_stays_down_until_another_is_accepted() {
        let shared = Shared::new();
        shared.event(Event::Connected);
        shared.refuse("it is too old".to_owned());
        shared.event(Event::Connected);
        assert_eq!(shared.down().as_deref(), Some("it is too old"));
        shared.accept();
        assert_eq!(shared.down(), None);
    }

    #[test]
    fn a_storm_is_one_line_and_a_count() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let due: Vec<_> = (0..4).map(|_| throttle.due(now)).collect();
        assert_eq!(due, [Some(0), None, None, None]);
        assert_eq!(throttle.due(now + TELL_EVERY), Some(3));
    }
}
