//! The frames of relay's TCP protocol: bytes in, typed messages out, and back. No I/O, no runtime.
//!
//! A frame is a length (unsigned, 32 bits, big-endian) and that many bytes: one MessagePack map with named fields, of
//! which `type` says what it is. The worker, or the client, speaks first. The specification for other languages, with golden vectors,
//! is `docs/protocol.md`.
//!
//! # Layout
//!
//! - [`frame`]: cutting a byte stream into frames, with a limit that is known before anything is buffered.
//! - [`message`]: the messages of the worker role as types.
//! - [`client`]: the messages of the client role.
//! - [`encode`], [`decode`]: messages to maps and back.
//! - [`error`]: [`WireError`], a broker's error on the wire.
//! - `fields`: one map, by name.

pub mod client;
pub mod decode;
pub mod encode;
pub mod error;
mod fields;
pub mod frame;
pub mod message;
pub mod problem;

pub use decode::DecodeError;
pub use error::WireError;
pub use message::{FromServer, FromWorker, Hello, Request, Response, Role, Welcome, WireDelivery};
pub use problem::Problem;

/// The oldest protocol version this build speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest protocol version this build speaks.
pub const VERSION_MAX: u16 = 1;
/// The longest frame, without its length, before the hello was accepted: 4 KiB.
pub const HELLO_FRAME_MAX: u32 = 4 * 1024;
/// The longest frame, without its length, that this build ever takes or sends: 17 MiB. The largest payload of any broker
/// has 16 MiB; the rest is for headers, ids and a failure's detail.
pub const FRAME_MAX: u32 = 17 * 1024 * 1024;
/// The smallest limit a peer may state for the frames after the hello: 64 KiB.
pub const FRAME_MAX_LEAST: u32 = 64 * 1024;
/// The longest frame from a client, without its length, before its hello was accepted: 16 KiB, for a token of 8 KiB.
pub const CLIENT_HELLO_FRAME_MAX: u32 = 16 * 1024;
/// The most queues that one lease request names.
pub const LEASE_QUEUES_MAX: usize = 64;
/// The longest token of a receipt, in bytes.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// The longest message of a progress, in bytes; longer text is cut.
pub const PROGRESS_BYTES_MAX: usize = 1024;
/// The longest detail of an error on the wire, in bytes; longer text is cut.
pub const DETAIL_BYTES_MAX: usize = 1024;

/// The one version that both sides speak, given what the other one speaks; `None` if there is none.
#[must_use]
pub fn negotiate(min: u16, max: u16) -> Option<u16> {
    let version = max.min(VERSION_MAX);
    (min <= max && version >= min.max(VERSION_MIN)).then_some(version)
}
