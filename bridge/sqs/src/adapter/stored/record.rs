//! A job's record: one item of the table. Conditional writes of it decide everything about the job.

use std::time::Duration;

use bytes::Bytes;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::DELAY_MAX;
use crate::limits::PAYLOAD_MAX;
use crate::names::{self, Key};
use relay_bridge::contract::envelope::{EnvelopeError, WireVersion, decode_job, decode_result, encode_job};
use relay_bridge::contract::result::Claim;
use relay_bridge::contract::{
    ClientId, Job, JobId, JobResult, JobState, JobStatus, Outcome, QueueName, RunId, Timestamp,
};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::rules::{self, Ended, Known, Payload, refusal};

/// Payloads up to this many bytes are in the record itself: a record of up to 1 KiB costs one unit to write.
pub(crate) const INLINE_MAX: usize = 256;
/// How long after a job's time its message is sent again if nobody took the job.
pub(crate) const SEND_AGAIN: Duration = Duration::from_secs(30);
/// The longest time between two looks of the sweep at a job that waits.
pub(crate) const LOOK_LATEST: Duration = Duration::from_secs(30 * 60);
/// How much longer than the record a payload or a result in an item of its own is kept, so that it is never gone first.
pub(crate) const OUTLIVES: Duration = Duration::from_secs(3_600);

/// The states in the record. Whether a run has ended is not decided by the state, but by `result_run`.
pub(crate) const QUEUED: &str = "queued";
pub(crate) const LEASED: &str = "leased";
pub(crate) const ENDED: &str = "ended";

/// A record as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) item: Item,
    pub(crate) job_id: JobId,
    pub(crate) client: ClientId,
    pub(crate) queue: QueueName,
    pub(crate) run: RunId,
    pub(crate) attempt: u32,
    /// The job may not be leased before this.
    pub(crate) due: Timestamp,
    pub(crate) deadline: Timestamp,
}

impl Record {
    /// # Errors
    /// `Corrupt` if the item is no record.
    pub(crate) fn read(item: Item) -> Result<Self, BrokerError> {
        let corrupt = || BrokerError::new(BrokerErrorKind::Corrupt, "read record", "its key names no job");
        Ok(Self {
            job_id: item.get_text("pk").and_then(names::job_of_partition).ok_or_else(corrupt)?,
            client: item.need_parsed("client")?,
            queue: item.need_parsed("queue")?,
            run: item.need_parsed("run")?,
            attempt: item.need_number("attempt")?,
            due: item.need_time("due")?,
            deadline: item.need_time("deadline")?,
            item,
        })
    }

    /// The record of an item, unless there is none or it is past its keeping.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_kept(item: Option<Item>, now: Timestamp) -> Result<Option<Self>, BrokerError> {
        item.filter(|item| !item.is_past(now)).map(Self::read).transpose()
    }

    pub(crate) fn key(&self) -> Key {
        names::record(self.job_id)
    }

    /// The job; its payload is empty if it has an item of its own.
    ///
    /// # Errors
    /// `NewerVersion`, `Corrupt`.
    pub(crate) fn job(&self) -> Result<Job, BrokerError> {
        decode_job(&self.item.need_binary("job")?).map_err(unreadable)
    }

    /// Which run brought the payload, if it has an item of its own.
    pub(crate) fn payload_run(&self) -> Option<RunId> {
        self.item.get_text("payload_run").and_then(|run| run.parse().ok())
    }

    /// The run of the result that the record has.
    pub(crate) fn result_run(&self) -> Option<RunId> {
        self.item.get_text("result_run").and_then(|run| run.parse().ok())
    }

    /// The outcome of the result that the record has, whichever run it is of.
    pub(crate) fn last_outcome(&self) -> Option<Outcome> {
        self.item.get_text("outcome").and_then(|outcome| outcome.parse().ok())
    }

    /// How the record's run ended, if it did: the record then has a result of this run.
    pub(crate) fn ended(&self) -> Option<Outcome> {
        self.last_outcome().filter(|_| self.result_run() == Some(self.run))
    }

    pub(crate) fn is_leased(&self) -> bool {
        self.ended().is_none() && self.item.get_text("state") == Some(LEASED)
    }

    /// The end of the lease.
    pub(crate) fn lease_end(&self) -> Timestamp {
        self.item.get_time("lease_end").unwrap_or(Timestamp::EPOCH)
    }

    /// Whether `lease` holds the job.
    pub(crate) fn is_held_by(&self, lease: &[u8; 16]) -> bool {
        self.is_leased() && self.item.get_binary("lease").is_some_and(|held| held.as_ref() == lease)
    }

    pub(crate) fn is_erased(&self) -> bool {
        self.item.is_set("erased")
    }

    /// When the current or last attempt started.
    pub(crate) fn started_at(&self) -> Option<Timestamp> {
        self.item.get_time("started").filter(|_| self.attempt > 0)
    }

    /// The record in the form that the rules take.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub(crate) fn known(&self) -> Result<Known, BrokerError> {
        let mut job = self.job()?;
        if self.ended().is_some() && !job.keep_record {
            // The payload goes with the run's end, whether or not the record still has its bytes.
            job.payload = Bytes::new();
        }
        let ended = self.result_run().zip(self.last_outcome()).map(|(run, outcome)| Ended {
            run,
            generation: job.generation.saturating_sub(u32::from(run < self.run)),
            outcome,
            claim: self.claim(),
        });
        Ok(Known { record: Some(self.facts(job)), ended })
    }

    /// The record's own part of [`Self::known`], with its job, which the caller has read.
    pub(crate) fn facts(&self, job: Job) -> rules::Record {
        let payload = match (self.is_erased(), job.keep_record) {
            (true, _) => Payload::Erased,
            (false, true) => Payload::Kept,
            (false, false) => Payload::NotKept,
        };
        rules::Record { job: job.into(), attempts: self.attempt, started_at: self.started_at(), payload }
    }

    /// The claim of the result that the record has. Earlier releases wrote it into the result's envelope alone.
    fn claim(&self) -> Option<Claim> {
        if self.is_erased() {
            return None;
        }
        let told = self.item.get_binary("result_claim");
        let told = told.as_deref().and_then(|told| told.split_first_chunk());
        match told.filter(|(_, by)| self.item.get_text("result_by").is_some_and(|of| of.as_bytes() == *by)) {
            Some((claim, _)) => Some(Claim::from_bytes(*claim)),
            None => decode_result(&self.item.get_binary("result")?).ok().map(|result| result.claim()),
        }
    }

    /// Whether the job was in line before the write that leased or ended it.
    pub(crate) fn was_queued(&self) -> bool {
        self.item.get_text("was") == Some(QUEUED)
    }

    pub(crate) fn state(&self) -> JobState {
        match self.ended() {
            Some(outcome) => JobState::Finished(outcome),
            None if self.is_leased() => JobState::Leased,
            None => JobState::Queued,
        }
    }

    /// The job's status at `now`, as its client may see it.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub(crate) fn status(&self, now: Timestamp) -> Result<JobStatus, BrokerError> {
        let job = self.job()?;
        let state = self.state();
        let waits = state == JobState::Queued && self.due > now;
        Ok(JobStatus {
            job_id: job.id,
            run_id: job.run_id,
            generation: job.generation,
            client: job.client,
            queue: job.queue,
            key: job.key,
            fingerprint: job.fingerprint,
            state,
            attempt: self.attempt,
            content_type: job.content_type,
            size: self.item.need_number("size")?,
            headers: job.headers,
            accepted_at: job.accepted_at,
            expires_at: job.expires_at,
            started_at: self.started_at(),
            finished_at: self.item.get_time("ended").filter(|_| self.ended().is_some()),
            next_attempt_at: waits.then_some(self.due),
        })
    }
}

/// The attributes of a record whose run begins: all but its key, its place among its client's records, and those that
/// ended runs left.
pub(crate) fn beginning(job: &Job, wire: WireVersion, now: Timestamp, fifo: bool) -> Item {
    let due = job.due(now);
    let without;
    let kept = if job.payload.len() > INLINE_MAX {
        without = Job { payload: Bytes::new(), ..job.clone() };
        &without
    } else {
        job
    };
    Item::default()
        .text("client", job.client.as_str())
        .text("queue", job.queue.as_str())
        .text("run", job.run_id.to_string())
        .text("state", QUEUED)
        .number("attempt", 0)
        .time("due", due)
        .time("deadline", job.expires_at)
        .number("size", job.payload.len())
        .binary("job", encode_job(kept, wire))
        .text("ix", names::open_partition(&job.queue, &job.client, job.id))
        .text("ix_at", names::moment(next_look(due, job.expires_at, now, fifo)))
        .kept_until(job.keep_until())
}

/// The item of a new record.
pub(crate) fn new_record(job: &Job, wire: WireVersion, now: Timestamp, fifo: bool) -> Item {
    let key = names::record(job.id);
    let item = beginning(job, wire, now, fifo)
        .text("pk", key.pk)
        .text("sk", key.sk)
        .text("cl", names::client_partition(&job.client, job.id))
        .text("cl_at", names::client_place(job.accepted_at, job.id));
    match job.payload.len() > INLINE_MAX {
        true => item.text("payload_run", job.run_id.to_string()),
        false => item,
    }
}

/// The item of a payload that is too large for the record.
pub(crate) fn payload_item(job: &Job) -> Item {
    Item::at(&names::payload(job.id, job.run_id))
        .binary("payload", job.payload.as_ref())
        .kept_until(job.keep_until() + OUTLIVES)
}

/// Whether the message of a job that is due at `due` is left to the sweep.
pub(crate) fn left_to_sweep(due: Timestamp, now: Timestamp, fifo: bool) -> bool {
    due.since(now) > if fifo { Duration::ZERO } else { DELAY_MAX }
}

/// When the sweep looks at a record that waits: to send its message, or to see whether the job was taken; at the
/// deadline at the latest.
pub(crate) fn next_look(due: Timestamp, deadline: Timestamp, now: Timestamp, fifo: bool) -> Timestamp {
    let look = if left_to_sweep(due, now, fifo) { due } else { due.max(now) + SEND_AGAIN };
    look.min(deadline)
}

/// When the sweep looks again at a record that could be taken from `since` on, and was not: after 1, 2, 4 minutes and
/// so on, at least every 30 minutes, and at the deadline at the latest.
pub(crate) fn later_look(since: Timestamp, deadline: Timestamp, now: Timestamp) -> Timestamp {
    (now + now.since(since).clamp(SEND_AGAIN, LOOK_LATEST)).min(deadline)
}

/// The claim of a result that the call `by` records, in the form in which a record keeps it. It names the call, because
/// a release that knows nothing of claims leaves the previous run's claim in the record.
pub(crate) fn told_claim(result: &JobResult, by: &str) -> Vec<u8> {
    [result.claim().as_bytes().as_slice(), by.as_bytes()].concat()
}

/// The key of the item of a record's result, if the result has an item of its own.
pub(crate) fn result_key(record: &Record) -> Option<names::Key> {
    Some(names::result(record.job_id, record.result_run()?, record.item.get_text("result_by")?))
}

/// The error for an envelope that this build can't read.
pub(crate) fn unreadable(error: EnvelopeError) -> BrokerError {
    let kind = match error {
        EnvelopeError::Newer { found } => {
            BrokerErrorKind::NewerVersion { found, newest: relay_bridge::contract::envelope::NEWEST }
        }
        EnvelopeError::Malformed(_) => BrokerErrorKind::Corrupt,
    };
    BrokerError::new(kind, "read envelope", error.to_string())
}

/// Refuses a payload or result that is larger than `limit`, or than an item can hold.
pub(crate) fn check_size(bytes: usize, limit: u64, operation: &'static str) -> Result<(), BrokerError> {
    let (actual, limit) = (u64::try_from(bytes).unwrap_or(u64::MAX), limit.min(PAYLOAD_MAX));
    if actual <= limit {
        return Ok(());
    }
    Err(refusal::too_large(operation, actual, limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_bridge::contract::envelope::encode_result;
    use relay_bridge::contract::result::End;
    use relay_bridge::contract::{JobResult, Submission};

    fn job(payload: Vec<u8>, now: Timestamp) -> Job {
        let (client, queue) = ("shop".parse().unwrap(), "orders".parse().unwrap());
        Submission::plain(client, queue, "text/plain", payload)
            .accept(&relay_bridge::policy::QueuePolicy::default(), now)
    }

    #[test]
    fn a_payload_that_no_record_names_goes_by_itself_and_never_before_a_record_that_does() {
        let now = Timestamp::from_millis(1_763_865_086_007);
        let job = job(vec![7; INLINE_MAX + 1], now);
        let expires = |item: Item| item.get_number::<i64>("expires").unwrap();
        let (record, payload) = (new_record(&job, WireVersion::default(), now, false), payload_item(&job));
        assert!(expires(payload) > expires(record));
    }

    #[test]
    fn a_result_that_a_release_before_left_is_known_again_by_its_envelope() {
        let now = Timestamp::from_millis(1_763_865_086_007);
        let job = job(vec![7], now);
        let end = End { attempt: 1, started_at: None, finished_at: now };
        let result = JobResult::succeeded(&job, end, "text/plain", "done".into());
        let record = new_record(&job, WireVersion::default(), now, false);
        let apart =
            record.text("result_run", job.run_id.to_string()).text("outcome", "succeeded").text("result_by", "x");
        let inline = apart.clone().binary("result", encode_result(&result, WireVersion::default()));
        let claim = |item: &Item| Record::read(item.clone()).unwrap().known().unwrap().ended.unwrap().claim;
        assert_eq!(claim(&inline), Some(result.words()));
        assert_eq!(claim(&apart), None, "nothing tells");
        let told = apart.clone().binary("result_claim", told_claim(&result, "x"));
        assert_eq!(claim(&told), Some(result.words()));
        for known in [inline.clone(), told] {
            assert_eq!(claim(&known.flag("erased", true)), None);
        }
        // The release before ended a later run, and left the claim of the run before that.
        let stale = told_claim(&JobResult { payload: "another".into(), ..result.clone() }, "the call before");
        assert_eq!(claim(&inline.binary("result_claim", stale.clone())), Some(result.words()));
        assert_eq!(claim(&apart.binary("result_claim", stale)), None, "it says nothing of this result");
    }

    #[test]
    fn a_look_is_when_the_message_should_have_been_taken_or_has_to_be_sent() {
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1_000);
        let (now, deadline) = (at(1_000), at(10_000));
        assert_eq!(next_look(at(900), deadline, now, false), at(1_030));
        assert_eq!(next_look(at(1_900), deadline, now, false), at(1_930), "by a delay of SQS");
        assert_eq!(next_look(at(1_901), deadline, now, false), at(1_901), "longer than SQS delays");
        assert_eq!(next_look(at(1_001), deadline, now, true), at(1_001), "FIFO delays no single message");
        assert_eq!(next_look(at(900), at(1_010), now, false), at(1_010), "the deadline comes first");
    }

    #[test]
    fn a_job_that_waits_is_looked_at_after_twice_as_long_each_time_and_at_least_every_half_hour() {
        let (since, deadline) = (Timestamp::from_millis(0), Timestamp::from_millis(3 * 3_600_000));
        let looks = |age: &Timestamp| Some(later_look(since, deadline, *age)).filter(|next| next > age);
        let seconds = std::iter::successors(Some(since + SEND_AGAIN), looks).map(|look| look.as_millis() / 1_000);
        let minutes: Vec<_> = seconds.skip(1).map(|seconds| seconds / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 62, 92, 122, 152, 180], "the last is the deadline");
    }
}
