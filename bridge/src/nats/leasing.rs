//! The worker's half: lease, extend, progress, dead letters on their way in, record, settle.

use std::pin::Pin;

use async_nats::HeaderMap;
use async_trait::async_trait;
use futures_util::future::select_all;
use serde_json::json;
use tokio::sync::futures::Notified;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::deliver::{Asked, Grant};
use super::names;
use super::receipt::Token;
use super::settle::lost;
use super::{Nats, policy};
use crate::contract::{JobId, JobResult, QueueName, RunId};
use crate::dead_letters::DeadLetter;
use crate::error::{BrokerError, BrokerErrorKind};
use crate::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use crate::policy::QueuePolicy;
use crate::rules;
use crate::settlement::Settlement;

/// The longest message of a progress, in bytes.
const MESSAGE_MAX: usize = 1_024;

#[async_trait]
impl Leasing for Nats {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let request = &rules::lease_request(request)?;
        let max = request.max.get();
        let called = Instant::now();
        let deadline = called + request.wait;
        // Who does not wait gets the truth now; who waits is woken by hints and by rounds that are due.
        let mut since = request.wait.is_zero().then_some(called);
        let mut asked = self.asked(&request.queues).await?;
        loop {
            let lines: Vec<_> = asked.iter().map(|asked| asked.line.clone()).collect();
            // Before looking: what comes while this looks wakes it.
            let mut woken: Vec<Pin<Box<Notified<'_>>>> =
                lines.iter().map(|line| Box::pin(line.woken.notified())).collect();
            woken.iter_mut().for_each(|woken| {
                woken.as_mut().enable();
            });
            if let Some(grant) = self.granted(&asked, max, called, since).await? {
                return Ok(grant.take());
            }
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            // No more than there are free slots.
            asked.iter().take(max as usize).for_each(|asked| self.stand(asked));
            let mut again = deadline;
            for Asked { line, policy } in &asked {
                // Nothing is looked for in a paused queue; its policy is, should the word of a change be lost.
                again = again.min(match policy.paused {
                    true => Instant::now() + policy::AGE_MAX,
                    false => self.next_look(line).await,
                });
            }
            tokio::select! {
                _ = select_all(woken) => {}
                () = tokio::time::sleep_until(again) => {}
                () = self.0.closing.cancelled() => return Err(closed("lease")),
            }
            since = None;
            asked = self.asked(&request.queues).await?;
        }
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        self.extend_lease(receipt).await
    }

    async fn hurried(&self, receipt: &Receipt) {
        let token = Token::read(receipt, "extend").ok();
        match token.and_then(|token| self.holding().get(&token.key(receipt))) {
            Some(held) if held.connections != self.connections() => {}
            Some(held) => held.hurry.cancelled().await,
            None => std::future::pending().await,
        }
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        let token = Token::read(receipt, "progress")?;
        let held = self.held(receipt, &token, "progress").await?;
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
            "at": self.clock().now(),
            "attempt": held.attempt,
            "progress": { "percent": percent, "message": &progress.message[..end] },
        });
        let subject = names::events(&receipt.client, receipt.job_id);
        self.api().tell(subject, HeaderMap::new(), event.to_string().into()).await;
        Ok(())
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.keep_letter(letter).await
    }

    async fn retract_dead_letter(&self, job: JobId, run: RunId) -> Result<(), BrokerError> {
        self.retract_letter(job, run).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.record_sent(result).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.settle_delivery(receipt, settlement).await
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        Ok(self.policies().require(queue, "read policy").await?.as_ref().clone())
    }
}

impl Nats {
    /// The lines and policies of the queues that a call names; all of them must be there.
    async fn asked(&self, queues: &[QueueName]) -> Result<Vec<Asked>, BrokerError> {
        let mut asked = Vec::with_capacity(queues.len());
        for queue in queues {
            let policy = self.policies().require(queue, "lease").await?;
            asked.push(Asked { line: self.line(queue).await?, policy });
        }
        Ok(asked)
    }

    /// What there is: what a standing pull brought, or else what is in line as far as is known.
    async fn granted(
        &self,
        asked: &[Asked],
        max: u32,
        called: Instant,
        since: Option<Instant>,
    ) -> Result<Option<Grant>, BrokerError> {
        let stood = self.stood(asked, max, called);
        if stood.is_some() {
            return Ok(stood);
        }
        let (mut quiet, mut standing) = (since.is_none(), 0);
        for Asked { line, policy } in asked {
            quiet = quiet && (policy.paused || self.is_quiet(line).await);
            standing += u32::from(line.standing.is_out());
        }
        if quiet {
            return Ok(None);
        }
        // What a standing pull may bring has its place.
        let taking = self.take_apart(asked.to_vec(), max.saturating_sub(standing).max(1), since);
        let taken = self.stood_or(asked, max, called, taking).await?;
        Ok(Some(taken).filter(|taken| !taken.is_empty()))
    }

    /// Takes in a task of its own: a caller that goes away while a pull is answered leaves a grant, for the next one or to go
    /// back.
    async fn take_apart(&self, asked: Vec<Asked>, max: u32, since: Option<Instant>) -> Result<Grant, BrokerError> {
        let (give, given) = oneshot::channel();
        let nats = self.clone();
        self.0.tasks.spawn(async move {
            let asked_at = Instant::now();
            let taken = nats.take(&asked, max, since, || give.is_closed()).await;
            let Err(Ok(grant)) = give.send(taken) else { return };
            for (queue, part) in grant.by_queue() {
                if let Some(asked) = asked.iter().find(|asked| asked.line.queue == queue) {
                    nats.offer(&asked.line, part, asked_at);
                }
            }
        });
        given.await.map_err(|_| closed("lease"))?
    }
}

fn closed(operation: &'static str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, operation, "the adapter is being closed")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tokio::time::timeout;

    use super::super::Settings;
    use super::super::config::NatsConfig;
    use super::super::connection::Wait;
    use super::*;
    use crate::contract::{QueueName, Submission};
    use crate::testing::NatsServer;

    #[tokio::test]
    async fn a_round_is_due_after_a_reconnect_whoever_noticed_it_first() {
        let mut server = NatsServer::start().await;
        let wait = Wait::AtMost(Duration::from_secs(30));
        let nats = Nats::connect(NatsConfig::new([server.url()]), wait, Settings::default()).await.unwrap();
        let queue = "work".parse().unwrap();
        nats.broker().policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
        let asked = nats.asked(&[queue]).await.unwrap();
        let line = &asked[0].line;
        for _ in 0..2 {
            assert!(nats.take(&asked, 1, Some(Instant::now()), || false).await.unwrap().is_empty());
        }
        let connections = nats.connections();
        server.kill();
        server.restart().await;
        let again = async {
            while nats.connections() == connections || nats.raise_mark_if_reconnected(line).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), again).await.unwrap();
        assert!(!nats.is_quiet(line).await, "hints were lost meanwhile");
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
        broker.jobs.enqueue(submission.accept(&QueuePolicy::default(), nats.clock().now())).await.unwrap();
        let request = LeaseRequest {
            worker: "w".parse().unwrap(),
            queues: vec![queue],
            max: NonZeroU32::MIN,
            wait: Duration::from_secs(30),
        };
        let delivery = nats.lease(&request).await.unwrap().remove(0);
        assert!(nats.hurried(&delivery.receipt).now_or_never().is_none(), "nothing was said, and nothing missed");
        server.kill();
        server.restart().await;
        let hurried = async {
            while nats.hurried(&delivery.receipt).now_or_never().is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), hurried).await.expect("the word of a cancel would have been lost");
    }
}
