//! Small things that all of relay shares.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what no panic can leave half done: nothing of ours panics while it holds a lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
