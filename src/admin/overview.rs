//! Everything the dashboard shows at first, as it was found last: once, or as a stream with each new look.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use relay_bridge::contract::Outcome;
use serde::Serialize;
use serde_json::{Value, json};

use super::operator::{Answer, Refused};
use super::refusing::Refusing;
use super::routes;
use super::{Admin, Unready};
use crate::api::Slug;
use crate::telemetry::Counts;

/// Clients that are listed: those with the most jobs.
const CLIENTS_MAX: usize = 200;

#[derive(Serialize)]
struct Overview {
    version: &'static str,
    adapter: Option<&'static str>,
    durability: Option<&'static str>,
    uptime_seconds: u64,
    ready: bool,
    reasons: Vec<Unready>,
    refusing: Vec<Refusing>,
    /// Whether the broker was looked at yet.
    sampled: bool,
    queues: Vec<Queue>,
    clients: Vec<Client>,
    clients_in_all: usize,
    workers: Vec<Worker>,
}

#[derive(Serialize)]
struct Queue {
    name: String,
    paused: bool,
    waiting: u64,
    parked: u64,
    leased: u64,
    oldest_seconds: Option<f64>,
    submitted_rate: f64,
    settled_rate: f64,
    history: Vec<u64>,
    #[serde(flatten)]
    counts: CountsView,
}

#[derive(Serialize)]
struct Client {
    name: String,
    #[serde(flatten)]
    counts: CountsView,
}

#[derive(Serialize)]
struct Worker {
    id: String,
    queues: Vec<String>,
    asked_seconds: u64,
    leased: u64,
}

#[derive(Serialize)]
struct CountsView {
    submitted: u64,
    replayed: u64,
    settled: BTreeMap<&'static str, u64>,
}

impl From<Counts> for CountsView {
    fn from(counts: Counts) -> Self {
        let Counts { submitted, replayed, settled } = counts;
        let settled = Outcome::ALL.iter().map(|outcome| outcome.as_str()).zip(settled).collect();
        Self { submitted, replayed, settled }
    }
}

/// The paths of it.
pub(super) fn router() -> Router<Arc<Admin>> {
    Router::new().route("/v1/overview", get(once)).route("/v1/live", get(live))
}

/// `GET /v1/overview`
async fn once(State(admin): State<Arc<Admin>>) -> Response {
    routes::json(StatusCode::OK, &overview(&admin))
}

/// `GET /v1/live`: server-sent events, each an overview.
async fn live(State(admin): State<Arc<Admin>>) -> Answer {
    let Ok(place) = Arc::clone(&admin.live).try_acquire_owned() else {
        let detail = "as many dashboards are open as this port serves: close one, or look again later";
        return Err(Refused::new(Slug::Overloaded, detail));
    };
    let events =
        stream::unfold((admin.samples(), admin, place, true), |(mut samples, admin, place, first)| async move {
            if !first && admin.closing.run_until_cancelled(samples.changed()).await?.is_err() {
                return None;
            }
            samples.mark_unchanged();
            let event = format!("data: {}\n\n", overview(&admin));
            Some((Ok::<_, Infallible>(Bytes::from(event)), (samples, admin, place, false)))
        });
    let mut response = Response::new(Body::from_stream(events));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

fn overview(admin: &Admin) -> Value {
    let sample = Arc::clone(&admin.sample.borrow());
    let queues = sample.queues.iter().map(|queue| Queue {
        name: queue.name.to_string(),
        paused: queue.policy.paused,
        waiting: queue.depth.waiting,
        parked: queue.depth.parked,
        leased: queue.depth.leased,
        oldest_seconds: queue.oldest.map(|oldest| oldest.as_secs_f64()),
        submitted_rate: queue.submitted_rate,
        settled_rate: queue.settled_rate,
        history: queue.history.iter().copied().collect(),
        counts: queue.counts.into(),
    });
    let mut clients: Vec<_> = admin.telemetry.flows().by_client().into_iter().collect();
    let clients_in_all = clients.len();
    clients.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.submitted));
    clients.truncate(CLIENTS_MAX);
    let now = admin.telemetry.clock().monotonic();
    let workers = admin.telemetry.workers_seen().lately(now).into_iter().map(|(id, seen)| Worker {
        id: id.to_string(),
        queues: seen.queues.iter().map(ToString::to_string).collect(),
        asked_seconds: now.saturating_sub(seen.asked_at).as_secs(),
        leased: seen.leased,
    });
    let capabilities = admin.broker.get().map(|broker| &broker.capabilities);
    let reasons = admin.unready();
    json!(Overview {
        version: env!("CARGO_PKG_VERSION"),
        adapter: capabilities.map(|capabilities| capabilities.adapter),
        durability: capabilities.map(|capabilities| capabilities.durability.as_str()),
        uptime_seconds: admin.telemetry.clock().now().since(admin.started_at).as_secs(),
        ready: reasons.is_empty(),
        reasons,
        refusing: admin.refusing(),
        sampled: sample.taken_at.is_some(),
        queues: queues.collect(),
        clients: clients
            .into_iter()
            .map(|(name, counts)| Client { name: name.to_string(), counts: counts.into() })
            .collect(),
        clients_in_all,
        workers: workers.collect(),
    })
}
