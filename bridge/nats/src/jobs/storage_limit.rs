//! Decides whether storage takes new jobs: at 90 % of what is allowed they are refused, and the rest is for outcomes,
//! cancels and redrives of jobs that were accepted.
//!
//! The server is asked every 2 to 10 s in the usual case, the less often the more room there is, and the bytes that
//! this process wrote since are counted on top. The bytes that other processes wrote since are not known. So each
//! process may admit a small part of the rest before it asks again, and a few of them together stay far from using it
//! up.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::jobs::storage::{Of, Storage, Use};
use crate::stored::bookings::{Booked, Booking, Bookings, Bytes};
use crate::wire::api::Api;
use crate::wire::single_flight::SingleFlight;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::support::lock;

/// How old the server's figures may be in any case, and where there is much room.
const AGE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];
/// The most bytes that all processes write in a second, as far as that age goes: the figures are used no longer than
/// the processes need to fill half of the room.
const WRITTEN_MAX: u64 = 1_000_000_000;
/// When a refused client may try again: jobs have to end and to be removed first.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long a job may wait for others that were admitted just now to be stored, where there is little room for several.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// When a job that waited in vain may try again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The part of what is allowed that new jobs may fill, in percent.
const SHARE: u64 = 90;
/// The part of the rest that one process may admit before it asks again: one in so many. Eight processes can't use it up.
const GRANTS: u64 = 8;

/// The server's last figures of storage, by which jobs are admitted.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    look: Mutex<Option<Look>>,
    /// The single flight in which the server is asked for the figures.
    asking: SingleFlight,
}

/// Storage as the server described it.
#[derive(Clone, Debug)]
struct Look {
    at: Instant,
    uses: Vec<Use>,
    /// The bytes of this process that the figures surely count.
    ended: Bytes,
}

/// Why new jobs are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Full {
    what: &'static str,
    used: u64,
    allowed: u64,
}

/// Why a job is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Not {
    Full(Full),
    /// The server has to be asked first.
    Known,
}

impl Admission {
    /// Admits a job that takes so many bytes, or refuses it. `None`: the server has to be asked first. An answer asked for
    /// after `called` is new.
    fn admit(&self, bookings: &Arc<Bookings>, bytes: u64, called: Instant) -> Option<Result<Booking, Full>> {
        let look = lock(&self.look);
        let look = look.as_ref().filter(|look| look.is_good())?;
        match bookings.admit(bytes, |booked| look.judge(booked, bytes, look.at >= called)) {
            Ok(booking) => Some(Ok(booking)),
            Err(Not::Full(full)) => Some(Err(full)),
            Err(Not::Known) => None,
        }
    }

    fn learn(&self, look: Look) {
        *lock(&self.look) = Some(look);
    }

    /// Whether the last figures are not too old: only the bytes written since make it ask again.
    fn is_spent(&self) -> bool {
        let look = lock(&self.look);
        look.as_ref().is_some_and(Look::is_good)
    }
}

impl Look {
    fn is_good(&self) -> bool {
        self.at.elapsed() < self.good_for()
    }

    fn good_for(&self) -> Duration {
        let room = |one: &Use| share(one.allowed).saturating_sub(one.used) / one.times.max(1);
        let least = self.uses.iter().map(room).min().unwrap_or(u64::MAX);
        Duration::from_secs(least / 2 / WRITTEN_MAX).clamp(AGE[0], AGE[1])
    }

    /// Whether a job that takes `own` bytes is admitted, with what is `booked`.
    fn judge(&self, booked: Booked, own: u64, is_new: bool) -> Result<(), Not> {
        let since = booked.begun.since(self.ended);
        let mut is_known = true;
        for one in &self.uses {
            let (written, admitted, own) = one.counts(since, own);
            let share = share(one.allowed);
            let full = |used| Err(Not::Full(Full { what: one.what, used, allowed: one.allowed }));
            let used = one.used.saturating_add(written);
            if one.used >= share || one.used.saturating_add(own) > share {
                return full(one.used);
            }
            // The bytes written may have taken the place of others.
            if used.saturating_add(own) > share {
                if is_new {
                    return full(used);
                }
                is_known = false;
            }
            // One job is admitted however large it is.
            if admitted > 0 && admitted.saturating_add(own) > (one.allowed - share) / GRANTS {
                is_known = false;
            }
        }
        if is_known { Ok(()) } else { Err(Not::Known) }
    }
}

impl Use {
    /// The bytes that count here: all that were written `since`, those of them that were admitted, and those that a job
    /// of `own` bytes adds.
    fn counts(&self, since: Bytes, own: u64) -> (u64, u64, u64) {
        let counts = match self.of {
            Of::Jobs => (since.jobs, since.admitted, own),
            Of::Results => (since.results, 0, 0),
            Of::All => (since.jobs.saturating_add(since.results), since.admitted, own),
        };
        let times = |bytes: u64| bytes.saturating_mul(self.times);
        (times(counts.0), times(counts.1), times(counts.2))
    }
}

/// Admits new jobs while there is storage.
pub(crate) struct StorageLimit {
    pub(crate) api: Api,
    pub(crate) storage: Storage,
    pub(crate) admission: Admission,
}

impl StorageLimit {
    /// Admits a job that relay does not know yet and that takes so many bytes. It counts as stored from now on.
    ///
    /// # Errors
    /// `Overloaded` at 90 % of the bytes that jobs, results or the account may have, or if there is so little room that
    /// others have to be stored first, and they are not within 5 s. `Unavailable` if nobody can tell.
    pub(crate) async fn admit(&self, bytes: u64) -> Result<Booking, BrokerError> {
        let (admission, bookings, called) = (&self.admission, self.api.bookings(), Instant::now());
        let admitted = match admission.admit(bookings, bytes, called) {
            Some(admitted) => admitted,
            None => {
                let known = || admission.admit(bookings, bytes, called);
                admission.asking.run(known, Box::pin(self.look_and_admit(bytes, called))).await?
            }
        };
        admitted.map_err(|Full { what, used, allowed }| {
            let full = BrokerErrorKind::Overloaded { retry_after: RETRY_AFTER };
            let why = format!(
                "{what} take {used} of {allowed} bytes, new jobs are taken below {SHARE} %: raise the limit, shorten \
                 `retention`, or wait until results are past it"
            );
            BrokerError::new(full, OPERATION, why).of_storage()
        })
    }

    async fn look_and_admit(&self, bytes: u64, called: Instant) -> Result<Result<Booking, Full>, BrokerError> {
        let (admission, bookings) = (&self.admission, self.api.bookings());
        loop {
            let (at, ended) = (Instant::now(), bookings.booked().ended);
            let uses = self.storage.used(admission.is_spent()).await?;
            admission.learn(Look { at, uses, ended });
            if let Some(admitted) = admission.admit(bookings, bytes, called) {
                return Ok(admitted);
            }
            // Jobs that were admitted before are on their way to storage.
            let Some(left) = WAIT_MAX.checked_sub(called.elapsed()) else {
                let busy = BrokerErrorKind::Overloaded { retry_after: AGAIN_AFTER };
                let why = "storage has room for few jobs at once, and others are being stored: try again";
                return Err(BrokerError::new(busy, OPERATION, why));
            };
            bookings.one_ended(left).await;
        }
    }
}

const OPERATION: &str = "enqueue";

fn share(allowed: u64) -> u64 {
    allowed / 100 * SHARE + allowed % 100 * SHARE / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOBS: Use = Use { what: "jobs", of: Of::Jobs, used: 0, allowed: 1_000, times: 1 };

    fn judge(uses: &[Use], booked: Booked, own: u64, is_new: bool) -> Result<(), Not> {
        Look { at: Instant::now(), uses: uses.to_vec(), ended: Bytes::default() }.judge(booked, own, is_new)
    }

    fn booked(jobs: u64, results: u64, admitted: u64) -> Booked {
        Booked { begun: Bytes { jobs, results, admitted }, ended: Bytes::default() }
    }

    fn full(what: &'static str, used: u64, allowed: u64) -> Result<(), Not> {
        Err(Not::Full(Full { what, used, allowed }))
    }

    #[test]
    fn new_jobs_are_taken_below_nine_tenths_of_each_limit() {
        let uses = |jobs, results, allowed| {
            let results = Use { what: "results", of: Of::Results, used: results, allowed, times: 1 };
            [Use { used: jobs, ..JOBS }, results]
        };
        let none = Booked::default();
        assert_eq!(judge(&uses(899, 0, 1), none, 1, true), full("results", 0, 1));
        assert_eq!(judge(&uses(899, 89, 100), none, 1, false), Ok(()));
        assert_eq!(judge(&uses(899, 89, 100), none, 2, false), full("jobs", 899, 1_000));
        assert_eq!(judge(&uses(900, 0, 100), none, 0, false), full("jobs", 900, 1_000));
        assert_eq!(share(u64::MAX), u64::MAX / 100 * 90 + 13);
        assert_eq!(judge(&[], booked(9, 9, 9), 1, false), Ok(()));
    }

    #[test]
    fn what_this_process_wrote_since_counts_and_the_server_is_asked_before_it_refuses() {
        let account = Use { what: "account", of: Of::All, used: 500, allowed: 3_000, times: 3 };
        let written = |jobs, results| booked(jobs, results, 0);
        assert_eq!(judge(&[account], written(300, 400), 33, false), Ok(()));
        assert_eq!(judge(&[account], written(300, 400), 34, false), Err(Not::Known));
        assert_eq!(judge(&[account], written(300, 400), 34, true), full("account", 2_600, 3_000));
        assert_eq!(judge(&[JOBS], written(899, 5_000), 1, false), Ok(()), "results are no jobs");
    }

    #[test]
    fn what_is_known_is_used_for_as_long_as_others_could_not_fill_half_of_the_room() {
        let gigabyte = 1_000_000_000;
        let good_for = |used, allowed, times| {
            let uses = vec![Use { used, allowed, times, ..JOBS }];
            Look { at: Instant::now(), uses, ended: Bytes::default() }.good_for().as_secs()
        };
        assert_eq!([0, 5, 10, 100].map(|allowed| good_for(0, allowed * gigabyte, 1)), [2, 2, 4, 10]);
        assert_eq!(good_for(90 * gigabyte, 100 * gigabyte, 1), 2, "it is nearly full");
        assert_eq!(good_for(0, 30 * gigabyte, 3), 4, "each byte counts three times");
        assert_eq!(Look { at: Instant::now(), uses: Vec::new(), ended: Bytes::default() }.good_for(), AGE[1]);
    }

    #[test]
    fn a_process_admits_an_eighth_of_the_rest_before_it_asks_again_and_one_job_of_any_size() {
        assert_eq!(judge(&[JOBS], booked(0, 0, 0), 800, false), Ok(()));
        assert_eq!(judge(&[JOBS], booked(10, 0, 10), 2, false), Ok(()));
        for is_new in [false, true] {
            assert_eq!(judge(&[JOBS], booked(10, 0, 10), 3, is_new), Err(Not::Known));
        }
        assert_eq!(judge(&[Use { times: 2, ..JOBS }], booked(5, 0, 5), 2, true), Err(Not::Known));
        let huge = Use { allowed: u64::MAX, ..JOBS };
        assert_eq!(judge(&[huge], booked(0, 0, u64::MAX / 1_000), 1, false), Ok(()), "where there is room nobody asks");
    }
}
