//! Creates and changes streams as a deployment wants them, and checks at start that the needed ones exist.
//!
//! A plan lists the changes that would be made, line by line; nothing is done without `force` that can shorten
//! something on which a client relies.

use std::collections::HashSet;
use std::sync::Arc;

use async_nats::jetstream::stream::StorageType;
use async_trait::async_trait;

use crate::line::lanes::{ConsumerInfo, Lanes};
use crate::records::policies::{self, Policies};
use crate::stored::kept::{Copies, Kept};
use crate::stored::names::{self, Lane};
use crate::stored::streams::{Mend, reconcile};
use crate::wire::api::Api;
use crate::wire::stream_calls::{self, Stream};
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::provision::{Change, Provision, Wanted, policy_changes};

const OPERATION: &str = "provision";

/// Makes and checks streams and consumers.
pub(crate) struct Provisioning {
    pub(crate) kept: Arc<Kept>,
    pub(crate) api: Api,
    pub(crate) policies: Arc<Policies>,
    pub(crate) lanes: Arc<Lanes>,
}

#[async_trait]
impl Provision for Provisioning {
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
        if !planned.is_empty() {
            for shared in self.policies.settings().shared() {
                self.policies.ensure(&shared, Mend::All).await?;
            }
        }
        for wanted in queues.iter().filter(|wanted| planned.iter().any(|change| change.queue == wanted.queue)) {
            self.policies.put(wanted, Mend::All).await?;
        }
        for (wanted, lane) in self.without_consumer(queues).await? {
            self.lanes.make_consumer(&wanted.queue, &lane, &wanted.policy).await?;
        }
        self.look_at_streams(queues.iter().map(|wanted| &wanted.queue)).await?;
        Ok(planned)
    }
}

impl Provisioning {
    /// The changes that would be made, and the stored policies, one for each of `queues`.
    async fn plan_over(&self, queues: &[Wanted]) -> Result<(Vec<Change>, Vec<Option<QueuePolicy>>), BrokerError> {
        let (mut planned, stored) = plan(&self.policies, queues).await?;
        for (Wanted { queue, .. }, lane) in self.without_consumer(queues).await? {
            let what = match lane {
                Lane::Own(client) => format!("client `{client}`: create its consumer"),
                Lane::Shared(_) => format!("create the consumer of all clients, `{lane}`"),
            };
            planned.push(Change { queue: queue.clone(), what, destructive: false });
        }
        Ok((planned, stored))
    }

    /// The lanes that these policies call for and that have no consumer: those of the clients that are named, or the one of
    /// all. Of a queue that is not there: none.
    async fn without_consumer<'a>(&self, queues: &'a [Wanted]) -> Result<Vec<(&'a Wanted, Lane)>, BrokerError> {
        let mut without = Vec::new();
        for wanted in queues.iter().filter(|wanted| !wanted.policy.fair || !wanted.policy.clients.is_empty()) {
            let Wanted { queue, policy, .. } = wanted;
            let found = match self.lanes.consumer_infos(queue).await {
                Ok(infos) => infos.iter().filter_map(ConsumerInfo::lane).collect::<HashSet<_>>(),
                Err(error) if error.kind() == BrokerErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let lanes: Vec<_> = match policy.fair {
                true => policy.clients.keys().cloned().map(Lane::Own).collect(),
                false => vec![Lane::ALL],
            };
            let missing = lanes.into_iter().filter(|lane| !found.contains(lane));
            without.extend(missing.map(|lane| (wanted, lane)));
        }
        Ok(without)
    }

    /// Notes how the streams of `queues` and those that all queues share are kept, whatever new ones would be like.
    async fn look_at_streams(&self, queues: impl Iterator<Item = &QueueName>) -> Result<(), BrokerError> {
        let shared = self.policies.settings().shared().into_iter().map(|config| config.name);
        let mut kept = None::<Copies>;
        for name in shared.chain(queues.map(names::jobs_stream)) {
            let Some(Stream { info, .. }) = stream_calls::find(&self.api, &name, OPERATION).await? else { continue };
            let stream = Copies::by(info.config.num_replicas, info.config.storage == StorageType::Memory);
            kept = Some(kept.map_or(stream, |kept| kept.and(stream)));
        }
        if let Some(kept) = kept {
            self.kept.set(kept);
        }
        Ok(())
    }

    /// Checks that the streams of `queues` and the streams that all queues share exist and are as relay needs them;
    /// they may do more. This is for a process that may not create streams. From here on, the durability of accepted
    /// jobs is reported for these streams.
    ///
    /// # Errors
    /// `NotFound` if a stream is missing, `StateConflict` if one is not as needed. The error names all of them, and
    /// says what to do.
    pub(crate) async fn check_provisioned(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        let policies = &self.policies;
        let (mut missing, mut wrong) = (Vec::new(), Vec::new());
        let mut wanted: Vec<_> = policies.settings().shared().into_iter().map(|config| (config, false)).collect();
        wanted.extend(queues.iter().map(|queue| (policies.settings().jobs(queue, &QueuePolicy::default()), true)));
        for (mut wanted, is_queue) in wanted {
            let Some(found) = stream_calls::find(policies.api(), &wanted.name, OPERATION).await? else {
                missing.push(wanted.name);
                continue;
            };
            if let (true, Some(queue)) = (is_queue, names::queue_of_stream(&wanted.name)) {
                wanted = policies.settings().jobs(&queue, &policies::read(&found.info.config)?);
            }
            let wanted = policies.within_account(wanted).await?;
            let (_, differences) = reconcile(&found.info.config, &wanted, Mend::Needed);
            wrong.extend(differences.into_iter().map(|difference| format!("`{}`: {}", wanted.name, difference.what)));
        }
        let refuse = |kind, what: &str, which: &[String]| {
            let why = format!("{what} {}: run `relay provision` with the rights to change streams", which.join(", "));
            Err(BrokerError::new(kind, OPERATION, why))
        };
        match (missing.is_empty(), wrong.is_empty()) {
            (true, true) => self.look_at_streams(queues.iter()).await,
            (false, _) => refuse(BrokerErrorKind::NotFound, "streams are missing:", &missing),
            (true, false) => refuse(BrokerErrorKind::StateConflict, "streams are not as relay needs them:", &wrong),
        }
    }
}

async fn plan(policies: &Policies, queues: &[Wanted]) -> Result<(Vec<Change>, Vec<Option<QueuePolicy>>), BrokerError> {
    let (mut planned, mut stored) = (Vec::new(), Vec::with_capacity(queues.len()));
    // Changes of streams that all queues share are told with the first queue.
    if let Some(Wanted { queue: first, .. }) = queues.first() {
        for wanted in policies.settings().shared() {
            let wanted = policies.within_account(wanted).await?;
            let found = stream_calls::find(policies.api(), &wanted.name, OPERATION).await?;
            let note = |what: String, destructive| Change {
                queue: first.clone(),
                what: format!("stream `{}`, for all queues: {what}", wanted.name),
                destructive,
            };
            match found {
                None => planned.push(note("create it".to_owned(), false)),
                Some(Stream { info, .. }) => {
                    let (_, differences) = reconcile(&info.config, &wanted, Mend::All);
                    planned.extend(differences.into_iter().map(|differs| note(differs.what, differs.destructive)));
                }
            }
        }
    }
    for Wanted { queue, policy: wanted, .. } in queues {
        policies.check(wanted)?;
        let found = stream_calls::find(policies.api(), &names::jobs_stream(queue), OPERATION).await?;
        let before = found.as_ref().map(|found| policies::read(&found.info.config)).transpose()?;
        planned.extend(policy_changes(queue, before.as_ref(), wanted));
        stored.push(before);
        if let Some(found) = found {
            let jobs = policies.within_account(policies.settings().jobs(queue, wanted)).await?;
            let (_, differences) = reconcile(&found.info.config, &jobs, Mend::All);
            planned.extend(differences.into_iter().map(|differs| Change {
                queue: queue.clone(),
                what: differs.what,
                destructive: differs.destructive,
            }));
        }
    }
    Ok((planned, stored))
}
