//! A broker without room for the ends of runs: they wait in hand, and the log says so once a minute and not for each try.

use std::time::Duration;

use relay_bridge::contract::Outcome;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::Log;
use relay_workers::Attempt;
use tracing::Level;

use crate::support::{Call, Reply, Scripted, busy_for, done, handler, job, start_one};

const MINUTE: Duration = Duration::from_secs(60);
const NO_ROOM: &str = "no room for results";

#[tokio::test(start_paused = true)]
async fn a_broker_without_room_for_results_is_warned_of_once_a_minute_and_its_end_is_told() {
    let (log, _listening) = Log::listen();
    let broker = Scripted::new();
    broker.always("record", Reply::Full);
    for n in 0..100_u8 {
        broker.put(job([n]), 1);
    }
    let worker = start_one(&broker, handler(|_, _| async { done() }));
    let tries = |calls: &Vec<Call>| calls.iter().filter(|call| matches!(call, Call::Record(_))).count();
    broker.until(|calls| tries(calls) >= 8).await;
    assert_eq!(log.count(Level::WARN, ""), 1, "two tries of each of four: {log:?}");
    for text in [NO_ROOM, "the account may store no more", "queue=work", "raise its limit"] {
        assert_eq!(log.count(Level::WARN, text), 1, "{text}: {log:?}");
    }
    broker.until(|calls| tries(calls) >= 400).await;
    let warned = log.count(Level::WARN, "");
    assert!((2..=12).contains(&warned), "{warned} warnings of {} tries: {log:?}", tries(&broker.calls()));

    assert_eq!(log.count(Level::INFO, "recorded again"), 0);
    broker.always("record", Reply::Late(Duration::ZERO));
    broker.settled(4).await;
    assert_eq!(log.count(Level::INFO, "recorded again"), 1, "its end is told too");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_busy_for_a_moment_is_not_warned_of() {
    let (log, _listening) = Log::listen();
    let broker = Scripted::new();
    let busy = Reply::Error(BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) });
    broker.reply("record", [busy]);
    broker.put(job("x"), 1);
    let worker = start_one(&broker, busy_for(MINUTE));
    broker.settled(1).await;
    assert_eq!(log.count(Level::WARN, ""), 0, "{log:?}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_letter_or_a_retry_that_finds_no_room_is_warned_of_as_a_result_is() {
    for (call, attempt) in [
        ("dead_letter", Attempt::reject("bad-data", "no such thing")),
        ("settle", Attempt::retry("flaky", "not today")),
    ] {
        let (log, _listening) = Log::listen();
        let broker = Scripted::new();
        broker.reply(call, [Reply::Full, Reply::Full]);
        broker.put(job("x"), 1);
        let worker = start_one(
            &broker,
            handler(move |_, _| {
                let attempt = attempt.clone();
                async move { attempt }
            }),
        );
        broker
            .until(|calls| match call {
                "settle" => {
                    calls.iter().filter(|call| matches!(call, Call::Settle(Settlement::RetryAfter(_)))).count() == 3
                }
                _ => calls.contains(&Call::Record(Outcome::Failed)),
            })
            .await;
        assert_eq!(log.count(Level::WARN, NO_ROOM), 1, "{call}: {log:?}");
        worker.stop().await;
    }
}
