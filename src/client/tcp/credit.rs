//! The credit that a server has to push results.

use std::collections::VecDeque;

use relay_bridge::contract::wire::client::WireResult;
use relay_bridge::contract::wire::client::answer::Body;

/// The results, and bytes of payloads, that the server may still push to a follower. With what results took that were not given
/// back it is always as much as in the beginning.
pub(super) struct Credit {
    results: u64,
    bytes: u64,
    /// The bytes that each result took, of those that were not given back: no more than there was credit for.
    taken: VecDeque<u64>,
}

impl Credit {
    /// The credit that the server begins with.
    pub(super) fn new(results: u32, bytes: u64) -> Self {
        Self { results: u64::from(results), bytes, taken: VecDeque::new() }
    }

    /// Spends it on a result, which takes no more bytes than are left, however many the server says that it has. `false` where there
    /// was none: a last payload may be larger than what is left.
    pub(super) fn spend(&mut self, result: &WireResult) -> bool {
        if self.results == 0 || self.bytes == 0 {
            return false;
        }
        let bytes = match &result.payload {
            Body::Here(payload) => u64::try_from(payload.len()).unwrap_or(u64::MAX),
            Body::Erased => 0,
            Body::TooLarge(size) => *size,
        };
        let taken = bytes.min(self.bytes);
        self.results -= 1;
        self.bytes -= taken;
        self.taken.push_back(taken);
        true
    }

    /// Gives back what the first `results` took that were not given back, and returns their bytes, which the server is told of.
    pub(super) fn give_back(&mut self, results: u32) -> u64 {
        let results = usize::try_from(results).unwrap_or(usize::MAX).min(self.taken.len());
        let bytes = self.taken.drain(..results).sum();
        self.results += results as u64;
        self.bytes += bytes;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use relay_bridge::contract::{JobId, Outcome, RunId, Timestamp};

    use super::*;

    fn result(payload: Body) -> WireResult {
        WireResult {
            cursor: "1".to_owned(),
            job: JobId::from_bytes([1; 16]),
            run: RunId::from_bytes([2; 16]),
            generation: 1,
            queue: "mail".parse().unwrap(),
            key: None,
            meta: Default::default(),
            outcome: Outcome::Succeeded,
            attempt: 1,
            content_type: "text/plain".to_owned(),
            payload,
            failure: None,
            accepted_at: Timestamp::EPOCH,
            started_at: None,
            finished_at: Timestamp::EPOCH,
            traceparent: None,
        }
    }

    #[test]
    fn no_result_gives_a_server_more_credit_than_it_began_with() {
        let mut credit = Credit::new(3, 100);
        assert!(credit.spend(&result(Body::Here(vec![0; 30].into()))));
        assert!(credit.spend(&result(Body::TooLarge(u64::MAX))), "the last one may be larger than what is left");
        assert!(!credit.spend(&result(Body::Erased)), "no bytes are left");
        assert_eq!((credit.give_back(1), credit.give_back(7), credit.give_back(1)), (30, 70, 0));
        assert_eq!((credit.results, credit.bytes, credit.taken.len()), (3, 100, 0));
    }

    #[test]
    fn a_server_has_no_more_results_than_its_credit() {
        let mut credit = Credit::new(1, 100);
        assert!(credit.spend(&result(Body::Erased)) && !credit.spend(&result(Body::Erased)));
        assert_eq!(credit.give_back(1), 0);
        assert!(credit.spend(&result(Body::Erased)));
    }
}
