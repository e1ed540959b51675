//! One decision per call, from a seed. Pure: no clock, no state.

use std::time::Duration;

use super::FaultOptions;

/// The decision about one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it reaches the broker, and its answer the caller.
    pub fate: Fate,
    /// How late it is made.
    pub delay: Duration,
    /// Whether the delivery's lease ends at once; asked for each delivery of a `lease`.
    pub lease_cut: bool,
    /// Whether the delivery comes twice; asked for each delivery of a `lease`.
    pub duplicate: bool,
}

/// How far a call gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// There and back.
    #[default]
    Done,
    /// Not to the broker.
    RequestLost,
    /// To the broker, and not back.
    ReplyLost,
}

impl Decision {
    /// The decision as a number, for a digest.
    pub(super) fn bits(&self) -> u64 {
        let delay = u64::try_from(self.delay.as_nanos()).unwrap_or(u64::MAX) << 4;
        let fate = match self.fate {
            Fate::Done => 0,
            Fate::RequestLost => 1,
            Fate::ReplyLost => 2,
        };
        delay | u64::from(self.duplicate) << 3 | u64::from(self.lease_cut) << 2 | fate
    }
}

/// Decides about call number `call` of `operation`. Each operation has a random stream of its own, so that one more
/// heartbeat does not change the decision about the next enqueue.
pub(super) fn decide(options: &FaultOptions, operation: &str, call: u64) -> Decision {
    let name = operation.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    let mut random = Random(mix(options.seed) ^ name ^ mix(call.wrapping_add(1)));
    let lost = random.percent();
    let request = options.request_lost_percent.min(100);
    let fate = if lost < request {
        Fate::RequestLost
    } else if lost < request.saturating_add(options.reply_lost_percent) {
        Fate::ReplyLost
    } else {
        Fate::Done
    };
    let (late, how_late) = (random.percent() < options.delay_percent, random.next());
    let delay_max = u64::try_from(options.delay_max.as_nanos()).unwrap_or(u64::MAX);
    let delay = if late { Duration::from_nanos(how_late % delay_max.max(1)) } else { Duration::ZERO };
    let lease_cut = random.percent() < options.lease_cut_percent;
    let duplicate = random.percent() < options.duplicate_percent;
    Decision { fate, delay, lease_cut, duplicate }
}

/// SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        finish(self.0)
    }

    /// 0 to 99.
    fn percent(&mut self) -> u8 {
        u8::try_from(self.next() % 100).unwrap_or(0)
    }
}

/// One step of SplitMix64 from `state`, as a hash of it.
pub(super) fn mix(state: u64) -> u64 {
    finish(state.wrapping_add(GOLDEN))
}

fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn stormy(seed: u64) -> FaultOptions {
        FaultOptions {
            seed,
            request_lost_percent: 10,
            reply_lost_percent: 20,
            delay_percent: 30,
            delay_max: Duration::from_secs(5),
            lease_cut_percent: 5,
            duplicate_percent: 50,
        }
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // The first outputs for seed 1234567, as the reference implementation prints them.
        let mut random = Random(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423_u64];
        assert_eq!(expected.map(|_| random.next()), expected);
    }

    #[test]
    fn the_same_seed_gives_the_same_decisions_and_another_seed_others() {
        let decisions = |seed| (0..500).map(|call| decide(&stormy(seed), "enqueue", call)).collect::<Vec<_>>();
        assert_eq!(decisions(7), decisions(7));
        assert_ne!(decisions(7), decisions(8));
    }

    #[test]
    fn operations_do_not_share_their_decisions() {
        let decisions = |operation| (0..500).map(|call| decide(&stormy(7), operation, call)).collect::<Vec<_>>();
        assert_ne!(decisions("enqueue"), decisions("settle"));
    }

    #[test]
    fn faults_come_as_often_as_the_options_say() {
        let options = stormy(42);
        let decisions: Vec<_> = (0..10_000).map(|call| decide(&options, "lease", call)).collect();
        let percent = |wanted: &dyn Fn(&Decision) -> bool| decisions.iter().filter(|d| wanted(d)).count() / 100;
        assert!((9..=11).contains(&percent(&|d| d.fate == Fate::RequestLost)));
        assert!((18..=22).contains(&percent(&|d| d.fate == Fate::ReplyLost)));
        assert!((28..=32).contains(&percent(&|d| !d.delay.is_zero())));
        assert!((4..=6).contains(&percent(&|d| d.lease_cut)));
        assert!((48..=52).contains(&percent(&|d| d.duplicate)));
        assert!(decisions.iter().all(|d| d.delay < options.delay_max));
    }

    #[test]
    fn nothing_fails_by_default_and_everything_at_one_hundred() {
        let calm = FaultOptions { seed: 3, ..FaultOptions::default() };
        assert!((0..1_000).all(|call| decide(&calm, "settle", call) == Decision::default()));
        let dead = FaultOptions { request_lost_percent: 255, ..calm };
        assert!((0..1_000).all(|call| decide(&dead, "settle", call).fate == Fate::RequestLost));
        let mute = FaultOptions { reply_lost_percent: 100, ..calm };
        assert!((0..1_000).all(|call| decide(&mute, "settle", call).fate == Fate::ReplyLost));
    }
}
