//! The calls that wait in this process, by the job or the client for which they wait. An event in this process wakes
//! them at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use relay_bridge::support::lock;

/// Waiters by the key for which they wait. An entry lives as long as it has a waiter.
pub(crate) struct Wakes<K>(Arc<Mutex<Waiters<K>>>);

type Waiters<K> = HashMap<K, (usize, Arc<Notify>)>;

impl<K> Default for Wakes<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Clone for Wakes<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// One waiter; dropping it ends its wait.
pub(crate) struct Waiter<K: Hash + Eq> {
    key: K,
    notify: Arc<Notify>,
    all: Arc<Mutex<Waiters<K>>>,
}

impl<K: Hash + Eq + Clone> Wakes<K> {
    /// Begins to wait for `key`. Begin before looking: an event after the look then wakes the waiter.
    pub(crate) fn begin(&self, key: &K) -> Waiter<K> {
        let mut all = lock(&self.0);
        let (waiters, notify) = all.entry(key.clone()).or_default();
        *waiters += 1;
        Waiter { key: key.clone(), notify: notify.clone(), all: self.0.clone() }
    }

    /// Wakes everyone who waits for `key`.
    pub(crate) fn wake(&self, key: &K) {
        if let Some((_, notify)) = lock(&self.0).get(key) {
            notify.notify_waiters();
        }
    }
}

impl<K: Hash + Eq> Waiter<K> {
    /// A future that ends when the waiter is woken; it has to be enabled before looking.
    pub(crate) fn woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl<K: Hash + Eq> Drop for Waiter<K> {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        if let Some((waiters, _)) = all.get_mut(&self.key) {
            *waiters -= 1;
            if *waiters == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn everyone_who_waits_for_a_thing_is_woken_by_it_and_leaves_nothing_behind() {
        let wakes = Wakes::default();
        {
            let (first, second, _other) = (wakes.begin(&"a"), wakes.begin(&"a"), wakes.begin(&"b"));
            let (mut one, mut two) = (pin!(first.woken()), pin!(second.woken()));
            assert!(!one.as_mut().enable() && !two.as_mut().enable());
            wakes.wake(&"b");
            assert!(!one.as_mut().enable(), "what another waits for wakes nobody else");
            wakes.wake(&"a");
            one.await;
            two.await;
        }
        assert!(lock(&wakes.0).is_empty());
    }
}
