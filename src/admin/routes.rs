//! The answers of the admin port.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderName, StatusCode, Uri};
use serde::Serialize;

use super::places::Place;
use super::refusing::{Refusing, What};
use super::{Admin, Unready, access, dashboard, jobs, operator, overview, reload};
use crate::api::problem::PROBLEM_CONTENT_TYPE;
use crate::api::{Problem, Slug};
use crate::audit::record::{Action, Door, Record};
use crate::telemetry::exposition;

/// The query of `/readyz` of those who want to know about the broker as well.
const BROKER: &str = "broker";

/// Every path of the admin port.
pub(super) fn router(admin: &Arc<Admin>) -> Router {
    // Orchestrators have no credentials for their probes, and a browser none for a page: these say nothing that needs any.
    let open = Router::new().route("/livez", get(live)).route("/readyz", get(ready)).merge(dashboard::pages());
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .merge(operator::router())
        .merge(jobs::router())
        .merge(overview::router())
        .merge(reload::router());
    let guarded = guarded.layer(from_fn_with_state(Arc::clone(admin), guard));
    let router = open.merge(guarded).fallback(|| async {
        problem(&Problem::new(
            Slug::NotFound,
            "the admin port has no such path: /livez, /readyz, /metrics, /v1/queues, /v1/dead and the dashboard at / are there",
        ))
    });
    router.layer(axum::middleware::map_response(finish)).with_state(Arc::clone(admin))
}

/// Every path of the listener for health checks, whose callers have no credentials and are told no details.
pub(super) fn health(admin: &Arc<Admin>) -> Router {
    let router = Router::new().route("/livez", get(live)).route("/readyz", get(ready_in_brief)).fallback(|| async {
        problem(&Problem::new(Slug::NotFound, "health checks have no such path: /livez and /readyz are there"))
    });
    router.layer(axum::middleware::map_response(finish)).with_state(Arc::clone(admin))
}

/// On every answer: nothing is kept, guessed, framed, or fetched from elsewhere.
async fn finish(mut response: Response) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                          base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
        (HeaderName::from_static("content-security-policy"), POLICY),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The address of the peer that sent a request.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

async fn guard(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let source = parts.extensions.get().map(|Peer(source)| *source);
    let let_in = access::check(&admin, &parts);
    let audit = admin.audit.get();
    let refused = match &let_in {
        Ok(operator) => operator.may(&method, &path).err().map(|problem| (problem, operator.name.clone())),
        Err(problem) => Some((problem.clone(), None)),
    };
    if let Some((refusal, who)) = refused {
        if let Some(audit) = audit {
            let detail = Some(refusal.detail.clone());
            audit.refused(Door::Admin, refusal.slug, |record| Record { who, source, detail, ..record });
        }
        return problem(&refusal);
    }
    if let Some(place) = parts.extensions.get::<Place>() {
        place.let_in();
    }
    let line = match audit.map(|audit| audit.begin(Door::Admin, Action::of_operator(&method, &path))) {
        Some(Err(full)) => return problem(&Problem::new(Slug::Overloaded, full.to_string())),
        Some(Ok(line)) => line,
        None => None,
    };
    let Some(mut line) = line else { return next.run(Request::from_parts(parts, body)).await };
    line.set(|record| {
        let who = let_in.ok().and_then(|operator| operator.name);
        let method = if who.is_some() { "token" } else { "loopback" };
        let about = record.clone().about(&path);
        *record = Record { who, method: Some(method), source, ..about };
    });
    let response = next.run(Request::from_parts(parts, body)).await;
    line.end(response.status().as_u16(), response.extensions().get().copied());
    response
}

async fn live() -> Response {
    json(StatusCode::OK, &serde_json::json!({ "live": true }))
}

/// 200 when ready, else 503 with every reason; and what is refused, which changes nothing of that. Details may name hosts:
/// they are for whoever may ask for more.
async fn ready(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    let asks = request.uri().query() == Some(BROKER);
    let may_ask = access::check(&admin, &request.into_parts().0).is_ok();
    readiness(&admin, may_ask, asks)
}

async fn ready_in_brief(State(admin): State<Arc<Admin>>, uri: Uri) -> Response {
    readiness(&admin, false, uri.query() == Some(BROKER))
}

/// The answer about readiness. Only for those who ask for the broker it counts whether that can be used: a balancer must not, or one
/// outage would take every process from it.
fn readiness(admin: &Admin, with_details: bool, asks_for_broker: bool) -> Response {
    #[derive(Serialize)]
    struct Readiness {
        ready: bool,
        reasons: Vec<Unready>,
        refusing: Vec<Refusing>,
    }
    let (mut reasons, mut refusing) = (admin.unready(), admin.refusing());
    if asks_for_broker && let Some(broker) = refusing.iter().find(|refused| refused.what == What::Broker.as_str()) {
        reasons.push(Unready { reason: broker.what, detail: broker.detail.clone() });
    }
    if !with_details {
        reasons.iter_mut().for_each(|reason| reason.detail.clear());
        refusing.iter_mut().for_each(|refused| refused.detail.clear());
    }
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Readiness { ready: reasons.is_empty(), reasons, refusing })
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut response = Response::new(Body::from(admin.metrics()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(exposition::CONTENT_TYPE));
    response
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, problem);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
    if problem.slug == Slug::Unauthenticated {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    // For the audit.
    response.extensions_mut().insert(problem.slug);
    response
}
