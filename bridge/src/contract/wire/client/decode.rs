//! Frames of the client role to messages. Fields may come in any order; unknown ones are passed over.

use bytes::Bytes;

use super::super::decode::{BUILD_BYTES_MAX, DecodeError, KEY_BYTES_MAX, need_id, open, read_error, short, unknown};
use super::super::error::Retry;
use super::super::fields::{Fields, parse};
use super::super::{DETAIL_BYTES_MAX, FRAME_MAX, Problem};
use super::answer::{Body, Welcome};
use super::{
    ENTRIES_MAX, Entry, Follow, FromClient, Hello, META_NAMES_MAX, Request, SUBMIT_META_BYTES_MAX,
    SUBMIT_META_NAMES_MAX, Submit, ToClient, WireProblem, WireReceipt, WireResult,
};
use crate::contract::{Failure, JobId, JobState, RunId, Timestamp};
use crate::result_log::Reset;

impl FromClient {
    /// Reads one frame. Payloads in it are slices of the frame.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        let (kind, id, fields) = open(frame)?;
        read_from_client(&kind, id, &fields).map_err(|problem| DecodeError { id, problem })
    }
}

impl ToClient {
    /// Reads one frame. Payloads in it are slices of the frame.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        let (kind, id, fields) = open(frame)?;
        read_to_client(&kind, id, &fields).map_err(|problem| DecodeError { id, problem })
    }
}

fn read_from_client(kind: &str, id: Option<u64>, fields: &Fields<'_>) -> Result<FromClient, Problem> {
    let request = match kind {
        "hello" => return read_hello(fields).map(FromClient::Hello),
        "ping" => return need_id(id).map(FromClient::Ping),
        "pong" => return need_id(id).map(FromClient::Pong),
        "stop" => return Ok(FromClient::Stop { id: need_id(id)? }),
        "credit" => {
            let (results, bytes) = (fields.narrow_or("results", 0)?, fields.narrow_or("bytes", 0)?);
            return Ok(FromClient::Credit { id: need_id(id)?, results, bytes });
        }
        "submit_many" => return fields.items("entries", ENTRIES_MAX, read_entry).map(FromClient::SubmitMany),
        "submit" => Request::Submit(Box::new(read_submit(fields)?)),
        "wait" => Request::Wait { job: read_job(fields)?, wait: fields.maybe_millis("wait_ms")?.unwrap_or_default() },
        "status" => Request::Status(read_job(fields)?),
        "cancel" => Request::Cancel(read_job(fields)?),
        "rerun" => {
            let from = fields.narrow("from")?;
            if from == 0 {
                return Err(Problem::of("from", "is not the generation that is run again, from 1"));
            }
            Request::Rerun { job: read_job(fields)?, from }
        }
        "follow" => Request::Follow(Follow {
            after: fields.maybe_text("after")?,
            queue: fields.maybe("queue", parse)?,
            key_prefix: fields.maybe_text("key_prefix")?,
            results: fields.narrow("results")?,
            bytes: fields.unsigned("bytes")?,
        }),
        "whoami" => Request::Whoami,
        other => return Err(unknown(other)),
    };
    Ok(FromClient::Request { id: need_id(id)?, request })
}

fn read_hello(fields: &Fields<'_>) -> Result<Hello, Problem> {
    match fields.text("role")?.as_str() {
        "client" => {}
        "worker" => {
            let problem = "is `worker`: workers connect to the worker listener, that of --worker-listen, and this one is for clients";
            return Err(Problem::of("role", problem));
        }
        _ => return Err(Problem::of("role", "is not `client`, the only role of this listener")),
    }
    Ok(Hello {
        version_min: fields.narrow("version_min")?,
        version_max: fields.narrow("version_max")?,
        client: fields.maybe("client", parse)?,
        key: short(fields, "key", KEY_BYTES_MAX)?,
        build: short(fields, "build", BUILD_BYTES_MAX)?.unwrap_or_default(),
        frame_max: fields.narrow_or("frame_max", FRAME_MAX)?,
    })
}

fn read_job(fields: &Fields<'_>) -> Result<JobId, Problem> {
    Ok(JobId::from_bytes(fields.id("job")?))
}

fn read_entry(from: &mut crate::contract::envelope::msgpack::Reader<'_>) -> Result<Entry, Problem> {
    let map = from.raw().map_err(|error| Problem::new("entries", error))?;
    let fields = Fields::read(&map).map_err(|problem| problem.within("entries"))?;
    let id = fields.unsigned("id").map_err(|problem| problem.within("entries"))?;
    Ok(Entry { id, submit: read_submit(&fields).map(Box::new) })
}

fn read_submit(fields: &Fields<'_>) -> Result<Submit, Problem> {
    // Each of many is read before the first is judged.
    fields.check_bytes("meta", SUBMIT_META_BYTES_MAX)?;
    Ok(Submit {
        queue: fields.text("queue")?,
        key: fields.maybe_text("key")?,
        content_type: fields.maybe_text("content_type")?,
        content_encoding: fields.maybe_text("content_encoding")?,
        delay: fields.maybe_millis("delay_ms")?,
        expires_in: fields.maybe_millis("expires_in_ms")?,
        meta: fields.named_texts("meta", SUBMIT_META_NAMES_MAX)?,
        traceparent: fields.maybe_text("traceparent")?,
        tracestate: fields.maybe_text("tracestate")?,
        payload: fields.maybe("payload", |from| from.shared_binary())?.unwrap_or_default(),
        wait: fields.maybe_millis("wait_ms")?,
    })
}

fn read_to_client(kind: &str, id: Option<u64>, fields: &Fields<'_>) -> Result<ToClient, Problem> {
    match kind {
        "welcome" => return read_welcome(fields).map(|welcome| ToClient::Welcome(Box::new(welcome))),
        "error" => return read_error(fields).map(|error| ToClient::Error(Box::new(error))),
        "go_away" => {
            return Ok(ToClient::GoAway { reason: fields.text("reason")?, within: fields.millis("within_ms")? });
        }
        _ => {}
    }
    // An unknown type comes first: a notice of a newer server needs no id.
    let need = || need_id(id);
    Ok(match kind {
        "ping" => ToClient::Ping(need()?),
        "pong" => ToClient::Pong(need()?),
        "receipt" => ToClient::Receipt { id: need()?, receipt: Box::new(read_receipt(fields)?) },
        "result" => {
            let result = fields.map("result")?;
            let result = read_result(fields.text("cursor")?, &result).map_err(|problem| problem.within("result"))?;
            let replayed = fields.maybe("replayed", |from| from.boolean())?.unwrap_or(false);
            ToClient::Result { id: need()?, replayed, result: Box::new(result) }
        }
        "job" => ToClient::Job { id: need()?, document: fields.text("document")? },
        "whoami" => ToClient::Whoami { id: need()?, document: fields.text("document")? },
        "reset" => ToClient::Reset {
            id: need()?,
            reason: match fields.text("reason")?.as_str() {
                "log-replaced" => Reset::LogReplaced,
                _ => Reset::OlderThanRetention,
            },
        },
        "position" => ToClient::Position { id: need()?, cursor: fields.text("cursor")? },
        "followed" => {
            ToClient::Followed { id: need()?, cursor: fields.maybe_text("cursor")?, reason: fields.text("reason")? }
        }
        "problem" => ToClient::Problem { id: need()?, problem: Box::new(read_problem(fields)?) },
        other => return Err(unknown(other)),
    })
}

fn read_welcome(fields: &Fields<'_>) -> Result<Welcome, Problem> {
    Ok(Welcome {
        version: fields.narrow("version")?,
        frame_max: fields.narrow("frame_max")?,
        requests_max: fields.narrow("requests_max")?,
        bytes_max: fields.unsigned("bytes_max")?,
        wait_max: fields.millis("wait_max_ms")?,
        ping: fields.millis("ping_ms")?,
        client: fields.parsed("client")?,
        server_time: Timestamp::from_millis(fields.need("server_time", |from| from.signed())?),
        build: fields.maybe_text("build")?.unwrap_or_default(),
    })
}

fn read_receipt(fields: &Fields<'_>) -> Result<WireReceipt, Problem> {
    Ok(WireReceipt {
        job: read_job(fields)?,
        run: RunId::from_bytes(fields.id("run")?),
        generation: fields.narrow("generation")?,
        client: fields.parsed("client")?,
        queue: fields.parsed("queue")?,
        key: fields.maybe("key", parse)?,
        meta: fields.named_texts("meta", META_NAMES_MAX)?,
        state: match fields.text("state")?.as_str() {
            "queued" => JobState::Queued,
            "leased" => JobState::Leased,
            outcome => JobState::Finished(outcome.parse().map_err(|_| Problem::of("state", "is no state"))?),
        },
        replayed: fields.need("replayed", |from| from.boolean())?,
        accepted_at: Timestamp::from_millis(fields.need("accepted_at", |from| from.signed())?),
        expires_at: Timestamp::from_millis(fields.need("expires_at", |from| from.signed())?),
    })
}

fn read_result(cursor: String, fields: &Fields<'_>) -> Result<WireResult, Problem> {
    let payload = fields.maybe("payload", |from| from.shared_binary())?;
    let too_large = fields.maybe("too_large", |from| from.unsigned())?;
    let reason = fields.maybe_text("reason")?;
    Ok(WireResult {
        cursor,
        job: read_job(fields)?,
        run: RunId::from_bytes(fields.id("run")?),
        generation: fields.narrow("generation")?,
        queue: fields.parsed("queue")?,
        key: fields.maybe("key", parse)?,
        meta: fields.named_texts("meta", META_NAMES_MAX)?,
        outcome: fields.parsed("outcome")?,
        attempt: fields.narrow("attempt")?,
        content_type: fields.text("content_type")?,
        payload: match (payload, too_large) {
            (Some(payload), _) => Body::Here(payload),
            (None, Some(size)) => Body::TooLarge(size),
            (None, None) => Body::Erased,
        },
        failure: match reason {
            Some(reason) => Some(Failure::new(reason, fields.maybe_text("detail")?.unwrap_or_default())),
            None => None,
        },
        accepted_at: Timestamp::from_millis(fields.need("accepted_at", |from| from.signed())?),
        started_at: fields.maybe_time("started_at")?,
        finished_at: Timestamp::from_millis(fields.need("finished_at", |from| from.signed())?),
        traceparent: fields.maybe_text("traceparent")?,
    })
}

fn read_problem(fields: &Fields<'_>) -> Result<WireProblem, Problem> {
    let mut detail = fields.text("detail")?;
    detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
    Ok(WireProblem {
        slug: fields.text("slug")?,
        retry: Retry::from_word(&fields.text("retry")?),
        detail,
        instance: fields.maybe_text("instance")?.unwrap_or_default(),
        retry_after: fields.maybe_millis("retry_after_ms")?,
        limit: fields.maybe("limit", |from| from.unsigned())?,
        actual: fields.maybe("actual", |from| from.unsigned())?,
        job: fields.maybe("job", |from| from.shared_binary())?.map(|id| job_of(&id)).transpose()?,
        first_at: fields.maybe_time("first_at")?,
        outcome: fields.maybe("outcome", parse)?,
        finished_at: fields.maybe_time("finished_at")?,
    })
}

fn job_of(id: &[u8]) -> Result<JobId, Problem> {
    id.try_into().map(JobId::from_bytes).map_err(|_| Problem::of("job", "is not 16 bytes"))
}
