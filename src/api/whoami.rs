//! The caller as relay knows it, and the rules that hold for it.

use relay_bridge::contract::{ClientId, QueueName, Timestamp};
use serde::{Deserialize, Serialize};

use super::DurationText;
#[cfg(feature = "server")]
use super::schema;

/// The answer of `GET /v1/whoami`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Whoami {
    /// The client.
    #[cfg_attr(feature = "server", schema(value_type = schema::ClientName))]
    pub client: ClientId,
    /// How it was authenticated: the method of the first of `factors`.
    pub authenticated_by: String,
    /// The id of the key that was used.
    pub key_id: Option<String>,
    /// All that this request brought and that holds. Empty from servers of before.
    #[serde(default)]
    pub factors: Vec<FactorView>,
    /// The VPC endpoint that the connection came through, where relay sees it.
    pub vpc_endpoint_id: Option<String>,
    /// The address that the connection came from: the one that a trusted balancer says, else the peer's.
    #[serde(default)]
    pub source: Option<String>,
    /// The addresses for clients at which this server listens, as it sees them itself: a balancer in front has another one. Empty from
    /// servers of before.
    #[serde(default)]
    pub listeners: Vec<ListenerView>,
    /// The queues this caller may use; `null` means all.
    #[cfg_attr(feature = "server", schema(value_type = Option<Vec<schema::QueueName>>))]
    pub queues: Option<Vec<QueueName>>,
    /// The calls that this caller may make, by its rights: `submit`, `read`, `manage`.
    pub rights: Vec<String>,
    /// What an accepted job survives: `power-loss`, `replicated`, `process-crash`, `none`.
    pub durability: String,
    /// What holds for a request.
    pub limits: LimitsView,
    /// What holds for the caller in each queue that it may use, and what is left; the first 100 in the order of names.
    pub queue_limits: Vec<QueueLimits>,
    /// Relay's clock, so that a client can see how far its own is off.
    #[cfg_attr(feature = "server", schema(value_type = schema::Time))]
    pub server_time: Timestamp,
    /// Relay's version.
    pub version: String,
}

/// A factor by which a caller is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct FactorView {
    /// `api-key`, `token`, `certificate`, `vpc-endpoint`, or `development` for none.
    pub method: String,
    /// The thing that was shown, without its secret: a key's id, issuer and subject of a token, a certificate's name, an
    /// endpoint's id.
    pub credential: Option<String>,
}

/// An address at which clients are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ListenerView {
    /// With its port.
    pub address: String,
    /// The protocols that are spoken there, by the names that they have in a TLS handshake (ALPN): `h2`, `http/1.1`, `relay/1`.
    pub protocols: Vec<String>,
    /// Whether that is behind TLS, which ends in relay.
    pub tls: bool,
}

/// What holds for a request, whichever queue it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct LimitsView {
    /// The largest payload of any queue, in bytes; a queue may take less.
    pub payload_max: u64,
    /// The longest wait that is honoured.
    #[cfg_attr(feature = "server", schema(value_type = schema::Span))]
    pub wait_max: DurationText,
    /// The longest `Relay-Delay`.
    #[cfg_attr(feature = "server", schema(value_type = schema::Span))]
    pub delay_max: DurationText,
    /// The longest idempotency key, in bytes.
    pub key_bytes_max: u64,
    /// The most entries of a batch.
    pub batch_entries_max: u64,
    /// The largest batch, in bytes.
    pub batch_bytes_max: u64,
    /// The most headers of a request.
    pub headers_max: u64,
    /// The most bytes of a request's headers.
    pub header_bytes_max: u64,
    /// All `Relay-Meta-*` together, names without the prefix and values, in bytes.
    pub meta_bytes_max: u64,
    /// The caller's share of what there is for all clients.
    pub share: ShareView,
}

/// How much one client may hold at a time, of the process that answers; beyond it 429 `rate-limited`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ShareView {
    /// Requests in flight, waits and unread answers included.
    pub requests: u64,
    /// Connections over HTTP.
    pub connections: u64,
    /// Streams of events.
    pub streams: u64,
    /// Bytes of requests' bodies in flight; a first body may be larger.
    pub body_bytes: u64,
    /// Bytes of answers that are not read yet; a first answer may be larger.
    pub answer_bytes: u64,
}

/// How fast a client may submit to a queue, through the process that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct RateLimit {
    /// How many in which time: `100/s`, `6000/min`, `5000/h`, `100000/d`.
    pub limit: String,
    /// How many may come at once.
    pub burst: u32,
    /// How many would be taken now.
    pub left: u32,
}

/// What holds for one client in one queue, now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct QueueLimits {
    /// The queue.
    #[cfg_attr(feature = "server", schema(value_type = schema::QueueName))]
    pub queue: QueueName,
    /// The largest payload, in bytes.
    pub payload_max: u64,
    /// The largest result, in bytes.
    pub result_max: u64,
    /// Attempts of a run before it ends as `exhausted`.
    pub max_attempts: u32,
    /// The longest a run may take.
    #[cfg_attr(feature = "server", schema(value_type = schema::Span))]
    pub job_ttl: DurationText,
    /// How long after completion the result, and the replay of the key, may be relied on.
    #[cfg_attr(feature = "server", schema(value_type = schema::Span))]
    pub retention: DurationText,
    /// Whether an operator has stopped the queue: jobs are taken and wait.
    pub paused: bool,
    /// The content types that are taken, `text/*` for all of a kind; empty means all.
    #[serde(default)]
    pub content_types: Vec<String>,
    /// How fast the client may submit; `null` for no limit.
    pub rate: Option<RateLimit>,
    /// The client's jobs that may wait at once.
    pub max_queued: u64,
    /// The client's jobs that wait now; `null` if the broker can't tell.
    pub queued: Option<u64>,
    /// How many more may wait; `null` if the broker can't tell.
    pub left: Option<u64>,
    /// Bytes of the client's payloads and results that may be kept; `null` for no limit.
    #[serde(default)]
    pub max_stored: Option<u64>,
    /// The bytes that are kept now; `null` if the broker does not count them.
    #[serde(default)]
    pub stored: Option<u64>,
}
