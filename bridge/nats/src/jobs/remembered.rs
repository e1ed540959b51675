//! A bounded memory of places in streams: a place that was forgotten is looked for anew.

use relay_bridge::support::lock;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};

/// The most entries. One more, and all is forgotten: that costs a look at each, and no more.
const ENTRIES_MAX: usize = 65_536;

/// The last known value of each key.
#[derive(Debug)]
pub(crate) struct Remembered<K, V>(Mutex<HashMap<K, V>>);

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Copy> Remembered<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.entries().get(key).copied()
    }

    /// Remembers `value`, or forgets the key.
    pub(crate) fn set(&self, key: K, value: Option<V>) {
        let mut entries = self.entries();
        let Some(value) = value else {
            entries.remove(&key);
            return;
        };
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&key) {
            entries.clear();
        }
        entries.insert(key, value);
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        self.entries().clear();
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, V>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_may_change_where_it_is_full() {
        let remembered = Remembered::default();
        for key in 0..ENTRIES_MAX {
            remembered.set(key, Some(key));
        }
        remembered.set(7, Some(70));
        assert_eq!((remembered.get(&7), remembered.get(&8)), (Some(70), Some(8)));
        remembered.set(7, None);
        assert_eq!(remembered.get(&7), None);
        remembered.set(7, Some(7));
        remembered.set(ENTRIES_MAX, Some(1));
        assert_eq!((remembered.get(&ENTRIES_MAX), remembered.get(&8)), (Some(1), None));
    }
}
