//! How relay's streams are kept (replicas, memory or disk), as far as they were looked at.

use relay_bridge::support::lock;
use std::sync::Mutex;

/// How several streams are kept, taken together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copies {
    pub(crate) replicas_least: usize,
    pub(crate) replicas_most: usize,
    /// Whether one of them is in the servers' memory.
    pub(crate) memory: bool,
}

impl Copies {
    pub(crate) fn by(replicas: usize, memory: bool) -> Self {
        Self { replicas_least: replicas, replicas_most: replicas, memory }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            replicas_least: self.replicas_least.min(other.replicas_least),
            replicas_most: self.replicas_most.max(other.replicas_most),
            memory: self.memory || other.memory,
        }
    }
}

/// How relay's streams were kept when they were last looked at.
#[derive(Debug)]
pub(crate) struct Kept(Mutex<Copies>);

impl Kept {
    pub(crate) fn new(copies: Copies) -> Self {
        Self(Mutex::new(copies))
    }

    pub(crate) fn get(&self) -> Copies {
        *lock(&self.0)
    }

    pub(crate) fn set(&self, copies: Copies) {
        *lock(&self.0) = copies;
    }
}
