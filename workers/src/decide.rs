//! The decision that follows from a delivery's end, as a total pure function. [`settle`](crate::settle) is the one
//! place that applies it.

use std::time::Duration;

use relay_bridge::contract::{Failure, Outcome};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

use crate::handler::{Attempt, Output};
use crate::lease::Standing;

/// How a delivery's time with the worker ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// The handler returned, or was made to: a panic and a timeout are a `Retry`.
    Returned(Attempt),
    /// The attempts were all spent before; no handler was started.
    Spent,
    /// The deadline passed, before the start or while the handler ran.
    Expired,
    /// It came this much too early; no handler was started.
    NotYetDue(Duration),
    /// The drain's time was over, and the handler was cancelled.
    Drained,
    /// The lease lapsed, and the handler was cancelled without a result.
    Lapsed,
}

/// The decision about a delivery that ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// End the run: dead letter if it failed, result, and then `settlement`; `None` if the receipt is dead.
    Finish { end: RunEnd, settlement: Option<Settlement> },
    /// The run goes on, or ended elsewhere: only settle.
    Settle(Settlement),
    /// Nothing may be sent: the delivery is someone else's.
    Nothing,
}

/// How a run ends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RunEnd {
    Succeeded(Output),
    Failed(Failure),
    Exhausted(Failure),
    Expired(Failure),
    Cancelled(Failure),
}

impl RunEnd {
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Succeeded(_) => Outcome::Succeeded,
            Self::Failed(_) => Outcome::Failed,
            Self::Exhausted(_) => Outcome::Exhausted,
            Self::Expired(_) => Outcome::Expired,
            Self::Cancelled(_) => Outcome::Cancelled,
        }
    }

    fn settlement(&self) -> Settlement {
        match self {
            Self::Succeeded(_) | Self::Expired(_) | Self::Cancelled(_) => Settlement::Complete,
            Self::Failed(_) | Self::Exhausted(_) => Settlement::DeadLetter,
        }
    }
}

/// The end of a run whose result is larger than allowed: nothing that a retry would change.
pub(crate) fn too_large(actual: u64, limit: u64) -> RunEnd {
    RunEnd::Failed(Failure::new("result-too-large", format!("the result has {actual} bytes, allowed are {limit}")))
}

/// Decides. `attempt` is this delivery's number from 1; `jitter` is a random number from 0 to 1.
pub(crate) fn decide(ending: Ending, standing: Standing, attempt: u32, policy: &QueuePolicy, jitter: f64) -> Decision {
    match standing {
        Standing::Ended(_) => return Decision::Settle(Settlement::Complete),
        Standing::Lost => {
            return match ending {
                Ending::Returned(Attempt::Done(output)) if size(&output) <= policy.result_max => {
                    Decision::Finish { end: RunEnd::Succeeded(output), settlement: None }
                }
                _ => Decision::Nothing,
            };
        }
        Standing::Held => {}
    }
    let end = match ending {
        Ending::Returned(Attempt::Done(output)) if size(&output) > policy.result_max => {
            too_large(size(&output), policy.result_max)
        }
        Ending::Returned(Attempt::Done(output)) => RunEnd::Succeeded(output),
        Ending::Returned(Attempt::Reject { failure }) => RunEnd::Failed(failure),
        Ending::Returned(Attempt::Retry { after, .. }) if attempt < policy.max_attempts => {
            let wait = after.unwrap_or_else(|| policy.retry.backoff(attempt, jitter));
            return Decision::Settle(Settlement::RetryAfter(bounded(wait, policy)));
        }
        Ending::Returned(Attempt::HandBack { after }) => {
            return Decision::Settle(Settlement::HandBack(bounded(after, policy)));
        }
        // At once: another worker may be able to, and this one waits before it leases again.
        Ending::Returned(Attempt::NotStarted { .. }) => {
            return Decision::Settle(Settlement::HandBack(Duration::ZERO));
        }
        Ending::Returned(Attempt::Exhausted { failure }) => RunEnd::Exhausted(failure),
        Ending::Returned(Attempt::Expired { failure }) => RunEnd::Expired(failure),
        Ending::Returned(Attempt::Cancelled { failure }) => RunEnd::Cancelled(failure),
        Ending::Returned(Attempt::Retry { failure, .. }) => {
            let detail = format!("attempt {attempt} of {}, the last one: {}", policy.max_attempts, failure.detail);
            RunEnd::Exhausted(Failure::new(failure.reason, detail))
        }
        Ending::Spent => RunEnd::Exhausted(Failure::new(
            "attempts-spent",
            format!(
                "{} of {} attempts ended without a settlement: the worker crashed or lost its lease each time",
                attempt.saturating_sub(1),
                policy.max_attempts
            ),
        )),
        Ending::Expired => RunEnd::Expired(Failure::new("expired", "the deadline passed before the run ended")),
        Ending::NotYetDue(wait) => return Decision::Settle(Settlement::HandBack(wait)),
        Ending::Drained => return Decision::Settle(Settlement::HandBack(Duration::ZERO)),
        // The lease came back between the lapse and now: impossible, and harmless to leave to the broker.
        Ending::Lapsed => return Decision::Nothing,
    };
    let settlement = Some(end.settlement());
    Decision::Finish { end, settlement }
}

/// Nothing waits past the longest life of a run, and what a handler sends back always has a delay.
fn bounded(wait: Duration, policy: &QueuePolicy) -> Duration {
    wait.min(policy.job_ttl).max(Duration::from_millis(1))
}

fn size(output: &Output) -> u64 {
    u64::try_from(output.payload.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(bytes: usize) -> Ending {
        Ending::Returned(Attempt::Done(Output::new("text/plain", vec![b'x'; bytes])))
    }

    fn retry(after: Option<Duration>) -> Ending {
        Ending::Returned(Attempt::Retry { failure: Failure::new("exit-code", "it broke"), after })
    }

    fn reject() -> Ending {
        Ending::Returned(Attempt::Reject { failure: Failure::new("bad-data", "no such thing") })
    }

    fn hand_back(after: Duration) -> Ending {
        Ending::Returned(Attempt::HandBack { after })
    }

    fn not_started() -> Ending {
        Ending::Returned(Attempt::NotStarted { failure: Failure::new("spawn-failed", "no such program") })
    }

    /// The ways in which a run that was passed on ended there.
    fn elsewhere() -> [Ending; 3] {
        let failure = Failure::new("there", "why");
        [
            Ending::Returned(Attempt::Exhausted { failure: failure.clone() }),
            Ending::Returned(Attempt::Expired { failure: failure.clone() }),
            Ending::Returned(Attempt::Cancelled { failure }),
        ]
    }

    fn policy() -> QueuePolicy {
        QueuePolicy { max_attempts: 3, result_max: 100, ..QueuePolicy::default() }
    }

    /// A decision in a word or two, for the table.
    fn short(decision: &Decision) -> String {
        match decision {
            Decision::Finish { end, settlement } => format!("{} {settlement:?}", end.outcome()),
            Decision::Settle(settlement) => format!("{settlement:?}"),
            Decision::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn every_ending_under_every_standing_has_one_decision() {
        let ended = Standing::Ended(Outcome::Cancelled);
        let second = Duration::from_secs(1);
        let [exhausted, expired, cancelled] = elsewhere();
        let table = [
            (done(100), Standing::Held, 1, "succeeded Some(Complete)"),
            (done(101), Standing::Held, 1, "failed Some(DeadLetter)"),
            (reject(), Standing::Held, 1, "failed Some(DeadLetter)"),
            (retry(Some(second)), Standing::Held, 1, "RetryAfter(1s)"),
            (retry(Some(second)), Standing::Held, 2, "RetryAfter(1s)"),
            (retry(Some(second)), Standing::Held, 3, "exhausted Some(DeadLetter)"),
            (retry(None), Standing::Held, 1, "RetryAfter(500ms)"),
            (retry(None), Standing::Held, 2, "RetryAfter(1s)"),
            (retry(Some(Duration::ZERO)), Standing::Held, 1, "RetryAfter(1ms)"),
            (retry(Some(Duration::MAX)), Standing::Held, 1, "RetryAfter(21600s)"),
            (hand_back(second), Standing::Held, 3, "HandBack(1s)"),
            (hand_back(Duration::ZERO), Standing::Held, 1, "HandBack(1ms)"),
            (hand_back(Duration::MAX), Standing::Held, 1, "HandBack(21600s)"),
            (not_started(), Standing::Held, 3, "HandBack(0ns)"),
            (exhausted.clone(), Standing::Held, 1, "exhausted Some(DeadLetter)"),
            (expired.clone(), Standing::Held, 1, "expired Some(Complete)"),
            (cancelled.clone(), Standing::Held, 1, "cancelled Some(Complete)"),
            (Ending::Spent, Standing::Held, 4, "exhausted Some(DeadLetter)"),
            (Ending::Expired, Standing::Held, 1, "expired Some(Complete)"),
            (Ending::NotYetDue(second), Standing::Held, 1, "HandBack(1s)"),
            (Ending::Drained, Standing::Held, 3, "HandBack(0ns)"),
            (Ending::Lapsed, Standing::Held, 1, "nothing"),
            (done(100), Standing::Lost, 1, "succeeded None"),
            (done(101), Standing::Lost, 1, "nothing"),
            (reject(), Standing::Lost, 1, "nothing"),
            (retry(None), Standing::Lost, 3, "nothing"),
            (hand_back(second), Standing::Lost, 1, "nothing"),
            (not_started(), Standing::Lost, 1, "nothing"),
            (exhausted.clone(), Standing::Lost, 1, "nothing"),
            (expired.clone(), Standing::Lost, 1, "nothing"),
            (cancelled.clone(), Standing::Lost, 1, "nothing"),
            (Ending::Spent, Standing::Lost, 4, "nothing"),
            (Ending::Expired, Standing::Lost, 1, "nothing"),
            (Ending::Drained, Standing::Lost, 1, "nothing"),
            (Ending::Lapsed, Standing::Lost, 1, "nothing"),
            (done(1), ended, 1, "Complete"),
            (retry(None), ended, 3, "Complete"),
            (hand_back(second), ended, 1, "Complete"),
            (not_started(), ended, 1, "Complete"),
            (exhausted, ended, 1, "Complete"),
            (expired, ended, 1, "Complete"),
            (cancelled, ended, 1, "Complete"),
            (Ending::Lapsed, ended, 1, "Complete"),
            (Ending::Drained, ended, 1, "Complete"),
        ];
        for (ending, standing, attempt, expected) in table {
            let decision = decide(ending.clone(), standing, attempt, &policy(), 0.5);
            assert_eq!(short(&decision), expected, "{ending:?} {standing:?} {attempt}");
        }
    }

    #[test]
    fn the_last_failure_is_kept_and_says_how_many_attempts_there_were() {
        let Decision::Finish { end: RunEnd::Exhausted(failure), .. } =
            decide(retry(None), Standing::Held, 3, &policy(), 0.5)
        else {
            panic!("not exhausted");
        };
        assert_eq!(failure.reason, "exit-code");
        assert_eq!(failure.detail, "attempt 3 of 3, the last one: it broke");
    }

    #[test]
    fn what_ended_the_run_elsewhere_is_what_its_result_says() {
        for ending in elsewhere() {
            let decided = decide(ending, Standing::Held, 1, &policy(), 0.5);
            let Decision::Finish { end, .. } = decided else { panic!("{decided:?}") };
            let (RunEnd::Exhausted(failure) | RunEnd::Expired(failure) | RunEnd::Cancelled(failure)) = end else {
                panic!("{end:?}");
            };
            assert_eq!(failure, Failure::new("there", "why"));
        }
    }

    #[test]
    fn a_result_that_is_too_large_names_both_numbers() {
        let Decision::Finish { end: RunEnd::Failed(failure), .. } =
            decide(done(101), Standing::Held, 1, &policy(), 0.5)
        else {
            panic!("not failed");
        };
        assert_eq!(failure.reason, "result-too-large");
        assert_eq!(failure.detail, "the result has 101 bytes, allowed are 100");
    }

    fn any_ending() -> impl Strategy<Value = Ending> {
        prop_oneof![
            (0_usize..200).prop_map(done),
            prop::option::of(0_u64..100_000).prop_map(|ms| retry(ms.map(Duration::from_millis))),
            Just(reject()),
            Just(not_started()),
            (0_u64..100_000).prop_map(|ms| hand_back(Duration::from_millis(ms))),
            prop::sample::select(elsewhere().to_vec()),
            Just(Ending::Spent),
            Just(Ending::Expired),
            (0_u64..100_000).prop_map(|ms| Ending::NotYetDue(Duration::from_millis(ms))),
            Just(Ending::Drained),
            Just(Ending::Lapsed),
        ]
    }

    proptest! {
        #[test]
        fn a_lost_lease_leaves_nothing_but_a_success_and_never_a_settlement(
            ending in any_ending(), attempt in 1_u32..20, jitter in 0.0_f64..1.0,
        ) {
            match decide(ending, Standing::Lost, attempt, &policy(), jitter) {
                Decision::Finish { end: RunEnd::Succeeded(_), settlement: None } | Decision::Nothing => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn what_a_handler_sends_back_has_a_delay_and_a_retry_needs_an_attempt_left(
            ending in any_ending(), attempt in 1_u32..20, jitter in 0.0_f64..1.0,
        ) {
            let returned = matches!(ending, Ending::Returned(_)) && ending != not_started();
            match decide(ending, Standing::Held, attempt, &policy(), jitter) {
                Decision::Settle(Settlement::RetryAfter(wait)) => {
                    prop_assert!(attempt < policy().max_attempts);
                    prop_assert!(wait >= Duration::from_millis(1));
                }
                Decision::Settle(Settlement::HandBack(wait)) if returned => {
                    prop_assert!(wait >= Duration::from_millis(1));
                }
                _ => {}
            }
        }
    }
}
