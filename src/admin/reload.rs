//! `POST /v1/reload`: has the process read its files again, as SIGHUP does.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use http::StatusCode;

use super::Admin;
use super::operator::{Answer, Refused};
use super::routes::json;
use crate::api::Slug;
use crate::api::operator::ReloadView;

pub(super) fn router() -> Router<Arc<Admin>> {
    Router::new().route("/v1/reload", post(reload))
}

/// Each part with what became of it: 200 also if one has a mistake, because then the others are read nevertheless.
async fn reload(State(admin): State<Arc<Admin>>) -> Answer {
    let Some(reload) = admin.reload.get().cloned() else {
        let detail = "this process has no files that it could read again: restart it";
        return Err(Refused::new(Slug::NotFound, detail));
    };
    let parts = tokio::task::spawn_blocking(move || reload.all()).await;
    let parts = parts.map_err(|error| Refused::new(Slug::Internal, format!("files could not be read: {error}")))?;
    Ok(json(StatusCode::OK, &ReloadView::of(parts)))
}
