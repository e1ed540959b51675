//! `GET /v1/whoami`: who relay thinks the caller is, and what holds for it.

use std::sync::Arc;

use axum::extract::State;
use http::{StatusCode, Uri};
use relay_bridge::contract::ids::KEY_BYTES_MAX;
use relay_bridge::contract::job::DELAY_MAX;

use super::Served;
use super::answer::{self, Answer};
use super::request::Parameters;
use crate::api::{DurationText, LimitsView, Whoami};
use crate::auth::{Authenticated, Caller};
use crate::ingress::headers::META_BYTES_MAX;

pub(super) async fn whoami(State(served): State<Arc<Served>>, caller: Caller, uri: Uri) -> Answer {
    Parameters::read(&uri, &[])?;
    let ingress = &served.ingress;
    let (authenticated_by, key_id) = match caller.authenticated {
        Authenticated::ApiKey(id) => ("api-key", Some(id)),
        Authenticated::Development => ("development", None),
    };
    let body = Whoami {
        client: caller.client,
        authenticated_by: authenticated_by.to_owned(),
        key_id,
        vpc_endpoint_id: None,
        queues: caller.queues,
        durability: ingress.broker.capabilities.durability.as_str().to_owned(),
        limits: LimitsView {
            payload_max: ingress.payload_max(),
            wait_max: DurationText(ingress.limits.wait_max),
            delay_max: DurationText(DELAY_MAX),
            key_bytes_max: KEY_BYTES_MAX as u64,
            meta_bytes_max: META_BYTES_MAX as u64,
        },
        server_time: ingress.clock.now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    answer::json(StatusCode::OK, &body)
}
