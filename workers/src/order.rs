//! In which order a lease call asks the queues.
//!
//! Weighted order is the smooth weighted round robin of nginx: over the sum of all weights, each queue is first exactly
//! as often as its weight says, and its turns are spread out. The order is drawn anew for every call.

use relay_bridge::contract::QueueName;

use crate::config::{QUEUES_MAX, QueueOrder};

/// Draws orders; the credit that each queue has gathered is its only state.
#[derive(Debug)]
pub(crate) struct Order {
    order: QueueOrder,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    queue: QueueName,
    weight: i64,
    credit: i64,
}

impl Order {
    /// The first mention of a queue counts; queues past [`QUEUES_MAX`] are left out.
    pub(crate) fn new(order: QueueOrder, queues: &[(QueueName, u32)]) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        for (queue, weight) in queues {
            if lines.len() < QUEUES_MAX && lines.iter().all(|line| line.queue != *queue) {
                lines.push(Line { queue: queue.clone(), weight: i64::from(*weight).max(1), credit: 0 });
            }
        }
        Self { order, lines }
    }

    /// Every queue once, the one to ask first in front.
    pub(crate) fn draw(&mut self) -> Vec<QueueName> {
        if self.order == QueueOrder::Strict {
            return self.lines.iter().map(|line| line.queue.clone()).collect();
        }
        let total: i64 = self.lines.iter().map(|line| line.weight).sum();
        for line in &mut self.lines {
            line.credit += line.weight;
        }
        let mut by_credit: Vec<usize> = (0..self.lines.len()).collect();
        // Stable: equal credit keeps the order given.
        by_credit.sort_by_key(|index| std::cmp::Reverse(self.lines[*index].credit));
        if let Some(first) = by_credit.first() {
            self.lines[*first].credit -= total;
        }
        by_credit.into_iter().map(|index| self.lines[index].queue.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queues(weights: &[u32]) -> Vec<(QueueName, u32)> {
        weights.iter().enumerate().map(|(n, weight)| (format!("q{n}").parse().unwrap(), *weight)).collect()
    }

    fn names(order: &[QueueName]) -> String {
        order.iter().map(QueueName::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn strict_order_is_the_order_given_every_time() {
        let mut order = Order::new(QueueOrder::Strict, &queues(&[1, 9, 5]));
        for _ in 0..5 {
            assert_eq!(names(&order.draw()), "q0 q1 q2");
        }
    }

    #[test]
    fn weighted_turns_are_spread_out_and_the_others_follow() {
        let mut order = Order::new(QueueOrder::Weighted, &queues(&[3, 1]));
        let drawn: Vec<String> = (0..4).map(|_| names(&order.draw())).collect();
        assert_eq!(drawn, ["q0 q1", "q0 q1", "q1 q0", "q0 q1"]);
    }

    #[test]
    fn a_queue_named_twice_is_asked_once_and_no_more_than_the_limit_are_asked() {
        let mut twice = Order::new(QueueOrder::Strict, &[queues(&[1, 1]), queues(&[5])].concat());
        assert_eq!(names(&twice.draw()), "q0 q1");
        assert_eq!(Order::new(QueueOrder::Weighted, &queues(&[1; 100])).draw().len(), QUEUES_MAX);
        assert!(Order::new(QueueOrder::Weighted, &[]).draw().is_empty());
    }

    proptest! {
        #[test]
        fn over_a_whole_round_every_queue_is_first_as_often_as_its_weight(
            weights in prop::collection::vec(1_u32..20, 1..8), rounds in 1_u32..4,
        ) {
            let mut order = Order::new(QueueOrder::Weighted, &queues(&weights));
            let mut first = vec![0_u32; weights.len()];
            for _ in 0..weights.iter().sum::<u32>() * rounds {
                let drawn = order.draw();
                prop_assert_eq!(drawn.len(), weights.len());
                first[drawn[0].as_str()[1..].parse::<usize>().unwrap()] += 1;
            }
            let expected: Vec<u32> = weights.iter().map(|weight| weight * rounds).collect();
            prop_assert_eq!(first, expected);
        }
    }
}
