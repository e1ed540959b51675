//! A job's record as a message: its payload is the job's envelope, and headers hold what changes during a run.
//!
//! A rewrite keeps the envelope's bytes and every header that it does not set, so that a record of a newer relay
//! survives this build. `Nats-*` headers are the server's and are never carried over.

use async_nats::HeaderMap;
use async_nats::header::{
    HeaderName, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL, NATS_SCHEDULE, NATS_SCHEDULE_NEXT,
    NATS_SCHEDULE_TARGET, NATS_SCHEDULER,
};
use bytes::Bytes;

use crate::stored::names::{Address, Place};
use crate::wire::hints::Hint;
use relay_bridge::contract::envelope::{EnvelopeError, NEWEST, WireVersion, decode_job, encode_job};
use relay_bridge::contract::{Job, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// Attempts that were spent before this message: added to the server's count of its deliveries.
pub(crate) const CHARGED: HeaderName = HeaderName::from_static("Relay-Charged");
/// When the client cancelled the run, in milliseconds since the epoch. The run ends as `cancelled` unless it has ended.
pub(crate) const CANCELLED: HeaderName = HeaderName::from_static("Relay-Cancelled");
/// Whether the payload was erased: the job can't run again.
pub(crate) const ERASED: HeaderName = HeaderName::from_static("Relay-Erased");
/// Set if the run may have ended: its result is looked for before the job is given out, also after the record was
/// rewritten.
const DOUBTFUL: HeaderName = HeaderName::from_static("Relay-Doubtful");
/// The other half of a condition: the subject, with wildcards, whose last sequence is expected.
pub(crate) const EXPECTED_SUBJECT: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence-Subject");
/// The value of `Nats-Schedule-Next` that removes what `Nats-Scheduler` names.
const PURGE: &str = "purge";

/// A message of a stream, as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) seq: u64,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    /// When the stream's leader stored it.
    pub(crate) at: Timestamp,
}

/// A record, read from its message.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) address: Address,
    pub(crate) place: Place,
    pub(crate) seq: u64,
    pub(crate) headers: HeaderMap,
    pub(crate) envelope: Bytes,
    /// When this message was stored.
    pub(crate) at: Timestamp,
}

impl Record {
    /// # Errors
    /// `Corrupt` if the subject is no record's.
    pub(crate) fn read(stored: Stored) -> Result<Self, BrokerError> {
        let Some((place, address)) = Address::parse(&stored.subject) else {
            let what = format!("message {} on `{}` is no job's record", stored.seq, stored.subject);
            return Err(BrokerError::new(BrokerErrorKind::Corrupt, "read record", what));
        };
        let Stored { seq, headers, payload, at, .. } = stored;
        Ok(Self { address, place, seq, headers, envelope: payload, at })
    }

    /// The job in the record's envelope.
    ///
    /// # Errors
    /// `NewerVersion`, `Corrupt`.
    pub(crate) fn job(&self) -> Result<Job, BrokerError> {
        decode_job(&self.envelope).map_err(|unreadable| self.unreadable(&unreadable))
    }

    fn unreadable(&self, unreadable: &EnvelopeError) -> BrokerError {
        envelope_error(unreadable, "read record", &format!("job {}", self.address.job))
    }

    /// Attempts spent before this message.
    pub(crate) fn charged(&self) -> u32 {
        number(&self.headers, CHARGED).unwrap_or(0)
    }

    /// Whether the client cancelled the run.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.headers.get(CANCELLED).is_some()
    }

    /// Whether the payload was erased.
    pub(crate) fn is_erased(&self) -> bool {
        self.headers.get(ERASED).is_some()
    }

    /// Whether the run's result is to be looked for before the job is given out, however new the message is.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.headers.get(DOUBTFUL).is_some()
    }

    /// When a record on a timer is put in line.
    pub(crate) fn fires_at(&self) -> Option<Timestamp> {
        self.headers.get(NATS_SCHEDULE)?.as_str().strip_prefix("@at ")?.parse().ok()
    }

    /// The place in which the record is in line, or will be when its timer fires.
    pub(crate) fn line(&self) -> Option<Place> {
        match self.place {
            Place::Line | Place::Lane(_) => Some(self.place),
            Place::Timer => Address::parse(self.headers.get(NATS_SCHEDULE_TARGET)?.as_str()).map(|(place, _)| place),
            Place::Ended => None,
        }
    }

    /// A draft that replaces this record.
    pub(crate) fn rewrite(&self) -> Draft {
        Draft {
            address: self.address.clone(),
            headers: without_servers_own(&self.headers),
            envelope: self.envelope.clone(),
            expected: self.seq,
            from: Some(self.place),
        }
    }
}

/// A record to be written on condition that the address is as expected.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) address: Address,
    pub(crate) headers: HeaderMap,
    pub(crate) envelope: Bytes,
    /// The expected last sequence of the whole address; 0: there is none.
    pub(crate) expected: u64,
    /// The place of the record that this one replaces.
    from: Option<Place>,
}

impl Draft {
    /// A job that has no record yet.
    pub(crate) fn new(job: &Job, version: WireVersion) -> Self {
        Self {
            address: Address::new(&job.queue, &job.client, job.id),
            headers: HeaderMap::new(),
            envelope: encode_job(job, version).into(),
            expected: 0,
            from: None,
        }
    }

    /// A draft of another job, or another run, that replaces `record`: none of its headers stay.
    pub(crate) fn instead_of(record: &Record, job: &Job, version: WireVersion) -> Self {
        Self { expected: record.seq, from: Some(record.place), ..Self::new(job, version) }
    }

    /// With another job in it: the next run, or the same one without its payload.
    pub(crate) fn with_job(self, job: &Job, version: WireVersion) -> Self {
        Self { envelope: encode_job(job, version).into(), ..self }
    }

    pub(crate) fn charged(mut self, attempts: u32) -> Self {
        self.headers = without(&self.headers, &CHARGED);
        if attempts > 0 {
            self.headers.insert(CHARGED, attempts.to_string());
        }
        self
    }

    pub(crate) fn cancelled(mut self, at: Option<Timestamp>) -> Self {
        self.headers = without(&self.headers, &CANCELLED);
        if let Some(at) = at {
            self.headers.insert(CANCELLED, at.as_millis().to_string());
        }
        self
    }

    pub(crate) fn erased(mut self) -> Self {
        self.headers.insert(ERASED, "1");
        self
    }

    /// Subject and headers for writing it to `place`. If the record that it replaces is on a timer, the same write
    /// removes that record. If that record is in another place, the caller has to delete it afterwards, because the
    /// server removes schedules only (error 10212).
    pub(crate) fn to(mut self, place: Place) -> Outgoing {
        if self.from == Some(Place::Timer) && place != Place::Timer {
            self.headers.insert(NATS_SCHEDULER, self.address.at(Place::Timer));
            self.headers.insert(NATS_SCHEDULE_NEXT, PURGE);
        }
        self.outgoing(place)
    }

    /// Subject and headers for a timer that puts it in `line` at `at`. It is kept on the timer for `keep_secs` seconds
    /// at least, whatever the stream's `max_age` is. The record that it replaces stays: it must be leased or finished.
    pub(crate) fn on_timer(mut self, at: Timestamp, keep_secs: u64, line: Place) -> Outgoing {
        self.headers.insert(NATS_SCHEDULE, format!("@at {at}"));
        self.headers.insert(NATS_SCHEDULE_TARGET, self.address.at(line));
        self.headers.insert(NATS_MESSAGE_TTL, format!("{}s", keep_secs.max(1)));
        let hint = self.hint(line, Some(at));
        Outgoing { hint, ..self.outgoing(Place::Timer) }
    }

    fn hint(&self, line: Place, at: Option<Timestamp>) -> Option<Hint> {
        Some(Hint { queue: self.address.queue.clone(), lane: self.address.lane(line)?, at })
    }

    fn outgoing(mut self, place: Place) -> Outgoing {
        self.headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, self.expected.to_string());
        self.headers.insert(EXPECTED_SUBJECT, self.address.anywhere());
        let hint = self.hint(place, None);
        Outgoing { subject: self.address.at(place), headers: self.headers, payload: self.envelope, hint }
    }
}

/// A message on its way to a stream.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    /// The hint that workers get of it.
    pub(crate) hint: Option<Hint>,
}

/// The error for an envelope that this build can't read.
pub(crate) fn envelope_error(unreadable: &EnvelopeError, operation: &'static str, whose: &str) -> BrokerError {
    let kind = match unreadable {
        EnvelopeError::Newer { found } => BrokerErrorKind::NewerVersion { found: *found, newest: NEWEST },
        EnvelopeError::Malformed(_) => BrokerErrorKind::Corrupt,
    };
    BrokerError::new(kind, operation, format!("{whose}: {unreadable}"))
}

/// Whether the error is about one unreadable message: asking again does not make it readable.
pub(crate) fn is_unreadable(error: &BrokerError) -> bool {
    matches!(error.kind(), BrokerErrorKind::Corrupt | BrokerErrorKind::NewerVersion { .. })
}

/// A header that is a number.
pub(crate) fn number<T: std::str::FromStr>(headers: &HeaderMap, name: HeaderName) -> Option<T> {
    headers.get(name)?.as_str().parse().ok()
}

/// The headers of a record whose run may have ended.
pub(crate) fn doubtful(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.insert(DOUBTFUL, "1");
    headers
}

fn without(headers: &HeaderMap, name: &HeaderName) -> HeaderMap {
    kept(headers, |other| other != name)
}

/// The headers that relay may carry over: all but the server's own.
pub(crate) fn without_servers_own(headers: &HeaderMap) -> HeaderMap {
    kept(headers, |name| !AsRef::<str>::as_ref(name).get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-")))
}

fn kept(headers: &HeaderMap, keep: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let mut copy = HeaderMap::new();
    for (name, values) in headers.iter().filter(|(name, _)| keep(name)) {
        values.iter().for_each(|value| copy.append(name.clone(), value.clone()));
    }
    copy
}

impl Outgoing {
    /// A schedule that leaves an entry for the sweep when the deadline of `job` passes. It replaces the one of an earlier
    /// run; an entry that is not true any more is harmless.
    pub(crate) fn deadline(address: &Address, job: &Job, keep_secs: u64) -> Self {
        Self::deadline_at(address, job.expires_at, &Bytes::from(job.run_id.to_string()), keep_secs)
    }

    /// The same entry for another time.
    pub(crate) fn deadline_at(address: &Address, at: Timestamp, payload: &Bytes, keep_secs: u64) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_SCHEDULE, format!("@at {at}"));
        headers.insert(NATS_SCHEDULE_TARGET, address.overdue());
        headers.insert(NATS_MESSAGE_TTL, format!("{}s", keep_secs.max(1)));
        Self { subject: address.deadline(), headers, payload: payload.clone(), hint: None }
    }

    /// An entry for the sweep at once: a cancel begins, and a crash may break it off.
    pub(crate) fn begun(address: &Address, keep_secs: u64) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_TTL, format!("{}s", keep_secs.max(1)));
        Self { subject: address.overdue(), headers, payload: Bytes::new(), hint: None }
    }
}
