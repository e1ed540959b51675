//! A scripted broker that records what it is asked, handlers to script, and a worker between them.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, JobId, JobResult, Outcome, QueueName, RunId, Submission, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_workers::{Attempt, Context, Handler, Output, QueueOrder, Worker, WorkerConfig, WorkerReport, WorkerStats};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A call of the broker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    Lease { queues: Vec<String>, max: u32 },
    Extend,
    Progress(String),
    DeadLetter(Outcome),
    Retract,
    Record(Outcome),
    Settle(Settlement),
}

/// The answer to a call, instead of the usual one.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Error(BrokerErrorKind),
    /// There is no room for it in storage.
    Full,
    Hang,
    Held(Held),
    /// As usual, so much later, of which the worker's timers do not know.
    Late(Duration),
    Superseded(Outcome),
}

/// A broker that does what the test says. Calls are named `lease`, `extend`, `dead_letter`, `record`, `settle`,
/// `policy`; without a scripted reply each succeeds.
pub(crate) struct Scripted {
    pub(crate) policy: Mutex<QueuePolicy>,
    waiting: Mutex<VecDeque<Delivery>>,
    added: Notify,
    replies: Mutex<BTreeMap<&'static str, VecDeque<Reply>>>,
    /// Replies that never run out.
    always: Mutex<BTreeMap<&'static str, Reply>>,
    calls: watch::Sender<Vec<Call>>,
    pub(crate) results: Mutex<Vec<JobResult>>,
    pub(crate) letters: Mutex<Vec<DeadLetter>>,
    /// Cancelled when holders are to beat at once.
    pub(crate) hurry: CancellationToken,
}

pub(crate) const LEASE: Duration = Duration::from_secs(30);

impl Scripted {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            policy: Mutex::default(),
            waiting: Mutex::default(),
            added: Notify::new(),
            replies: Mutex::default(),
            always: Mutex::default(),
            calls: watch::Sender::new(Vec::new()),
            results: Mutex::default(),
            letters: Mutex::default(),
            hurry: CancellationToken::new(),
        })
    }

    /// Puts a delivery in line.
    pub(crate) fn put(&self, job: Job, attempt: u32) {
        let receipt = Receipt {
            job_id: job.id,
            run_id: job.run_id,
            client: job.client.clone(),
            queue: job.queue.clone(),
            token: Vec::new(),
        };
        let leased_at = Clock::system().now();
        let lease = self.policy.lock().unwrap().lease;
        self.waiting.lock().unwrap().push_back(Delivery { job, receipt, attempt, leased_at, lease });
        self.added.notify_one();
    }

    /// The next call of this name is answered so; several queue up.
    pub(crate) fn reply(&self, call: &'static str, replies: impl IntoIterator<Item = Reply>) {
        self.replies.lock().unwrap().entry(call).or_default().extend(replies);
    }

    /// Every call of this name is answered so from now on, after the queued ones.
    pub(crate) fn always(&self, call: &'static str, reply: Reply) {
        self.always.lock().unwrap().insert(call, reply);
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// The calls that end deliveries, in order.
    pub(crate) fn endings(&self) -> Vec<Call> {
        let ends = |call: &Call| !matches!(call, Call::Lease { .. } | Call::Extend | Call::Progress(_));
        self.calls().into_iter().filter(ends).collect()
    }

    /// Waits until the calls are so.
    pub(crate) async fn until(&self, so: impl FnMut(&Vec<Call>) -> bool) {
        let mut calls = self.calls.subscribe();
        // In virtual time this costs nothing, and a call that never comes is a failure and not a hang.
        let waited = tokio::time::timeout(Duration::from_secs(3 * 3600), calls.wait_for(so)).await;
        drop(waited.expect("the call never came").unwrap());
    }

    /// Waits until this many deliveries were settled.
    pub(crate) async fn settled(&self, count: usize) {
        self.until(|calls| calls.iter().filter(|call| matches!(call, Call::Settle(_))).count() >= count).await;
    }

    async fn scripted(&self, call: &'static str) -> Result<Option<Reply>, BrokerError> {
        let reply = self.replies.lock().unwrap().get_mut(call).and_then(VecDeque::pop_front);
        let reply = reply.or_else(|| self.always.lock().unwrap().get(call).cloned());
        match reply {
            Some(Reply::Error(kind)) => Err(BrokerError::new(kind, call, "scripted")),
            Some(Reply::Full) => {
                let full = BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(10) };
                Err(BrokerError::new(full, call, "the account may store no more").of_storage())
            }
            Some(Reply::Hang) => std::future::pending().await,
            Some(Reply::Late(by)) => {
                tokio::time::advance(by).await;
                Ok(None)
            }
            reply => Ok(reply),
        }
    }

    fn record_call(&self, call: Call) {
        self.calls.send_modify(|calls| calls.push(call));
    }
}

#[async_trait]
impl Leasing for Scripted {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let queues = request.queues.iter().map(ToString::to_string).collect();
        self.record_call(Call::Lease { queues, max: request.max.get() });
        self.scripted("lease").await?;
        let deadline = tokio::time::Instant::now() + request.wait;
        loop {
            let added = self.added.notified();
            {
                let mut waiting = self.waiting.lock().unwrap();
                let count = waiting.len().min(request.max.get() as usize);
                if count > 0 {
                    return Ok(waiting.drain(..count).collect());
                }
            }
            if tokio::time::timeout_at(deadline, added).await.is_err() {
                return Ok(Vec::new());
            }
        }
    }

    async fn extend(&self, _: &Receipt) -> Result<Held, BrokerError> {
        self.record_call(Call::Extend);
        match self.scripted("extend").await? {
            Some(Reply::Held(held)) => Ok(held),
            _ => Ok(Held::Until(self.policy.lock().unwrap().lease)),
        }
    }

    async fn ended_early(&self, _: &Receipt) {
        self.hurry.cancelled().await;
    }

    async fn progress(&self, _: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        self.record_call(Call::Progress(progress.message.clone()));
        Ok(())
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.record_call(Call::DeadLetter(letter.outcome));
        self.scripted("dead_letter").await?;
        self.letters.lock().unwrap().push(letter.clone());
        Ok(())
    }

    async fn retract_dead_letter(&self, _: JobId, _: RunId, _: Option<&[QueueName]>) -> Result<(), BrokerError> {
        self.record_call(Call::Retract);
        Ok(())
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.record_call(Call::Record(result.outcome));
        if let Some(Reply::Superseded(outcome)) = self.scripted("record").await? {
            return Ok(Recorded::Superseded(outcome));
        }
        self.results.lock().unwrap().push(result.clone());
        Ok(Recorded::First)
    }

    async fn settle(&self, _: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.record_call(Call::Settle(settlement.clone()));
        self.scripted("settle").await?;
        Ok(())
    }

    async fn queue_policy(&self, _: &QueueName) -> Result<QueuePolicy, BrokerError> {
        self.scripted("policy").await?;
        Ok(self.policy.lock().unwrap().clone())
    }
}

/// A job that was accepted an hour ago and expires in five.
pub(crate) fn job(payload: impl Into<Vec<u8>>) -> Job {
    job_at(payload, Duration::ZERO, Duration::from_secs(5 * 3600))
}

/// A job due in `delay` that expires `life` after that.
pub(crate) fn job_at(payload: impl Into<Vec<u8>>, delay: Duration, life: Duration) -> Job {
    let submission = Submission {
        client: "acme".parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: Some("order-7".parse().unwrap()),
        content_type: "application/x-test".to_owned(),
        content_encoding: None,
        headers: BTreeMap::from([
            ("relay-meta-order-id".to_owned(), "42".to_owned()),
            ("traceparent".to_owned(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        ]),
        payload: payload.into().into(),
        delay,
        expires_in: Some(life),
    };
    submission.accept(&QueuePolicy::default(), Clock::system().now())
}

/// The moment `span` before now.
pub(crate) fn ago(span: Duration) -> Timestamp {
    Timestamp::from_millis(Clock::system().now().as_millis() - i64::try_from(span.as_millis()).unwrap())
}

/// A handler of a closure, with a grace to choose.
pub(crate) struct Closure<F> {
    f: F,
    grace: Duration,
}

#[async_trait]
impl<F, Fut> Handler for Closure<F>
where
    F: Fn(Job, Context) -> Fut + Send + Sync,
    Fut: Future<Output = Attempt> + Send,
{
    async fn handle(&self, job: &Job, context: &Context) -> Attempt {
        (self.f)(job.clone(), context.clone()).await
    }

    fn grace(&self) -> Duration {
        self.grace
    }
}

pub(crate) fn handler<F, Fut>(f: F) -> Arc<dyn Handler>
where
    F: Fn(Job, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Attempt> + Send + 'static,
{
    Arc::new(Closure { f, grace: Duration::from_secs(1) })
}

/// A handler that succeeds after `span`, unless it is cancelled.
pub(crate) fn busy_for(span: Duration) -> Arc<dyn Handler> {
    handler(move |_, context| async move {
        tokio::select! {
            () = tokio::time::sleep(span) => done(),
            () = context.cancelled().cancelled_owned() => Attempt::retry("cancelled", "stopped"),
        }
    })
}

pub(crate) fn done() -> Attempt {
    Attempt::Done(Output::new("text/plain", "ok"))
}

/// A worker at work.
pub(crate) struct Running {
    pub(crate) shutdown: CancellationToken,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) task: JoinSet<WorkerReport>,
}

pub(crate) fn config(slots: u32, drain: Duration) -> WorkerConfig {
    WorkerConfig {
        id: "worker-1".parse().unwrap(),
        queues: vec![("work".parse().unwrap(), 1)],
        order: QueueOrder::Strict,
        slots: NonZeroU32::new(slots).unwrap(),
        drain,
    }
}

pub(crate) fn start(leasing: &Arc<Scripted>, handler: Arc<dyn Handler>, config: WorkerConfig) -> Running {
    let worker = Worker::new(leasing.clone(), handler, Clock::system(), config);
    let stats = worker.stats();
    let shutdown = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(worker.run(shutdown.clone()));
    Running { shutdown, stats, task }
}

/// A worker with four slots and a minute of drain.
pub(crate) fn start_one(leasing: &Arc<Scripted>, handler: Arc<dyn Handler>) -> Running {
    start(leasing, handler, config(4, Duration::from_secs(60)))
}

impl Running {
    /// Asks for the drain and waits for its end.
    pub(crate) async fn stop(mut self) -> WorkerReport {
        self.shutdown.cancel();
        self.task.join_next().await.unwrap().unwrap()
    }
}
