//! The credit that a server has to push results.

use relay_bridge::contract::wire::client::WireResult;
use relay_bridge::contract::wire::client::answer::Body;

/// The results, and bytes of payloads, that the server may still push to a follower.
#[derive(Clone, Copy)]
pub(super) struct Credit {
    pub(super) results: u64,
    pub(super) bytes: u64,
}

impl Credit {
    /// Adds as much as the server is told of.
    pub(super) fn add(&mut self, results: u32, bytes: u64) {
        self.results = self.results.saturating_add(u64::from(results));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Spends it on a result. `false` where there was none: a last payload may be larger than what is left.
    pub(super) fn spend(&mut self, result: &WireResult) -> bool {
        let had = self.results > 0 && self.bytes > 0;
        self.results = self.results.saturating_sub(1);
        let bytes = match &result.payload {
            Body::Here(payload) => u64::try_from(payload.len()).unwrap_or(u64::MAX),
            Body::Erased => 0,
            Body::TooLarge(size) => *size,
        };
        self.bytes = self.bytes.saturating_sub(bytes);
        had
    }
}
