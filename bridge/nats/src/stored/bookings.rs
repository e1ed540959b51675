//! The bytes that this process writes, counted when a write begins and when it ends. The server's figures of storage
//! are out of date by these bytes, and a job is admitted and counted in one step.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::stored::names::{DEAD_SUBJECTS, ERASED_SUBJECTS, RESULTS_SUBJECTS, STATE_SUBJECTS};
use crate::stored::record::Outgoing;
use relay_bridge::support::lock;

/// The bytes that the server stores of a message beside its subject, its headers and its payload: in bytes, rounded up.
const MESSAGE_OVERHEAD: usize = 64;
/// The bytes that a header takes beside its name and its value.
const HEADER_OVERHEAD: usize = 4;

/// Numbers of bytes, in one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// In the streams of jobs.
    pub(crate) jobs: u64,
    /// In the streams of results and of dead letters.
    pub(crate) results: u64,
    /// Of jobs that were admitted: a part of `jobs`.
    pub(crate) admitted: u64,
}

impl Bytes {
    /// The bytes that a message takes. Workers' reports of their runs stay for a moment only and are not counted.
    fn of(message: &Outgoing) -> Self {
        let headers = message.headers.iter().map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(|value| name.len() + value.as_str().len() + HEADER_OVERHEAD).sum::<usize>()
        });
        let size = MESSAGE_OVERHEAD + message.subject.len() + headers.sum::<usize>() + message.payload.len();
        let (size, is_on) = (size as u64, |filter: &str| message.subject.starts_with(filter.trim_end_matches('>')));
        match () {
            () if is_on(STATE_SUBJECTS) => Self::default(),
            () if [RESULTS_SUBJECTS, ERASED_SUBJECTS, DEAD_SUBJECTS].into_iter().any(is_on) => {
                Self { results: size, ..Self::default() }
            }
            () => Self { jobs: size, ..Self::default() },
        }
    }

    fn each(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            jobs: with(self.jobs, other.jobs),
            results: with(self.results, other.results),
            admitted: with(self.admitted, other.admitted),
        }
    }

    /// These without `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        self.each(before, u64::saturating_sub)
    }

    fn plus(self, more: Self) -> Self {
        self.each(more, u64::saturating_add)
    }
}

/// The bytes written since the process began, or to be written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Booked {
    /// All that may be stored.
    pub(crate) begun: Bytes,
    /// The part of it that is: a server that is asked from now on counts it.
    pub(crate) ended: Bytes,
}

/// All bookings of one process.
#[derive(Debug, Default)]
pub(crate) struct Bookings {
    booked: Mutex<Booked>,
    one_ended: Notify,
}

impl Bookings {
    pub(crate) fn booked(&self) -> Booked {
        *self.lock()
    }

    /// Books a message.
    pub(crate) fn book(self: &Arc<Self>, message: &Outgoing) -> Booking {
        let bytes = Bytes::of(message);
        let mut booked = self.lock();
        booked.begun = booked.begun.plus(bytes);
        Booking { bookings: Arc::clone(self), bytes, is_sent: false }
    }

    /// Books a job that takes so many bytes, if `judge` admits it. No other booking comes between the two.
    pub(crate) fn admit<T>(
        self: &Arc<Self>,
        bytes: u64,
        judge: impl FnOnce(Booked) -> Result<(), T>,
    ) -> Result<Booking, T> {
        let mut booked = self.lock();
        judge(*booked)?;
        let bytes = Bytes { jobs: bytes, admitted: bytes, results: 0 };
        booked.begun = booked.begun.plus(bytes);
        Ok(Booking { bookings: Arc::clone(self), bytes, is_sent: false })
    }

    /// Waits until something that was booked has ended, for so long at most.
    pub(crate) async fn one_ended(&self, wait_max: Duration) {
        timeout(wait_max, self.one_ended.notified()).await.ok();
    }

    fn lock(&self) -> MutexGuard<'_, Booked> {
        lock(&self.booked)
    }
}

/// The bytes of one message, from the decision to write it until it is written. If this is dropped before the message
/// was sent, its bytes are free again.
#[derive(Debug)]
pub(crate) struct Booking {
    bookings: Arc<Bookings>,
    bytes: Bytes,
    is_sent: bool,
}

impl Booking {
    /// From now on it may be stored.
    pub(crate) fn sent(&mut self) {
        self.is_sent = true;
    }

    /// It was not stored, and may be sent again.
    pub(crate) fn refused(&mut self) {
        self.is_sent = false;
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let mut booked = self.bookings.lock();
        match self.is_sent {
            true => booked.ended = booked.ended.plus(self.bytes),
            false => booked.begun = booked.begun.since(self.bytes),
        }
        drop(booked);
        self.bookings.one_ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;

    use super::*;

    fn message(subject: &str) -> Outgoing {
        let mut headers = HeaderMap::new();
        headers.insert("Name", "value");
        Outgoing { subject: subject.to_owned(), headers, payload: vec![0; 1_000].into(), hint: None }
    }

    #[test]
    fn a_message_counts_for_the_stream_that_it_is_written_to() {
        let size = |subject: &str| 64 + subject.len() as u64 + 13 + 1_000;
        for subject in ["relay.jobs.mail.acme.x", "relay.timer.mail.acme.x"] {
            assert_eq!(Bytes::of(&message(subject)), Bytes { jobs: size(subject), ..Bytes::default() });
        }
        for subject in ["relay.results-log.acme.x", "relay.erased.acme.x", "relay.dead.x"] {
            assert_eq!(Bytes::of(&message(subject)), Bytes { results: size(subject), ..Bytes::default() });
        }
        assert_eq!(Bytes::of(&message("relay.state.acme.x")), Bytes::default());
    }

    #[test]
    fn bytes_are_free_again_unless_they_may_be_stored() {
        let bookings = Arc::new(Bookings::default());
        let admit = || bookings.admit(100, |_| Ok::<_, ()>(())).unwrap();
        let (mut stored, mut refused, unsent) = (admit(), admit(), admit());
        assert_eq!(bookings.booked().begun.admitted, 300);
        stored.sent();
        refused.sent();
        refused.refused();
        drop((stored, refused, unsent));
        let Booked { begun, ended } = bookings.booked();
        assert_eq!((begun, ended), (Bytes { jobs: 100, admitted: 100, results: 0 }, begun));
        assert_eq!(bookings.admit(1, |_| Err("full")).unwrap_err(), "full");
        assert_eq!(bookings.booked().begun, begun);
    }
}
