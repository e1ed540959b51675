//! The service's counters, and its description of itself: the answers of `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` as
//! ADR-32 of NATS has them.
//!
//! `async_nats::service` is not used: it sends errors with an empty body and counts no others.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relay_bridge::contract::Timestamp;
use serde::Serialize;

use super::subject::Endpoint;
use crate::api::Problem;
use relay_bridge::support::lock;

/// The service's name.
pub(super) const NAME: &str = "relay";
/// The queue group of all replicas: each request is answered by one of them.
pub(super) const QUEUE_GROUP: &str = "q";
const DESCRIPTION: &str = "Takes jobs, keeps them until a worker has done them, and keeps their results";

/// The questions that can be asked about the service.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    Ping,
    Info,
    Stats,
}

impl Verb {
    pub(super) const ALL: [Self; 3] = [Self::Ping, Self::Info, Self::Stats];

    /// The subjects on which it is asked, from all services to this instance.
    pub(super) fn subjects(self, id: &str) -> [String; 3] {
        let verb = match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        };
        [format!("$SRV.{verb}"), format!("$SRV.{verb}.{NAME}"), format!("$SRV.{verb}.{NAME}.{id}")]
    }
}

/// This instance of the service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) id: String,
    started: Timestamp,
    metadata: BTreeMap<&'static str, String>,
    counts: [Counts; Endpoint::ALL.len()],
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
    last_error: Mutex<String>,
}

impl Service {
    pub(super) fn new(id: String, started: Timestamp, durability: &str) -> Self {
        Self {
            id,
            started,
            metadata: BTreeMap::from([("durability", durability.to_owned())]),
            counts: Default::default(),
        }
    }

    /// Counts one request that was answered, or taken without one, after `took`.
    pub(super) fn count(&self, endpoint: Endpoint, took: Duration, problem: Option<&Problem>) {
        let counts = &self.counts[endpoint as usize];
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(problem) = problem {
            counts.errors.fetch_add(1, Ordering::Relaxed);
            let mut last = lock(&counts.last_error);
            *last = format!("{}:{}", problem.status, problem.slug);
        }
    }

    /// The answer to `verb`, as JSON. `slow_consumer_events`: messages that were dropped because nobody read them fast
    /// enough; whenever this grows, a client was not answered.
    pub(super) fn describe(&self, verb: Verb, slow_consumer_events: u64) -> Vec<u8> {
        let (kind, endpoints, started, description) = match verb {
            Verb::Ping => ("io.nats.micro.v1.ping_response", None, None, None),
            Verb::Info => ("io.nats.micro.v1.info_response", Some(self.infos()), None, Some(DESCRIPTION)),
            Verb::Stats => {
                ("io.nats.micro.v1.stats_response", Some(self.stats(slow_consumer_events)), Some(self.started), None)
            }
        };
        let description = Description {
            kind,
            name: NAME,
            id: &self.id,
            version: env!("CARGO_PKG_VERSION"),
            metadata: &self.metadata,
            description,
            started: started.map(|started| started.to_string()),
            endpoints,
        };
        serde_json::to_vec(&description).unwrap_or_default()
    }

    fn infos(&self) -> Vec<EndpointView> {
        let info = |endpoint: Endpoint| EndpointView {
            metadata: Some(BTreeMap::from([("description", endpoint.description())])),
            ..EndpointView::of(endpoint)
        };
        Endpoint::ALL.into_iter().map(info).collect()
    }

    fn stats(&self, slow_consumer_events: u64) -> Vec<EndpointView> {
        let data = Data { slow_consumer_events };
        let stats = |endpoint: Endpoint| {
            let counts = &self.counts[endpoint as usize];
            let requests = counts.requests.load(Ordering::Relaxed);
            let nanos = counts.nanos.load(Ordering::Relaxed);
            let figures = Figures {
                num_requests: requests,
                num_errors: counts.errors.load(Ordering::Relaxed),
                last_error: lock(&counts.last_error).clone(),
                processing_time: nanos,
                average_processing_time: nanos / requests.max(1),
                data,
            };
            EndpointView { figures: Some(figures), ..EndpointView::of(endpoint) }
        };
        Endpoint::ALL.into_iter().map(stats).collect()
    }
}

#[derive(Serialize)]
struct Description<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'static str,
    id: &'a str,
    version: &'static str,
    metadata: &'a BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<EndpointView>>,
}

#[derive(Serialize)]
struct EndpointView {
    name: &'static str,
    subject: &'static str,
    queue_group: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<&'static str, &'static str>>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    figures: Option<Figures>,
}

impl EndpointView {
    fn of(endpoint: Endpoint) -> Self {
        let (name, subject) = (endpoint.name(), endpoint.subject());
        Self { name, subject, queue_group: QUEUE_GROUP, metadata: None, figures: None }
    }
}

/// Times in nanoseconds.
#[derive(Serialize)]
struct Figures {
    num_requests: u64,
    num_errors: u64,
    last_error: String,
    processing_time: u64,
    average_processing_time: u64,
    data: Data,
}

/// Of the whole instance, since NATS does not say which endpoint's message was dropped.
#[derive(Clone, Copy, Serialize)]
struct Data {
    slow_consumer_events: u64,
}
