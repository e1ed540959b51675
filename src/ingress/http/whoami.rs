//! `GET /v1/whoami`: who relay thinks the caller is, and what holds for it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use http::{StatusCode, Uri};
use relay_bridge::contract::ids::KEY_BYTES_MAX;
use relay_bridge::contract::job::{DELAY_MAX, META_BYTES_MAX};

use super::answer::{self, Answer, Refusal};
use super::connection::Peer;
use super::request::Parameters;
use super::{Ingress, Served};
use crate::api::batch::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use crate::api::{DurationText, FactorView, LimitsView, QueueLimits, RateLimit, ShareView, Whoami};
use crate::auth::{Authenticated, Caller};
use crate::ingress::budget::Budget;
use crate::ingress::clients::Owner;

/// The bytes of most answers.
const ANSWER_BYTES: u64 = 16 * 1024;
/// Queues that are described at most.
const QUEUES_MAX: usize = 100;

/// Ask who the caller is
///
/// Who relay thinks that it is, how it knows, what holds for it, and what is left.
#[utoipa::path(
    get, path = "/v1/whoami", tag = "caller", operation_id = "whoami",
    responses((status = 200, description = "The caller.", body = Whoami)),
)]
pub(super) async fn whoami(State(served): State<Arc<Served>>, peer: Peer, caller: Caller, uri: Uri) -> Answer {
    Parameters::read(&uri, &[])?;
    let ingress = &served.ingress;
    let room = peer.room(ingress, ANSWER_BYTES).await?;
    let source = peer.connection.source.get();
    let endpoint = source.and_then(|source| source.endpoint.as_ref()).map(ToString::to_string);
    let address = source.map_or(peer.connection.peer, |source| source.address);
    let body = of(ingress, caller, &peer.owner, (endpoint, address)).await?;
    Ok(answer::within(answer::json(StatusCode::OK, &body)?, room))
}

/// The caller, its rights and its limits, whichever protocol it speaks; `endpoint` and `address` are where it comes from.
pub(in crate::ingress) async fn of(
    ingress: &Ingress,
    caller: Caller,
    owner: &Owner,
    (endpoint, address): (Option<String>, IpAddr),
) -> Result<Whoami, Refusal> {
    let queue_limits = queue_limits(ingress, &caller).await?;
    let key_id = caller.authenticated.iter().find_map(|factor| match factor {
        Authenticated::ApiKey(id) => Some(id.clone()),
        _ => None,
    });
    let shown =
        |factor: &Authenticated| FactorView { method: factor.method().to_owned(), credential: factor.credential() };
    Ok(Whoami {
        client: caller.client,
        authenticated_by: caller.authenticated.first().map_or("development", Authenticated::method).to_owned(),
        key_id,
        factors: caller.authenticated.iter().map(shown).collect(),
        vpc_endpoint_id: endpoint,
        source: Some(address.to_string()),
        listeners: ingress.listens.get().cloned().unwrap_or_default(),
        queues: caller.queues,
        rights: caller.rights.iter().map(|right| right.to_string()).collect(),
        durability: ingress.broker.capabilities.durability.as_str().to_owned(),
        limits: LimitsView {
            payload_max: ingress.payload_max(),
            wait_max: DurationText(ingress.limits.wait_max),
            delay_max: DurationText(DELAY_MAX),
            key_bytes_max: KEY_BYTES_MAX as u64,
            batch_entries_max: BATCH_ENTRIES_MAX as u64,
            batch_bytes_max: BATCH_BYTES_MAX.min(ingress.limits.body_bytes as u64),
            headers_max: ingress.limits.headers as u64,
            header_bytes_max: ingress.limits.header_bytes as u64,
            meta_bytes_max: META_BYTES_MAX as u64,
            share: share(ingress, owner),
        },
        queue_limits,
        server_time: ingress.clock.now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn share(ingress: &Ingress, owner: &Owner) -> ShareView {
    let of = |budget: &Budget| budget.share_of(owner) as u64;
    ShareView {
        requests: of(&ingress.requests),
        connections: of(&ingress.proven),
        streams: of(&ingress.followers),
        body_bytes: of(&ingress.body_bytes),
        answer_bytes: of(&ingress.answers),
    }
}

/// The limits of the caller in the queues that it may use. A broker may have to look for each, so they are few.
async fn queue_limits(ingress: &Ingress, caller: &Caller) -> Result<Vec<QueueLimits>, Refusal> {
    let (Ingress { broker, rates, .. }, client) = (ingress, &caller.client);
    let policies = broker.policies.policies().await?;
    let allowed = policies.into_iter().filter(|(queue, policy)| caller.may_use(queue) && policy.allows(client));
    let mut limits = Vec::new();
    for (queue, policy) in allowed.take(QUEUES_MAX) {
        let queued = broker.jobs.waiting(client, &queue).await?;
        let stored = broker.jobs.stored(client, &queue).await?;
        let policy = policy.within(broker.capabilities.payload_max);
        let own = policy.client(client);
        let left = rates.left(client, &queue, own);
        limits.push(QueueLimits {
            payload_max: policy.payload_max.min(ingress.limits.body_bytes as u64),
            result_max: policy.result_max,
            max_attempts: policy.max_attempts,
            job_ttl: DurationText(policy.job_ttl),
            retention: DurationText(policy.retention),
            paused: policy.paused,
            content_types: policy.content_types.iter().map(ToString::to_string).collect(),
            rate: own.rate.zip(left).map(|(rate, left)| RateLimit { limit: rate.to_string(), burst: own.burst, left }),
            max_queued: own.max_queued,
            queued,
            left: queued.map(|queued| own.max_queued.saturating_sub(queued)),
            max_stored: own.max_stored,
            stored,
            queue,
        });
    }
    Ok(limits)
}
