//! Results as a process with the broker's own credentials could write them, past everything that relay checks. A log of
//! them stands in for a broker's.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{
    ClientId, Cursor, Failure, JobId, JobResult, LogId, Outcome, RunId, Submission, Timestamp,
};
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, ResultLog, Start};

/// A log that holds these and waits for nothing.
pub(crate) struct Log(pub(crate) Vec<Finished>);

#[async_trait]
impl ResultLog for Log {
    async fn lookup(&self, _: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        let found = self.0.iter().find(|finished| finished.result.job_id == job);
        Ok(found.map_or(Lookup::Absent, |finished| Lookup::Finished(Box::new(finished.clone()))))
    }

    async fn wait(&self, client: &ClientId, job: JobId, _: Duration) -> Result<Lookup, BrokerError> {
        self.lookup(client, job).await
    }

    async fn wait_ahead(
        &self,
        _: &ClientId,
        _: JobId,
        _: RunId,
        _: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        Ok(None)
    }

    /// As many as are asked for, however large they are.
    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        _: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        let seen = match from {
            Start::Oldest => 0,
            Start::Now => self.0.len(),
            Start::After(cursor) => usize::try_from(cursor.sequence).unwrap(),
        };
        let entries: Vec<_> = self.0[seen..].iter().take(limit as usize).cloned().collect();
        if entries.is_empty() && !wait.is_zero() {
            std::future::pending::<()>().await;
        }
        Ok(Page { reset: None, next: cursor(client, seen + entries.len()), entries })
    }
}

fn cursor(client: &ClientId, sequence: usize) -> Cursor {
    Cursor { client: client.clone(), log: LogId([7; 16]), sequence: sequence as u64, at: Timestamp::EPOCH }
}

/// A sound result of `client` in the queue `mail`, of the job under `key`.
pub(crate) fn result(client: &str, key: &str, payload: impl Into<Bytes>) -> JobResult {
    let submission = Submission {
        client: client.parse().unwrap(),
        queue: "mail".parse().unwrap(),
        key: Some(key.parse().unwrap()),
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: Bytes::new(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    let at = Timestamp::from_millis(1_763_865_086_007);
    let job = submission.accept(&QueuePolicy::default(), at);
    JobResult::succeeded(&job, End { attempt: 1, started_at: Some(at), finished_at: at }, "text/plain", payload.into())
}

/// A log of these, in their order.
pub(crate) fn log(results: impl IntoIterator<Item = JobResult>) -> Log {
    let finished = results.into_iter().enumerate().map(|(at, result)| Finished {
        cursor: cursor(&result.client, at + 1),
        result,
        erased: false,
    });
    Log(finished.collect())
}

/// A change that spoils a result, and its name.
type Spoiled = (&'static str, fn(&mut JobResult));

/// The changes that make a result unfit for its readers, by name.
pub(crate) const UNFIT: [Spoiled; 20] = [
    ("line-break", |result| result.content_type = "text/plain\r\nX-Injected: 1".to_owned()),
    ("nul", |result| result.content_type = "text/plain\0".to_owned()),
    ("not-ascii", |result| result.content_type = "text/\u{43f}\u{43b}\u{43e}\u{445}\u{43e}".to_owned()),
    ("no-type", |result| result.content_type = String::new()),
    ("blank-type", |result| result.content_type = "   ".to_owned()),
    ("long-type", |result| result.content_type = format!("text/{}", "x".repeat(100_000))),
    ("trace-breaks", |result| result.traceparent = Some("00-a\r\nX-Injected: 1".to_owned())),
    ("trace-long", |result| result.traceparent = Some("0".repeat(100_000))),
    ("trace-no-ascii", |result| result.traceparent = Some("\u{43f}".repeat(55))),
    ("meta-breaks", |result| note(result, "a: b\r\nX-Injected", "1\r\nX-Injected: 1")),
    ("meta-huge", |result| note(result, "note", &"x".repeat(1 << 20))),
    ("reason-breaks", |result| fail(result, "a\r\nX-Injected: 1\0", "detail")),
    ("reason-long", |result| fail(result, &"\u{43f}".repeat(50_000), "detail")),
    ("detail-empty", |result| fail(result, "", "")),
    ("detail-huge", |result| fail(result, "reason", &"\u{1}".repeat(1 << 20))),
    ("failed-without", |result| result.outcome = Outcome::Exhausted),
    ("succeeded-with", |result| {
        result.failure = Some(Failure { reason: "no".to_owned(), detail: String::new() });
    }),
    ("long-ago", |result| times(result, i64::MIN, 0)),
    ("far-ahead", |result| times(result, 300_000 * 31_556_952_000, i64::MAX)),
    ("attempts", |result| (result.attempt, result.generation) = (u32::MAX, u32::MAX)),
];

fn note(result: &mut JobResult, name: &str, value: &str) {
    result.meta.insert(name.to_owned(), value.to_owned());
}

fn fail(result: &mut JobResult, reason: &str, detail: &str) {
    result.outcome = Outcome::Failed;
    result.failure = Some(Failure { reason: reason.to_owned(), detail: detail.to_owned() });
}

fn times(result: &mut JobResult, started_at: i64, finished_at: i64) {
    result.started_at = Some(Timestamp::from_millis(started_at));
    result.finished_at = Timestamp::from_millis(finished_at);
    result.accepted_at = result.finished_at;
}

/// A log of one result for each of [`UNFIT`], under its name as key.
pub(crate) fn unfit(client: &str) -> Log {
    log(UNFIT.map(|(name, spoil)| {
        let mut result = result(client, name, "output");
        spoil(&mut result);
        result
    }))
}

/// Whether a header can carry it, and a reader of headers take it.
pub(crate) fn is_fit(value: &str) -> bool {
    !value.is_empty() && value.len() <= 255 && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}
