//! The way of ended spans to the collector: a bounded queue that drops and counts, and one task that sends. Nobody who
//! works on a job ever waits for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Counter;

/// Spans that wait for the collector at most: some megabytes.
const QUEUE_MAX: usize = 4_096;
/// Spans of one request.
const BATCH_MAX: usize = 512;
/// How long a batch that is not full waits for more.
const GATHER: Duration = Duration::from_secs(1);
/// How long one request may take.
pub(super) const EXPORT_MAX: Duration = Duration::from_secs(10);
/// How often a batch is sent before it is dropped, and the waits in between: the first one, doubled each time.
const TRIES: u32 = 5;
const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// How often it is said that the collector takes nothing.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// The longest answer of a collector that is read, in bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// The numbers of spans by outcome.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// The collector took them.
    pub(super) exported: Counter,
    /// The queue was full.
    pub(super) overflowed: Counter,
    /// The collector did not take them, after all tries.
    pub(super) not_taken: Counter,
}

/// Where spans go as they end.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl Queue {
    /// A queue, and what empties it once it runs, until `closing`.
    pub(super) fn new<E: SpanExporter>(exporter: E, closing: CancellationToken) -> (Self, Sender<E>) {
        let (spans, waiting) = mpsc::channel(QUEUE_MAX);
        let counts = Arc::<Counts>::default();
        let sender = Sender { exporter, waiting, counts: Arc::clone(&counts), closing, said: None };
        (Self { spans, counts }, sender)
    }

    pub(super) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.counts.overflowed.add(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        // The task sends what is there; whoever ends the process waits for it.
        Ok(())
    }
}

/// Empties the queue.
pub(super) struct Sender<E> {
    exporter: E,
    waiting: mpsc::Receiver<SpanData>,
    counts: Arc<Counts>,
    closing: CancellationToken,
    /// When it was last said that the collector takes nothing, and how many spans were lost until then.
    said: Option<(Instant, u64)>,
}

impl<E: SpanExporter> Sender<E> {
    /// Sends until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::new();
        while self.gather(&mut batch).await {
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    /// Waits for spans, and a little for more of them. False: there are none, and none will come.
    async fn gather(&mut self, batch: &mut Vec<SpanData>) -> bool {
        let found = tokio::select! {
            biased;
            found = self.waiting.recv_many(batch, BATCH_MAX) => found,
            () = self.closing.cancelled() => {
                self.waiting.close();
                self.waiting.recv_many(batch, BATCH_MAX).await
            }
        };
        let full = sleep(GATHER);
        tokio::pin!(full);
        while found > 0 && batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                () = &mut full => break,
                more = self.waiting.recv_many(batch, room) => if more == 0 { break },
            }
        }
        found > 0
    }

    /// Sends one batch, several times if it must be.
    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        let mut wait = BACKOFF_BASE;
        for tries in 1..=TRIES {
            let error = match timeout(EXPORT_MAX, self.exporter.export(batch.clone())).await {
                Ok(Ok(())) => {
                    self.counts.exported.add(spans);
                    if self.said.take().is_some() {
                        tracing::info!("the collector of traces takes spans again");
                    }
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {EXPORT_MAX:?}"),
            };
            self.complain(&error);
            if tries == TRIES || self.closing.is_cancelled() {
                break;
            }
            tokio::select! {
                () = sleep(wait) => wait *= 2,
                () = self.closing.cancelled() => {}
            }
        }
        self.counts.not_taken.add(spans);
    }

    /// One warning a minute, however many spans are lost.
    fn complain(&mut self, error: &str) {
        let lost = self.counts.overflowed.read() + self.counts.not_taken.read();
        let before = match self.said {
            Some((at, _)) if at.elapsed() < SAY_EVERY => return,
            Some((_, before)) => before,
            None => lost,
        };
        tracing::warn!(error, lost = lost - before, "the collector of traces takes no spans, trying again; jobs go on");
        self.said = Some((Instant::now(), lost));
    }
}

/// Sends requests with the client of HTTP that relay has anyway.
pub(super) struct Client(reqwest::Client);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// Reads the address of a collector.
///
/// # Errors
/// If it is none of HTTP.
pub(super) fn address(endpoint: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(endpoint).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("it is no address that begins with http:// or https://".to_owned());
    }
    Ok(url)
}

impl Client {
    /// A client for `endpoint`.
    ///
    /// # Errors
    /// If it is no address of HTTP.
    pub(super) fn new(endpoint: &str) -> Result<Self, String> {
        let url = address(endpoint)?;
        let mut client = reqwest::Client::builder()
            .timeout(EXPORT_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("relay/", env!("CARGO_PKG_VERSION")));
        // A proxy from the environment is for the outside; this machine is reached without it.
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        if host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()) {
            client = client.no_proxy();
        }
        Ok(Self(client.build().map_err(|error| error.to_string())?))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let request = self.0.request(head.method, head.uri.to_string()).headers(head.headers).body(body);
        let mut answer = request.send().await?;
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            response = response.header(name, value);
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err("the answer is longer than collectors' are".into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(response.body(body.into())?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

    use super::*;

    /// Takes spans, or refuses them for as often as it is told.
    #[derive(Debug, Default)]
    struct Collector {
        refusals: Mutex<u32>,
        batches: Arc<Mutex<Vec<usize>>>,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let mut refusals = self.refusals.lock().unwrap();
            if *refusals > 0 {
                *refusals -= 1;
                return Err(OTelSdkError::InternalFailure("away".to_owned()));
            }
            self.batches.lock().unwrap().push(batch.len());
            Ok(())
        }
    }

    fn tracer(queue: Queue) -> (SdkTracer, SdkTracerProvider) {
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        (provider.tracer("test"), provider)
    }

    fn end_spans(tracer: &SdkTracer, count: usize) {
        (0..count).for_each(|_| drop(tracer.start("span")));
    }

    #[tokio::test]
    async fn a_full_queue_drops_spans_counts_them_and_makes_nobody_wait() {
        let closing = CancellationToken::new();
        let (queue, sender) = Queue::new(Collector::default(), closing.clone());
        let counts = queue.counts();
        let (tracer, _provider) = tracer(queue);
        end_spans(&tracer, QUEUE_MAX + 7);
        assert_eq!(counts.overflowed.read(), 7);
        closing.cancel();
        sender.run().await;
        assert_eq!(counts.exported.read(), QUEUE_MAX as u64, "what was in the queue is sent before it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_sent_again_and_dropped_after_five_tries() {
        for (refusals, exported, not_taken) in [(TRIES - 1, 3, 0), (TRIES, 0, 3)] {
            let closing = CancellationToken::new();
            let batches = Arc::default();
            let collector = Collector { refusals: Mutex::new(refusals), batches: Arc::clone(&batches) };
            let (queue, sender) = Queue::new(collector, closing.clone());
            let counts = queue.counts();
            let (tracer, provider) = tracer(queue);
            end_spans(&tracer, 3);
            // Nobody can send any more, and it is not closing: all tries are made.
            drop((tracer, provider));
            sender.run().await;
            assert_eq!((counts.exported.read(), counts.not_taken.read()), (exported, not_taken));
            assert_eq!(batches.lock().unwrap().len(), usize::from(exported > 0), "spans that end together go together");
        }
    }

    #[test]
    fn what_is_no_address_of_http_is_refused() {
        for bad in ["", "collector:4317", "grpc://collector:4317/", "http://"] {
            assert!(Client::new(bad).is_err(), "{bad}");
        }
    }
}
