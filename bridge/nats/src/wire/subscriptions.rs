//! Subscriptions that several callers share: the server sends a message once to this process, however many callers wait
//! for it here, and only while one does. There is no task. Any caller that is polled reads for all of them and wakes
//! the others, so that a caller which nobody polls holds up nobody.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt as _;
use tokio::sync::Notify;

use crate::wire::api::Api;
use relay_bridge::error::BrokerError;
use relay_bridge::support::lock;

/// The subscriptions that are shared, by subject. An entry lives as long as somebody listens.
#[derive(Default)]
pub(crate) struct Subscriptions(Mutex<HashMap<Arc<str>, Weak<Shared>>>);

/// One subscription and its listeners.
struct Shared {
    subject: Arc<str>,
    /// The messages; empty until the connection has taken the subscription.
    heard: OnceLock<Mutex<Heard>>,
    bell: Arc<Bell>,
}

/// A subscription and its messages.
struct Heard {
    /// `None` once it has ended.
    subscriber: Option<Subscriber>,
    /// How many messages came.
    count: u64,
    /// The last of them, unless its only reader has taken it.
    last: Option<Box<Message>>,
}

/// Wakes all who listen. It is apart from the subscription, which has it as its waker and must not own itself.
#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify_waiters();
    }
}

/// A caller that listens; dropping the last one ends the subscription.
pub(crate) struct Listener<'a> {
    /// The subscriptions among which others find this one; `None` if it is shared with nobody.
    all: Option<&'a Subscriptions>,
    shared: Arc<Shared>,
    /// How many messages this listener has seen.
    seen: u64,
}

impl Subscriptions {
    /// Listens on `subject` together with the callers that do already.
    ///
    /// # Errors
    /// As [`Api::subscribe`].
    pub(crate) async fn join(
        &self,
        api: &Api,
        subject: String,
        operation: &'static str,
    ) -> Result<Listener<'_>, BrokerError> {
        let shared = self.shared(subject.into());
        // Made first: when it is dropped it removes the entry, whatever happens until then.
        let listener = Listener { all: Some(self), shared, seen: 0 };
        listener.begin(api, operation).await
    }

    fn shared(&self, subject: Arc<str>) -> Arc<Shared> {
        let mut all = self.all();
        if let Some(shared) = all.get(&subject).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Arc::new(Shared::new(Arc::clone(&subject)));
        all.insert(subject, Arc::downgrade(&shared));
        shared
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<Shared>>> {
        lock(&self.0)
    }
}

impl Listener<'_> {
    /// Listens on `subject` and shares it with nobody.
    ///
    /// # Errors
    /// As [`Api::subscribe`].
    pub(crate) async fn alone(api: &Api, subject: String, operation: &'static str) -> Result<Self, BrokerError> {
        let listener = Listener { all: None, shared: Arc::new(Shared::new(subject.into())), seen: 0 };
        listener.begin(api, operation).await
    }

    /// Hears what comes after this.
    async fn begin(mut self, api: &Api, operation: &'static str) -> Result<Self, BrokerError> {
        let Shared { subject, heard, .. } = &*self.shared;
        if heard.get().is_none() {
            let subscriber = Some(api.subscribe(subject.to_string(), operation).await?);
            // The faster one has it: to wait for another, which may not be polled any more, could take for ever.
            heard.set(Mutex::new(Heard { subscriber, count: 0, last: None })).ok();
        }
        self.seen = heard.get().map_or(0, |heard| lock(heard).count);
        Ok(self)
    }

    /// The next message, or the last one if several came; `None` if the subscription ended.
    pub(crate) async fn next(&mut self) -> Option<Box<Message>> {
        loop {
            let mut told = pin!(self.shared.bell.0.notified());
            // Before reading, so that no message falls between the two.
            told.as_mut().enable();
            if let Poll::Ready(heard) = self.shared.read(&mut self.seen) {
                return heard;
            }
            told.await;
        }
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        let Some(all) = self.all else { return };
        let mut all = all.all();
        // Nobody else has it, and under this lock nobody gets it.
        if Arc::strong_count(&self.shared) == 1 {
            all.remove(&self.shared.subject);
        }
    }
}

impl Shared {
    fn new(subject: Arc<str>) -> Self {
        Self { subject, heard: OnceLock::new(), bell: Arc::default() }
    }

    /// Reads what came, for all who listen. Gives what is new to one who has seen `seen` messages.
    fn read(self: &Arc<Self>, seen: &mut u64) -> Poll<Option<Box<Message>>> {
        let Some(heard) = self.heard.get() else { return Poll::Ready(None) };
        let mut heard = lock(heard);
        let waker = Waker::from(Arc::clone(&self.bell));
        let (mut context, mut is_news) = (Context::from_waker(&waker), false);
        while let Some(subscriber) = &mut heard.subscriber {
            match subscriber.poll_next_unpin(&mut context) {
                Poll::Pending => break,
                Poll::Ready(Some(message)) => (heard.count, heard.last) = (heard.count + 1, Some(Box::new(message))),
                Poll::Ready(None) => heard.subscriber = None,
            }
            is_news = true;
        }
        if is_news {
            self.bell.0.notify_waiters();
        }
        if heard.count > *seen {
            *seen = heard.count;
            // A message is not kept for those who come later.
            let is_only_one = Arc::strong_count(self) == 1;
            return Poll::Ready(if is_only_one { heard.last.take() } else { heard.last.clone() });
        }
        if heard.subscriber.is_none() { Poll::Ready(None) } else { Poll::Pending }
    }
}
