//! The content of a span, and how a job carries it on.

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use relay_bridge::contract::job::JobBody;
use relay_bridge::contract::trace::TRACEPARENT;
use relay_bridge::contract::{ClientId, Job, JobId, JobResult, JobStatus, Outcome, QueueName, RunId, TraceParent};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::Recorded;
use relay_workers::Attempt;

/// A span that has not ended. One that is dropped ends as an error: the task that held it did not come back.
#[derive(Debug)]
pub(in crate::telemetry) struct Open {
    span: Span,
    /// Of a submission: what a second one under the key must match.
    body: Option<JobBody>,
    ended: bool,
}

/// The subject of a span.
struct Subject<'a> {
    queue: &'a QueueName,
    client: &'a ClientId,
    job: JobId,
    run: RunId,
    generation: u32,
}

impl<'a> Subject<'a> {
    fn of_job(job: &'a Job) -> Self {
        Self { queue: &job.queue, client: &job.client, job: job.id, run: job.run_id, generation: job.generation }
    }
}

impl Open {
    pub(super) fn submit(tracer: &SdkTracer, job: &mut Job) -> Self {
        let parent = job.headers.get(TRACEPARENT).map(String::as_str);
        let subject = Subject::of_job(job);
        let mut open = Self::start(tracer, ("submit", "send"), SpanKind::Server, &subject, parent);
        open.set("messaging.message.body.size", size(job));
        open.body = Some(job.body());
        open.carry(job);
        open
    }

    /// An attempt, and the job as its handler gets it.
    pub(super) fn attempt(tracer: &SdkTracer, job: &Job, attempt: u32) -> (Self, Job) {
        let parent = job.headers.get(TRACEPARENT).map(String::as_str);
        let mut open = Self::start(tracer, ("attempt", "process"), SpanKind::Consumer, &Subject::of_job(job), parent);
        open.set("messaging.message.body.size", size(job));
        open.set("relay.attempt", i64::from(attempt));
        let mut job = job.clone();
        open.carry(&mut job);
        (open, job)
    }

    pub(super) fn result(tracer: &SdkTracer, result: &JobResult) -> Self {
        let subject = Subject {
            queue: &result.queue,
            client: &result.client,
            job: result.job_id,
            run: result.run_id,
            generation: result.generation,
        };
        let parent = result.traceparent.as_deref();
        let mut open = Self::start(tracer, ("result", "settle"), SpanKind::Client, &subject, parent);
        open.set("relay.outcome", result.outcome.as_str());
        open.set("relay.attempt", i64::from(result.attempt));
        if let Some(failure) = &result.failure {
            open.set("error.type", failure.reason.clone());
        }
        open
    }

    pub(super) fn cancelled(tracer: &SdkTracer, status: &JobStatus) -> Self {
        let subject = Subject {
            queue: &status.queue,
            client: &status.client,
            job: status.job_id,
            run: status.run_id,
            generation: status.generation,
        };
        let parent = status.headers.get(TRACEPARENT).map(String::as_str);
        let mut open = Self::start(tracer, ("result", "settle"), SpanKind::Client, &subject, parent);
        open.set("relay.outcome", Outcome::Cancelled.as_str());
        open
    }

    /// `operation` is its name, and its type among those of the conventions.
    fn start(
        tracer: &SdkTracer,
        operation: (&'static str, &'static str),
        kind: SpanKind,
        subject: &Subject<'_>,
        parent: Option<&str>,
    ) -> Self {
        let parent = parent.and_then(|parent| parent.parse::<TraceParent>().ok());
        let context = parent.map_or_else(Context::new, |parent| {
            let (trace, span) = (TraceId::from_bytes(parent.trace_id), SpanId::from_bytes(parent.span_id));
            let context = SpanContext::new(trace, span, TraceFlags::new(parent.flags), true, TraceState::default());
            Context::new().with_remote_span_context(context)
        });
        let builder = tracer.span_builder(format!("{} {}", operation.0, subject.queue));
        let mut span = builder.with_kind(kind).start_with_context(tracer, &context);
        // A trace that is not sampled costs no more than its ids.
        if span.is_recording() {
            span.set_attributes([
                KeyValue::new("messaging.system", "relay"),
                KeyValue::new("messaging.operation.name", operation.0),
                KeyValue::new("messaging.operation.type", operation.1),
                KeyValue::new("messaging.destination.name", subject.queue.to_string()),
                KeyValue::new("messaging.message.id", subject.job.to_string()),
                KeyValue::new("relay.run_id", subject.run.to_string()),
                KeyValue::new("relay.generation", i64::from(subject.generation)),
                KeyValue::new("relay.client", subject.client.to_string()),
            ]);
        }
        Self { span, body: None, ended: false }
    }

    fn set(&mut self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        self.span.set_attribute(KeyValue::new(name, value));
    }

    /// Every reader of the job from now on is a child of this span.
    fn carry(&self, job: &mut Job) {
        let context = self.span.span_context();
        let parent = TraceParent {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            flags: context.trace_flags().to_u8(),
        };
        job.headers.insert(TRACEPARENT.to_owned(), parent.to_string());
    }

    /// Ends the span with the broker's answer to a submission.
    pub(in crate::telemetry) fn submitted(mut self, enqueued: &Result<Enqueued, BrokerError>) {
        match enqueued {
            Ok(Enqueued::Created(_)) => {}
            Ok(Enqueued::Known(status)) if self.body.as_ref().is_some_and(|body| body.is_of(status.fingerprint)) => {
                self.set("relay.replayed", true);
                // The run that was there before: nothing runs under the new id.
                self.set("relay.run_id", status.run_id.to_string());
            }
            Ok(Enqueued::Known(_)) => self.fail("idempotency-conflict"),
            Err(error) => self.fail(word(error.kind())),
        }
        self.end();
    }

    /// Ends the span with the broker's answer to a result.
    pub(in crate::telemetry) fn recorded(mut self, recorded: &Result<Recorded, BrokerError>) {
        match recorded {
            Ok(Recorded::First) => {}
            Ok(Recorded::Superseded(_)) => self.set("relay.superseded", true),
            Err(error) => self.fail(word(error.kind())),
        }
        self.end();
    }

    /// How the attempt went, as its handler says.
    pub(super) fn attempted(mut self, attempt: &Attempt) {
        let (end, failure) = match attempt {
            Attempt::Done(_) => ("done", None),
            Attempt::Retry { failure, .. } => ("retry", Some(failure)),
            Attempt::Reject { failure } => ("reject", Some(failure)),
            Attempt::NotStarted { failure } => ("not-started", Some(failure)),
            Attempt::HandBack { .. } => ("hand-back", None),
            Attempt::Exhausted { failure } => ("exhausted", Some(failure)),
            Attempt::Expired { failure } => ("expired", Some(failure)),
            Attempt::Cancelled { failure } => ("cancelled", Some(failure)),
        };
        self.set("relay.attempt.end", end);
        if let Some(failure) = failure {
            self.fail(failure.reason.clone());
        }
        self.end();
    }

    fn fail(&mut self, reason: impl Into<opentelemetry::Value>) {
        self.set("error.type", reason);
        self.span.set_status(Status::error(""));
    }

    pub(in crate::telemetry) fn end(mut self) {
        self.ended = true;
        self.span.end();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended {
            self.fail(if std::thread::panicking() { "panic" } else { "stopped" });
            self.span.end();
        }
    }
}

fn size(job: &Job) -> i64 {
    i64::try_from(job.payload.len()).unwrap_or(i64::MAX)
}

/// A few words instead of endlessly many texts: tracing systems count by them.
fn word(kind: BrokerErrorKind) -> &'static str {
    use BrokerErrorKind as Kind;
    match kind {
        Kind::Unavailable => "broker-unavailable",
        Kind::Ambiguous => "unconfirmed",
        Kind::TooLarge { .. } => "payload-too-large",
        Kind::QuotaExceeded { .. } => "quota-exceeded",
        Kind::Overloaded { .. } => "overloaded",
        Kind::LeaseLost => "lease-lost",
        Kind::NotFound => "not-found",
        Kind::StateConflict => "state-conflict",
        Kind::NewerVersion { .. } => "newer-version",
        Kind::Unauthorized => "forbidden",
        Kind::Corrupt => "corrupt",
        Kind::Invalid => "malformed-request",
    }
}
