//! The scaler as KEDA calls it. Every answer comes within a second, because KEDA gives up after three for two calls; one that
//! can't be given is an error and never 0, so that KEDA's fallback acts.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::looks::{ANSWER_MAX, Looked, Looks};
use super::proto::external_scaler_server::ExternalScaler;
use super::proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};
use super::trigger::Trigger;

/// How old the figures of an answer may be, unless the broker's own are older.
const AGE_MAX: Duration = Duration::from_secs(1);
/// Streams that are open at a time.
const STREAMS_MAX: usize = 8_192;
/// How often a queue without work is looked at for a stream, with few and with many of them.
const IDLE_EVERY: Duration = Duration::from_millis(300);
const IDLE_EVERY_MAX: Duration = Duration::from_millis(900);
/// How often one with work is.
const ACTIVE_EVERY: Duration = Duration::from_secs(2);
/// Streams for which there is a look of this process each so often.
const IDLE_A_LOOK: Duration = Duration::from_millis(10);
/// How soon it is looked again after a job came whose count has not.
const AGAIN: Duration = Duration::from_millis(50);
/// How soon it is looked again after a look failed, for the first time and at most.
const FAILED: Duration = Duration::from_secs(1);
const FAILED_MAX: Duration = Duration::from_secs(10);
/// How often a stream says again that there is work: KEDA drops what it is told before its autoscaler exists.
const REPEATED: Duration = Duration::from_secs(10);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers KEDA out of looks at the broker.
pub(super) struct Service {
    looks: Arc<Looks>,
    streams: Arc<Semaphore>,
    /// Ends streams.
    stop: CancellationToken,
}

impl Service {
    pub(super) fn new(looks: Arc<Looks>, stop: CancellationToken) -> Self {
        Self { looks, streams: Arc::new(Semaphore::new(STREAMS_MAX)), stop }
    }

    async fn look(&self, trigger: &Trigger) -> Result<Looked, Status> {
        let age = AGE_MAX.max(self.looks.age());
        look(&self.looks, trigger, age).await
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_| Status::resource_exhausted(format!("{STREAMS_MAX} streams are open: more are not taken"));
        Arc::clone(&self.streams).try_acquire_owned().map_err(full)
    }
}

async fn look(looks: &Looks, trigger: &Trigger, age: Duration) -> Result<Looked, Status> {
    let looked = looks.answer(&trigger.queue, trigger.lead, age).await;
    looked.map_err(|error| refused(&trigger.queue, &error))?.ok_or_else(|| {
        Status::unavailable(format!(
            "the broker did not say within {ANSWER_MAX:?} what queue `{}` has to do: see whether it is there",
            trigger.queue
        ))
    })
}

fn refused(queue: &QueueName, error: &BrokerError) -> Status {
    let code = match error.kind() {
        BrokerErrorKind::NotFound => Code::NotFound,
        BrokerErrorKind::Overloaded { .. } => Code::ResourceExhausted,
        _ => Code::Unavailable,
    };
    Status::new(code, format!("queue `{queue}`: {error}"))
}

fn read(object: &ScaledObjectRef) -> Result<Trigger, Status> {
    let metadata = object.scaler_metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    Trigger::read(metadata).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn spec(trigger: &Trigger) -> GetMetricSpecResponse {
    let slots = trigger.targets.slots_per_worker.get();
    let (target_size, target_size_float) = (i64::from(slots), f64::from(slots));
    GetMetricSpecResponse {
        metric_specs: vec![MetricSpec { metric_name: trigger.metric(), target_size, target_size_float }],
    }
}

#[tonic::async_trait]
impl ExternalScaler for Service {
    type StreamIsActiveStream = Streamed<IsActiveResponse>;
    type StreamMetricSpecStream = Streamed<GetMetricSpecResponse>;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        let looked = self.look(&read(request.get_ref())?).await?;
        Ok(Response::new(IsActiveResponse { result: is_active(&looked) }))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        Ok(Response::new(spec(&read(request.get_ref())?)))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let object = request.get_ref().scaled_object_ref.clone().unwrap_or_default();
        let trigger = read(&object)?;
        let wanted = trigger.wanted(&self.look(&trigger).await?);
        #[expect(clippy::cast_possible_truncation, reason = "it saturates, and no cluster has so many slots")]
        let metric_value = wanted.ceil() as i64;
        let value = MetricValue { metric_name: trigger.metric(), metric_value, metric_value_float: wanted };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let (trigger, place) = (read(request.get_ref())?, self.place()?);
        let coming = self.looks.coming(&trigger.queue);
        let looked = self.look(&trigger).await?;
        let first = is_active(&looked);
        let (looks, streams) = (Arc::clone(&self.looks), Arc::clone(&self.streams));
        let (said, at, soon, failed) = (None, Instant::now(), 0, None);
        let watching = Watching { looks, streams, trigger, _place: place, coming, said, at, looked, soon, failed };
        let stop = self.stop.clone();
        // A stream that nobody reads is not asked for its next state: it looks at nothing and holds no more than this.
        let states = stream::unfold(Some((watching, Some(first))), move |state| {
            let stop = stop.clone();
            async move {
                let (mut watching, first) = state?;
                let next = match first {
                    Some(first) => Ok(watching.say(first)),
                    None => stop.run_until_cancelled(watching.next()).await?,
                };
                let state = next.is_ok().then_some((watching, None));
                Some((next.map(|result| IsActiveResponse { result }), state))
            }
        });
        Ok(Response::new(Box::pin(states)))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        let (trigger, place) = (read(request.get_ref())?, self.place()?);
        let stop = self.stop.clone();
        // A trigger is what its metadata says: it never changes.
        let specs = stream::unfold((Some(spec(&trigger)), place), move |(spec, place)| {
            let stop = stop.clone();
            async move {
                let Some(spec) = spec else {
                    stop.cancelled().await;
                    return None;
                };
                Some((Ok(spec), (None, place)))
            }
        });
        Ok(Response::new(Box::pin(specs)))
    }
}

fn is_active(looked: &Looked) -> bool {
    looked.load.startable > 0 || looked.load.leased > 0
}

/// The last word to a stream, and the change that it looks for.
struct Watching {
    looks: Arc<Looks>,
    streams: Arc<Semaphore>,
    trigger: Trigger,
    _place: OwnedSemaphorePermit,
    /// Ready once a job came after the last look began.
    coming: Option<OwnedNotified>,
    said: Option<bool>,
    at: Instant,
    /// The last look, whoever took it.
    looked: Looked,
    /// How many looks come soon, because a job came that was not counted yet.
    soon: u32,
    /// The pause after the last look, if that failed.
    failed: Option<Duration>,
}

impl Watching {
    fn say(&mut self, state: bool) -> bool {
        (self.said, self.at) = (Some(state), Instant::now());
        state
    }

    /// The next state that is worth telling. While the broker is away none is: KEDA asks for figures as well, and is told. A
    /// queue that is not there any more ends the stream.
    async fn next(&mut self) -> Result<bool, Status> {
        loop {
            let pause = self.pause();
            match self.coming.take() {
                Some(coming) if self.said != Some(true) && self.soon == 0 && self.failed.is_none() => {
                    if timeout(pause, coming).await.is_ok() {
                        self.soon = 3;
                    }
                }
                // More jobs change nothing, and may be many: of a queue that is paused, too.
                _ => sleep(pause).await,
            }
            // A look that others took since the last one is as good as an own one.
            let age = if self.soon > 0 { Duration::ZERO } else { self.ago().saturating_sub(Duration::from_nanos(1)) };
            let age = self.looks.age().max(age.min(self.every()));
            self.soon = self.soon.saturating_sub(1);
            // A job that comes during the look may not be counted by it.
            self.coming = self.looks.coming(&self.trigger.queue);
            let looked = match look(&self.looks, &self.trigger, age).await {
                Ok(looked) => looked,
                Err(status) if status.code() == Code::NotFound => return Err(status),
                Err(_) => {
                    self.failed = Some(self.failed.map_or(FAILED, |pause| (pause * 2).min(FAILED_MAX)));
                    continue;
                }
            };
            self.failed = None;
            self.looked = looked;
            let state = is_active(&looked);
            if self.said != Some(state) || state && self.at.elapsed() >= REPEATED {
                self.soon = 0;
                return Ok(self.say(state));
            }
        }
    }

    /// How long to wait before the next look. The time since the last one counts, whoever took it: so all streams of a queue come
    /// to look at the same time, and share the look.
    fn pause(&self) -> Duration {
        if let Some(failed) = self.failed {
            return failed;
        }
        if self.soon > 0 {
            return AGAIN;
        }
        let mut pause = self.every().saturating_sub(self.ago());
        if self.said == Some(true) {
            pause = pause.min((self.at + REPEATED).saturating_duration_since(Instant::now()));
        }
        pause.max(AGAIN)
    }

    fn ago(&self) -> Duration {
        self.looks.ago(&self.looked)
    }

    /// How often the queue is looked at.
    fn every(&self) -> Duration {
        if self.said == Some(true) {
            return ACTIVE_EVERY;
        }
        let open = u32::try_from(STREAMS_MAX - self.streams.available_permits()).unwrap_or(u32::MAX);
        (IDLE_A_LOOK * open).clamp(IDLE_EVERY, IDLE_EVERY_MAX).max(self.looks.age())
    }
}
