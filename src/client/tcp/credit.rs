//! The credit that a server has to push results.

use std::collections::VecDeque;

use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::contract::wire::client::{WireResult, credit_bytes};

/// The results, and bytes of payloads, that the server may still push to a follower. With what results took that were not given
/// back it is always as much as in the beginning. So it is no less than the server counts, to which the newest credit is on its way.
pub(super) struct Credit {
    results: u64,
    /// Below 0 by what the last result had more than was left.
    bytes: i64,
    /// The bytes of each result that was not given back: of all but the last one no more than there was credit for.
    taken: VecDeque<i64>,
}

impl Credit {
    /// The credit that the server begins with.
    pub(super) fn new(results: u32, bytes: u64) -> Self {
        Self { results: u64::from(results), bytes: credit_bytes(bytes), taken: VecDeque::new() }
    }

    /// Results that the server may still push.
    pub(super) fn results(&self) -> usize {
        usize::try_from(self.results).unwrap_or(usize::MAX)
    }

    /// Spends it on a result, however many bytes the server says that it has. `false` where there was none: a last payload may be
    /// larger than what is left.
    pub(super) fn spend(&mut self, result: &WireResult) -> bool {
        if self.results == 0 || self.bytes <= 0 {
            return false;
        }
        let bytes = credit_bytes(match &result.payload {
            Body::Here(payload) => u64::try_from(payload.len()).unwrap_or(u64::MAX),
            Body::Erased => 0,
            Body::TooLarge(size) => *size,
        });
        self.results -= 1;
        self.bytes -= bytes;
        self.taken.push_back(bytes);
        true
    }

    /// Gives back what the first `results` took that were not given back, and returns their bytes, which the server is told of.
    pub(super) fn give_back(&mut self, results: u32) -> u64 {
        let results = usize::try_from(results).unwrap_or(usize::MAX).min(self.taken.len());
        let bytes: i64 = self.taken.drain(..results).sum();
        self.results += results as u64;
        self.bytes += bytes;
        bytes.unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::result;
    use super::*;

    fn with(payload: Body) -> WireResult {
        result("1", payload)
    }

    #[test]
    fn no_result_gives_a_server_more_credit_than_it_began_with() {
        let mut credit = Credit::new(3, 100);
        assert!(credit.spend(&with(Body::Here(vec![0; 30].into()))));
        assert!(credit.spend(&with(Body::TooLarge(u64::MAX))), "the last one may be larger than what is left");
        assert!(!credit.spend(&with(Body::Erased)), "no bytes are left");
        assert_eq!((credit.give_back(1), credit.give_back(7), credit.give_back(1)), (30, 1 << 40, 0));
        assert_eq!((credit.results, credit.bytes, credit.taken.len()), (3, 100, 0));
    }

    #[test]
    fn a_server_is_never_short_of_what_it_counts_while_credit_is_on_its_way() {
        // When the server sends 50 it has 10 left, and 90 are on their way to it.
        let (mut credit, payload) = (Credit::new(9, 100), |bytes| with(Body::Here(vec![0; bytes].into())));
        assert!(credit.spend(&payload(90)));
        assert_eq!(credit.give_back(1), 90);
        assert!(credit.spend(&payload(50)));
        // Now it has 50 as well.
        assert!(credit.spend(&payload(50)) && !credit.spend(&payload(1)));
        assert_eq!(credit.give_back(2), 100);
    }

    #[test]
    fn a_server_has_no_more_results_than_its_credit() {
        let mut credit = Credit::new(1, 100);
        assert!(credit.spend(&with(Body::Erased)) && !credit.spend(&with(Body::Erased)));
        assert_eq!(credit.give_back(1), 0);
        assert!(credit.spend(&with(Body::Erased)));
    }
}
