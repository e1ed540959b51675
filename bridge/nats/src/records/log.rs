//! The stream of results as a whole: which log it is, and where it ends.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::stored::names::RESULTS_STREAM;
use crate::stored::result_entry::Place;
use crate::wire::api::{self, Api};
use crate::wire::stream_calls;
use relay_bridge::contract::LogId;
use relay_bridge::error::BrokerError;
use relay_bridge::support::lock;

/// For how long a log counts as the same.
pub(crate) const TRUSTED_FOR: Duration = Duration::from_secs(10);

/// The log as its leader has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) first_seq: u64,
    pub(crate) last: Place,
    /// Whether a read may be answered by a server that has not got all of it yet.
    pub(crate) is_replicated: bool,
}

/// Asks for the log, and remembers for a while which one it is.
pub(crate) struct LogReader {
    api: Api,
    /// The log's id as it was last, on which connection, and when.
    known: Mutex<Option<(LogId, u64, Instant)>>,
}

impl LogReader {
    pub(crate) fn new(api: Api) -> Self {
        Self { api, known: Mutex::default() }
    }

    /// The id of the log: another one after the stream was made anew. An id from before the connection was made again
    /// is not believed: the server may have been given an older store.
    pub(crate) async fn id(&self) -> Result<LogId, BrokerError> {
        let known = *lock(&self.known);
        let is_good = |(_, on, at): &(_, u64, Instant)| *on == self.api.connections() && at.elapsed() < TRUSTED_FOR;
        match known.filter(is_good) {
            Some((id, ..)) => Ok(id),
            None => Ok(self.look().await?.id),
        }
    }

    /// The log as it is now.
    pub(crate) async fn look(&self) -> Result<Log, BrokerError> {
        let (asked, on) = (Instant::now(), self.api.connections());
        let info = stream_calls::get(&self.api, RESULTS_STREAM, "read results").await?.info;
        let mut id = [0; 16];
        let mut hasher = blake3::Hasher::new_derive_key("relay nats results log v1");
        hasher.update(&info.created.unix_timestamp_nanos().to_be_bytes());
        hasher.finalize_xof().fill(&mut id);
        let id = LogId(id);
        *lock(&self.known) = Some((id, on, asked));
        let last_at = match info.state.last_sequence {
            0 => Place::START.at,
            _ => api::millis(info.state.last_timestamp.unix_timestamp_nanos()),
        };
        let last = Place { seq: info.state.last_sequence, at: last_at };
        Ok(Log { id, first_seq: info.state.first_sequence, last, is_replicated: info.config.num_replicas > 1 })
    }
}
