//! Whether the broker has room for the ends of runs. They wait in hand while it has none; the log says so once for all of
//! them, as each tries again and again.

use std::sync::Mutex;
use std::time::Duration;

use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::support::lock;
use tokio::time::Instant;

/// At most one warning in this long.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The warnings given about it. One for the whole worker.
#[derive(Debug, Default)]
pub(crate) struct Room(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    warned_at: Option<Instant>,
    /// Calls that were refused since the last warning.
    unsaid: u64,
    /// A warning was given, and nothing was said of its end.
    warned: bool,
}

impl Room {
    /// Takes note of the answer to a call that stores how a run ended, or that it is to be tried again.
    pub(crate) fn answered<T>(&self, queue: &QueueName, answer: &Result<T, BrokerError>) {
        match answer {
            Ok(_) => self.found(),
            Err(error) if error.is_of_storage() => self.missed(queue, error),
            Err(_) => {}
        }
    }

    fn found(&self) {
        if std::mem::take(&mut self.said().warned) {
            tracing::info!("the broker has room again: results are recorded again");
        }
    }

    fn missed(&self, queue: &QueueName, error: &BrokerError) {
        let (mut said, now) = (self.said(), Instant::now());
        said.unsaid += 1;
        if said.warned_at.is_some_and(|at| now < at + WARN_EVERY) {
            return;
        }
        (said.warned_at, said.warned) = (Some(now), true);
        let refused = std::mem::take(&mut said.unsaid);
        drop(said);
        tracing::warn!(
            %queue, refused, %error,
            "the broker has no room for results: workers hold them, and a job whose lease ends meanwhile runs again; \
             make room in the broker's storage, or raise its limit"
        );
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        lock(&self.0)
    }
}
