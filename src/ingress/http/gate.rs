//! The stages that requests pass first and answers pass last: a request id, the drain, the limits, and a net under
//! panics.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Request};
use http_body::Body as HttpBody;
use tower::Service;
use tracing::field::display;
use tracing::{Instrument, debug, error, info_span};

use super::answer::{self, Refusal};
use super::audited::Audited;
use super::connection::{Asked, Connection, Peer};
use super::hyper::lingering::Lingering;
use super::request::{self, Identified};
use super::{Limits, Served, framing, leaving, submit};
use crate::api::Slug;
use crate::auth::Caller;
use crate::ingress::budget::Share;
use crate::ingress::clients::Owner;
use crate::ingress::refusal::scarce;
use crate::ingress::{headers, request_id};

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Answers one request, and gives the place that it takes until its answer has left. Never fails and never panics.
pub(super) async fn handle<B>(
    served: Arc<Served>,
    router: Router,
    request: Request<B>,
    connection: &Arc<Connection>,
) -> (Response, Option<Share>)
where
    B: HttpBody<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let request_id = request_id::mint();
    connection.counts(request.version());
    let (method, all) = (request.method().clone(), request.uri().path() == "*");
    let trace_id = headers::trace_id(request.headers());
    let (path, source) = (request.uri().path(), connection.source.get().map(display));
    let span = info_span!("request", request_id, trace_id, source, method = %request.method(), path);
    async {
        let (mut place, mut is_known, mut audited) = (None, true, Audited::default());
        let admitted = admit(&served, router, request, connection, (&mut place, &mut is_known, &mut audited));
        let admitted = AssertUnwindSafe(admitted).catch_unwind();
        let mut response = match admitted.await {
            Ok(response) => response,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                error!(panic = text.unwrap_or("no text"), "a handler panicked");
                let detail = "relay failed, and this may or may not have been done: send it again with the same \
                              Idempotency-Key, and tell the operator of relay the request id";
                Refusal::new(Slug::Internal, detail).into_response()
            }
        };
        if !is_known && is_refused(&response) && connection.is_strangers() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = finish(&served, response, &method, all, request_id.clone());
        leaving::part(&served.ingress, connection, &mut response);
        audited.end(&served.ingress, connection, &response, &request_id);
        debug!(status = response.status().as_u16(), "request answered");
        (response, place)
    }
    .instrument(span)
    .await
}

/// Whether it is a 401.
fn is_refused(response: &Response) -> bool {
    response.extensions().get::<Refusal>().is_some_and(|refusal| refusal.0.slug == Slug::Unauthenticated)
}

/// The answer to what is no request that could be handled.
pub(super) fn refuse(served: &Served, refusal: Refusal) -> Response {
    let request_id = request_id::mint();
    debug!(request_id, detail = refusal.0.detail, "a head was refused before it was read");
    finish(served, refusal.into_response(), &Method::GET, false, request_id)
}

fn finish(served: &Served, response: Response, method: &Method, all: bool, request_id: String) -> Response {
    let response = answer::finish(response, method, all, request_id);
    if let Some(slug) = response.extensions().get::<Slug>() {
        served.ingress.refusals.add(*slug);
    }
    response
}

async fn admit<B>(
    served: &Arc<Served>,
    mut router: Router,
    request: Request<B>,
    connection: &Arc<Connection>,
    (place, is_known, audited): (&mut Option<Share>, &mut bool, &mut Audited),
) -> Response
where
    B: HttpBody<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let (mut parts, body) = request.into_parts();
    let body = Lingering::new(&parts, body, served.tasks.clone());
    if served.shutdown.is_cancelled() && !connection.is_lingering() {
        let detail = "this relay is shutting down; nothing was done: send it again on a new connection";
        return Refusal::new(Slug::Draining, detail).into_response();
    }
    if let Err(refusal) = framing::check(&parts).and_then(|()| check_head(&parts, &served.ingress.limits)) {
        return refusal.into_response();
    }
    if served.ingress.authenticator.is_development()
        && let Err(refusal) = refuse_web_pages(&parts)
    {
        return refusal.into_response();
    }
    let identified = request::identify(served, &parts.headers, connection).await;
    *is_known = identified.is_ok();
    if *is_known {
        connection.is_known();
    }
    if let (Some(audit), Ok(caller)) = (served.ingress.audit.get(), &identified)
        && let Err(refusal) = audited.begin(audit, &parts, connection, caller)
    {
        return refusal.into_response();
    }
    let peer = match take_place(served, connection, &identified, place) {
        Ok(peer) => peer,
        Err(refusal) => return refusal.into_response(),
    };
    if submit::is_plain(&parts) {
        return match identified {
            Ok(caller) => submit::submit(served, (peer, caller), parts, body).await.into_response(),
            Err(refusal) => refusal.into_response(),
        };
    }
    parts.extensions.insert(Identified(identified));
    parts.extensions.insert(peer);
    match router.call(Request::from_parts(parts, Body::new(body))).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Takes a place for the request of a caller, and one for its connection with the first request of somebody who is known.
fn take_place(
    served: &Served,
    connection: &Arc<Connection>,
    identified: &Result<Caller, Refusal>,
    place: &mut Option<Share>,
) -> Result<Peer, Refusal> {
    let ingress = &served.ingress;
    let owner = match identified {
        // Names that anybody can take are no bound.
        Ok(_) if ingress.authenticator.is_development() => Owner::Connection(connection.id),
        Ok(caller) => Owner::Client(caller.client.clone()),
        Err(_) => Owner::Unproven,
    };
    let taken = ingress.requests.take(&owner, 1).map_err(|full| Refusal::full(full, scarce::REQUESTS))?;
    if identified.is_ok() && !connection.is_proven() {
        let mut refused = None;
        let take = || ingress.proven.take(&owner, 1).map_err(|full| refused = Some(full)).ok();
        if connection.prove(take) {
            ingress.pools.proven(connection);
        } else if let Some(full) = refused {
            connection.ask(Asked::Leave);
            return Err(Refusal::full(full, scarce::CONNECTIONS));
        }
    }
    *place = Some(taken);
    let credential = identified.as_ref().map(|caller| caller.credential.clone()).unwrap_or_default();
    Ok(Peer { owner, connection: Arc::clone(connection), credential })
}

fn check_head(parts: &Parts, limits: &Limits) -> Result<(), Refusal> {
    let lines = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    let bytes = lines.sum::<usize>() + parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    headers::check_size((parts.headers.len(), limits.headers), (bytes, limits.header_bytes))
}

/// Where nobody is authenticated, a web page in a browser of this machine would be: browsers send some requests across
/// sites without asking first, and a name of the attacker's that leads to a loopback address lets the page read answers.
fn refuse_web_pages(parts: &Parts) -> Result<(), Refusal> {
    let refused = |why: &str| {
        let detail = format!(
            "{why}, and this relay runs without authentication, so web pages may not use it; nothing was done: call it \
             from a program at http://localhost or http://127.0.0.1, or start relay with --keys"
        );
        Err(Refusal::new(Slug::Forbidden, detail))
    };
    if parts.headers.contains_key(ORIGIN) {
        return refused("the request has an Origin header, as those of web pages have");
    }
    let fetched = parts.headers.get_all(&SEC_FETCH_SITE).iter();
    if fetched.map(HeaderValue::as_bytes).any(|site| site != b"none" && site != b"same-origin") {
        return refused("the request comes from another site's web page (Sec-Fetch-Site)");
    }
    let is_local = |authority: &Authority| {
        let host = authority.host();
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    // Most are an address and a port, which are read faster by themselves.
    let is_address = |host: &HeaderValue| {
        host.to_str().is_ok_and(|host| host.parse().is_ok_and(|at: SocketAddr| at.ip().is_loopback()))
    };
    let names_local =
        |host: &HeaderValue| is_address(host) || Authority::try_from(host.as_bytes()).is_ok_and(|host| is_local(&host));
    let is_elsewhere = parts.uri.authority().is_some_and(|host| !is_local(host));
    if is_elsewhere || !parts.headers.get_all(HOST).iter().all(names_local) {
        return refused("the request's host is neither localhost nor a loopback address");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use relay_bridge::clock::Clock;
    use relay_embedded::{Embedded, EmbeddedConfig};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::api::Problem;
    use crate::auth::Authenticator;
    use crate::ingress::http::{Ingress, routes};

    #[tokio::test]
    async fn a_request_that_comes_in_a_drain_is_sent_elsewhere_and_one_that_was_on_its_way_is_the_last_one_answered() {
        let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
        let authenticator = Authenticator::development();
        let ingress = Ingress::new(store.broker(), authenticator, Limits::default(), Clock::system());
        let shutdown = CancellationToken::new();
        let served =
            Arc::new(Served { ingress: Arc::clone(&ingress), shutdown: shutdown.clone(), tasks: TaskTracker::new() });
        let router = routes::router(Arc::clone(&served));
        let whoami = async |connection: &Arc<Connection>| {
            let request = Request::get("/v1/whoami").header("host", "localhost").body(Body::empty()).unwrap();
            handle(Arc::clone(&served), router.clone(), request, connection).await.0
        };
        let [told, untold] = [1, 2].map(|id| Connection::new(id, IpAddr::from([127, 0, 0, 1])));
        assert_eq!(whoami(&untold).await.status(), 200);
        ingress.leaving.set(tokio::time::Instant::now()).unwrap();
        shutdown.cancel();
        assert!(leaving::linger(&ingress, &told).is_some());
        let last = whoami(&told).await;
        assert_eq!((last.status().as_u16(), &last.headers()["connection"]), (200, &"close".parse().unwrap()));
        let refused = whoami(&untold).await;
        assert_eq!((refused.status().as_u16(), &refused.headers()["connection"]), (503, &"close".parse().unwrap()));
        assert!(refused.headers().contains_key("retry-after"));
        let body = axum::body::to_bytes(refused.into_body(), 10_000).await.unwrap();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!((problem.slug, problem.retry.as_str()), (Slug::Draining, "safe"));
    }
}
