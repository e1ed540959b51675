//! An `async fn` is a handler.
//!
//! ```
//! use relay_bridge::contract::Job;
//! use relay_workers::handler::function::{HandlerError, function};
//! use relay_workers::{Context, Handler};
//!
//! async fn shout(job: Job, _context: Context) -> Result<String, HandlerError> {
//!     // An error that is passed on with `?` is a retry.
//!     let text = str::from_utf8(&job.payload)?;
//!     if text.is_empty() {
//!         return Err(HandlerError::reject("empty", "there is nothing to shout"));
//!     }
//!     Ok(text.to_uppercase())
//! }
//!
//! let handler: Box<dyn Handler> = Box::new(function(shout));
//! ```

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::contract::{Failure, Job};

use super::{Attempt, Context, Handler, Output};

/// Makes a handler of `f`. It is called once per attempt; its future is dropped when the attempt is cancelled and the
/// second of grace is over.
///
/// The output is anything that becomes an [`Output`]: one, a `String`, `Bytes`, `Vec<u8>` or `()`. The error is a
/// [`HandlerError`]; any other error becomes one that asks for a retry.
pub fn function<F, Fut, T, E>(f: F) -> impl Handler
where
    F: Fn(Job, Context) -> Fut + Send + Sync,
    Fut: Future<Output = Result<T, E>> + Send,
    T: Into<Output>,
    E: Into<HandlerError>,
{
    Function(f)
}

struct Function<F>(F);

#[async_trait]
impl<F, Fut, T, E> Handler for Function<F>
where
    F: Fn(Job, Context) -> Fut + Send + Sync,
    Fut: Future<Output = Result<T, E>> + Send,
    T: Into<Output>,
    E: Into<HandlerError>,
{
    async fn handle(&self, job: &Job, context: &Context) -> Attempt {
        let returned = (self.0)(job.clone(), context.clone()).await;
        match returned {
            Ok(output) => Attempt::Done(output.into()),
            Err(error) => error.into().attempt,
        }
    }
}

/// Why a function did not succeed, and whether another attempt may.
///
/// Every standard error becomes one that asks for a retry with the reason `error`, so `?` works; for that reason this
/// is not a standard error itself.
#[derive(Clone, Debug)]
pub struct HandlerError {
    attempt: Attempt,
}

impl HandlerError {
    /// Another attempt may succeed. `reason` is a short word for programs, `detail` a text for people.
    #[must_use]
    pub fn retry(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { attempt: Attempt::retry(reason, detail) }
    }

    /// Another attempt may succeed, but not before `after`.
    #[must_use]
    pub fn retry_after(after: Duration, reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { attempt: Attempt::Retry { failure: Failure::new(reason, detail), after: Some(after) } }
    }

    /// No attempt will ever succeed: the run ends as `failed`, and the job is dead-lettered.
    #[must_use]
    pub fn reject(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { attempt: Attempt::reject(reason, detail) }
    }
}

impl<E: Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let mut detail = error.to_string();
        let mut below = error.source();
        // Bounded, because a chain of errors may be long and a detail is short.
        for _ in 0..8 {
            let Some(source) = below else { break };
            if write!(detail, ": {source}").is_err() {
                break;
            }
            below = source.source();
        }
        Self::retry("error", detail)
    }
}
