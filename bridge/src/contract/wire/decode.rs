//! Frames to messages. Fields may come in any order; unknown ones are passed over. A message that can't be read says
//! which field is wrong, and under which request id to answer.

use std::num::NonZeroU32;

use bytes::Bytes;

use super::error::Retry;
use super::fields::{Fields, parse};
use super::message::{FromServer, FromWorker, Hello, Request, Response, Role, Welcome, WireDelivery};
use super::problem::Problem;
use super::{DETAIL_BYTES_MAX, LEASE_QUEUES_MAX, PROGRESS_BYTES_MAX, TOKEN_BYTES_MAX, WireError};
use crate::contract::{JobId, RunId, Timestamp, WorkerId};
use crate::leasing::{Held, LEASE_BATCH_MAX, LeaseRequest, Progress, Receipt, Recorded};
use crate::settlement::Settlement;

/// The longest key in a hello, in bytes: tokens of issuers are keys, too.
pub(super) const KEY_BYTES_MAX: usize = 8 * 1024;
/// The longest name of a program in a hello, in bytes.
pub(super) const BUILD_BYTES_MAX: usize = 128;

/// A frame holds no message of this version of the protocol. The stream is sound: the next frame may be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct DecodeError {
    /// The request id, if one could be read.
    pub id: Option<u64>,
    /// The problem with the message.
    pub problem: Problem,
}

impl FromWorker {
    /// Reads one frame. Envelopes in it are slices of the frame.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        let (kind, id, fields) = open(frame)?;
        read_from_worker(&kind, id, &fields).map_err(|problem| DecodeError { id, problem })
    }
}

impl FromServer {
    /// Reads one frame. Envelopes in it are slices of the frame.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        let (kind, id, fields) = open(frame)?;
        read_from_server(&kind, id, &fields).map_err(|problem| DecodeError { id, problem })
    }
}

pub(super) fn open(frame: &Bytes) -> Result<(String, Option<u64>, Fields<'_>), DecodeError> {
    let anonymous = |problem| DecodeError { id: None, problem };
    let fields = Fields::read(frame).map_err(anonymous)?;
    let id = fields.maybe("id", |from| from.unsigned()).map_err(anonymous)?;
    let kind = fields.text("type").map_err(|problem| DecodeError { id, problem })?;
    Ok((kind, id, fields))
}

fn read_from_worker(kind: &str, id: Option<u64>, fields: &Fields<'_>) -> Result<FromWorker, Problem> {
    let request = match kind {
        "hello" => return read_hello(fields).map(FromWorker::Hello),
        "ping" => return need_id(id).map(FromWorker::Ping),
        "pong" => return need_id(id).map(FromWorker::Pong),
        "cancel_lease" => return Ok(FromWorker::CancelLease { id: need_id(id)? }),
        "lease" => Request::Lease(LeaseRequest {
            worker: fields.parsed::<WorkerId>("worker")?,
            queues: fields
                .items("queues", LEASE_QUEUES_MAX, |from| parse(from).map_err(|error| Problem::new("queues", error)))?,
            max: fields.narrow::<u32>("max").and_then(|max| {
                NonZeroU32::new(max)
                    .filter(|max| max.get() <= LEASE_BATCH_MAX)
                    .ok_or(Problem::of("max", "is not 1 to 1024"))
            })?,
            wait: fields.millis("wait_ms")?,
        }),
        "extend" => Request::Extend(read_receipt(fields)?),
        "progress" => {
            // Best effort: a number that is none means that the handler does not know.
            let percent = fields.float("percent")?.filter(|percent| !percent.is_nan());
            let percent = percent.map(|percent| percent.clamp(0.0, 100.0));
            let mut message = fields.text("message")?;
            message.truncate(message.floor_char_boundary(PROGRESS_BYTES_MAX));
            Request::Progress(read_receipt(fields)?, Progress { percent, message })
        }
        "dead_letter" => Request::DeadLetter(fields.binary("letter")?),
        "retract_dead_letter" => {
            Request::RetractDeadLetter(JobId::from_bytes(fields.id("job")?), RunId::from_bytes(fields.id("run")?))
        }
        "record" => Request::Record(fields.binary("result")?),
        "settle" => Request::Settle(
            read_receipt(fields)?,
            match fields.text("how")?.as_str() {
                "complete" => Settlement::Complete,
                "retry_after" => Settlement::RetryAfter(fields.millis("after_ms")?),
                "dead_letter" => Settlement::DeadLetter,
                "hand_back" => Settlement::HandBack(fields.millis("after_ms")?),
                _ => return Err(Problem::of("how", "is not complete, retry_after, dead_letter or hand_back")),
            },
        ),
        "queue_policy" => Request::QueuePolicy(fields.parsed("queue")?),
        other => return Err(unknown(other)),
    };
    Ok(FromWorker::Request { id: need_id(id)?, request })
}

/// A text of at most `max` bytes that may be left out.
pub(super) fn short(fields: &Fields<'_>, name: &'static str, max: usize) -> Result<Option<String>, Problem> {
    let text = fields.maybe_text(name)?;
    if text.as_ref().is_some_and(|text| text.len() > max) {
        return Err(Problem::of(name, "is too long"));
    }
    Ok(text)
}

fn read_hello(fields: &Fields<'_>) -> Result<Hello, Problem> {
    // First: a hello of the other role has not all of the fields.
    let role = match fields.text("role")?.as_str() {
        "worker" => Role::Worker,
        "client" => {
            let problem = "is `client`: clients connect to a listener for clients, that of --tcp or with TLS that of --listen, and \
                           this one is for workers";
            return Err(Problem::of("role", problem));
        }
        _ => return Err(Problem::of("role", "is not `worker`, the only role of this listener")),
    };
    Ok(Hello {
        version_min: fields.narrow("version_min")?,
        version_max: fields.narrow("version_max")?,
        envelope_max: fields.narrow("envelope_max")?,
        role,
        worker: fields.parsed("worker")?,
        key: short(fields, "key", KEY_BYTES_MAX)?,
        build: short(fields, "build", BUILD_BYTES_MAX)?.unwrap_or_default(),
        frame_max: fields.narrow_or("frame_max", super::FRAME_MAX)?,
    })
}

fn read_from_server(kind: &str, id: Option<u64>, fields: &Fields<'_>) -> Result<FromServer, Problem> {
    let response = match kind {
        "welcome" => return read_welcome(fields).map(FromServer::Welcome),
        "error" => return Ok(FromServer::Error { id, error: read_error(fields)? }),
        "go_away" => {
            return Ok(FromServer::GoAway { reason: fields.text("reason")?, within: fields.millis("within_ms")? });
        }
        "ping" => return need_id(id).map(FromServer::Ping),
        "pong" => return need_id(id).map(FromServer::Pong),
        "deliveries" => Response::Deliveries {
            more: fields.maybe("more", |from| from.boolean())?.unwrap_or(false),
            deliveries: fields.items("deliveries", usize::try_from(LEASE_BATCH_MAX).unwrap_or(usize::MAX), |from| {
                let map = from.raw().map_err(|error| Problem::new("deliveries", error))?;
                Fields::read(&map).and_then(|fields| read_delivery(&fields)).map_err(|p| p.within("deliveries"))
            })?,
        },
        "held" => Response::Held(match fields.maybe("ended", parse)? {
            Some(outcome) => Held::Ended(outcome),
            None => Held::Until(fields.millis("lease_ms")?),
        }),
        "recorded" => Response::Recorded(if fields.need("first", |from| from.boolean())? {
            Recorded::First
        } else {
            Recorded::Superseded(fields.parsed("outcome")?)
        }),
        "policy" => {
            let raw = fields.raw("policy")?;
            let policy = rmp_serde::from_slice(&raw).map_err(|_| Problem::of("policy", "is not a policy"))?;
            Response::Policy(Box::new(policy))
        }
        "done" => Response::Done,
        other => return Err(unknown(other)),
    };
    Ok(FromServer::Response { id: need_id(id)?, response })
}

fn read_welcome(fields: &Fields<'_>) -> Result<Welcome, Problem> {
    Ok(Welcome {
        version: fields.narrow("version")?,
        envelope_max: fields.narrow("envelope_max")?,
        frame_max: fields.narrow("frame_max")?,
        requests_max: fields.narrow("requests_max")?,
        ping: fields.millis("ping_ms")?,
        server_time: Timestamp::from_millis(fields.need("server_time", |from| from.signed())?),
        build: fields.maybe("build", |from| from.text().map(str::to_owned))?.unwrap_or_default(),
    })
}

pub(super) fn read_error(fields: &Fields<'_>) -> Result<WireError, Problem> {
    let mut detail = fields.text("detail")?;
    detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
    Ok(WireError {
        kind: fields.text("kind")?.into(),
        slug: fields.text("slug")?.into(),
        retry: Retry::from_word(&fields.text("retry")?),
        detail,
        actual: fields.maybe("actual", |from| from.unsigned())?,
        limit: fields.maybe("limit", |from| from.unsigned())?,
        retry_after: fields.maybe("retry_after_ms", |from| from.unsigned())?.map(std::time::Duration::from_millis),
        of_storage: fields.maybe("storage", |from| from.boolean())?.unwrap_or(false),
    })
}

fn read_delivery(fields: &Fields<'_>) -> Result<WireDelivery, Problem> {
    Ok(WireDelivery {
        job: fields.binary("job")?,
        receipt: read_receipt(fields)?,
        attempt: fields.narrow("attempt")?,
        leased_at: Timestamp::from_millis(fields.need("leased_at", |from| from.signed())?),
        lease: fields.millis("lease_ms")?,
    })
}

fn read_receipt(fields: &Fields<'_>) -> Result<Receipt, Problem> {
    let fields = fields.map("receipt")?;
    let read = || {
        let token = fields.binary("token")?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Problem::of("token", "is longer than 1024 bytes"));
        }
        Ok(Receipt {
            job_id: JobId::from_bytes(fields.id("job")?),
            run_id: RunId::from_bytes(fields.id("run")?),
            client: fields.parsed("client")?,
            queue: fields.parsed("queue")?,
            token: token.to_vec(),
        })
    };
    read().map_err(|problem: Problem| problem.within("receipt"))
}

pub(super) fn need_id(id: Option<u64>) -> Result<u64, Problem> {
    id.ok_or(Problem::of("id", "is missing"))
}

pub(super) fn unknown(kind: &str) -> Problem {
    Problem::UnknownType(kind.chars().take(64).flat_map(char::escape_default).take(128).collect())
}
