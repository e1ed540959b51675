//! How fast each client submits to each queue: a token bucket for every pair that has a rate, in this process alone. Of
//! several processes each lets that much in.
//!
//! All ingresses of a process count in one place. Arithmetic is in whole numbers, so that `Retry-After` is exact: a
//! client that waits that long is let in, if nobody else of the same client came in between.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName, Rate};
use relay_bridge::policy::ClientPolicy;

use super::refusal::Refusal;
use crate::api::{Problem, Slug};
use relay_bridge::support::lock;

/// Buckets at once, some 10 MiB. Beyond it those that are full are dropped, which changes nothing, and if that is not
/// enough all of them, which lets each client have its burst again.
const BUCKETS_MAX: usize = 65_536;

/// The buckets of one process.
pub struct Rates {
    clock: Clock,
    buckets: Mutex<HashMap<(ClientId, QueueName), Bucket>>,
}

impl fmt::Debug for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rates").field("buckets", &self.buckets().len()).finish_non_exhaustive()
    }
}

/// The limit of a client: so much in which time, and how many at once.
type Limit = (Rate, u32);

fn limit(policy: &ClientPolicy) -> Option<Limit> {
    policy.rate.map(|rate| (rate, policy.burst.max(1)))
}

impl Rates {
    /// No client has submitted anything.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { clock, buckets: Mutex::default() })
    }

    /// Counts a submission of `client` to `queue`, where `policy` holds for it.
    ///
    /// # Errors
    /// `rate-limited` if it comes too early: it is not counted.
    pub(super) fn take(&self, client: &ClientId, queue: &QueueName, policy: &ClientPolicy) -> Result<(), Refusal> {
        let Some(limit) = limit(policy) else { return Ok(()) };
        let (now, pair) = (self.clock.monotonic(), (client.clone(), queue.clone()));
        let mut buckets = self.buckets();
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(&pair) {
            make_room(&mut buckets, now);
        }
        let bucket = buckets.entry(pair).or_insert_with(|| Bucket::full(limit, now));
        bucket.fill(limit, now);
        bucket.take().map_err(|after| refusal(client, queue, limit, after))
    }

    /// The same without counting it.
    ///
    /// # Errors
    /// `rate-limited` if a submission would be refused now.
    pub(super) fn look(&self, client: &ClientId, queue: &QueueName, policy: &ClientPolicy) -> Result<(), Refusal> {
        let Some(limit) = limit(policy) else { return Ok(()) };
        self.copy(client, queue, limit).take().map_err(|after| refusal(client, queue, limit, after))
    }

    /// How many submissions would be let in now; `None` without a limit.
    pub(super) fn left(&self, client: &ClientId, queue: &QueueName, policy: &ClientPolicy) -> Option<u32> {
        limit(policy).map(|limit| self.copy(client, queue, limit).left())
    }

    fn copy(&self, client: &ClientId, queue: &QueueName, limit: Limit) -> Bucket {
        let now = self.clock.monotonic();
        let known = self.buckets().get(&(client.clone(), queue.clone())).cloned();
        let mut bucket = known.unwrap_or_else(|| Bucket::full(limit, now));
        bucket.fill(limit, now);
        bucket
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<(ClientId, QueueName), Bucket>> {
        lock(&self.buckets)
    }
}

fn make_room(buckets: &mut HashMap<(ClientId, QueueName), Bucket>, now: Duration) {
    buckets.retain(|_, bucket| {
        bucket.fill(bucket.limit, now);
        bucket.credit < bucket.capacity()
    });
    if buckets.len() >= BUCKETS_MAX {
        tracing::warn!(BUCKETS_MAX, "more clients are at their rate than are counted: each may have its burst again");
        buckets.clear();
    }
}

fn refusal(client: &ClientId, queue: &QueueName, (rate, burst): Limit, after: Duration) -> Refusal {
    let detail = format!(
        "client {client} may submit {rate} to queue {queue}, {burst} at once, and has; nothing was done: send it again \
         after Retry-After"
    );
    let mut problem = Problem::new(Slug::RateLimited, detail).with_retry_after(after);
    problem.limit = Some(rate.count().get().into());
    problem.into()
}

/// The unused part of a client's rate. A submission costs the rate's span, in nanoseconds; time that passes is worth
/// its length times the rate's count.
#[derive(Clone, Debug)]
struct Bucket {
    limit: Limit,
    credit: u128,
    at: Duration,
}

impl Bucket {
    fn full(limit: Limit, now: Duration) -> Self {
        let mut bucket = Self { limit, credit: 0, at: now };
        bucket.credit = bucket.capacity();
        bucket
    }

    fn cost(&self) -> u128 {
        self.limit.0.span().as_nanos()
    }

    fn capacity(&self) -> u128 {
        u128::from(self.limit.1) * self.cost()
    }

    /// Adds what the time since is worth. With another limit it begins anew.
    fn fill(&mut self, limit: Limit, now: Duration) {
        if limit != self.limit {
            *self = Self::full(limit, now);
            return;
        }
        let passed = now.saturating_sub(self.at).as_nanos();
        self.credit = passed.saturating_mul(self.per_nanosecond()).saturating_add(self.credit).min(self.capacity());
        self.at = self.at.max(now);
    }

    fn per_nanosecond(&self) -> u128 {
        self.limit.0.count().get().into()
    }

    fn left(&self) -> u32 {
        u32::try_from(self.credit / self.cost()).unwrap_or(u32::MAX)
    }

    /// Takes one, or says after how long there is one: whole milliseconds, rounded up.
    fn take(&mut self) -> Result<(), Duration> {
        match self.credit.checked_sub(self.cost()) {
            Some(rest) => {
                self.credit = rest;
                Ok(())
            }
            None => {
                let nanoseconds = (self.cost() - self.credit).div_ceil(self.per_nanosecond());
                Err(Duration::from_millis(u64::try_from(nanoseconds.div_ceil(1_000_000)).unwrap_or(u64::MAX)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use relay_bridge::contract::Timestamp;

    use super::*;

    fn policy(rate: &str, burst: u32) -> ClientPolicy {
        ClientPolicy { rate: Some(rate.parse().unwrap()), burst, ..ClientPolicy::default() }
    }

    fn rates() -> (Arc<Rates>, Clock) {
        let clock = Clock::manual(Timestamp::from_millis(0));
        (Rates::new(clock.clone()), clock)
    }

    fn wait(taken: Result<(), Refusal>) -> Option<Duration> {
        taken.err().map(|Refusal(problem)| problem.retry_after.unwrap().0)
    }

    #[test]
    fn a_client_has_its_burst_at_once_and_then_its_rate_to_the_millisecond() {
        let (rates, clock) = rates();
        let (shop, mail) = ("shop".parse().unwrap(), "mail".parse().unwrap());
        for rate in ["3/s", "7/min", "1/h", "1000/s", "86399/d"] {
            let policy = policy(rate, 5);
            for left in (0..5).rev() {
                assert_eq!(wait(rates.take(&shop, &mail, &policy)), None, "{rate}");
                assert_eq!(rates.left(&shop, &mail, &policy), Some(left), "{rate}");
            }
            for _ in 0..100 {
                let after = wait(rates.take(&shop, &mail, &policy)).unwrap();
                assert_eq!(wait(rates.look(&shop, &mail, &policy)), Some(after), "{rate}: looking costs nothing");
                clock.advance(after - Duration::from_millis(1));
                assert_eq!(wait(rates.take(&shop, &mail, &policy)), Some(Duration::from_millis(1)), "{rate}");
                clock.advance(Duration::from_millis(1));
                assert_eq!(wait(rates.take(&shop, &mail, &policy)), None, "{rate}");
            }
        }
    }

    #[test]
    fn over_a_long_time_no_more_comes_in_than_the_rate_and_one_burst() {
        let (rates, clock) = rates();
        let (shop, mail) = ("shop".parse().unwrap(), "mail".parse().unwrap());
        let policy = policy("7/s", 3);
        let mut taken = 0;
        for _ in 0..10_000 {
            taken += u32::from(rates.take(&shop, &mail, &policy).is_ok());
            clock.advance(Duration::from_millis(10));
        }
        assert_eq!(taken, 7 * 100 + 3 - 1, "the last one is due 10 ms later");
    }

    #[test]
    fn each_client_has_a_bucket_of_its_own_in_each_queue_and_a_new_limit_begins_anew() {
        let (rates, _clock) = rates();
        let one = policy("1/h", 1);
        for (client, queue) in [("a", "x"), ("a", "y"), ("b", "x")] {
            let (client, queue) = (client.parse().unwrap(), queue.parse().unwrap());
            assert!(rates.take(&client, &queue, &one).is_ok());
            assert!(rates.take(&client, &queue, &one).is_err());
        }
        let (client, queue) = ("a".parse().unwrap(), "x".parse().unwrap());
        assert!(rates.take(&client, &queue, &policy("2/h", 1)).is_ok());
        assert!(rates.take(&client, &queue, &ClientPolicy::default()).is_ok(), "without a rate there is no limit");
        assert_eq!(rates.left(&client, &queue, &ClientPolicy::default()), None);
    }

    #[test]
    fn buckets_are_bounded_and_those_that_are_full_go_first() {
        let (rates, clock) = rates();
        let queue = "x".parse().unwrap();
        let (fast, slow) = (policy("1/s", 1), policy("1/d", 1));
        let known = "known".parse().unwrap();
        assert!(rates.take(&known, &queue, &slow).is_ok());
        for n in 1..BUCKETS_MAX {
            assert!(rates.take(&format!("c-{n}").parse().unwrap(), &queue, &fast).is_ok());
        }
        clock.advance(Duration::from_secs(1));
        assert!(rates.take(&"one-more".parse().unwrap(), &queue, &fast).is_ok());
        assert_eq!(rates.buckets().len(), 2);
        assert!(rates.take(&known, &queue, &slow).is_err(), "who is at its limit is remembered");
        for n in 0..2 * BUCKETS_MAX {
            assert!(rates.take(&format!("d-{n}").parse().unwrap(), &queue, &slow).is_ok());
            assert!(rates.buckets().len() <= BUCKETS_MAX);
        }
    }
}
