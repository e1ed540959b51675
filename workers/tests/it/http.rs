//! The service handler against a real server on a free port.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use relay_bridge::policy::QueuePolicy;
use relay_workers::handler::http::{Http, HttpConfig, InvalidHttp};
use relay_workers::{Attempt, Context, Handler, Output};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::job;

/// A server, the requests it got, and where it is. It ends when it is dropped.
struct Server {
    base: String,
    seen: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    _task: JoinSet<()>,
}

async fn server() -> Server {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let echo = {
        let seen = seen.clone();
        move |headers: HeaderMap, body: Bytes| async move {
            let content_type = headers[header::CONTENT_TYPE].clone();
            seen.lock().unwrap().push((headers, body.clone()));
            ([(header::CONTENT_TYPE, content_type)], body)
        }
    };
    let redirected = {
        let seen = seen.clone();
        move |headers: HeaderMap, body: Bytes| async move { seen.lock().unwrap().push((headers, body)) }
    };
    let app = Router::new()
        .route("/echo", post(echo))
        .route("/target", post(redirected))
        .route("/status/{code}", post(status))
        .route("/redirect", post(|| async { (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/target")]) }))
        .route("/bare", post(|| async { Response::new(Body::from("bare")) }))
        .route("/bytes/{count}", post(|Path(count): Path<usize>| async move { vec![b'x'; count] }))
        .route("/endless", post(|| async { Body::from_stream(endless()) }))
        .route("/never", post(std::future::pending::<StatusCode>));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move { axum::serve(listener, app).await.unwrap() });
    Server { base, seen, _task: task }
}

async fn status(Path(code): Path<u16>) -> Response {
    (StatusCode::from_u16(code).unwrap(), [(header::RETRY_AFTER, "7")], "the reason").into_response()
}

fn endless() -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> {
    futures_util::stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 8192])))
}

fn context(cancel: CancellationToken) -> Context {
    Context::detached(
        3,
        &QueuePolicy { result_max: 100_000, ..QueuePolicy::default() },
        Duration::from_secs(600),
        cancel,
    )
}

async fn call_with(config: HttpConfig) -> Attempt {
    Http::new(config).unwrap().handle(&job("payload"), &context(CancellationToken::new())).await
}

async fn call(url: String) -> Attempt {
    call_with(HttpConfig { url, ..HttpConfig::default() }).await
}

fn failed(attempt: Attempt) -> (&'static str, String, Option<Duration>) {
    match attempt {
        Attempt::Retry { failure, after } => ("retry", failure.reason, after),
        Attempt::Reject { failure } => ("reject", failure.reason, None),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_byte_goes_out_and_comes_back_with_its_content_type() {
    let server = server().await;
    let payload: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
    let http = Http::new(HttpConfig { url: format!("{}/echo", server.base), ..HttpConfig::default() }).unwrap();
    let attempt = http.handle(&job(payload.clone()), &context(CancellationToken::new())).await;
    assert!(attempt == Attempt::Done(Output::new("application/x-test", payload)));
}

#[tokio::test]
async fn the_headers_tell_about_the_job() {
    let server = server().await;
    let job = job("x");
    let http = Http::new(HttpConfig { url: format!("{}/echo", server.base), ..HttpConfig::default() }).unwrap();
    http.handle(&job, &context(CancellationToken::new())).await;
    let (headers, body) = server.seen.lock().unwrap().remove(0);
    assert_eq!(body, "x");
    for (name, value) in [
        ("idempotency-key", job.run_id.to_string()),
        ("content-type", "application/x-test".to_owned()),
        ("relay-job-id", job.id.to_string()),
        ("relay-run-id", job.run_id.to_string()),
        ("relay-generation", "1".to_owned()),
        ("relay-client", "acme".to_owned()),
        ("relay-queue", "work".to_owned()),
        ("relay-attempt", "3".to_owned()),
        ("relay-max-attempts", "10".to_owned()),
        ("relay-accepted-at", job.accepted_at.to_string()),
        ("relay-expires-at", job.expires_at.to_string()),
        ("relay-idempotency-key", "order-7".to_owned()),
        ("relay-meta-order-id", "42".to_owned()),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    ] {
        assert_eq!(headers.get(name).map(|has| has.to_str().unwrap()), Some(value.as_str()), "{name}");
    }
    assert!(headers.contains_key("relay-deadline"));
}

#[tokio::test]
async fn every_status_has_its_place_in_the_table() {
    let server = server().await;
    let seven = Some(Duration::from_secs(7));
    for (status, how, reason, after) in [
        (400, "reject", "http-status", None),
        (401, "reject", "http-status", None),
        (404, "reject", "http-status", None),
        (408, "retry", "http-status", seven),
        (409, "retry", "http-status", seven),
        (422, "reject", "http-status", None),
        (425, "retry", "http-status", seven),
        (429, "retry", "http-status", seven),
        (500, "retry", "http-status", seven),
        (503, "retry", "http-status", seven),
        (301, "reject", "http-redirect", None),
        (304, "reject", "http-redirect", None),
    ] {
        let attempt = failed(call(format!("{}/status/{status}", server.base)).await);
        assert_eq!(attempt, (how, reason.to_owned(), after), "{status}");
    }
    for status in [200, 201, 202, 204, 206] {
        let attempt = call(format!("{}/status/{status}", server.base)).await;
        assert!(matches!(attempt, Attempt::Done(_)), "{status}: {attempt:?}");
    }
}

#[tokio::test]
async fn the_failure_says_what_the_service_answered() {
    let server = server().await;
    let Attempt::Reject { failure } = call(format!("{}/status/422", server.base)).await else { panic!() };
    assert_eq!(failure.detail, "the service answered 422 Unprocessable Entity: the reason");
}

#[tokio::test]
async fn a_long_retry_after_is_cut() {
    let server = server().await;
    let url = format!("{}/status/503", server.base);
    let config = HttpConfig { url, retry_after_max: Duration::from_secs(2), ..HttpConfig::default() };
    assert_eq!(failed(call_with(config).await).2, Some(Duration::from_secs(2)));
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let server = server().await;
    let (how, reason, _) = failed(call(format!("{}/redirect", server.base)).await);
    assert_eq!((how, reason.as_str()), ("reject", "http-redirect"));
    assert!(server.seen.lock().unwrap().is_empty(), "the target was called");
}

#[tokio::test]
async fn a_response_without_a_content_type_is_bytes() {
    let server = server().await;
    let attempt = call(format!("{}/bare", server.base)).await;
    assert_eq!(attempt, Attempt::Done(Output::new("application/octet-stream", "bare")));
}

#[tokio::test]
async fn a_response_above_the_cap_is_rejected_and_not_read_to_its_end() {
    let server = server().await;
    let Attempt::Done(output) = call(format!("{}/bytes/100000", server.base)).await else { panic!() };
    assert_eq!(output.payload.len(), 100_000, "exactly the cap fits");
    for path in ["bytes/100001", "endless"] {
        let (how, reason, _) = failed(call(format!("{}/{path}", server.base)).await);
        assert_eq!((how, reason.as_str()), ("reject", "result-too-large"), "{path}");
    }
}

#[tokio::test]
async fn a_service_that_takes_too_long_is_a_retry() {
    let server = server().await;
    let url = format!("{}/never", server.base);
    let config = HttpConfig { url, timeout: Duration::from_millis(100), ..HttpConfig::default() };
    assert_eq!(failed(call_with(config).await), ("retry", "timeout".to_owned(), None));
}

#[tokio::test]
async fn a_service_that_is_not_there_is_no_failure_of_the_job_and_is_not_named() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for url in [format!("http://{gone}/secret-path"), "http://no-such-host.invalid/secret-path".to_owned()] {
        let attempt = call(url.clone()).await;
        let Attempt::NotStarted { failure } = attempt else { panic!("{url}: {attempt:?}") };
        assert_eq!(failure.reason, "http-failed");
        assert!(!failure.detail.contains("secret-path"), "{}", failure.detail);
    }
}

#[tokio::test]
async fn a_service_that_takes_the_request_and_hangs_up_is_a_failure_of_the_job() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let hang_up = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.read_u8().await.unwrap();
    };
    let (attempt, ()) = tokio::join!(call(url), hang_up);
    assert_eq!(failed(attempt), ("retry", "http-failed".to_owned(), None));
}

#[tokio::test]
async fn a_cancelled_attempt_drops_its_request() {
    let server = server().await;
    let http = Http::new(HttpConfig { url: format!("{}/never", server.base), ..HttpConfig::default() }).unwrap();
    let cancel = CancellationToken::new();
    let (job, context) = (job("x"), context(cancel.clone()));
    let cancelling = async { cancel.cancel() };
    let (attempt, ()) = tokio::join!(http.handle(&job, &context), cancelling);
    assert_eq!(failed(attempt).1, "cancelled");
}

#[tokio::test]
async fn names_are_resolved() {
    let server = server().await;
    let attempt = call(format!("{}/bare", server.base.replace("127.0.0.1", "localhost"))).await;
    assert!(matches!(attempt, Attempt::Done(_)), "{attempt:?}");
}

#[test]
fn link_local_and_metadata_urls_are_refused_in_every_spelling() {
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        // The same address as one number, in hexadecimal, in octal.
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
        "http://user@169.254.169.254:80/",
    ] {
        let made = Http::new(HttpConfig { url: url.to_owned(), ..HttpConfig::default() });
        assert!(matches!(made, Err(InvalidHttp::Refused(_))), "{url}: {made:?}");
    }
}

#[test]
fn only_urls_of_web_servers_are_taken() {
    for url in ["", "localhost:80", "ftp://host/", "file:///etc/passwd", "http://", "not a url"] {
        let made = Http::new(HttpConfig { url: url.to_owned(), ..HttpConfig::default() });
        assert!(matches!(made, Err(InvalidHttp::Url(_))), "{url}: {made:?}");
    }
}

#[tokio::test]
async fn a_response_above_8_mib_is_taken_where_the_queue_takes_it() {
    let app = Router::new().route("/", post(|| async { vec![b'x'; 10 * 1024 * 1024] }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move { axum::serve(listener, app).await.unwrap() });
    let policy = QueuePolicy { result_max: 12 * 1024 * 1024, ..QueuePolicy::default() };
    let context = Context::detached(3, &policy, Duration::from_secs(600), CancellationToken::new());
    let attempt = Http::new(HttpConfig { url, ..HttpConfig::default() }).unwrap().handle(&job(""), &context).await;
    let Attempt::Done(output) = attempt else { panic!("{attempt:?}") };
    assert_eq!(output.payload.len(), 10 * 1024 * 1024);
}
