//! How many jobs this process may take of each queue: the places of the calls that wait, less the jobs that pulls may
//! still bring and those that nobody took yet. Pure: no clock, no I/O.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use relay_bridge::contract::{QueueName, WorkerId};

/// How long the rest of a call's places is kept for its worker's next call: a worker that is given one job of four asks for
/// three at once.
const KEPT_FOR: Duration = Duration::from_millis(20);

/// The calls that wait for jobs, and how many of their places are taken up.
#[derive(Debug, Default)]
pub(crate) struct Places {
    calls: HashMap<u64, Call>,
    last: u64,
    /// When the places of the first call that was answered are to be forgotten.
    kept_until: Option<Instant>,
    /// Places that pulls hold, and jobs that nobody took yet.
    held: HashMap<QueueName, u32>,
}

#[derive(Debug)]
struct Call {
    worker: WorkerId,
    queues: Vec<QueueName>,
    /// How many of its queues it has looked over, in their order.
    looked: usize,
    places: u32,
    /// Until when the places that are left are kept, once it was answered; `None` while it waits.
    kept_until: Option<Instant>,
}

impl Call {
    fn looked(&self) -> &[QueueName] {
        &self.queues[..self.looked]
    }
}

impl Places {
    /// Notes a call that waits for `places` jobs. Jobs of a queue are not asked for before the call has looked that
    /// queue over. The places kept of its worker's last call are over with that.
    pub(crate) fn call(&mut self, worker: &WorkerId, queues: Vec<QueueName>, places: u32) -> u64 {
        if self.kept_until.is_some() {
            self.calls.retain(|_, call| call.kept_until.is_none() || call.worker != *worker);
        }
        self.last += 1;
        self.calls.insert(self.last, Call { worker: worker.clone(), queues, looked: 0, places, kept_until: None });
        self.last
    }

    /// A call has looked over so many of its queues. Jobs of the next one are not to take the places of jobs that these
    /// have.
    pub(crate) fn looked(&mut self, call: u64, queues: usize) {
        if let Some(call) = self.calls.get_mut(&call) {
            call.looked = queues;
        }
    }

    /// A call that waited was answered with `taken` jobs.
    pub(crate) fn answered(&mut self, call: u64, taken: u32, now: Instant) {
        let Some(answered) = self.calls.get_mut(&call) else { return };
        answered.places = answered.places.saturating_sub(taken);
        if answered.places == 0 {
            self.calls.remove(&call);
            return;
        }
        let until = now + KEPT_FOR;
        // Also if it was answered before it had to look.
        (answered.kept_until, answered.looked) = (Some(until), answered.queues.len());
        self.kept_until.get_or_insert(until);
    }

    /// Ends a call whose worker went away, unless it was answered.
    pub(crate) fn left(&mut self, call: u64) {
        if self.calls.get(&call).is_some_and(|call| call.kept_until.is_none()) {
            self.calls.remove(&call);
        }
    }

    /// How many more jobs of `queue` may be on their way.
    pub(crate) fn free(&mut self, queue: &QueueName, now: Instant) -> u32 {
        self.forget_kept(now);
        self.left_of(queue, |_| true, |call| &call.queues)
    }

    /// How many more jobs of `queue` may be asked for, and how many of them somebody waits for now.
    pub(crate) fn room(&mut self, queue: &QueueName, now: Instant) -> (u32, u32) {
        self.forget_kept(now);
        let all = self.left_of(queue, |_| true, Call::looked);
        (all, self.left_of(queue, |call| call.kept_until.is_none(), Call::looked))
    }

    fn forget_kept(&mut self, now: Instant) {
        if self.kept_until.is_some_and(|until| until <= now) {
            self.calls.retain(|_, call| call.kept_until.is_none_or(|until| until > now));
            self.kept_until = self.calls.values().filter_map(|call| call.kept_until).min();
        }
    }

    /// The places for `queue` that are left in the calls that count, as far as jobs of their queues are asked for.
    fn left_of(&self, queue: &QueueName, counts: impl Fn(&Call) -> bool, asked: impl Fn(&Call) -> &[QueueName]) -> u32 {
        let held_of_all = self.held.values().fold(0_u32, |all, held| all.saturating_add(*held));
        let (mut all, mut here) = (0_u32, 0_u32);
        for call in self.calls.values().filter(|call| counts(call)) {
            all = all.saturating_add(call.places);
            if asked(call).contains(queue) {
                here = here.saturating_add(call.places);
            }
        }
        here.saturating_sub(self.held(queue)).min(all.saturating_sub(held_of_all))
    }

    /// Takes places: so many jobs of `queue` may come, or have come and wait.
    pub(crate) fn hold(&mut self, queue: &QueueName, places: u32) {
        match self.held.get_mut(queue) {
            Some(held) => *held = held.saturating_add(places),
            None => drop(self.held.insert(queue.clone(), places)),
        }
    }

    /// Gives places back: so many of these jobs do not come, were taken, or go back.
    pub(crate) fn release(&mut self, queue: &QueueName, places: u32) {
        if let Some(held) = self.held.get_mut(queue) {
            *held = held.saturating_sub(places);
        }
    }

    fn held(&self, queue: &QueueName) -> u32 {
        self.held.get(queue).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(names: &[&str]) -> Vec<QueueName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn worker(name: &str) -> WorkerId {
        name.parse().unwrap()
    }

    #[test]
    fn a_call_for_several_queues_has_each_place_once() {
        let (mut places, now) = (Places::default(), Instant::now());
        let [a, b] = [queues(&["a"]).remove(0), queues(&["b"]).remove(0)];
        assert_eq!(places.free(&a, now), 0, "nobody waits");
        places.call(&worker("w"), queues(&["a", "b"]), 4);
        assert_eq!([places.free(&a, now), places.free(&b, now)], [4, 4]);
        places.hold(&a, 3);
        assert_eq!([places.free(&a, now), places.free(&b, now)], [1, 1]);
        places.call(&worker("other"), queues(&["b"]), 2);
        assert_eq!([places.free(&a, now), places.free(&b, now)], [1, 3]);
        places.release(&a, 3);
        assert_eq!([places.free(&a, now), places.free(&b, now)], [4, 6]);
    }

    #[test]
    fn what_a_call_has_not_looked_over_takes_none_of_its_places() {
        let (mut places, now) = (Places::default(), Instant::now());
        let [first, last] = [queues(&["first"]).remove(0), queues(&["last"]).remove(0)];
        let call = places.call(&worker("w"), queues(&["first", "last"]), 1);
        assert_eq!([places.room(&first, now), places.room(&last, now)], [(0, 0), (0, 0)]);
        assert_eq!(places.free(&last, now), 1, "it is going to ask for it");
        places.looked(call, 1);
        assert_eq!([places.room(&first, now), places.room(&last, now)], [(1, 1), (0, 0)]);
        places.hold(&first, 1);
        places.looked(call, 2);
        assert_eq!(places.room(&last, now), (0, 0), "the first one has something");
        places.release(&first, 1);
        assert_eq!(places.room(&last, now), (1, 1));
    }

    #[test]
    fn what_is_left_of_a_call_is_kept_for_a_moment_or_until_its_worker_asks_again() {
        let (mut places, now, [queue]) = (Places::default(), Instant::now(), [queues(&["a"]).remove(0)]);
        let call = places.call(&worker("w"), queues(&["a"]), 4);
        places.hold(&queue, 1);
        places.release(&queue, 1);
        places.answered(call, 1, now);
        assert_eq!(places.room(&queue, now), (3, 0));
        assert_eq!(places.free(&queue, now + KEPT_FOR), 0, "it did not ask again");
        let call = places.call(&worker("w"), queues(&["a"]), 4);
        places.answered(call, 2, now);
        let call = places.call(&worker("w"), queues(&["a"]), 2);
        assert_eq!(places.free(&queue, now), 2, "it asks for what was left");
        places.left(call);
        assert_eq!(places.free(&queue, now), 0, "it went away");
        let call = places.call(&worker("w"), queues(&["a"]), 1);
        places.answered(call, 1, now);
        assert_eq!(places.free(&queue, now), 0, "it has what it asked for");
    }
}
