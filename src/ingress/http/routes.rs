//! The handler of each path, and with it the OpenAPI document: the served calls are the described calls. The gate
//! answers 404 or 405 to every other path or method.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http::{Extensions, HeaderMap, StatusCode, Version};
use http_body::Body as _;
use tokio::sync::OnceCell;
use tower_http::compression::predicate::{Predicate, SizeAbove};
use tower_http::compression::{CompressionLayer, CompressionLevel};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::Refusal;
use super::{Served, batch, describe, docs, echo, jobs, results, submit, watch, whoami};
use crate::api::Slug;

/// Answers below this many bytes are sent as they are.
const COMPRESSED_FROM: u64 = 4 * 1024;

pub(super) fn router(served: Arc<Served>) -> Router {
    let documents = Router::new()
        .route("/openapi.json", get(docs::openapi).layer(compressed()).layer(map_response(document_once)))
        .route("/docs", get(docs::page).layer(compressed()).layer(map_response(page_once)))
        .route("/problems/{slug}", get(docs::problem));
    let (calls, _) = calls().split_for_parts();
    calls.merge(documents).with_state(served)
}

/// The document as it was compressed for the first request: strangers may ask for it, and as often as they like.
async fn document_once(response: Response) -> Response {
    static COMPRESSED: OnceCell<Bytes> = OnceCell::const_new();
    once(&COMPRESSED, response).await
}

/// The same for the page.
async fn page_once(response: Response) -> Response {
    static COMPRESSED: OnceCell<Bytes> = OnceCell::const_new();
    once(&COMPRESSED, response).await
}

/// Puts the bytes of the first compressed answer in the place of those of each later one, which are then never made: a body is
/// compressed as it is read. Answers that are not compressed stay as they are.
async fn once(compressed: &OnceCell<Bytes>, response: Response) -> Response {
    // An answer to HEAD has no body to keep.
    if !response.headers().contains_key(CONTENT_ENCODING) || response.body().is_end_stream() {
        return response;
    }
    let (head, body) = response.into_parts();
    match compressed.get_or_try_init(|| to_bytes(body, usize::MAX)).await {
        Ok(bytes) => Response::from_parts(head, Body::from(bytes.clone())),
        Err(error) => {
            let detail = format!("the document can't be compressed: {error}: ask for it without Accept-Encoding");
            Refusal::new(Slug::Internal, detail).into_response()
        }
    }
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
        .routes(routes!(echo::echo))
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

#[cfg(test)]
mod tests {
    use http::Request;
    use relay_bridge::clock::Clock;
    use relay_embedded::{Embedded, EmbeddedConfig};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;
    use tower::ServiceExt as _;

    use super::*;
    use crate::auth::Authenticator;
    use crate::ingress::http::{Ingress, Limits};

    #[tokio::test]
    async fn documents_are_compressed_once_however_often_they_are_asked_for() {
        let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
        let ingress = Ingress::new(store.broker(), Authenticator::development(), Limits::default(), Clock::system());
        let served = Served { ingress, shutdown: CancellationToken::new(), tasks: TaskTracker::new() };
        let router = router(Arc::new(served));
        for path in ["/docs", "/openapi.json"] {
            let head = Request::head(path).header("accept-encoding", "gzip").body(Body::empty()).unwrap();
            assert_eq!(router.clone().oneshot(head).await.unwrap().status(), StatusCode::OK);
            let mut places = Vec::new();
            for _ in 0..2 {
                let request = Request::get(path).header("accept-encoding", "gzip").body(Body::empty()).unwrap();
                let response = router.clone().oneshot(request).await.unwrap();
                assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
                let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
                assert!(bytes.len() > 1_000, "{path}: {} bytes", bytes.len());
                places.push((bytes.as_ptr(), bytes));
            }
            assert_eq!(places[0].0, places[1].0, "{path}: the same bytes in memory");
            let request = Request::get(path).body(Body::empty()).unwrap();
            let plain = router.clone().oneshot(request).await.unwrap();
            assert!(!plain.headers().contains_key(CONTENT_ENCODING), "{path}");
        }
    }
}
