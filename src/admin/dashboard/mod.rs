//! The dashboard: three files in the binary, no build step, nothing from elsewhere. It asks `/v1` for the data that it
//! shows, with the operator's token where the port wants one.

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::get;
use http::header::{CONTENT_TYPE, HeaderValue};

/// Path, content type and text.
const PAGES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/dashboard.css", "text/css; charset=utf-8", include_str!("dashboard.css")),
    ("/dashboard.js", "text/javascript; charset=utf-8", include_str!("dashboard.js")),
];

/// The files, for everybody: they hold nothing but themselves.
pub(super) fn pages<S: Clone + Send + Sync + 'static>() -> Router<S> {
    PAGES.into_iter().fold(Router::new(), |router, (path, content_type, text)| {
        router.route(
            path,
            get(async move || {
                let mut response = Response::new(Body::from(text));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
                response
            }),
        )
    })
}
