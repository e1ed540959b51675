//! The handler of each path, and with it the OpenAPI document: the served calls are the described calls. The gate
//! answers 404 or 405 to every other path or method.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Extensions, HeaderMap, StatusCode, Version};
use tower_http::compression::predicate::{Predicate, SizeAbove};
use tower_http::compression::{CompressionLayer, CompressionLevel};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Served, batch, describe, docs, jobs, results, submit, watch, whoami};

/// Answers below this many bytes are sent as they are.
const COMPRESSED_FROM: u64 = 4 * 1024;

pub(super) fn router(served: Arc<Served>) -> Router {
    let documents = Router::new()
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::page))
        .route("/problems/{slug}", get(docs::problem));
    let (calls, _) = calls().split_for_parts();
    calls.merge(documents.layer(compressed())).with_state(served)
}

/// The served calls, as a document.
pub(super) fn described() -> OpenApi {
    describe::complete(calls().split_for_parts().1)
}

fn calls() -> OpenApiRouter<Arc<Served>> {
    // Payloads go out as their handlers made them, so only lists are compressed.
    let lists = OpenApiRouter::new()
        .routes(routes!(batch::submit))
        .routes(routes!(jobs::list))
        .routes(routes!(results::list))
        .layer(compressed());
    OpenApiRouter::new()
        .routes(routes!(submit::routed, jobs::by_key))
        .routes(routes!(jobs::status, jobs::erase))
        .routes(routes!(results::of_job))
        .routes(routes!(watch::events))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::rerun))
        .routes(routes!(whoami::whoami))
        .merge(lists)
}

/// Large answers are compressed for who takes that; streams never are.
fn compressed() -> CompressionLayer<impl Predicate> {
    let is_text = |_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions| {
        let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        content_type.is_some_and(|text| text == b"application/json" || text.starts_with(b"text/html"))
    };
    CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(COMPRESSED_FROM).and(is_text))
}
