//! Whether a consumer goes on where it was. One that was reset, or deleted and made again by somebody else, delivers what was
//! settled as if for the first time, and the server tells nobody of a reset. It shows in the numbers of what it delivers:
//! they only grow, and of first deliveries so do the sequences of the stream. Pure: no clock, no I/O.

use std::collections::HashMap;

use tokio::time::Instant;

use super::names::Lane;

/// The furthest that each lane's consumer is known to have come.
#[derive(Debug, Default)]
pub(super) struct Orders(HashMap<Lane, Furthest>);

#[derive(Clone, Copy, Debug)]
struct Furthest {
    /// The consumer's number of its latest delivery.
    delivery: u64,
    /// The sequence of the latest first delivery.
    stored: u64,
    /// When that was known.
    at: Instant,
}

/// A delivery of a consumer, or the last one that it says it made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivered {
    /// The consumer's number of the delivery.
    pub(super) delivery: u64,
    /// The sequence of the stream, if it is the message's first delivery.
    pub(super) stored: Option<u64>,
    /// When it was asked for.
    pub(super) asked_at: Instant,
}

/// How a delivery goes with those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    GoesOn,
    /// It was asked for before the latest one came: it may have been overtaken.
    Unclear,
    /// The consumer is not where it was.
    BeginsAnew,
}

impl Orders {
    /// Takes note of it; `now` is when it is known.
    pub(super) fn saw(&mut self, lane: &Lane, of: Delivered, now: Instant) -> Order {
        let (delivery, stored) = (of.delivery, of.stored.unwrap_or(0));
        let begins = Furthest { delivery, stored, at: now };
        let Some(known) = self.0.get_mut(lane) else {
            self.0.insert(lane.clone(), begins);
            return Order::GoesOn;
        };
        let goes_on = match of.stored {
            Some(stored) => delivery > known.delivery && stored > known.stored,
            // The server may say twice where it is.
            None => delivery >= known.delivery,
        };
        if goes_on {
            *known = Furthest { stored: stored.max(known.stored), ..begins };
            return Order::GoesOn;
        }
        if delivery <= known.delivery && of.asked_at <= known.at {
            return Order::Unclear;
        }
        *known = begins;
        Order::BeginsAnew
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert_eq!(saw(8, Some(11), 1, 3), Order::Unclear, "it was asked for before the ninth came");
        assert_eq!(saw(10, None, 3, 4), Order::GoesOn, "delivered again");
        assert_eq!(saw(10, None, 5, 6), Order::GoesOn, "the server says where it is");
        assert_eq!(saw(11, Some(12), 0, 7), Order::BeginsAnew, "the twelfth was delivered first before");
        assert_eq!(saw(12, Some(13), 8, 9), Order::GoesOn);
        assert_eq!(saw(1, Some(14), 10, 11), Order::BeginsAnew);
        assert_eq!(saw(2, Some(15), 12, 13), Order::GoesOn, "from there");
        assert_eq!(saw(1, None, 14, 15), Order::BeginsAnew, "the server says that it is not where it was");
    }
}
