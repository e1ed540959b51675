//! Notices a consumer that does not go on where it was. One that was reset, or deleted and made again by somebody else,
//! delivers jobs that were settled as if for the first time, and the server tells nobody of a reset. It shows in the
//! numbers of its deliveries: they only grow, and for first deliveries so do the sequences of the stream. Pure: no
//! clock, no I/O.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::stored::names::Lane;

/// How long numbers that were passed over may come late. Messages of two pulls overtake each other in this process by
/// milliseconds.
const LATE_MAX: Duration = Duration::from_secs(1);
/// The most gaps of one lane that are remembered.
const GAPS_MAX: usize = 64;

/// The furthest that each lane's consumer is known to have come.
#[derive(Debug, Default)]
pub(crate) struct Orders(HashMap<Lane, Furthest>);

#[derive(Clone, Debug)]
struct Furthest {
    /// The consumer's number of its latest delivery.
    delivery: u64,
    /// The sequence of the latest first delivery.
    stored: u64,
    /// When that was known.
    at: Instant,
    /// Numbers that were passed over lately: another process has them, or they were overtaken.
    gaps: Vec<Gap>,
}

/// Deliveries that were overtaken by one with a greater number.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// Their numbers: from the first to the last.
    deliveries: (u64, u64),
    /// Between these sequences their messages are stored.
    stored: (u64, u64),
    /// When they were passed over.
    at: Instant,
}

impl Gap {
    /// Whether it may be one of these.
    fn has(&self, of: &Delivered) -> bool {
        let (first, last) = self.deliveries;
        let (after, before) = self.stored;
        let fits = of.stored.is_none_or(|stored| after < stored && stored < before);
        (first..=last).contains(&of.delivery) && fits && of.asked_at <= self.at
    }
}

/// A delivery of a consumer, or the last one that it says it made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivered {
    /// The consumer's number of the delivery.
    pub(crate) delivery: u64,
    /// The sequence of the stream, if it is the message's first delivery.
    pub(crate) stored: Option<u64>,
    /// When it was asked for.
    pub(crate) asked_at: Instant,
}

/// How a delivery relates to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    GoesOn,
    /// It was asked for before the latest one came: it may have been overtaken.
    Unclear,
    /// The consumer is not where it was.
    BeginsAnew,
}

impl Orders {
    /// Notes a delivery, and how it relates to those before; `now` is when it is known.
    pub(crate) fn saw(&mut self, lane: &Lane, of: Delivered, now: Instant) -> Order {
        let begins = || Furthest { delivery: of.delivery, stored: of.stored.unwrap_or(0), at: now, gaps: Vec::new() };
        let Some(known) = self.0.get_mut(lane) else {
            // Deliveries made to this process before may come behind it.
            let mut first = Furthest { delivery: 0, stored: 0, ..begins() };
            first.come_to(&of, now);
            self.0.insert(lane.clone(), first);
            return Order::GoesOn;
        };
        let goes_on = match of.stored {
            Some(stored) => of.delivery > known.delivery && stored > known.stored,
            // The server may say twice where it is.
            None => of.delivery >= known.delivery,
        };
        if goes_on {
            known.come_to(&of, now);
            return Order::GoesOn;
        }
        if of.delivery <= known.delivery && of.asked_at <= known.at {
            return if known.fill_gap(&of, now) { Order::GoesOn } else { Order::Unclear };
        }
        *known = begins();
        Order::BeginsAnew
    }
}

impl Furthest {
    fn come_to(&mut self, of: &Delivered, now: Instant) {
        // Where the server says how far it is, that number is on its way too.
        let last = of.delivery.saturating_sub(u64::from(of.stored.is_some()));
        if last > self.delivery {
            self.gaps.retain(|gap| now < gap.at + LATE_MAX);
            if self.gaps.len() >= GAPS_MAX {
                self.gaps.remove(0);
            }
            let stored = (self.stored, of.stored.unwrap_or(u64::MAX));
            self.gaps.push(Gap { deliveries: (self.delivery + 1, last), stored, at: now });
        }
        (self.delivery, self.stored, self.at) = (of.delivery, of.stored.unwrap_or(0).max(self.stored), now);
    }

    /// Whether it is one that was overtaken; none of its number comes again.
    fn fill_gap(&mut self, of: &Delivered, now: Instant) -> bool {
        let is_open = |gap: &Gap| now < gap.at + LATE_MAX && gap.has(of);
        let Some(at) = self.gaps.iter().position(is_open) else { return false };
        let gap = self.gaps.remove(at);
        let ((first, last), (after, before)) = (gap.deliveries, gap.stored);
        let stored = of.stored;
        let lower = Gap { deliveries: (first, of.delivery - 1), stored: (after, stored.unwrap_or(before)), ..gap };
        let upper = Gap { deliveries: (of.delivery + 1, last), stored: (stored.unwrap_or(after), before), ..gap };
        for part in [upper, lower].into_iter().filter(|part| part.deliveries.0 <= part.deliveries.1) {
            if self.gaps.len() < GAPS_MAX {
                self.gaps.insert(at, part);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_falls_or_a_first_delivery_not_above_the_last_begins_anew() {
        let (start, lane) = (Instant::now(), "me".parse::<Lane>().unwrap());
        let at = |millis| start + Duration::from_millis(millis);
        let mut orders = Orders::default();
        let mut saw = |delivery, stored, asked, now| {
            orders.saw(&lane, Delivered { delivery, stored, asked_at: at(asked) }, at(now))
        };
        assert_eq!(saw(7, Some(10), 0, 1), Order::GoesOn, "nothing was known");
        assert_eq!(saw(9, Some(12), 0, 2), Order::GoesOn);
        assert_eq!(saw(6, Some(9), 1, 3), Order::GoesOn, "it was asked for before the seventh came");
        assert_eq!(saw(6, Some(9), 1, 3), Order::Unclear, "a number comes once");
        assert_eq!(
            saw(5, Some(8), 2, 3),
            Order::Unclear,
            "it was asked for after the seventh, and before the ninth came"
        );
        assert_eq!(saw(10, None, 3, 4), Order::GoesOn, "delivered again");
        assert_eq!(saw(10, None, 5, 6), Order::GoesOn, "the server says where it is");
        assert_eq!(saw(11, Some(12), 0, 7), Order::BeginsAnew, "the twelfth was delivered first before");
        assert_eq!(saw(12, Some(13), 8, 9), Order::GoesOn);
        assert_eq!(saw(1, Some(14), 10, 11), Order::BeginsAnew);
        assert_eq!(saw(2, Some(15), 12, 13), Order::GoesOn, "from there");
        assert_eq!(saw(1, None, 14, 15), Order::BeginsAnew, "the server says that it is not where it was");
    }

    #[test]
    fn what_was_overtaken_goes_on_once_and_for_a_second_where_it_fits_between_what_came() {
        let (start, lane) = (Instant::now(), "me".parse::<Lane>().unwrap());
        let at = |millis| start + Duration::from_millis(millis);
        let mut orders = Orders::default();
        let mut saw = |delivery, stored, asked, now| {
            orders.saw(&lane, Delivered { delivery, stored, asked_at: at(asked) }, at(now))
        };
        assert_eq!(saw(10, Some(100), 0, 1), Order::GoesOn);
        // The messages of a second pull come first, then those of the first one in any order.
        assert_eq!(saw(14, Some(104), 1, 2), Order::GoesOn);
        assert_eq!(saw(15, Some(105), 1, 2), Order::GoesOn);
        for (delivery, stored) in [(12, 102), (11, 101), (13, 103)] {
            assert_eq!(saw(delivery, Some(stored), 1, 3), Order::GoesOn, "{delivery}");
            assert_eq!(saw(delivery, Some(stored), 1, 3), Order::Unclear, "{delivery} comes once");
        }
        // The server says how far it is while messages are on their way.
        assert_eq!(saw(17, None, 4, 5), Order::GoesOn);
        assert_eq!(saw(17, Some(107), 4, 6), Order::GoesOn);
        assert_eq!(saw(16, Some(108), 4, 6), Order::Unclear, "it is stored behind what came after it");
        assert_eq!(saw(16, Some(106), 4, 1_005), Order::Unclear, "a second has passed");
        assert_eq!(saw(20, Some(110), 1_006, 1_007), Order::GoesOn);
        assert_eq!(saw(19, Some(109), 1_008, 1_009), Order::BeginsAnew, "it was asked for later");
    }

    #[test]
    fn no_more_gaps_are_remembered_than_are_of_use() {
        let (start, lane) = (Instant::now(), "me".parse::<Lane>().unwrap());
        let mut orders = Orders::default();
        for number in 1..100 {
            orders.saw(&lane, Delivered { delivery: number * 3, stored: Some(number * 3), asked_at: start }, start);
        }
        let known = orders.0.get(&lane).unwrap();
        assert_eq!((known.gaps.len(), known.gaps[0].deliveries), (GAPS_MAX, (106, 107)));
    }
}
