//! Values that can't be true together, or have no effect: each value is well, and the file is not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use relay_bridge::policy::QueuePolicy;
use relay_embedded::PAYLOAD_MAX;
use relay_workers::config::QUEUES_MAX;
use relay_workers::handler::http::{Http, HttpConfig};

use super::file::File;
use super::kind::Value;
use super::mistake::Mistake;
use super::queues::Queue;
use super::values::{WeightedQueue, show_duration, show_size};

/// The mistakes in the queues of one worker together, and what to do about them.
#[must_use]
pub fn of_queues(queues: &[WeightedQueue], strict: bool) -> Vec<(String, &'static str)> {
    let mut found = Vec::new();
    if let Some(weighted) = queues.iter().find(|queue| strict && queue.weight != NonZeroU32::MIN) {
        let what =
            format!("`{}` has a weight, and in strict order the first queue that has jobs is asked", weighted.name);
        found.push((what, "leave the weights out, or let the order be \"weighted\""));
    }
    let names: BTreeSet<_> = queues.iter().map(|queue| &queue.name).collect();
    if names.len() < queues.len() {
        found.push(("a queue is there twice".to_owned(), "name each once"));
    }
    if names.len() > QUEUES_MAX {
        let what = format!("{} queues are more than one worker takes, which is {QUEUES_MAX}", names.len());
        found.push((what, "divide them among several workers"));
    }
    found
}

/// The layers above a file: the environment and the flags of a command.
#[derive(Clone, Copy)]
pub struct Above<'a> {
    /// The environment's variables, some of which belong to settings.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Keys of the settings that a flag or a variable gives, and that are not `false` there.
    pub given: &'a BTreeSet<&'static str>,
}

/// Everything in `file` that contradicts something else there, or has no effect once `above` is put on top of it.
#[must_use]
pub fn find(file: &File, above: Above<'_>) -> Vec<Mistake> {
    let Above { variable, given } = above;
    let mut finder = Finder { file, given, found: Vec::new() };
    finder.one_of(&PLACES, "jobs are kept in one place");
    finder.one_of(&["access.keys", "access.no_auth"], "every caller is asked for a key, or none is");
    finder.one_of(&["nats.creds", "nats.nkey", "nats.user", "nats.token_file"], "relay has one identity on NATS");
    finder.one_of(&["listen.nats", "nats.servers"], "clients are served on the broker's own NATS servers anyway");
    finder.one_of(&["worker.connect", "nats.servers"], WORKS_IN_ONE_PLACE);
    finder.one_of(&["worker.connect", "sqs.enabled"], WORKS_IN_ONE_PLACE);
    finder.one_of(&["worker.key_file", "nats.servers"], "a worker's key is for the server that it connects to");
    finder.one_of(&["worker.key_file", "sqs.enabled"], "a worker's key is for the server that it connects to");
    finder.one_of(&["worker.command", "worker.http"], "one of them does a worker's jobs");
    finder.one_of(&["listen.nats", "nats.no_listen"], "clients are served over NATS, or they are not");
    for (key, needs) in [
        ("admin.token_file", "admin.listen"),
        ("nats.password_file", "nats.user"),
        ("nats.cert", "nats.key"),
        ("nats.key", "nats.cert"),
        ("nats.no_listen", "nats.servers"),
        ("nats.domain", "nats.servers"),
        ("nats.sync_always", "nats.servers"),
        ("sqs.region", "sqs.enabled"),
        ("sqs.endpoint", "sqs.enabled"),
        ("sqs.table", "sqs.enabled"),
        ("sqs.prefix", "sqs.enabled"),
        ("sqs.fifo", "sqs.enabled"),
        ("sqs.forward", "sqs.enabled"),
        ("sqs.share", "sqs.enabled"),
    ] {
        finder.needs(key, needs);
    }
    finder.about_nats();
    finder.about_waits();
    finder.addresses(variable);
    let password = variable("RELAY_NATS_PASSWORD").is_some();
    if !password && finder.written("nats.user") && !finder.is("nats.password_file") {
        finder.add(
            "nats.user",
            "a user has a password, and none is given",
            "add nats.password_file, or set RELAY_NATS_PASSWORD",
        );
    }
    finder.worker(variable);
    finder.streams();
    finder.queues();
    finder.found
}

const WORKS_IN_ONE_PLACE: &str = "a worker takes its jobs from a server, or from the broker itself";
const SAY_WHERE: &str = "leave it out, or say where NATS is with `nats.servers`, its flag or its variable";
const WITHOUT_RATE: &str = "without `rate` it says nothing";
const ADD_RATE: &str = "leave it out, or add `rate`";

/// Where jobs are kept: one of them.
const PLACES: [&str; 4] = ["store.data", "store.memory", "nats.servers", "sqs.enabled"];

struct Finder<'a> {
    file: &'a File,
    given: &'a BTreeSet<&'static str>,
    found: Vec<Mistake>,
}

impl Finder<'_> {
    /// Whether the file sets it.
    fn written(&self, key: &str) -> bool {
        self.file.get(key).is_some()
    }

    /// Whether anybody sets it.
    fn is(&self, key: &str) -> bool {
        self.written(key) || self.given.contains(key)
    }

    /// Whether jobs are kept at `place`: the one that was given counts before the file's.
    fn kept(&self, place: &str) -> bool {
        let given = PLACES.iter().any(|place| self.given.contains(place));
        if given { self.given.contains(place) } else { self.written(place) }
    }

    fn add(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let line = self.file.get(key).map_or(1, |(_, line)| line);
        self.at(line, key, what, fix);
    }

    fn at(&mut self, line: usize, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.found.push(Mistake { line, key: key.to_owned(), what: what.into(), fix: fix.into() });
    }

    fn one_of(&mut self, keys: &[&str], why: &str) {
        let set: Vec<_> = keys.iter().filter(|key| self.written(key)).collect();
        if let [first, others @ ..] = &set[..] {
            for other in others {
                let line = self.file.get(first).map_or(0, |(_, line)| line);
                self.add(other, format!("`{first}` is set as well (line {line}), and {why}"), "leave one of them out");
            }
        }
    }

    fn needs(&mut self, key: &str, needs: &str) {
        if self.written(key) && !self.is(needs) {
            self.add(key, format!("without `{needs}` it says nothing"), format!("leave it out, or add `{needs}`"));
        }
    }

    /// Settings about NATS where there is none.
    fn about_nats(&mut self) {
        let (broker, doors) = (self.is("nats.servers"), self.is("listen.nats"));
        let keys: Vec<&'static str> = self.file.values.keys().copied().filter(|key| self.written(key)).collect();
        for key in keys {
            let told =
                ["nats.no_listen", "nats.domain", "nats.sync_always", "nats.cert", "nats.key", "nats.password_file"];
            let provisioned = key == "streams.provision" && self.is("sqs.enabled");
            if key.starts_with("streams.") && !broker && !provisioned {
                self.add(key, "jobs are not kept on NATS", SAY_WHERE);
            } else if key.starts_with("nats.") && !broker && !doors && !told.contains(&key) {
                let fix = "leave it out, or say where NATS is with `nats.servers` or `listen.nats`, or their flags or variables";
                self.add(key, "relay does not connect to NATS", fix);
            }
        }
    }

    /// Settings about waits over NATS where no clients are, and a share that is more than there is.
    fn about_waits(&mut self) {
        const SHARE: &str = "listen.nats_waits_per_client";
        let served = (self.is("nats.servers") && !self.is("nats.no_listen")) || self.is("listen.nats");
        for key in ["listen.nats_waits", SHARE] {
            if self.written(key) && !served {
                let fix = "leave it out, or say where clients are with `nats.servers` or `listen.nats`";
                self.add(key, "no clients are served over NATS", fix);
            }
        }
        if let (Some((Value::Number(waits), _)), Some((Value::Number(share), _))) =
            (self.file.get("listen.nats_waits"), self.file.get(SHARE))
            && share > waits
        {
            let what = format!("{share} are more than there are: `listen.nats_waits` is {waits}");
            self.add(SHARE, what, "lower it, or raise `listen.nats_waits`");
        }
    }

    /// An address of the file that nobody replaced.
    fn address(&self, key: &str) -> Option<SocketAddr> {
        match self.file.get(key).filter(|_| !self.given.contains(key)) {
            Some((Value::Text(text), _)) => text.parse().ok(),
            _ => None,
        }
    }

    /// Addresses that others can reach, where others must not.
    fn addresses(&mut self, variable: &dyn Fn(&str) -> Option<String>) {
        let open = |address: Option<SocketAddr>| address.filter(|address| !address.ip().is_loopback());
        let nobody_asks = self.written("access.no_auth") && !self.given.contains("access.keys");
        if let Some(address) = open(self.address("listen.http")).filter(|_| nobody_asks) {
            let what = format!("others can reach {address}, and `access.no_auth` lets everybody in");
            self.add("listen.http", what, "write \"127.0.0.1:7410\", or set `access.keys` instead");
        }
        if let Some(address) = open(self.address("listen.workers")) {
            let what = format!("others can reach {address}, and connections of workers are not encrypted");
            self.add(
                "listen.workers",
                what,
                "write \"127.0.0.1:7411\": run workers on this machine, or through a tunnel",
            );
        }
        let token = self.is("admin.token_file") || variable("RELAY_ADMIN_TOKEN").is_some();
        if let Some(address) = open(self.address("admin.listen")).filter(|_| !token) {
            let what = format!("others can reach {address}, and nobody is asked for a token");
            self.add("admin.listen", what, "write \"127.0.0.1:7412\", or set `admin.token_file`");
        }
        if self.written("admin.token_file") && variable("RELAY_ADMIN_TOKEN").is_some() {
            self.add("admin.token_file", "RELAY_ADMIN_TOKEN is set as well", "leave one of them out");
        }
    }

    fn worker(&mut self, variable: &dyn Fn(&str) -> Option<String>) {
        if self.written("worker.key_file") && variable("RELAY_WORKER_KEY").is_some() {
            self.add("worker.key_file", "RELAY_WORKER_KEY is set as well", "leave one of them out");
        }
        if let Some((Value::Text(url), _)) = self.file.get("worker.http")
            && let Err(error) = Http::new(HttpConfig { url: url.clone(), ..HttpConfig::default() })
        {
            self.add(
                "worker.http",
                error.to_string(),
                "write \"http://127.0.0.1:3000/jobs\", with your service's port",
            );
        }
        let Some((Value::List(texts), _)) = self.file.get("worker.queues") else { return };
        let queues: Vec<WeightedQueue> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        let strict = self.file.get("worker.order").is_some_and(|(value, _)| value.to_string() == "strict");
        for (what, fix) in of_queues(&queues, strict) {
            self.add("worker.queues", what, fix);
        }
    }

    fn streams(&mut self) {
        if self.file.get("streams.storage").is_some_and(|(value, _)| value.to_string() == "memory") {
            let what = "streams in memory can't be compressed";
            if self.written("streams.compression") {
                self.add("streams.compression", what, "leave it out, or write storage = \"file\"");
            }
        }
        if let Some((Value::Number(replicas @ (2 | 4)), _)) = self.file.get("streams.replicas") {
            self.add(
                "streams.replicas",
                format!("{replicas} replicas survive no more than {} do", replicas - 1),
                "write 1, 3 or 5",
            );
        }
    }

    /// Shares that need turns, in a queue without any.
    fn shares(&mut self, queue: &Queue, policy: &QueuePolicy) {
        for (client, key) in policy.shares_without_turns() {
            let (full, written) = match client {
                Some(client) => {
                    (format!("queue.{}.client.{client}.{key}", queue.name), queue.patch.clients.get(client))
                }
                None => (format!("queue.{}.{key}", queue.name), Some(&queue.patch.values)),
            };
            // A client that has it from the queue is told of with the queue.
            if let Some((_, line)) = written.and_then(|written| written.get(key)) {
                self.at(
                    *line,
                    &full,
                    "with `fair = false` nobody has turns, and it can't hold",
                    "leave it out, or `fair`",
                );
            }
        }
    }

    /// The values for single clients of a queue whose policy is `policy`.
    fn clients(&mut self, queue: &Queue, policy: &QueuePolicy) {
        for (client, written) in &queue.patch.clients {
            let line = written.values().map(|(_, line)| *line).min().unwrap_or(queue.line);
            let full = format!("queue.{}.client.{client}", queue.name);
            if !policy.allows(client) {
                let what = "it is none of the queue's `allowed_clients`, so nothing can hold for it";
                self.at(line, &full, what, "leave it out, or add it there");
            }
            let has_rate = written.contains_key("rate") || queue.patch.values.contains_key("rate");
            if let Some((_, line)) = written.get("burst").filter(|_| !has_rate) {
                self.at(*line, &format!("{full}.burst"), WITHOUT_RATE, ADD_RATE);
            }
        }
    }

    fn queues(&mut self) {
        let on_nats = self.kept("nats.servers");
        let embedded = !on_nats && !self.kept("sqs.enabled");
        for queue in &self.file.queues {
            let policy = queue.patch.over(QueuePolicy::default());
            let mut found = Vec::new();
            if policy.lease > policy.lease_max {
                let what = format!(
                    "a lease of {} is longer than `lease_max` ({}), the longest a worker may hold a job in all",
                    show_duration(policy.lease),
                    show_duration(policy.lease_max)
                );
                found.push(("lease", what, "shorten it, or lengthen `lease_max`".to_owned()));
            }
            if policy.retry.cap < policy.retry.base {
                let (cap, base) = (show_duration(policy.retry.cap), show_duration(policy.retry.base));
                found.push((
                    "retry_cap",
                    format!("{cap} is shorter than `retry_base` ({base})"),
                    format!("write \"{base}\" or more"),
                ));
            }
            for (key, bytes) in [("payload_max", policy.payload_max), ("result_max", policy.result_max)] {
                if embedded && bytes > PAYLOAD_MAX {
                    let max = show_size(PAYLOAD_MAX);
                    found.push((
                        key,
                        format!("{} are more than the store takes, which is {max}", show_size(bytes)),
                        "write \"16MiB\" or less".to_owned(),
                    ));
                }
            }
            if queue.patch.values.contains_key("burst") && !queue.patch.values.contains_key("rate") {
                found.push(("burst", WITHOUT_RATE.to_owned(), ADD_RATE.to_owned()));
            }
            if !policy.fair && !on_nats {
                let what = "jobs are not kept on NATS, and elsewhere there is no such line".to_owned();
                found.push(("fair", what, SAY_WHERE.to_owned()));
            }
            self.shares(queue, &policy);
            self.clients(queue, &policy);
            for (key, what, fix) in found {
                let line = queue.patch.line(key, queue.line);
                self.found.push(Mistake { line, key: format!("queue.{}.{key}", queue.name), what, fix });
            }
        }
    }
}
