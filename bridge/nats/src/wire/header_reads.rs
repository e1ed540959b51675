//! Bounds the reads of headers, and remembers which of the calls for them relay's user may not make.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use relay_bridge::error::BrokerError;
use relay_bridge::support::lock;

/// How many reads there are at once: each has the headers of a hundred messages at most, of 64 KiB each at most.
const READS: usize = 4;
/// For how long a call that was refused, or got no answer, is not made again.
const REFUSED_FOR: Duration = Duration::from_secs(120);
/// The calls that make and remove the consumer of a read.
pub(super) const CREATE: &str = "CONSUMER.CREATE";
pub(super) const DELETE: &str = "CONSUMER.DELETE";

/// What bounds the reads of headers, and the calls for them that relay's user may not make.
#[derive(Debug)]
pub(crate) struct HeaderReads {
    pub(super) places: Semaphore,
    /// When each was refused last, by call and stream; until it is answered again.
    refused: Mutex<HashMap<(&'static str, &'static str), Instant>>,
}

impl Default for HeaderReads {
    fn default() -> Self {
        Self { places: Semaphore::new(READS), refused: Mutex::default() }
    }
}

impl HeaderReads {
    /// Whether a call may be made: it was not refused lately.
    pub(super) fn may(&self, call: &'static str, stream: &'static str) -> bool {
        lock(&self.refused).get(&(call, stream)).is_none_or(|at| at.elapsed() >= REFUSED_FOR)
    }

    /// Notes whether a call was answered. Of those that were not the log tells once, until one is answered again.
    pub(super) fn note(&self, call: &'static str, stream: &'static str, failure: Option<&BrokerError>) {
        let mut refused = lock(&self.refused);
        let Some(error) = failure else {
            refused.remove(&(call, stream));
            return;
        };
        if refused.insert((call, stream), Instant::now()).is_none() {
            tracing::warn!(
                %error,
                "relay can't make, or remove, the consumers by which it reads headers in `{stream}`, and reads whole messages where it \
                 can't: give its user the permission to publish to `$JS.API.{CREATE}.{stream}.*` and `$JS.API.{DELETE}.{stream}.*`"
            );
        }
    }
}
