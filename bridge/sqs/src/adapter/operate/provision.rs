//! Creating the table and the queues, and checking at the start of a process that they exist. A plan lists the changes
//! that would be made, one by one. A change that can shorten a promise on which clients rely is made only with `force`.

use std::sync::Arc;

use async_trait::async_trait;

use crate::adapter::others::grants;
use crate::adapter::stored::creating;
use crate::adapter::stored::policies::{self, Policies};
use crate::adapter::stored::schema::{self, TableMeta};
use crate::names;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::policy::{PolicyStore as _, QueuePolicy};
use relay_bridge::provision::{Change, Provision, Wanted, policy_changes};

const OPERATION: &str = "provision";

/// Makes and checks the table and the queues.
pub(crate) struct Provisioning {
    pub(crate) meta: Arc<TableMeta>,
    pub(crate) policies: Arc<Policies>,
}

#[async_trait]
impl Provision for Provisioning {
    async fn plan(&self, queues: &[Wanted]) -> Result<Vec<Change>, BrokerError> {
        Ok(self.plan_over(queues).await?.0)
    }

    async fn apply(&self, queues: &[Wanted], force: bool) -> Result<Vec<Change>, BrokerError> {
        let (planned, stored) = self.plan_over(queues).await?;
        // All policies are checked first: if one is refused here, nothing was changed.
        for (wanted, stored) in queues.iter().zip(&stored) {
            wanted.replaces(stored.as_ref())?;
        }
        if let Some(refused) = planned.iter().find(|change| change.destructive && !force) {
            let why = format!("{}: {} shortens what clients rely on; it needs `force`", refused.queue, refused.what);
            return Err(BrokerError::new(BrokerErrorKind::StateConflict, OPERATION, why));
        }
        for wanted in queues.iter().filter(|wanted| planned.iter().any(|change| change.queue == wanted.queue)) {
            creating::create(self.policies.table(), self.policies.queues(), &wanted.queue).await?;
            self.policies.write(wanted).await?;
        }
        if !planned.is_empty() {
            grants::apply(self.policies.queues()).await?;
        }
        Ok(planned)
    }
}

impl Provisioning {
    /// The changes that would be made, and the stored policies, one for each of `queues`.
    async fn plan_over(&self, queues: &[Wanted]) -> Result<(Vec<Change>, Vec<Option<QueuePolicy>>), BrokerError> {
        let policies = &self.policies;
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
            match creating::differences(policies.queues(), queue).await? {
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
            planned.extend(grants::plan(policies.queues(), first).await?);
        }
        Ok((planned, found))
    }

    /// Checks that the table and the queues of `queues` exist, for a process that may not create them.
    ///
    /// # Errors
    /// `NotFound` or `StateConflict` with everything that is missing, and the remedy.
    pub(crate) async fn check_provisioned(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        self.meta.get(OPERATION).await?;
        let mut missing = Vec::new();
        for queue in queues {
            if self.policies.policy(queue).await?.is_none() {
                missing.push(format!("queue `{queue}`"));
            } else if self.policies.queues().find(queue, OPERATION).await?.is_none() {
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
