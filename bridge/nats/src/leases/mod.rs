//! The capability for workers (`Leasing`): lease, extend, progress, dead letters on their way in, record, settle.

pub(crate) mod acks;
pub(crate) mod adopt;
pub(crate) mod deliver;
pub(crate) mod dispatch;
pub(crate) mod grant;
pub(crate) mod listening;
pub(crate) mod lost;
pub(crate) mod offered;
pub(crate) mod pulling;
pub(crate) mod pulls;
pub(crate) mod recording;
pub(crate) mod rounds;
pub(crate) mod settle;
pub(crate) mod settling;

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::HeaderMap;
use async_trait::async_trait;
use futures_util::future::select_all;
use serde_json::json;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::closing::Alive;
use crate::leases::deliver::Asked;
use crate::leases::grant::Grant;
use crate::leases::listening::{Hearing, Listening};
use crate::leases::lost::lost;
use crate::leases::pulling::Pulls;
use crate::leases::recording::Recording;
use crate::leases::rounds::RoundMaker;
use crate::leases::settling::Settling;
use crate::line::lines::Lines;
use crate::line::queue_state::QueueState;
use crate::records::held::HeldJobs;
use crate::records::letters::LetterStore;
use crate::records::policies::Policies;
use crate::stored::names;
use crate::stored::receipt::Token;
use crate::wire::api::Api;
use crate::wire::requests::ANSWER_WITHIN;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{JobId, JobResult, QueueName, RunId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Held, LEASE_BYTES_MAX, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::policy_copies::AGE_MAX;
use relay_bridge::rules;
use relay_bridge::settlement::Settlement;

/// How long a call that waits looks for jobs that were missed before it takes jobs that are known. The first look at a
/// queue, when nothing is known yet, may take [`ANSWER_WITHIN`].
const LOOKS_FOR: Duration = Duration::from_millis(100);
/// The longest message of a progress, in bytes.
const MESSAGE_MAX: usize = 1_024;

/// Serves workers: fills `Leasing` with the parts of this layer.
pub(crate) struct Leases {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) closing: CancellationToken,
    pub(crate) policies: Arc<Policies>,
    pub(crate) tasks: TaskTracker,
    pub(crate) lines: Arc<Lines>,
    pub(crate) pulls: Arc<Pulls>,
    pub(crate) rounds: Arc<RoundMaker>,
    pub(crate) settling: Arc<Settling>,
    pub(crate) recording: Arc<Recording>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) held: Arc<HeldJobs>,
    pub(crate) hearing: Arc<Hearing>,
    pub(crate) _alive: Arc<Alive>,
}

#[async_trait]
impl Leasing for Leases {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let mut request = rules::lease_request(request)?;
        let called = Instant::now();
        let deadline = called + request.wait;
        let mut asked = self.asked(&request.queues).await?;
        request.max = request.max.min(fitting(&asked));
        let (request, max) = (&request, request.max.get());
        let waiting = Waiting::begin(&self.lines, request, &asked, called);
        if request.wait.is_zero() {
            // The call's places are over with it: a worker that does not wait does not ask again.
            return self.look_now(&waiting, &asked, max).await.map(Grant::take);
        }
        let mut looked = false;
        loop {
            let lines: Vec<_> = asked.iter().map(|asked| asked.line.clone()).collect();
            // Before looking, so that a job that comes while this looks wakes it.
            let mut woken: Vec<Pin<Box<Notified<'_>>>> =
                lines.iter().map(|line| Box::pin(line.woken.notified())).collect();
            woken.iter_mut().for_each(|woken| {
                woken.as_mut().enable();
            });
            let mut grant = Grant::nothing(Arc::clone(&self.settling));
            self.pulls.ready(&mut grant, &asked, max, called);
            if !grant.is_empty() {
                // Jobs that came together go together.
                tokio::task::yield_now().await;
                self.pulls.ready(&mut grant, &asked, max, called);
            }
            if !grant.is_empty() || Instant::now() >= deadline {
                return Ok(waiting.answered(grant));
            }
            self.api.connection().up("lease")?;
            for (number, Asked { line, policy }) in asked.iter().enumerate() {
                if !looked && !policy.paused {
                    // The turns of lanes and the order of queues hold also for jobs that came while no hints were
                    // heard.
                    let hears = line.hears.load(Ordering::Acquire);
                    let since = if hears { line.rounds.missed() } else { called };
                    let looks_for = if line.rounds.is_first() { ANSWER_WITHIN } else { LOOKS_FOR };
                    let round = self.rounds.round_since(line, policy, since);
                    let made = tokio::time::timeout(looks_for, round).await.unwrap_or(Ok(()));
                    // A process that hears hints learns of jobs all the same.
                    if !hears {
                        made?;
                    }
                }
                if !looked {
                    waiting.looked(number + 1);
                }
                self.pulls.dispatch(line);
                self.pulls.request_standing_pull(line);
                // One that fell due while pulls held all places was put off until somebody has room for its jobs.
                if line.rounds.is_late.load(Ordering::Acquire) && self.lines.free(line) > 0 {
                    line.rounds.wanted();
                }
            }
            looked = true;
            // The policy of a queue is looked at now and then, should the message of a change be lost.
            let again = deadline.min(Instant::now() + AGE_MAX);
            tokio::select! {
                _ = select_all(woken) => {}
                () = tokio::time::sleep_until(again) => {}
                () = self.closing.cancelled() => return Err(closed("lease")),
            }
            asked = self.asked(&request.queues).await?;
        }
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        self.settling.extend_lease(receipt).await
    }

    async fn ended_early(&self, receipt: &Receipt) {
        let token = Token::read(receipt, "extend").ok();
        match token.and_then(|token| self.held.holding.get(&token.key(receipt))) {
            Some(held) if held.connections != self.api.connections() => {}
            Some(held) => held.hurry.cancelled().await,
            None => std::future::pending().await,
        }
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        let token = Token::read(receipt, "progress")?;
        let held = self.settling.held(receipt, &token, "progress").await?;
        if held.ended.is_some() {
            return Err(lost("progress", "its run has ended"));
        }
        let mut end = MESSAGE_MAX.min(progress.message.len());
        while !progress.message.is_char_boundary(end) {
            end -= 1;
        }
        let percent = progress.percent.filter(|percent| percent.is_finite()).map(|percent| percent.clamp(0.0, 100.0));
        let event = json!({
            "job_id": receipt.job_id,
            "run_id": receipt.run_id,
            "type": "progress",
            "at": self.clock.now(),
            "attempt": held.attempt,
            "progress": { "percent": percent, "message": &progress.message[..end] },
        });
        let subject = names::events(&receipt.client, receipt.job_id);
        self.api.tell(subject, HeaderMap::new(), event.to_string().into()).await;
        Ok(())
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.letters.keep_letter(letter).await
    }

    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        let held = self.settling.held.holding.of(job);
        if held.is_some_and(|held| held.run == run && held.letterless) {
            return Ok(());
        }
        self.letters.retract_letter(job, run, within).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.recording.record_sent(result).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.settling.settle_delivery(receipt, settlement).await
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        Ok(self.policies.require(queue, "read policy").await?.as_ref().clone())
    }
}

/// How many jobs of these queues fit into one answer, whatever their sizes: so many are pulled for one call. A pull with
/// `max_bytes` would need no such bound, but gets nothing from a stream with three replicas (measured on 2.15.1).
fn fitting(asked: &[Asked]) -> NonZeroU32 {
    let largest = asked.iter().map(|asked| asked.policy.payload_max).max().unwrap_or(0).max(1);
    let fitting = u32::try_from(LEASE_BYTES_MAX / largest).unwrap_or(u32::MAX);
    NonZeroU32::new(fitting).unwrap_or(NonZeroU32::MIN)
}

impl Leases {
    /// The queue states and policies of the queues that a call names; all of them must be there.
    async fn asked(&self, queues: &[QueueName]) -> Result<Vec<Asked>, BrokerError> {
        let mut asked = Vec::with_capacity(queues.len());
        for queue in queues {
            let policy = self.policies.require(queue, "lease").await?;
            let line = self.line(queue).await?;
            line.goes_by(&policy);
            asked.push(Asked { line, policy });
        }
        Ok(asked)
    }

    /// The jobs that there are now, up to `max`, the queues in the order given.
    async fn look_now(&self, waiting: &Waiting<'_>, asked: &[Asked], max: u32) -> Result<Grant, BrokerError> {
        let called = waiting.called;
        let mut grant = Grant::nothing(Arc::clone(&self.settling));
        self.pulls.ready(&mut grant, asked, max, called);
        for (number, Asked { line, policy }) in asked.iter().enumerate() {
            if policy.paused {
                continue;
            }
            if grant.left(max) == 0 {
                break;
            }
            // Jobs that are known to be in line are taken also if it can't be seen whether there are more.
            let looked = self.rounds.round_since(line, policy, called).await;
            waiting.looked(number + 1);
            let mut pulls = line.pulls.subscribe();
            while grant.left(max) > 0 && (self.pulls.dispatch(line) || *pulls.borrow() > 0) {
                // In a busy process others may always have some in flight.
                let ended = tokio::time::timeout_at(called + ANSWER_WITHIN, pulls.wait_for(|pulls| *pulls == 0));
                let Some(ended) = self.closing.run_until_cancelled(ended).await else {
                    return Err(closed("lease"));
                };
                let is_late = ended.is_err();
                self.pulls.ready(&mut grant, asked, max, called);
                if is_late {
                    break;
                }
            }
            if grant.is_empty() {
                looked?;
            }
        }
        Ok(grant)
    }

    /// The queue's state. The first call for a queue begins to listen.
    pub(crate) async fn line(&self, queue: &QueueName) -> Result<Arc<QueueState>, BrokerError> {
        let mut lines = self.lines.open.lock().await;
        if let Some(line) = lines.get(queue) {
            return Ok(line.clone());
        }
        let (listening, policy) = Listening::begin(&self.hearing, queue).await?;
        let line = Arc::new(QueueState::new(queue.clone(), policy));
        let weak = Arc::downgrade(&line);
        self.tasks.spawn(listening.run(Arc::clone(&self.hearing), weak.clone()));
        self.tasks.spawn(rounds::keep(Arc::clone(&self.rounds), weak, self.closing.clone()));
        lines.insert(queue.clone(), line.clone());
        Ok(line)
    }
}

/// A call that waits for jobs, and its places.
struct Waiting<'a> {
    all: &'a Lines,
    call: u64,
    /// When it was made.
    called: Instant,
    lines: Vec<Arc<QueueState>>,
}

impl<'a> Waiting<'a> {
    fn begin(all: &'a Lines, request: &LeaseRequest, asked: &[Asked], called: Instant) -> Self {
        let lines: Vec<_> = asked.iter().map(|asked| asked.line.clone()).collect();
        let call = all.places().call(&request.worker, request.queues.clone(), request.max.get());
        for line in &lines {
            if !line.hears.load(Ordering::Acquire) && !request.wait.is_zero() {
                line.places_changed.notify_one();
            }
            line.rounds.wanted();
        }
        Self { all, call, called, lines }
    }

    /// Notes that it looked over so many of its queues.
    fn looked(&self, queues: usize) {
        self.all.places().looked(self.call, queues);
    }

    fn answered(self, grant: Grant) -> Vec<Delivery> {
        let deliveries = grant.take();
        let taken = u32::try_from(deliveries.len()).unwrap_or(u32::MAX);
        self.all.places().answered(self.call, taken, Instant::now());
        for line in &self.lines {
            if taken > 0 && self.all.free(line) == 0 {
                line.might_stop_hearing();
            }
        }
        deliveries
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // This has no effect on a call that was answered.
        self.all.places().left(self.call);
    }
}

fn closed(operation: &'static str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, operation, "the adapter is being closed")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt as _;
    use tokio::time::timeout;

    use super::*;
    use crate::config::NatsConfig;
    use crate::wire::connection::Wait;
    use crate::{Nats, Settings};
    use relay_bridge::contract::{QueueName, Submission};
    use relay_conformance::testing::NatsServer;

    #[tokio::test]
    async fn a_round_is_due_after_a_reconnect_whoever_noticed_it_first() {
        let mut server = NatsServer::start().await;
        let wait = Wait::AtMost(Duration::from_secs(30));
        let nats = Nats::connect(NatsConfig::new([server.url()]), wait, Settings::default()).await.unwrap();
        let queue = "work".parse().unwrap();
        nats.broker().policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
        let asked = nats.0.leases.asked(&[queue]).await.unwrap();
        let (leases, Asked { line, policy }) = (&nats.0.leases, &asked[0]);
        leases.rounds.round_since(line, policy, Instant::now()).await.unwrap();
        assert!(line.rounds.next(leases.api.connections()) > Instant::now());
        let connections = leases.api.connections();
        server.kill();
        server.restart().await;
        let again = async {
            while leases.api.connections() == connections || leases.lines.recheck_if_reconnected(line).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), again).await.unwrap();
        assert!(line.rounds.next(leases.api.connections()) <= Instant::now(), "hints were lost meanwhile");
    }

    #[tokio::test]
    async fn a_round_that_fell_due_while_pulls_held_all_places_is_made_once_they_are_free() {
        let server = NatsServer::start().await;
        let wait = Wait::AtMost(Duration::from_secs(30));
        let nats = Nats::connect(NatsConfig::new([server.url()]), wait, Settings::default()).await.unwrap();
        let queue: QueueName = "work".parse().unwrap();
        nats.broker().policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
        let asked = nats.0.leases.asked(std::slice::from_ref(&queue)).await.unwrap();
        let (leases, line) = (&nats.0.leases, &asked[0].line);
        let request = LeaseRequest {
            worker: "w".parse().unwrap(),
            queues: vec![queue.clone()],
            max: NonZeroU32::MIN,
            wait: Duration::from_secs(60),
        };
        let until = async |is_so: &dyn Fn() -> bool| {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        };
        let watch = async {
            until(&|| !line.rounds.is_first() && leases.lines.free(line) == 1).await;
            leases.lines.places().hold(&queue, 1);
            line.rounds.soon();
            until(&|| line.rounds.is_late.load(Ordering::Acquire)).await;
            let freed = Instant::now();
            leases.lines.places().release(&queue, 1);
            line.woken.notify_one();
            let made = || line.rounds.is_fresh(freed, leases.api.connections());
            timeout(Duration::from_secs(30), until(&made))
                .await
                .expect("the call waits, and nobody looks for its jobs");
        };
        tokio::select! {
            call = leases.lease(&request) => panic!("there is no job: {call:?}"),
            () = watch => {}
        }
    }

    #[tokio::test]
    async fn a_job_in_hand_is_to_be_looked_up_after_a_reconnect() {
        let mut server = NatsServer::start().await;
        let wait = Wait::AtMost(Duration::from_secs(30));
        let nats = Nats::connect(NatsConfig::new([server.url()]), wait, Settings::default()).await.unwrap();
        let queue: QueueName = "work".parse().unwrap();
        let broker = nats.broker();
        broker.policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
        let submission = Submission {
            client: "acme".parse().unwrap(),
            queue: queue.clone(),
            key: None,
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: BTreeMap::new(),
            payload: "payload".into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        broker.jobs.enqueue(submission.accept(&QueuePolicy::default(), nats.0.leases.clock.now())).await.unwrap();
        let request = LeaseRequest {
            worker: "w".parse().unwrap(),
            queues: vec![queue],
            max: NonZeroU32::MIN,
            wait: Duration::from_secs(30),
        };
        let delivery = broker.leasing.lease(&request).await.unwrap().remove(0);
        assert!(
            broker.leasing.ended_early(&delivery.receipt).now_or_never().is_none(),
            "nothing was said, and nothing missed"
        );
        server.kill();
        server.restart().await;
        let ended_early = async {
            while broker.leasing.ended_early(&delivery.receipt).now_or_never().is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), ended_early).await.expect("the word of a cancel would have been lost");
    }
}
