//! An `async fn` as a handler.

use std::time::Duration;

use relay_bridge::contract::Job;
use relay_bridge::policy::QueuePolicy;
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Attempt, Context, Handler, Output};
use tokio_util::sync::CancellationToken;

use crate::support::job;

async fn parse(job: Job, context: Context) -> Result<Output, HandlerError> {
    let text = str::from_utf8(&job.payload)?;
    match text {
        "later" => Err(HandlerError::retry_after(Duration::from_secs(9), "busy", "come back")),
        "never" => Err(HandlerError::reject("bad", "no")),
        number => Ok(Output::json(&(number.parse::<u32>()?, context.attempt))?),
    }
}

async fn attempt(payload: &[u8]) -> Attempt {
    let context = Context::detached(3, &QueuePolicy::default(), Duration::from_secs(60), CancellationToken::new());
    function(parse).handle(&job(payload), &context).await
}

#[tokio::test]
async fn what_a_function_returns_is_how_the_attempt_went() {
    assert_eq!(attempt(b"7").await, Attempt::Done(Output::new("application/json", "[7,3]")));
    assert_eq!(attempt(b"never").await, Attempt::reject("bad", "no"));
    let Attempt::Retry { failure, after } = attempt(b"later").await else { panic!() };
    assert_eq!((failure.reason.as_str(), after), ("busy", Some(Duration::from_secs(9))));
}

#[tokio::test]
async fn an_error_passed_on_with_a_question_mark_is_a_retry() {
    assert_eq!(attempt(b"seven").await, Attempt::retry("error", "invalid digit found in string"));
    let Attempt::Retry { failure, .. } = attempt(b"\xff").await else { panic!() };
    assert!(failure.detail.contains("invalid utf-8"), "{}", failure.detail);
}
