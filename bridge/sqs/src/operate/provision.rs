//! Creating the table and the queues, and finding at start that they are there. A plan is what would be done, line by
//! line; nothing that can shorten what a client relies on is done without `force`.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_sqs::types::QueueAttributeName;

use crate::Sqs;
use crate::aws::connect::{Effect, failed};
use crate::names;
use crate::others::share;
use crate::stored::policies;
use crate::stored::policies::Policies;
use crate::stored::schema;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::policy::{PolicyStore as _, QueuePolicy};
use relay_bridge::provision::{Change, Provision, Wanted, policy_changes};

const OPERATION: &str = "provision";

#[async_trait]
impl Provision for Sqs {
    async fn plan(&self, queues: &[Wanted]) -> Result<Vec<Change>, BrokerError> {
        Ok(self.plan_over(queues).await?.0)
    }

    async fn apply(&self, queues: &[Wanted], force: bool) -> Result<Vec<Change>, BrokerError> {
        let (planned, stored) = self.plan_over(queues).await?;
        // All of them first: whatever is refused here, nothing was changed.
        for (wanted, stored) in queues.iter().zip(&stored) {
            wanted.replaces(stored.as_ref())?;
        }
        if let Some(refused) = planned.iter().find(|change| change.destructive && !force) {
            let why = format!("{}: {} shortens what clients rely on; it needs `force`", refused.queue, refused.what);
            return Err(BrokerError::new(BrokerErrorKind::StateConflict, OPERATION, why));
        }
        for wanted in queues.iter().filter(|wanted| planned.iter().any(|change| change.queue == wanted.queue)) {
            create(self.policies(), &wanted.queue).await?;
            self.policies().write(wanted).await?;
        }
        if !planned.is_empty() {
            share::apply(self.policies().queues()).await?;
        }
        Ok(planned)
    }
}

impl Sqs {
    /// The changes that would be made, and the stored policies, one for each of `queues`.
    async fn plan_over(&self, queues: &[Wanted]) -> Result<(Vec<Change>, Vec<Option<QueuePolicy>>), BrokerError> {
        let policies = self.policies();
        let (mut planned, mut found) = (Vec::new(), Vec::with_capacity(queues.len()));
        let change = |queue: &QueueName, what: String| Change { queue: queue.clone(), what, destructive: false };
        let there = schema::table_exists(policies.table()).await?;
        if let Some(Wanted { queue: first, .. }) = queues.first().filter(|_| !there) {
            planned.push(change(first, format!("table `{}`, for all queues: create it", policies.table().name())));
        }
        for Wanted { queue, policy, .. } in queues {
            policies::check(policy)?;
            let stored = if there { policies.policy(queue).await? } else { None };
            planned.extend(policy_changes(queue, stored.as_ref(), policy));
            found.push(stored);
            let sqs = names::sqs_queue(policies.queues().config(), queue, OPERATION)?;
            match differences(policies, queue).await? {
                None => planned.push(change(queue, format!("queue `{sqs}` of SQS: create it"))),
                Some(differs) => {
                    let shown = |value: &str| if value.is_empty() { "none".to_owned() } else { value.to_owned() };
                    let mut lines: Vec<_> =
                        differs.iter().map(|(name, value)| format!("{name}: {}", shown(value))).collect();
                    lines.sort();
                    planned
                        .extend(lines.into_iter().map(|what| change(queue, format!("queue `{sqs}` of SQS: {what}"))));
                }
            }
        }
        if let Some(Wanted { queue: first, .. }) = queues.first() {
            planned.extend(share::plan(policies.queues(), first).await?);
        }
        Ok((planned, found))
    }

    /// Finds that the table and the queues of `queues` are there, for a process that may not create them.
    ///
    /// # Errors
    /// `NotFound` or `StateConflict` with everything that is missing, and what to do.
    pub async fn check_provisioned(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        self.meta(OPERATION).await?;
        let mut missing = Vec::new();
        for queue in queues {
            if self.policies().policy(queue).await?.is_none() {
                missing.push(format!("queue `{queue}`"));
            } else if self.policies().queues().find(queue, OPERATION).await?.is_none() {
                missing.push(format!("the queue of SQS for `{queue}`"));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let why = format!("missing: {}; run `relay provision` with the rights to create it", missing.join(", "));
        Err(BrokerError::new(BrokerErrorKind::NotFound, OPERATION, why))
    }
}

/// What differs in the queue of SQS from what it shall be, or `None` if there is none.
async fn differences(
    policies: &Policies,
    queue: &QueueName,
) -> Result<Option<HashMap<QueueAttributeName, String>>, BrokerError> {
    let queues = policies.queues();
    let Some(url) = queues.find(queue, OPERATION).await? else { return Ok(None) };
    let call = queues.client().get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All);
    let output = call.send().await.map_err(|error| failed(OPERATION, Effect::None, error))?;
    Ok(Some(schema::queue_differences(&output.attributes.unwrap_or_default(), queues.config().fifo)))
}

/// Creates the table if it is not there, and the queue of SQS, or changes it to what it shall be.
pub(crate) async fn create(policies: &Policies, queue: &QueueName) -> Result<(), BrokerError> {
    if !schema::table_exists(policies.table()).await? || schema::read_meta(policies.table(), OPERATION).await.is_err() {
        schema::create_table(policies.table()).await?;
    }
    let queues = policies.queues();
    let name = names::sqs_queue(queues.config(), queue, OPERATION)?;
    match differences(policies, queue).await? {
        None => {
            let call = queues
                .client()
                .create_queue()
                .queue_name(name)
                .set_attributes(Some(schema::queue_attributes(queues.config().fifo)))
                .set_tags(Some(schema::queue_tags()));
            call.send().await.map_err(|error| failed(OPERATION, Effect::Write, error))?;
        }
        Some(differs) if differs.is_empty() => {}
        Some(differs) => {
            let url = queues.of(queue, OPERATION).await?.url.clone();
            let call = queues.client().set_queue_attributes().queue_url(url).set_attributes(Some(differs));
            call.send().await.map_err(|error| failed(OPERATION, Effect::Write, error))?;
        }
    }
    Ok(())
}
