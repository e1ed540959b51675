//! The counts of a worker. Every number only grows, but `starts_failing`; `running` is the difference between the
//! deliveries that came in and those that ended.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of a running worker; read them with [`WorkerStats::report`].
        #[derive(Debug, Default)]
        pub struct WorkerStats {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// The counters at one moment, and at the end of [`Worker::run`](crate::Worker::run).
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct WorkerReport {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl WorkerStats {
            /// The counters now.
            #[must_use]
            pub fn report(&self) -> WorkerReport {
                WorkerReport { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Deliveries that came in.
    leased,
    /// Handlers started, those included whose start failed.
    started,
    /// Starts that failed for a reason of this host, whose jobs were handed back.
    not_started,
    /// 1 while the handler can't be started here and leasing waits, else 0.
    starts_failing,
    /// Runs whose success this worker recorded first.
    succeeded,
    /// Attempts that ended with a retry to come.
    retried,
    /// Runs that a handler rejected for good, or whose result was too large.
    failed,
    /// Runs ended because their attempts were spent, here or where their handler passed them on to.
    exhausted,
    /// Runs whose deadline passed while this worker held them, or whose handler said so.
    expired,
    /// Runs that ended as cancelled because their handler said so.
    cancelled,
    /// Deliveries handed back without spending an attempt.
    handed_back,
    /// Deliveries whose lease ended before the worker was done.
    leases_lost,
    /// Deliveries whose run had ended elsewhere: cancelled, expired, or finished by another attempt.
    ended_elsewhere,
    /// Results that came second and were dropped.
    superseded,
    /// Deliveries whose end the broker never confirmed: the job comes again when its lease ends.
    unconfirmed,
    /// Deliveries that ended, in whichever way.
    finished,
}

impl WorkerReport {
    /// Deliveries in hand.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.leased.saturating_sub(self.finished)
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
