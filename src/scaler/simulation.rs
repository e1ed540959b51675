//! The figure in the loop of a Kubernetes autoscaler, with workers that take time to start, against two that are usual: what it
//! costs in pods and what jobs wait. Times are in tenths of a second; the autoscaler is that of Kubernetes with its defaults.

use std::collections::VecDeque;
use std::time::Duration;

use relay_bridge::load::Load;

use super::pace::Measured;
use super::wanted::{Targets, Work, wanted};

const SLOTS: u64 = 8;
const PODS_MAX: u64 = 200;
/// A worker takes so long from its creation to its first lease.
const STARTS_FOR: u64 = 100;
/// The autoscaler decides so often; the scaler looks, and is asked, so often.
const DECIDES_EVERY: u64 = 150;
const LOOKS_EVERY: u64 = 20;
/// How long the autoscaler remembers a greater wish before it takes pods away.
const STABLE_FOR: u64 = 3_000;
/// How far from its target a metric may be without any change.
const TOLERANCE: f64 = 0.1;
const HOUR: u64 = 36_000;

/// The metric that the autoscaler goes by, and the value of it that is right for one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Metric {
    /// All that waits and runs, 10 for each pod: KEDA's `queueLength`.
    QueueLength,
    /// All that waits, by pods; as many as a pod does in the time to drain: the backlog per instance of AWS.
    BacklogPerInstance { service: f64 },
    /// The slots that are wanted.
    Slots,
}

/// The outcome of a simulated hour.
#[derive(Debug, Default)]
struct Outcome {
    pod_minutes: f64,
    /// How long jobs waited, in seconds.
    waited: Vec<f64>,
    /// How often the number of pods went the other way within ten minutes.
    turns: u32,
    left: u64,
}

impl Outcome {
    fn p95(&mut self) -> f64 {
        self.waited.sort_by(f64::total_cmp);
        self.waited.get(self.waited.len() * 95 / 100).copied().unwrap_or_default()
    }
}

/// A cluster whose workers are scaled by `metric`: jobs come as `arrivals` says for each tenth of a second, and take `service`.
struct Cluster {
    metric: Metric,
    service: u64,
    waiting: VecDeque<u64>,
    /// Ends of running jobs, the next one first.
    running: VecDeque<u64>,
    /// When each pod is ready, the oldest first.
    pods: VecDeque<u64>,
    ended: u64,
    measured: Measured,
    wishes: VecDeque<(u64, u64)>,
}

impl Cluster {
    fn run(metric: Metric, service: u64, ticks: u64, arrivals: impl Fn(u64) -> u64) -> Outcome {
        let mut cluster = Self {
            metric,
            service,
            waiting: VecDeque::new(),
            running: VecDeque::new(),
            pods: VecDeque::new(),
            ended: 0,
            measured: Measured::default(),
            wishes: VecDeque::new(),
        };
        let (mut outcome, mut last) = (Outcome::default(), (0, 0_i64));
        for now in 0..ticks {
            for _ in 0..arrivals(now) {
                cluster.waiting.push_back(now);
            }
            cluster.work(now, &mut outcome);
            if now % LOOKS_EVERY == 0 {
                cluster.look(now);
            }
            let before = cluster.pods.len();
            if now % DECIDES_EVERY == 0 {
                cluster.decide(now);
            } else if cluster.pods.is_empty() && cluster.jobs() > 0 {
                // An activation is pushed.
                cluster.scale_to(1, now);
            }
            let direction = (cluster.pods.len() as i64 - before as i64).signum();
            if direction != 0 {
                outcome.turns += u32::from(direction != last.1 && last.1 != 0 && now - last.0 < 6_000);
                last = (now, direction);
            }
            outcome.pod_minutes += cluster.pods.len() as f64 / 600.0;
        }
        outcome.left = cluster.waiting.len() as u64;
        outcome
    }

    fn jobs(&self) -> u64 {
        (self.waiting.len() + self.running.len()) as u64
    }

    fn work(&mut self, now: u64, outcome: &mut Outcome) {
        while self.running.front().is_some_and(|end| *end <= now) {
            self.running.pop_front();
            self.ended += 1;
        }
        let ready = self.pods.iter().filter(|ready| **ready <= now).count() as u64;
        while (self.running.len() as u64) < ready * SLOTS
            && let Some(came) = self.waiting.pop_front()
        {
            outcome.waited.push((now - came) as f64 / 10.0);
            self.running.push_back(now + self.service);
        }
    }

    fn look(&mut self, now: u64) {
        let (in_line, leased) = (self.waiting.len() as u64, self.running.len() as u64);
        let load = Load { in_line, startable: in_line, leased, ended: self.ended, ..Load::default() };
        self.measured.note(Duration::from_millis(now * 100), load);
    }

    /// One decision: the metric divided by its target, rounded up; at once upwards, by as many again or four at most; downwards
    /// by the greatest wish of five minutes.
    fn decide(&mut self, now: u64) {
        let (waiting, leased) = (self.waiting.len() as u64, self.running.len() as u64);
        let targets = Targets::default();
        let (value, target) = match self.metric {
            Metric::QueueLength => ((waiting + leased) as f64, 10.0),
            Metric::BacklogPerInstance { service } => (waiting as f64, SLOTS as f64 * targets.drain / service),
            Metric::Slots => (wanted(Work { waiting, leased }, self.measured.pace(), &targets), SLOTS as f64),
        };
        let pods = self.pods.len() as u64;
        let ratio = value / (target * pods as f64);
        let is_near = pods > 0 && (ratio - 1.0).abs() <= TOLERANCE;
        let least = u64::from(self.jobs() > 0);
        let wish = if is_near { pods } else { (value / target).ceil() as u64 }.clamp(least, PODS_MAX);
        self.wishes.retain(|(at, _)| now - at < STABLE_FOR);
        self.wishes.push_back((now, wish));
        let stable = self.wishes.iter().map(|(_, wish)| *wish).max().unwrap_or(wish);
        let next = if wish > pods { wish.min(pods * 2).max(wish.min(pods + 4)) } else { stable.min(pods) };
        self.scale_to(next, now);
    }

    fn scale_to(&mut self, pods: u64, now: u64) {
        while (self.pods.len() as u64) < pods {
            self.pods.push_back(now + STARTS_FOR);
        }
        // The newest go first. Their jobs end, because they drain.
        self.pods.truncate(pods as usize);
    }
}

/// 0 and 100 jobs a second by turns of ten minutes, of half a second.
fn square(now: u64) -> u64 {
    if now / 6_000 % 2 == 1 { 10 } else { 0 }
}

/// 5,000 jobs at once, each quarter of an hour.
fn bursts(now: u64) -> u64 {
    if now % 9_000 == 600 { 5_000 } else { 0 }
}

/// 0 to 100 jobs a second and back within 20 minutes.
fn sine(now: u64) -> u64 {
    let rate = 5.0 * (1.0 - (now as f64 * std::f64::consts::TAU / 12_000.0).cos());
    let at = |now: u64| (rate * now as f64).floor();
    (at(now + 1) - at(now)) as u64
}

/// A job of two minutes each second, for half an hour.
fn long(now: u64) -> u64 {
    u64::from(now < HOUR / 2 && now.is_multiple_of(10))
}

#[test]
fn a_square_wave_costs_a_third_of_a_queue_length_and_keeps_up_where_a_backlog_per_instance_does_not() {
    let mut length = Cluster::run(Metric::QueueLength, 5, HOUR, square);
    let mut backlog = Cluster::run(Metric::BacklogPerInstance { service: 0.5 }, 5, HOUR, square);
    let mut slots = Cluster::run(Metric::Slots, 5, HOUR, square);
    for (name, outcome) in [("queueLength", &mut length), ("backlog", &mut backlog), ("slots", &mut slots)] {
        let p95 = outcome.p95();
        println!(
            "square {name}: {:.0} pod minutes, p95 {p95:.1} s, {} turns, {} left",
            outcome.pod_minutes, outcome.turns, outcome.left
        );
    }
    assert!(slots.pod_minutes * 2.0 < length.pod_minutes, "{} {}", slots.pod_minutes, length.pod_minutes);
    assert!(slots.p95() <= Targets::default().drain && slots.p95() < backlog.p95(), "{} s", slots.p95());
}

#[test]
fn bursts_sines_and_long_jobs_are_done_in_time_without_swinging() {
    // Up and down once for each of four bursts, and for each of three waves; jobs that stop coming are one way down.
    for (name, service, arrivals, p95, turns) in
        [("bursts", 5, bursts as fn(u64) -> u64, 60.0, 7), ("sine", 5, sine, 60.0, 7), ("long", 1_200, long, 60.0, 1)]
    {
        let mut length = Cluster::run(Metric::QueueLength, service, HOUR, arrivals);
        let mut slots = Cluster::run(Metric::Slots, service, HOUR, arrivals);
        for (metric, outcome) in [("queueLength", &mut length), ("slots", &mut slots)] {
            let p95 = outcome.p95();
            println!(
                "{name} {metric}: {:.0} pod minutes, p95 {p95:.1} s, {} turns, {} left",
                outcome.pod_minutes, outcome.turns, outcome.left
            );
        }
        assert!(slots.p95() <= p95, "{name}: {} s", slots.p95());
        assert_eq!(slots.left, 0, "{name}");
        assert!(slots.turns <= turns, "{name}: {} turns", slots.turns);
    }
}
