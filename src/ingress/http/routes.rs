//! Which path goes where. What is not here is answered 404 or 405 by the gate.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use super::{Served, batch, jobs, results, submit, watch, whoami};

pub(super) fn router(served: Arc<Served>) -> Router {
    Router::new()
        .route("/v1/queues/{queue}/jobs", post(submit::routed).get(jobs::by_key))
        .route("/v1/queues/{queue}/batch", post(batch::submit))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::status).delete(jobs::erase))
        .route("/v1/jobs/{id}/result", get(results::of_job))
        .route("/v1/jobs/{id}/events", get(watch::events))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{id}/rerun", post(jobs::rerun))
        .route("/v1/results", get(results::list))
        .route("/v1/whoami", get(whoami::whoami))
        .with_state(served)
}
