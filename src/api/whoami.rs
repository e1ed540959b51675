//! Who relay thinks the caller is, and what holds for it.

use relay_bridge::contract::{ClientId, QueueName, Timestamp};
use serde::{Deserialize, Serialize};

use super::DurationText;

/// The answer of `GET /v1/whoami`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whoami {
    /// The client.
    pub client: ClientId,
    /// How it was authenticated: `api-key`, or `development` for not at all.
    pub authenticated_by: String,
    /// The id of the key that was used.
    pub key_id: Option<String>,
    /// The VPC endpoint that the connection came through, where relay sees it.
    pub vpc_endpoint_id: Option<String>,
    /// The queues this caller may use; `null` means all.
    pub queues: Option<Vec<QueueName>>,
    /// What an accepted job survives: `power-loss`, `replicated`, `process-crash`, `none`.
    pub durability: String,
    /// What holds for a request.
    pub limits: LimitsView,
    /// Relay's clock, so that a client can see how far its own is off.
    pub server_time: Timestamp,
    /// Relay's version.
    pub version: String,
}

/// What holds for a request, whichever queue it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsView {
    /// The largest payload of any queue, in bytes; a queue may take less.
    pub payload_max: u64,
    /// The longest wait that is honoured.
    pub wait_max: DurationText,
    /// The longest `Relay-Delay`.
    pub delay_max: DurationText,
    /// The longest idempotency key, in bytes.
    pub key_bytes_max: u64,
    /// All `Relay-Meta-*` together, names without the prefix and values, in bytes.
    pub meta_bytes_max: u64,
}
