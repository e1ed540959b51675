//! The numbers that a bridge counts beside its worker: calls of the target, by outcome. Every number only grows.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($(#[$all:meta])* $stats:ident, $(#[$moment:meta])* $report:ident, $($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $(#[$all])*
        #[derive(Debug, Default)]
        pub struct $stats {
            $(pub(super) $name: AtomicU64,)*
        }

        $(#[$moment])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct $report {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl $stats {
            /// The counters now.
            #[must_use]
            pub fn report(&self) -> $report {
                $report { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// The counters of a running bridge from relay to relay; read them with [`RelayStats::report`].
    RelayStats,
    /// The counters at one moment. The outcomes of the runs at the source are in the worker's report.
    RelayReport,
    /// Jobs put in line at the target.
    created,
    /// Submissions that found their job at the target: of an attempt before, here or on another replica.
    found,
    /// Jobs submitted again because the target knew nothing of them any more.
    submitted_again,
    /// Jobs cancelled at the target because their run had ended at the source.
    cancelled,
    /// Calls of the target that are tried again: it was away or full.
    refused,
}

counters! {
    /// The counters of a running intake of foreign messages; read them with [`ForeignStats::report`].
    ForeignStats,
    /// The counters at one moment.
    ForeignReport,
    /// Messages that came in, those that came again included.
    received,
    /// Jobs made of them.
    created,
    /// Messages that were jobs already: they came again.
    found,
    /// Messages put aside with the reason, because they can never be jobs.
    put_aside,
    /// Messages given back: in a drain, or until somebody mends the target.
    given_back,
    /// Messages whose end the foreign queue never confirmed: they come again.
    unsettled,
    /// Messages that were seen to their end, in whichever way.
    ended,
    /// Submissions that are tried again: the target was away or full.
    refused,
    /// Results sent to where they are waited for.
    replied,
    /// Results that another replica had sent.
    outrun,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
