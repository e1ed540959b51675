//! Hears of policy changes in a process that submits jobs. A process that takes a queue's jobs hears of that queue's
//! changes anyway (`leases::listening`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::records::policies::Policies;
use crate::stored::control::POLICY_CHANGED;
use crate::stored::names;
use crate::wire::api::Api;
use relay_bridge::policy_copies::AGE_MAX;

/// Hears of changes of all policies, once this process has asked for it.
pub(crate) struct PolicyChanges {
    pub(crate) api: Api,
    pub(crate) policies: Arc<Policies>,
    pub(crate) hears: AtomicBool,
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl PolicyChanges {
    /// Makes this process hear of all changes that are made through relay from now on. It learns of earlier changes,
    /// and of changes made otherwise, when its copies are too old.
    pub(crate) fn hear(&self) {
        let hears = &self.hears;
        if !hears.load(Ordering::Acquire) && !hears.swap(true, Ordering::AcqRel) {
            let (api, policies) = (self.api.clone(), Arc::clone(&self.policies));
            self.tasks.spawn(forget_what_changes(api, policies, self.api.missed(), self.closing.clone()));
        }
    }
}

/// Forgets copies of policies that others changed, until the adapter is closed.
async fn forget_what_changes(
    api: Api,
    policies: Arc<Policies>,
    mut missed: watch::Receiver<u64>,
    closing: CancellationToken,
) {
    let mut told = None;
    loop {
        if told.is_none() {
            told = api.subscribe(names::CONTROL_SUBJECTS.to_owned(), "read policy").await.ok();
        }
        tokio::select! {
            word = async { told.as_mut()?.next().await }, if told.is_some() => match word {
                Some(word) if word.payload == POLICY_CHANGED => {
                    if let Some(queue) = names::queue_of_control(&word.subject) {
                        policies.copies().changed(&queue);
                    }
                }
                Some(_) => {}
                None => told = None,
            },
            () = tokio::time::sleep(AGE_MAX), if told.is_none() => {}
            Ok(()) = missed.changed() => policies.copies().all_changed(),
            () = closing.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::{Duration, Instant};

    use crate::config::NatsConfig;
    use crate::wire::connection::Wait;
    use crate::{Nats, Settings};
    use relay_bridge::contract::QueueName;
    use relay_bridge::policy::{PolicyStore as _, QueuePolicy};
    use relay_conformance::testing::NatsServer;

    async fn adapter(server: &NatsServer) -> Nats {
        let wait = Wait::AtMost(Duration::from_secs(30));
        Nats::connect(NatsConfig::new([server.url()]), wait, Settings::default()).await.unwrap()
    }

    #[tokio::test]
    async fn who_submits_hears_of_a_change_that_another_process_makes() {
        let server = NatsServer::start().await;
        let (here, there) = (adapter(&server).await, adapter(&server).await);
        let queue: QueueName = "work".parse().unwrap();
        let (before, after) = (QueuePolicy::default(), QueuePolicy { max_attempts: 7, ..QueuePolicy::default() });
        there.0.policies.put_policy(&queue, &before, None).await.unwrap();
        here.0.jobs.submissions.policy_changes.hear();
        // The subscription is in place once a later request is answered. This copy would be good for an hour.
        here.0.policies.policy(&queue).await.unwrap();
        here.0.policies.copies().keep(&queue, before.clone(), Instant::now() + Duration::from_secs(3_600));
        there.0.policies.put_policy(&queue, &after, Some(&before)).await.unwrap();
        let heard = async {
            while *here.0.policies.recent(&queue).await.unwrap().unwrap() != after {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), heard).await.expect("the word of the change was not heard");
    }

    #[tokio::test]
    async fn a_list_that_was_asked_for_before_a_change_does_not_undo_it() {
        // More than a page, so that the first queue is read long before the list is there.
        const QUEUES: usize = 300;
        let server = NatsServer::start().await;
        let nats = adapter(&server).await;
        let policies = &nats.0.policies;
        for number in 0..QUEUES {
            let queue = format!("queue-{number:03}").parse().unwrap();
            policies.put_policy(&queue, &QueuePolicy::default(), None).await.unwrap();
        }
        let (queue, mut seen) = ("queue-000".parse::<QueueName>().unwrap(), QueuePolicy::default());
        for max_attempts in 1..=20 {
            let next = QueuePolicy { max_attempts, ..QueuePolicy::default() };
            let is_made = Cell::new(false);
            let change = async {
                policies.put_policy(&queue, &next, Some(&seen)).await.unwrap();
                is_made.set(true);
            };
            let lists = async {
                while !is_made.get() {
                    assert_eq!(policies.queues().await.unwrap().len(), QUEUES);
                }
            };
            tokio::join!(lists, change);
            assert_eq!(*policies.recent(&queue).await.unwrap().unwrap(), next);
            seen = next;
        }
    }
}
