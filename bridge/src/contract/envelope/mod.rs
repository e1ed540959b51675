//! Jobs, results and dead letters as MessagePack maps with named fields.
//!
//! `v` comes first. This build reads versions [`OLDEST`] to [`NEWEST`]; fields it does not know are kept and written
//! back; a newer version is an error of its own, so that the reader hands the message back instead of dropping it.
//! Version 1 writes ids as text, version 2 as 16 bytes. A field that has its usual value is left out: every byte is
//! written, stored and read again for each job. Golden files: `bridge/tests/golden/`.

mod damage;
pub(in crate::contract) mod msgpack;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
pub use damage::Damage;
use msgpack::{Reader, Writer};

use super::dead_letter::DeadLetter;
use super::extra::Extra;
use super::result::Claim;
use super::trace::TRACEPARENT;
use super::{
    ClientId, Failure, Fingerprint, IdempotencyKey, Job, JobId, JobResult, Outcome, QueueName, RunId, Timestamp,
};

/// The oldest version this build reads: n-1.
pub const OLDEST: u16 = 1;
/// The newest version this build reads: n.
pub const NEWEST: u16 = 2;
/// The most fields a map may have, known and unknown.
const FIELDS_MAX: u32 = 128;
/// The most unknown ones, so that a rewrite, which adds every field that was left out, stays below [`FIELDS_MAX`].
const EXTRA_MAX: usize = 96;

/// A version this build writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WireVersion {
    /// Ids as text.
    V1,
    /// Ids as 16 bytes.
    #[default]
    V2,
}

impl WireVersion {
    /// The number that stands in `v`.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// The bytes are not an envelope that this build can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A newer relay wrote it. Hand it back; never dead-letter it.
    #[error("envelope version {found} is newer than {NEWEST}, the newest this build reads")]
    Newer {
        /// The version found.
        found: u16,
    },
    /// No relay wrote it, or it was damaged.
    #[error("damaged envelope: {0}")]
    Malformed(Damage),
}

/// Writes a job.
#[must_use]
pub fn encode_job(job: &Job, version: WireVersion) -> Vec<u8> {
    let capacity = 400 + job.payload.len() + job.headers.iter().map(|(k, v)| k.len() + v.len() + 8).sum::<usize>();
    let mut to = Writer::map(capacity);
    to.unsigned("v", u64::from(version.number()));
    id(&mut to, version, "id", job.id.as_bytes(), &job.id);
    id(&mut to, version, "run", job.run_id.as_bytes(), &job.run_id);
    generation(&mut to, job.generation);
    to.text("client", job.client.as_str());
    to.text("queue", job.queue.as_str());
    if let Some(key) = &job.key {
        to.text("key", key.as_str());
    }
    to.binary("fingerprint", job.fingerprint.as_bytes());
    to.text("content_type", &job.content_type);
    if let Some(encoding) = &job.content_encoding {
        to.text("content_encoding", encoding);
    }
    if !job.headers.is_empty() {
        to.text_map("headers", job.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    }
    to.signed("accepted_at", job.accepted_at.as_millis());
    if job.due_at != job.accepted_at {
        to.signed("due_at", job.due_at.as_millis());
    }
    if job.expires_at != usual_deadline(job.due_at, job.ttl_ms) {
        to.signed("expires_at", job.expires_at.as_millis());
    }
    to.unsigned("ttl_ms", job.ttl_ms);
    to.unsigned("keep_ms", job.keep_ms);
    if job.keep_record != job.key.is_some() {
        to.boolean("keep_record", job.keep_record);
    }
    if !job.payload.is_empty() {
        to.binary("payload", &job.payload);
    }
    extra(&mut to, &job.extra);
    to.finish()
}

/// The number of a job's first run.
const FIRST: u32 = 1;

fn generation(to: &mut Writer, generation: u32) {
    if generation != FIRST {
        to.unsigned("generation", u64::from(generation));
    }
}

fn usual_deadline(due_at: Timestamp, ttl_ms: u64) -> Timestamp {
    due_at + Duration::from_millis(ttl_ms)
}

/// Reads a job of any version this build knows. The payload is a slice of `bytes`.
///
/// # Errors
/// [`EnvelopeError`].
pub fn decode_job(bytes: &Bytes) -> Result<Job, EnvelopeError> {
    read_job(bytes, true).map(|(job, _)| job)
}

/// Reads a job from the beginning of its envelope, without its payload and what comes after that.
///
/// # Errors
/// As [`decode_job`]; also `Malformed` if what is there ends before the payload begins.
pub fn decode_job_head(head: &Bytes) -> Result<Job, EnvelopeError> {
    read_job(head, false).map(|(job, _)| job)
}

/// A job, and the size of its payload in bytes.
fn read_job(bytes: &Bytes, with_payload: bool) -> Result<(Job, u64), EnvelopeError> {
    Fields::read(bytes, |fields| job(fields, with_payload))
}

fn job(fields: &mut Fields<'_>, with_payload: bool) -> Result<(Job, u64), EnvelopeError> {
    let (mut job_id, mut run_id, mut generation, mut client, mut queue) = (None, None, FIRST, None, None);
    let (mut key, mut fingerprint, mut content_type, mut content_encoding) = (None, None, None, None);
    let (mut headers, mut accepted_at, mut due_at, mut expires_at) = (BTreeMap::new(), None, None, None);
    let (mut ttl_ms, mut keep_ms, mut keep_record, mut payload) = (None, None, None, Bytes::new());
    let mut size = 0;
    while let Some(name) = fields.next_name()? {
        let from = &mut fields.from;
        match name {
            "id" => job_id = Some(JobId::from_bytes(read_id(from)?)),
            "run" => run_id = Some(RunId::from_bytes(read_id(from)?)),
            "generation" => generation = narrow(from.unsigned()?)?,
            "client" => client = Some(parse::<ClientId>(from.text()?)?),
            "queue" => queue = Some(parse::<QueueName>(from.text()?)?),
            "key" => key = from.optional(|from| parse::<IdempotencyKey>(from.text()?))?,
            "fingerprint" => fingerprint = Some(Fingerprint::from_bytes(fixed(from.binary()?)?)),
            "content_type" => content_type = Some(from.text()?.to_owned()),
            "content_encoding" => content_encoding = from.optional(|from| from.text().map(str::to_owned))?,
            "headers" => headers = read_headers(from)?,
            "accepted_at" => accepted_at = Some(Timestamp::from_millis(from.signed()?)),
            "due_at" => due_at = from.optional(|from| from.signed().map(Timestamp::from_millis))?,
            "expires_at" => expires_at = from.optional(|from| from.signed().map(Timestamp::from_millis))?,
            "ttl_ms" => ttl_ms = Some(from.unsigned()?),
            "keep_ms" => keep_ms = Some(from.unsigned()?),
            "keep_record" => keep_record = Some(from.boolean()?),
            "payload" if !with_payload => {
                size = u64::from(from.binary_begun()?.0);
                break;
            }
            "payload" => {
                payload = from.shared_binary()?;
                size = payload.len() as u64;
            }
            other => fields.keep(other)?,
        }
    }
    let (accepted_at, ttl_ms) = (need(accepted_at, "accepted_at")?, need(ttl_ms, "ttl_ms")?);
    let (due_at, has_key) = (due_at.unwrap_or(accepted_at), key.is_some());
    let job = Job {
        id: need(job_id, "id")?,
        run_id: need(run_id, "run")?,
        generation,
        client: need(client, "client")?,
        queue: need(queue, "queue")?,
        key,
        fingerprint: need(fingerprint, "fingerprint")?,
        content_type: need(content_type, "content_type")?,
        content_encoding,
        headers,
        payload,
        accepted_at,
        due_at,
        expires_at: expires_at.unwrap_or_else(|| usual_deadline(due_at, ttl_ms)),
        ttl_ms,
        keep_ms: need(keep_ms, "keep_ms")?,
        keep_record: keep_record.unwrap_or(has_key),
        extra: std::mem::take(&mut fields.extra),
    };
    Ok((job, size))
}

/// Writes a result.
#[must_use]
pub fn encode_result(result: &JobResult, version: WireVersion) -> Vec<u8> {
    encode_result_with(result, &result.payload, version)
}

/// Writes a result with another payload than its own, such as none.
#[must_use]
pub fn encode_result_with(result: &JobResult, payload: &[u8], version: WireVersion) -> Vec<u8> {
    let failure_bytes = result.failure.as_ref().map_or(0, |failure| failure.reason.len() + failure.detail.len());
    let mut to = Writer::map(340 + payload.len() + failure_bytes);
    to.unsigned("v", u64::from(version.number()));
    id(&mut to, version, "id", result.job_id.as_bytes(), &result.job_id);
    id(&mut to, version, "run", result.run_id.as_bytes(), &result.run_id);
    generation(&mut to, result.generation);
    to.text("client", result.client.as_str());
    to.text("queue", result.queue.as_str());
    if let Some(key) = &result.key {
        to.text("key", key.as_str());
    }
    if !result.meta.is_empty() {
        to.text_map("meta", result.meta.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    }
    to.text("outcome", result.outcome.as_str());
    to.unsigned("attempt", u64::from(result.attempt));
    to.text("content_type", &result.content_type);
    if let Some(failure) = &result.failure {
        to.text("reason", &failure.reason);
        to.text("detail", &failure.detail);
    }
    to.signed("accepted_at", result.accepted_at.as_millis());
    if let Some(at) = result.started_at {
        to.signed("started_at", at.as_millis());
    }
    to.signed("finished_at", result.finished_at.as_millis());
    to.unsigned("keep_ms", result.keep_ms);
    if let Some(parent) = &result.traceparent {
        to.text(TRACEPARENT, parent);
    }
    if result.hops > 0 {
        to.unsigned("hops", u64::from(result.hops));
    }
    if let Some(claimed) = &result.claimed {
        to.binary("claimed", claimed.as_bytes());
    }
    if !payload.is_empty() {
        to.binary("payload", payload);
    }
    extra(&mut to, &result.extra);
    to.finish()
}

/// Reads a result of any version this build knows. The payload is a slice of `bytes`.
///
/// # Errors
/// [`EnvelopeError`].
pub fn decode_result(bytes: &Bytes) -> Result<JobResult, EnvelopeError> {
    Fields::read(bytes, result)
}

fn result(fields: &mut Fields<'_>) -> Result<JobResult, EnvelopeError> {
    let (mut job_id, mut run_id, mut generation, mut client, mut queue) = (None, None, FIRST, None, None);
    let (mut outcome, mut attempt, mut content_type, mut payload) = (None, None, None, None);
    let (mut key, mut meta, mut hops, mut claimed) = (None, BTreeMap::new(), 0, None);
    let (mut reason, mut detail, mut traceparent) = (None, None, None);
    let (mut accepted_at, mut started_at, mut finished_at, mut keep_ms) = (None, None, None, None);
    while let Some(name) = fields.next_name()? {
        let from = &mut fields.from;
        match name {
            "id" => job_id = Some(JobId::from_bytes(read_id(from)?)),
            "run" => run_id = Some(RunId::from_bytes(read_id(from)?)),
            "generation" => generation = narrow(from.unsigned()?)?,
            "client" => client = Some(parse::<ClientId>(from.text()?)?),
            "queue" => queue = Some(parse::<QueueName>(from.text()?)?),
            "key" => key = from.optional(|from| parse::<IdempotencyKey>(from.text()?))?,
            "meta" => meta = read_headers(from)?,
            "outcome" => outcome = Some(parse::<Outcome>(from.text()?)?),
            "attempt" => attempt = Some(narrow(from.unsigned()?)?),
            "content_type" => content_type = Some(from.text()?.to_owned()),
            "reason" => reason = from.optional(|from| from.text().map(str::to_owned))?,
            "detail" => detail = from.optional(|from| from.text().map(str::to_owned))?,
            "accepted_at" => accepted_at = Some(Timestamp::from_millis(from.signed()?)),
            "started_at" => started_at = from.optional(|from| from.signed().map(Timestamp::from_millis))?,
            "finished_at" => finished_at = Some(Timestamp::from_millis(from.signed()?)),
            "keep_ms" => keep_ms = Some(from.unsigned()?),
            "hops" => hops = narrow(from.unsigned()?)?,
            "claimed" => claimed = from.optional(|from| fixed(from.binary()?).map(Claim::from_bytes))?,
            TRACEPARENT => traceparent = from.optional(|from| from.text().map(str::to_owned))?,
            "payload" => payload = Some(from.shared_binary()?),
            other => fields.keep(other)?,
        }
    }
    Ok(JobResult {
        job_id: need(job_id, "id")?,
        run_id: need(run_id, "run")?,
        generation,
        client: need(client, "client")?,
        queue: need(queue, "queue")?,
        key,
        meta,
        outcome: need(outcome, "outcome")?,
        attempt: need(attempt, "attempt")?,
        content_type: need(content_type, "content_type")?,
        payload: payload.unwrap_or_default(),
        failure: reason.map(|reason| Failure { reason, detail: detail.unwrap_or_default() }),
        accepted_at: need(accepted_at, "accepted_at")?,
        started_at,
        finished_at: need(finished_at, "finished_at")?,
        keep_ms: need(keep_ms, "keep_ms")?,
        traceparent,
        hops,
        claimed,
        extra: std::mem::take(&mut fields.extra),
    })
}

/// Writes a dead letter; the job stands in it as an envelope of its own.
#[must_use]
pub fn encode_dead_letter(letter: &DeadLetter, version: WireVersion) -> Vec<u8> {
    let job = encode_job(&letter.job, version);
    let mut to = Writer::map(200 + job.len() + letter.failure.detail.len());
    to.unsigned("v", u64::from(version.number()));
    to.text("outcome", letter.outcome.as_str());
    to.unsigned("attempt", u64::from(letter.attempt));
    to.text("reason", &letter.failure.reason);
    to.text("detail", &letter.failure.detail);
    to.signed("at", letter.at.as_millis());
    to.binary("job", &job);
    extra(&mut to, &letter.extra);
    to.finish()
}

/// Reads a dead letter of any version this build knows.
///
/// # Errors
/// [`EnvelopeError`].
pub fn decode_dead_letter(bytes: &Bytes) -> Result<DeadLetter, EnvelopeError> {
    read_dead_letter(bytes, true).map(|(letter, _)| letter)
}

/// Reads a dead letter from the beginning of its envelope, without its job's payload and what comes after that; also the
/// payload's size in bytes.
///
/// # Errors
/// As [`decode_dead_letter`]; also `Malformed` if what is there ends before the payload begins.
pub fn decode_dead_letter_head(head: &Bytes) -> Result<(DeadLetter, u64), EnvelopeError> {
    read_dead_letter(head, false)
}

fn read_dead_letter(bytes: &Bytes, with_payload: bool) -> Result<(DeadLetter, u64), EnvelopeError> {
    Fields::read(bytes, |fields| dead_letter(fields, with_payload))
}

fn dead_letter(fields: &mut Fields<'_>, with_payload: bool) -> Result<(DeadLetter, u64), EnvelopeError> {
    let (mut job, mut outcome, mut attempt, mut reason, mut detail, mut at) = (None, None, None, None, None, None);
    while let Some(name) = fields.next_name()? {
        let from = &mut fields.from;
        match name {
            "outcome" => outcome = Some(parse::<Outcome>(from.text()?)?),
            "attempt" => attempt = Some(narrow(from.unsigned()?)?),
            "reason" => reason = Some(from.text()?.to_owned()),
            "detail" => detail = Some(from.text()?.to_owned()),
            "at" => at = Some(Timestamp::from_millis(from.signed()?)),
            "job" if !with_payload => {
                job = Some(read_job(&from.binary_begun()?.1, false)?);
                break;
            }
            "job" => job = Some(read_job(&from.shared_binary()?, true)?),
            other => fields.keep(other)?,
        }
    }
    let (job, size) = need(job, "job")?;
    let letter = DeadLetter {
        job,
        outcome: need(outcome, "outcome")?,
        attempt: need(attempt, "attempt")?,
        failure: Failure { reason: need(reason, "reason")?, detail: need(detail, "detail")? },
        at: need(at, "at")?,
        extra: std::mem::take(&mut fields.extra),
    };
    Ok((letter, size))
}

/// Walks the fields of one map, after its version was checked.
struct Fields<'a> {
    from: Reader<'a>,
    left: u32,
    /// The field that is read now.
    name: Option<&'a str>,
    extra: Extra,
}

impl<'a> Fields<'a> {
    /// Reads a map; an error names the field in which it is.
    fn read<T>(bytes: &'a Bytes, read: impl FnOnce(&mut Self) -> Result<T, EnvelopeError>) -> Result<T, EnvelopeError> {
        let mut fields = Self::open(bytes)?;
        let read = read(&mut fields);
        read.map_err(|error| fields.name.into_iter().fold(error, EnvelopeError::in_field))
    }

    fn open(bytes: &'a Bytes) -> Result<Self, EnvelopeError> {
        let mut from = Reader::new(bytes);
        let fields = from.map_len()?;
        if fields == 0 || from.text()? != "v" {
            return Err(EnvelopeError::malformed("does not begin with its version"));
        }
        let found = u16::try_from(from.unsigned()?).unwrap_or(u16::MAX);
        if found > NEWEST {
            return Err(EnvelopeError::Newer { found });
        }
        if found < OLDEST {
            return Err(EnvelopeError::malformed("has a version that no release wrote"));
        }
        // After the version: a newer one may have as many fields as it likes.
        if fields > FIELDS_MAX {
            return Err(EnvelopeError::malformed("has too many fields"));
        }
        Ok(Self { from, left: fields - 1, name: None, extra: Extra::default() })
    }

    fn next_name(&mut self) -> Result<Option<&'a str>, EnvelopeError> {
        self.name = None;
        if self.left == 0 {
            return if self.from.is_at_end() {
                Ok(None)
            } else {
                Err(EnvelopeError::malformed("has bytes after its end"))
            };
        }
        self.left -= 1;
        self.name = Some(self.from.text()?);
        Ok(self.name)
    }

    fn keep(&mut self, name: &str) -> Result<(), EnvelopeError> {
        if self.extra.0.len() == EXTRA_MAX {
            return Err(EnvelopeError::malformed("is one unknown field too many"));
        }
        self.extra.0.push((name.to_owned(), self.from.raw()?));
        Ok(())
    }
}

fn id(to: &mut Writer, version: WireVersion, name: &str, bytes: &[u8; 16], text: &dyn std::fmt::Display) {
    match version {
        WireVersion::V1 => to.text(name, &text.to_string()),
        WireVersion::V2 => to.binary(name, bytes),
    }
}

fn read_id(from: &mut Reader<'_>) -> Result<[u8; 16], EnvelopeError> {
    if from.next_is_text() {
        return Ok(*parse::<JobId>(from.text()?)?.as_bytes());
    }
    fixed(from.binary()?)
}

fn read_headers(from: &mut Reader<'_>) -> Result<BTreeMap<String, String>, EnvelopeError> {
    let entries = from.map_len()?;
    (0..entries).map(|_| Ok((from.text()?.to_owned(), from.text()?.to_owned()))).collect()
}

fn extra(to: &mut Writer, extra: &Extra) {
    extra.0.iter().for_each(|(name, value)| to.raw(name, value));
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], EnvelopeError> {
    bytes.try_into().map_err(|_| EnvelopeError::malformed("is not an id of its length"))
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, EnvelopeError> {
    text.parse().map_err(|_| EnvelopeError::malformed("is not a name, an id or a word of its kind"))
}

fn narrow(number: u64) -> Result<u32, EnvelopeError> {
    u32::try_from(number).map_err(|_| EnvelopeError::malformed("is a number that is too large"))
}

fn need<T>(field: Option<T>, name: &'static str) -> Result<T, EnvelopeError> {
    field.ok_or_else(|| EnvelopeError::malformed("is missing").in_field(name))
}
