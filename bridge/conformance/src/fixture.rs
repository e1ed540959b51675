//! The parts that an adapter gives the suite: an open broker, the passing of time, and a crash.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Calls;
use relay_bridge::broker::Broker;
use relay_bridge::contract::{Job, Timestamp, WorkerId};
use relay_bridge::leasing::Leasing;

/// One open broker under test. Queues and clients are named at random by the suite, so that a broker may be shared by
/// tests that run at the same time.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The broker as it is open now; after [`reopen`](Self::reopen) another one.
    fn broker(&self) -> Broker;

    /// The handle of one worker. An adapter that is reached over a connection gives each worker one of its own.
    async fn worker(&self, _worker: &WorkerId) -> Arc<dyn Leasing> {
        self.broker().leasing
    }

    /// The layer under the suite's calls. Default `None`: each call is made once, and none may fail for want of time,
    /// which holds for a broker in the test's own process. A broker in a process of its own wants [`Calls`].
    fn calls(&self) -> Option<&Calls> {
        None
    }

    /// The broker's wall clock.
    fn now(&self) -> Timestamp;

    /// Lets time pass for the broker: moves its clock, or waits.
    async fn pass(&self, time: Duration);

    /// The lease that the tests' queues have; every other time in them is a multiple or a part of it. At least 2 s.
    /// Default 30 s, for clocks that are moved; a broker in real time wants the smallest it can keep.
    fn lease(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// How much later than promised the broker may notice that a time has come, and how much earlier a test looks to
    /// find that it has not. Below a third of the lease. Default: a thirtieth.
    fn slack(&self) -> Duration {
        self.lease() / 30
    }

    /// For how many leases the tests' queues let a job live, and keep what is left of it afterwards. At least 10. Default
    /// 40; a broker in real time wants the fewest, because tests wait until all of it is past.
    fn span(&self) -> u32 {
        40
    }

    /// How near to the edge of a time a test looks, on both sides. Default: the 1 ms of a clock that is moved.
    fn edge(&self) -> Duration {
        Duration::from_millis(1)
    }

    /// How long a lease looks for what may be in line. Default zero: at once. A job that must be there is waited for
    /// where this is not zero.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    /// Stops the broker without a farewell, as a crash would, and starts it again on what it had stored. `false` if
    /// it stores nothing; its durability must then say so.
    async fn reopen(&self) -> bool;

    /// The process that has the broker open ends without a farewell, and another one opens it: state that is only in a
    /// process's memory is gone. A broker that is a server of its own goes on meanwhile. Default:
    /// [`reopen`](Self::reopen).
    async fn replace(&self) -> bool {
        self.reopen().await
    }

    /// Whether a caller can name the queues that it may touch. Default: yes. Over the TCP protocol its key says it, to the
    /// server alone.
    fn takes_queues_of_caller(&self) -> bool {
        true
    }

    /// Rewrites the envelope of `job`, which waits in line, as a version that this build does not read
    /// (see [`newer_envelope`](super::newer_envelope)). `false` if the adapter stores no envelope for a job in line;
    /// the promise is then tested on the envelope alone.
    async fn make_newer(&self, _job: &Job) -> bool {
        false
    }
}
