//! Spans of a job's life, sent to a collector over OTLP/HTTP: `submit`, each `attempt` as it ends, and `result`. They are
//! one trace, the caller's or a new one, because the job carries the context of its `submit`: another process, hours
//! later, goes on with it.
//!
//! Off unless a collector is named, and then nothing here is called. Names and attributes are those of OpenTelemetry's
//! semantic conventions for messaging, 1.37, where they fit, and `relay.*` otherwise. Payloads and what handlers say
//! about a failure are in no span.
//!
//! # Layout
//!
//! - `span`: what a span says, and how the job carries it on.
//! - `handler`: the decorator that makes attempts visible.
//! - `export`: the bounded queue between the two and the collector.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanExporter as _};
use relay_bridge::contract::{Job, JobResult, JobStatus};
use relay_workers::Handler;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::exposition::Exposition;

mod export;
mod handler;
mod span;

use export::{Counts, EXPORT_MAX, Queue};
use relay_bridge::support::lock;
pub(super) use span::Open;

/// Where a process's spans go. Clones go the same way.
#[derive(Clone)]
pub struct Traces(Arc<Inner>);

struct Inner {
    tracer: SdkTracer,
    counts: Arc<Counts>,
    closing: CancellationToken,
    /// The task that sends; none once it was waited for.
    sending: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("counts", &self.0.counts).finish_non_exhaustive()
    }
}

/// Finds that a collector may be at `endpoint`.
///
/// # Errors
/// The problem with it.
pub fn check_endpoint(endpoint: &str) -> Result<(), String> {
    export::address(endpoint).map(drop)
}

impl Traces {
    /// Sends spans to `endpoint`, such as `http://collector:4318/v1/traces`, from now on. Headers, sampler and resource
    /// are set by the variables of OpenTelemetry: `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`,
    /// `OTEL_RESOURCE_ATTRIBUTES` and their like. Called within the runtime that shall do it.
    ///
    /// # Errors
    /// The problem with the endpoint.
    pub fn start(endpoint: &str) -> Result<Self, String> {
        let client = export::Client::new(endpoint)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(endpoint)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_MAX)
            // Repeated here, with a wait that holds up no thread.
            .with_retry_policy(RetryPolicy::disabled());
        let mut exporter = exporter.build().map_err(|error| error.to_string())?;
        let resource = resource();
        exporter.set_resource(&resource);
        let closing = CancellationToken::new();
        let (queue, sender) = Queue::new(exporter, closing.clone());
        let counts = queue.counts();
        let provider = SdkTracerProvider::builder().with_span_processor(queue).with_resource(resource).build();
        let tracer = provider.tracer("relay");
        let mut sending = JoinSet::new();
        sending.spawn(sender.run());
        let sending = Mutex::new(sending);
        Ok(Self(Arc::new(Inner { tracer, counts, closing, sending })))
    }

    /// `handler`, with a span for each attempt.
    #[must_use]
    pub fn handler(&self, handler: Arc<dyn Handler>) -> Arc<dyn Handler> {
        Arc::new(handler::Traced { inner: handler, traces: self.clone() })
    }

    /// A job comes in: the span stands between its caller's and its attempts, and the job carries it from now on.
    pub(super) fn submit(&self, job: &mut Job) -> Open {
        Open::submit(&self.0.tracer, job)
    }

    /// A result is about to be recorded.
    pub(super) fn result(&self, result: &JobResult) -> Open {
        Open::result(&self.0.tracer, result)
    }

    /// A run was cancelled, which is its result.
    pub(super) fn cancelled(&self, status: &JobStatus) {
        Open::cancelled(&self.0.tracer, status).end();
    }

    /// Sends what has ended, for at most `limit`. Spans that end later are dropped.
    pub async fn finish(&self, limit: Duration) {
        let mut sending = std::mem::take(&mut *lock(&self.0.sending));
        self.0.closing.cancel();
        // Spans that are not sent by then are dropped with the set.
        if tokio::time::timeout(limit, sending.join_next()).await.is_err() {
            tracing::warn!("the collector of traces did not take the last spans in {limit:?}");
        }
    }

    /// Writes what became of the spans.
    pub fn report(&self, text: &mut Exposition) {
        let counts = &*self.0.counts;
        text.counter("relay_spans_exported_total", "Spans that the collector of traces took.")
            .value(&[], counts.exported.read());
        text.counter("relay_spans_dropped_total", "Spans that were lost: the queue was full, or the collector away.")
            .value(&[("reason", "queue-full")], counts.overflowed.read())
            .value(&[("reason", "not-taken")], counts.not_taken.read());
    }
}

/// The attributes that all spans of the process have in common.
fn resource() -> Resource {
    let resource =
        Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
    let name = resource.get(&"service.name".into()).map(|name| name.to_string()).unwrap_or_default();
    if !name.is_empty() && !name.starts_with("unknown_service") {
        return resource;
    }
    Resource::builder()
        .with_service_name("relay")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}
