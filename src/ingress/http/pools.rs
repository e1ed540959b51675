//! The connections of a process, in two pools: those on which nobody was authenticated yet, few and for a short time, and those
//! on which somebody was. A full pool makes room: of those without a caller the oldest goes, of the others the one that has been
//! idle for longest; where none is idle, or a second old, new peers wait in the listen queue.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use relay_bridge::support::lock;
use tokio::sync::Notify;

use super::Limits;
use super::connection::Connection;

/// How soon a full pool is looked at again for an idle member.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How many members one look finds: a look at a large pool costs, and a flood fills the places as they come.
const FOUND_MAX: usize = 64;

/// The connections of a process.
pub(super) struct Pools {
    max: usize,
    unproven_max: usize,
    per_source: Option<usize>,
    next: AtomicU64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    all: HashMap<u64, Arc<Connection>>,
    unproven: HashMap<u64, Arc<Connection>>,
    sources: HashMap<IpAddr, usize>,
    /// Members that were idle at the last look, the one that had been so for longest at the end.
    idle: Vec<Arc<Connection>>,
}

impl Pools {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max: limits.connections.max(1),
            unproven_max: limits.unproven.clamp(1, limits.connections.max(1)),
            per_source: limits.per_source,
            next: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Connections on which somebody was authenticated, and those on which nobody was.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.state();
        let unproven = state.unproven.len();
        (state.all.len() - unproven, unproven)
    }

    /// Waits for a place and gives it to a peer from `source`; `None` if there are as many from there as may be.
    pub(super) async fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Member> {
        loop {
            let changed = self.changed.notified();
            match self.try_enter(source) {
                Entered::In(connection) => return Some(Member { pools: Arc::clone(self), connection }),
                Entered::TooMany => return None,
                Entered::Full => {}
            }
            // One may be idle by then, of which nothing tells.
            drop(tokio::time::timeout(LOOK_AGAIN, changed).await);
        }
    }

    fn try_enter(&self, source: IpAddr) -> Entered {
        let mut state = self.state();
        if self.per_source.is_some_and(|most| state.sources.get(&source).is_some_and(|count| *count >= most)) {
            return Entered::TooMany;
        }
        if state.unproven.len() >= self.unproven_max {
            // Nothing is at work there for anybody who is known, so that also one that does not read its refusal makes room.
            let oldest = state.unproven.values().filter_map(|one| Some((one.old_since()?, one)));
            let Some(oldest) = oldest.min_by_key(|(since, _)| *since).map(|(_, one)| Arc::clone(one)) else {
                return Entered::Full;
            };
            state.close(&oldest);
        } else if state.all.len() >= self.max {
            let Some(longest) = state.longest_idle() else { return Entered::Full };
            state.close(&longest);
        }
        let connection = Connection::new(self.next.fetch_add(1, Ordering::Relaxed), source);
        state.all.insert(connection.id, Arc::clone(&connection));
        state.unproven.insert(connection.id, Arc::clone(&connection));
        if self.per_source.is_some() {
            *state.sources.entry(source).or_default() += 1;
        }
        Entered::In(connection)
    }

    /// Notes that somebody was authenticated on `connection`.
    pub(super) fn proven(&self, connection: &Connection) {
        self.state().unproven.remove(&connection.id);
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

enum Entered {
    In(Arc<Connection>),
    /// There is no place.
    Full,
    /// Its source has as many as it may.
    TooMany,
}

impl State {
    /// The member that has been idle for longest, or nearly.
    fn longest_idle(&mut self) -> Option<Arc<Connection>> {
        loop {
            while let Some(found) = self.idle.pop() {
                if self.all.contains_key(&found.id) && found.idle_since().is_some() {
                    return Some(found);
                }
            }
            let mut idle: Vec<_> = self.all.values().filter_map(|one| Some((one.idle_since()?, one))).collect();
            if idle.is_empty() {
                return None;
            }
            idle.sort_unstable_by_key(|(since, _)| *since);
            idle.truncate(FOUND_MAX);
            self.idle = idle.into_iter().rev().map(|(_, one)| Arc::clone(one)).collect();
        }
    }

    fn close(&mut self, connection: &Connection) {
        connection.ends.cancel();
        self.remove(connection);
    }

    fn remove(&mut self, connection: &Connection) {
        connection.gives_its_place_back();
        self.unproven.remove(&connection.id);
        let was_there = self.all.remove(&connection.id).is_some();
        if was_there && let Some(count) = self.sources.get_mut(&connection.source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&connection.source);
            }
        }
    }
}

/// A connection's place, until it is dropped.
pub(super) struct Member {
    pools: Arc<Pools>,
    pub(super) connection: Arc<Connection>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.pools.state().remove(&self.connection);
        self.pools.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::ingress::budget::Budget;
    use crate::ingress::clients::{ClientShares, Owner};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn pools(connections: usize, unproven: usize) -> Arc<Pools> {
        Pools::new(&Limits { connections, unproven, ..Limits::default() })
    }

    fn prove(pools: &Arc<Pools>, member: &Member) {
        let place = Budget::new(10, ClientShares::undivided()).take(&Owner::Unproven, 1).ok();
        assert!(member.connection.prove(|| place));
        pools.proven(&member.connection);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_pool_of_strangers_closes_its_longest_idle_one_and_keeps_those_that_are_proven() {
        let pools = pools(10, 2);
        let known = pools.enter(HERE).await.unwrap();
        prove(&pools, &known);
        let first = pools.enter(HERE).await.unwrap();
        tokio::time::advance(Duration::from_millis(10)).await;
        let second = pools.enter(HERE).await.unwrap();
        // None is idle before it is a second old.
        let third = pools.enter(HERE).await.unwrap();
        assert!(first.connection.ends.is_cancelled() && !second.connection.ends.is_cancelled());
        assert!(!known.connection.ends.is_cancelled());
        assert_eq!(pools.counts(), (1, 2));
        drop((first, second, third, known));
        assert_eq!((pools.counts(), pools.state().sources.len()), ((0, 0), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_is_idle_a_new_peer_waits_until_somebody_is() {
        let pools = pools(2, 2);
        let members = [pools.enter(HERE).await.unwrap(), pools.enter(HERE).await.unwrap()];
        for member in &members {
            prove(&pools, member);
        }
        let running = members.each_ref().map(|member| member.connection.begin());
        let entering = tokio::time::timeout(Duration::from_secs(60), pools.enter(HERE));
        assert!(entering.await.is_err(), "both have a request");
        drop(running);
        assert!(pools.enter(HERE).await.is_some());
        assert_eq!(members.iter().filter(|member| member.connection.ends.is_cancelled()).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_has_as_many_as_its_bound_says() {
        let pools = Pools::new(&Limits { per_source: Some(1), ..Limits::default() });
        let one = pools.enter(HERE).await.unwrap();
        assert!(pools.enter(HERE).await.is_none());
        assert!(pools.enter(Ipv4Addr::new(127, 0, 0, 2).into()).await.is_some());
        drop(one);
        assert!(pools.enter(HERE).await.is_some());
    }
}
