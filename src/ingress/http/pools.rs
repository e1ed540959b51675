//! The connections of clients of a process, over HTTP and over TCP, in two pools: those on which nobody was authenticated yet, few and for a short time, and those
//! on which somebody was. A full pool makes room: of those without a caller the oldest goes, of the others the one that has been
//! idle for longest; where none is idle, or a second old, new peers wait in the listen queue.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use relay_bridge::support::lock;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Limits;
use super::connection::{Asked, Connection};
use crate::ingress::proxy::header::EndpointId;
use crate::ingress::proxy::{HeaderOutcome, Source};

/// How soon a full pool is looked at again for an idle member.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How many members one look finds: a look at a large pool costs, and a flood fills the places as they come.
const FOUND_MAX: usize = 64;

/// The connections of a process.
pub(in crate::ingress) struct Pools {
    max: usize,
    unproven_max: usize,
    per_source: Option<usize>,
    source_unproven: usize,
    endpoint_max: usize,
    next: AtomicU64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    all: HashMap<u64, Arc<Connection>>,
    unproven: HashMap<u64, Arc<Connection>>,
    /// Members by the address of their socket, where that is bounded.
    peers: HashMap<IpAddr, usize>,
    /// Unproven members by their source, where a balancer names it.
    sources: HashMap<Source, usize>,
    /// Members by the VPC endpoint that they came through.
    endpoints: HashMap<EndpointId, usize>,
    /// When the last one came.
    last_came: Option<Instant>,
    /// Members that were idle at the last look, the one that had been so for longest at the end.
    idle: Vec<Arc<Connection>>,
}

impl Pools {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max: limits.connections.max(1),
            unproven_max: limits.unproven.clamp(1, limits.connections.max(1)),
            per_source: limits.per_source,
            source_unproven: limits.source_unproven,
            endpoint_max: limits.endpoint_connections,
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

    /// The connections for which `is_meant` holds, each once.
    pub(super) fn connections(&self, is_meant: impl Fn(&Connection) -> bool) -> Vec<Arc<Connection>> {
        self.state().all.values().filter(|one| is_meant(one)).cloned().collect()
    }

    /// When the last connection came, if one did.
    pub(super) fn last_came(&self) -> Option<Instant> {
        self.state().last_came
    }

    /// Waits for a place and gives it to `peer`; `None` if there are as many from there as may be.
    pub(in crate::ingress) async fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Member> {
        loop {
            let changed = self.changed.notified();
            match self.try_enter(peer) {
                Entered::In(connection) => return Some(Member { pools: Arc::clone(self), connection }),
                Entered::TooMany => return None,
                Entered::Full => {}
            }
            // One may be idle by then, of which nothing tells.
            drop(tokio::time::timeout(LOOK_AGAIN, changed).await);
        }
    }

    fn try_enter(&self, peer: IpAddr) -> Entered {
        let mut state = self.state();
        if self.per_source.is_some_and(|most| state.peers.get(&peer).is_some_and(|count| *count >= most)) {
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
        let connection = Connection::new(self.next.fetch_add(1, Ordering::Relaxed), peer);
        state.last_came = Some(connection.came());
        state.all.insert(connection.id, Arc::clone(&connection));
        state.unproven.insert(connection.id, Arc::clone(&connection));
        if self.per_source.is_some() {
            *state.peers.entry(peer).or_default() += 1;
        }
        Entered::In(connection)
    }

    /// Notes the source of `connection`, which a balancer named.
    ///
    /// # Errors
    /// If there are as many of that source or endpoint as may be: the connection is to be closed.
    pub(super) fn name(&self, connection: &Connection, source: Source) -> Result<(), HeaderOutcome> {
        let mut state = self.state();
        // One that was closed to make room is counted nowhere any more, and ends by itself.
        if !state.unproven.contains_key(&connection.id) {
            return Ok(());
        }
        if let Some(endpoint) = &source.endpoint
            && state.endpoints.get(endpoint).is_some_and(|count| *count >= self.endpoint_max)
        {
            return Err(HeaderOutcome::EndpointFull);
        }
        if state.sources.get(&source).is_some_and(|count| *count >= self.source_unproven) {
            return Err(HeaderOutcome::SourceFull);
        }
        if connection.source.set(source.clone()).is_ok() {
            if let Some(endpoint) = &source.endpoint {
                *state.endpoints.entry(endpoint.clone()).or_default() += 1;
            }
            *state.sources.entry(source).or_default() += 1;
        }
        Ok(())
    }

    /// Notes that somebody was authenticated on `connection`.
    pub(in crate::ingress) fn proven(&self, connection: &Connection) {
        self.state().no_longer_unproven(connection);
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
        connection.ask(Asked::End);
        self.remove(connection);
    }

    fn remove(&mut self, connection: &Connection) {
        connection.gives_its_place_back();
        self.no_longer_unproven(connection);
        if self.all.remove(&connection.id).is_none() {
            return;
        }
        one_less(&mut self.peers, &connection.peer);
        if let Some(endpoint) = connection.source.get().and_then(|source| source.endpoint.as_ref()) {
            one_less(&mut self.endpoints, endpoint);
        }
    }

    fn no_longer_unproven(&mut self, connection: &Connection) {
        if self.unproven.remove(&connection.id).is_some()
            && let Some(source) = connection.source.get()
        {
            one_less(&mut self.sources, source);
        }
    }
}

fn one_less<K: Hash + Eq>(counts: &mut HashMap<K, usize>, of: &K) {
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

/// A connection's place, until it is dropped.
pub(in crate::ingress) struct Member {
    pools: Arc<Pools>,
    pub(in crate::ingress) connection: Arc<Connection>,
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

    fn endpoint(id: &str) -> Option<EndpointId> {
        EndpointId::read(id.as_bytes())
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
        assert!(first.connection.asked() == Asked::End && second.connection.asked() == Asked::Nothing);
        assert!(known.connection.asked() == Asked::Nothing);
        assert_eq!(pools.counts(), (1, 2));
        drop((first, second, third, known));
        assert_eq!((pools.counts(), pools.state().peers.len()), ((0, 0), 0));
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
        assert_eq!(members.iter().filter(|member| member.connection.asked() == Asked::End).count(), 1);
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

    #[tokio::test(start_paused = true)]
    async fn a_source_has_few_members_without_a_caller_and_an_endpoint_its_own_number_of_all() {
        let pools = Pools::new(&Limits { source_unproven: 1, endpoint_connections: 2, ..Limits::default() });
        let [ours, theirs] = &["vpce-0000000a", "vpce-0000000b"].map(endpoint);
        let source = |endpoint: &Option<EndpointId>, last: u8| Source {
            endpoint: endpoint.clone(),
            address: IpAddr::from([10, 0, 0, last]),
        };
        let named = async |source: Source| {
            let member = pools.enter(HERE).await.unwrap();
            pools.name(&member.connection, source).map(|()| member)
        };
        let first = named(source(ours, 1)).await.unwrap();
        assert_eq!(named(source(ours, 1)).await.err(), Some(HeaderOutcome::SourceFull));
        // The same address of another company, and of none, is another source.
        let (other, local) = (named(source(theirs, 1)).await.unwrap(), named(source(&None, 1)).await.unwrap());
        prove(&pools, &first);
        let second = named(source(ours, 1)).await.unwrap();
        assert_eq!(named(source(ours, 2)).await.err(), Some(HeaderOutcome::EndpointFull), "whichever address it has");
        drop(first);
        assert_eq!(named(source(ours, 1)).await.err(), Some(HeaderOutcome::SourceFull), "of the second one");
        drop(second);
        let third = named(source(ours, 1)).await.unwrap();
        drop((other, local, third));
        let state = pools.state();
        assert_eq!((state.all.len(), state.sources.len(), state.endpoints.len(), state.peers.len()), (0, 0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_was_closed_for_others_is_counted_nowhere_whenever_its_source_is_named() {
        let pools = Pools::new(&Limits { unproven: 1, source_unproven: 1, ..Limits::default() });
        let source = Source { endpoint: endpoint("vpce-0000000a"), address: HERE };
        let closed = pools.enter(HERE).await.unwrap();
        let member = pools.enter(HERE).await.unwrap();
        assert_eq!(closed.connection.asked(), Asked::End);
        assert_eq!(pools.name(&closed.connection, source.clone()), Ok(()));
        assert_eq!(pools.name(&member.connection, source), Ok(()));
        drop((closed, member));
        let state = pools.state();
        assert_eq!((state.sources.len(), state.endpoints.len()), (0, 0));
    }
}
