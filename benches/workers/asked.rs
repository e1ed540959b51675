//! Calls of JetStream's API, counted by a client that listens in: how many of each kind, and which pulls bring nothing.
//!
//! A pull is in vain if its first answer is a status that ends it: 404 or 408. Pulls are told apart by the inboxes that they
//! name, so each is taken to have one of its own. The listener is one more subscriber: nobody is told that there are no
//! responders, and a message to an inbox that its owner has left counts as delivered.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Message, StatusCode};
use futures_util::StreamExt as _;
use futures_util::stream::select_all;
use tokio::task::JoinSet;

use crate::nodes::Nodes;
use crate::plain::EXPIRES;

/// The calls; the inboxes of workers and of the baseline; those of `relay serve`.
const SUBJECTS: [&str; 3] = ["$JS.API.>", "_INBOX.>", "_INBOX__relay.>"];
const PULL: &str = "CONSUMER.MSG.NEXT";

/// Calls that were made while somebody listened.
#[derive(Clone, Default)]
pub(crate) struct Asked {
    /// How often, by kind of call.
    calls: BTreeMap<String, u64>,
    /// Pulls that wait for less long than the baseline's.
    short: usize,
    vain: usize,
}

impl Asked {
    /// Both together.
    pub(crate) fn and(mut self, other: Self) -> Self {
        for (kind, calls) in other.calls {
            *self.calls.entry(kind).or_default() += calls;
        }
        Self { short: self.short + other.short, vain: self.vain + other.vain, ..self }
    }

    /// Pulls and all calls, for each of so many jobs.
    pub(crate) fn pulls_each(&self, jobs: usize) -> String {
        let each = |count: u64| count as f64 / jobs as f64;
        format!(
            "{:.2} pulls a job, {:.2} below {} s, {:.2} in vain, {:.2} calls",
            each(self.calls.get(PULL).copied().unwrap_or(0)),
            each(self.short as u64),
            EXPIRES.as_secs(),
            each(self.vain as u64),
            each(self.calls.values().sum()),
        )
    }

    /// Each kind of call, for each of so many jobs; the most frequent first.
    pub(crate) fn calls_each(&self, jobs: usize) -> String {
        let mut calls: Vec<(&String, &u64)> = self.calls.iter().collect();
        calls.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let calls: Vec<String> =
            calls.iter().map(|(kind, count)| format!("{kind} {:.3}", **count as f64 / jobs as f64)).collect();
        calls.join(", ")
    }
}

/// A client that listens until it is asked for what it heard.
pub(crate) struct Listener {
    heard: Arc<Mutex<Heard>>,
    _listening: JoinSet<()>,
}

#[derive(Default)]
struct Heard {
    calls: BTreeMap<String, u64>,
    /// Whether each pull is short, by its inbox.
    pulls: HashMap<String, bool>,
    /// Whether the first message in each inbox says that there is none, or no more. It may be heard before what was asked.
    ends: HashMap<String, bool>,
}

impl Listener {
    pub(crate) async fn start(nats: &Nodes) -> Self {
        let client = nats.client().await;
        let mut subscriptions = Vec::new();
        for subject in SUBJECTS {
            subscriptions.push(client.subscribe(subject).await.unwrap());
        }
        client.flush().await.unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (mut listening, hears) = (JoinSet::new(), Arc::clone(&heard));
        listening.spawn(async move {
            let _client = client;
            let mut messages = select_all(subscriptions);
            while let Some(message) = messages.next().await {
                hears.lock().unwrap().hear(&message);
            }
        });
        Self { heard, _listening: listening }
    }

    pub(crate) fn heard(self) -> Asked {
        let heard = self.heard.lock().unwrap();
        Asked {
            calls: heard.calls.clone(),
            short: heard.pulls.values().filter(|is_short| **is_short).count(),
            vain: heard.pulls.keys().filter(|inbox| heard.ends.get(*inbox) == Some(&true)).count(),
        }
    }
}

impl Heard {
    fn hear(&mut self, message: &Message) {
        let Some(call) = message.subject.strip_prefix("$JS.API.") else {
            let is_end = matches!(message.status, Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT));
            self.ends.entry(message.subject.to_string()).or_insert(is_end);
            return;
        };
        let kind = kind(call);
        if let (PULL, Some(inbox)) = (kind.as_str(), &message.reply) {
            let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap_or_default();
            let expires = body["expires"].as_u64().map(Duration::from_nanos);
            self.pulls.insert(inbox.to_string(), expires.is_some_and(|expires| expires < EXPIRES));
        }
        *self.calls.entry(kind).or_default() += 1;
    }
}

/// A call without the names of streams and consumers: `STREAM.INFO`, `CONSUMER.MSG.NEXT`.
fn kind(call: &str) -> String {
    let words: Vec<&str> = call.split('.').collect();
    let length = if matches!(words.get(1), Some(&("MSG" | "DURABLE"))) { 3 } else { 2 };
    words[..length.min(words.len())].join(".")
}
