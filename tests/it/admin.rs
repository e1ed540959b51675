//! The admin port from outside: health, metrics, and who may ask.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cli_support::{Running, code, run, run_with, stderr};
use async_trait::async_trait;
use nix::sys::signal::Signal;
use relay::admin::Port;
use relay::admin::sampler::Watched;
use relay::telemetry::Telemetry;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::policy::{PolicyStore, QueuePolicy};
use relay_embedded::{Embedded, EmbeddedConfig};
use serde_json::Value;
use tempfile::tempdir;
use tokio_util::sync::CancellationToken;

/// Status and body of one request on a connection of its own.
fn ask(address: &str, method: &str, path: &str, headers: &str) -> (u16, String) {
    send(address, method, path, headers, "")
}

pub(crate) fn send(address: &str, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(stream, "{method} {path} HTTP/1.1\r\n{host}{headers}{length}Connection: close\r\n\r\n{body}").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    // Long answers come in chunks: their lengths stand between them.
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if chunked { dechunked(body) } else { body.to_owned() })
}

fn dechunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}

fn get(address: &str, path: &str) -> (u16, String) {
    ask(address, "GET", path, "")
}

/// The metrics once all of `lines` are in them.
fn metrics_with(address: &str, lines: &[&str]) -> String {
    for _ in 0..20_000 {
        let (status, text) = get(address, "/metrics");
        assert_eq!(status, 200, "{text}");
        if lines.iter().all(|line| text.contains(line)) {
            return text;
        }
    }
    panic!("{lines:?} are not all in\n{}", get(address, "/metrics").1);
}

fn json(answer: &(u16, String)) -> Value {
    serde_json::from_str(&answer.1).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn admin(running: &Running) -> String {
    running.ready["listening"]["admin"].as_str().unwrap().to_owned()
}

/// Every sample of an exposition by its name and labels, as Prometheus' own client library for Python reads it.
fn parsed(text: &str) -> BTreeMap<String, f64> {
    let root = env!("CARGO_MANIFEST_DIR");
    let installed = Command::new(format!("{root}/tests/install-servers")).status().unwrap();
    assert!(installed.success());
    let program = "\
import json, sys
from prometheus_client.parser import text_string_to_metric_families as read
found, names = {}, set()
for family in read(sys.stdin.read()):
    assert family.name not in names, 'twice: ' + family.name
    assert family.documentation and family.type != 'unknown', family
    names.add(family.name)
    for sample in family.samples:
        labels = ','.join(f'{name}={value}' for name, value in sorted(sample.labels.items()))
        found[sample.name + ('{' + labels + '}' if labels else '')] = sample.value
print(json.dumps(found))";
    let mut python = Command::new(format!("{root}/target/tools/servers/bin/python"));
    let mut child = python.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The metrics that `docs/metrics.md` describes: name, type and labels.
fn documented() -> BTreeMap<String, (String, Vec<String>)> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect::<Vec<_>>();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
        Some((cells[0].trim_end_matches('`').to_owned(), (cells[1].to_owned(), words(cells[2]))))
    });
    rows.collect()
}

/// Every name of a metric that stands in the code.
fn written(under: &std::path::Path, names: &mut std::collections::BTreeSet<String>) {
    for entry in std::fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        // Keys of settings look alike.
        if path.is_dir() && !path.ends_with("config") {
            written(&path, names);
        }
        if path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let is_name = |word: &&str| {
            let prefixed = word.starts_with("relay_") || word.starts_with("process_");
            prefixed && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        };
        names.extend(text.split('"').filter(is_name).map(ToOwned::to_owned));
    }
}

#[test]
fn every_metric_is_documented_with_its_type_and_labels_and_named_as_prometheus_asks() {
    let documented = documented();
    let mut names = std::collections::BTreeSet::new();
    written(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut names);
    assert_eq!(documented.keys().collect::<Vec<_>>(), names.iter().collect::<Vec<_>>(), "docs/metrics.md and the code");
    let relay = Running::dev(&["--admin", "127.0.0.1:0", "--otlp-endpoint", "http://127.0.0.1:9"], "cat");
    let submitted = run_with(["submit", "--wait", "--server", &relay.url()], b"x");
    assert_eq!(code(&submitted), 0);
    let text = metrics_with(&admin(&relay), &["relay_queue_paused{queue=\"default\"} 0\n"]);
    let (mut kinds, mut helped) = (BTreeMap::new(), "");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').unwrap().0;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").map(|line| line.split_once(' ').unwrap()) {
            assert_eq!(name, helped, "each has a help text before its type");
            assert_eq!(kinds.insert(name, kind), None, "{name} is there once");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            let other = ["_ms", "_millis", "_micros", "_minutes", "_mib", "_count", "_sum", "_bucket"];
            assert!(!other.iter().any(|unit| name.ends_with(unit)), "{name}: seconds and bytes are the units");
            assert_eq!(documented[name].0, kind, "{name}");
        } else {
            let (name, labels) = line.split_once(['{', ' ']).unwrap();
            assert!(name.starts_with(helped), "{name} stands below its type");
            let labels = if line.contains('{') { labels.split('}').next().unwrap() } else { "" };
            let labels =
                labels.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0)).filter(|name| *name != "le");
            let expected = documented[helped].1.iter().map(String::as_str);
            assert!(labels.eq(expected), "{line}: its labels are those that are documented");
        }
    }
    assert!(kinds.len() > 25, "{kinds:?}");
    relay.stop();
}

#[test]
fn metrics_say_what_became_of_jobs_and_prometheus_can_read_them() {
    let relay =
        Running::dev(&["--admin", "127.0.0.1:0", "--queue", "mail"], "read line; test \"$line\" = good || exit 64");
    let submit = |key: &str, body: &[u8]| {
        let args = ["submit", "--wait", "--queue", "mail", "--key", key, "--server", &relay.url()];
        run_with(args, body)
    };
    assert_eq!(code(&submit("a", b"good\n")), 0);
    assert_eq!(code(&submit("a", b"good\n")), 0);
    assert_eq!(code(&submit("b", b"bad\n")), 1);
    assert_eq!(code(&submit("b", b"other\n")), 1);

    // The worker settles after the result is out, and queues are looked at now and then.
    let text = metrics_with(
        &admin(&relay),
        &[
            "relay_deliveries_settled_total{settlement=\"complete\"} 1\n",
            "relay_deliveries_settled_total{settlement=\"dead-letter\"} 1\n",
            "relay_worker_running 0\n",
            "relay_queue_paused{queue=\"mail\"} 0\n",
        ],
    );
    let found = parsed(&text);
    for (name, value) in [
        ("relay_ready", 1.0),
        ("relay_jobs_submitted_total{queue=mail}", 2.0),
        ("relay_jobs_replayed_total{queue=mail}", 1.0),
        ("relay_jobs_settled_total{outcome=succeeded,queue=mail}", 1.0),
        ("relay_jobs_settled_total{outcome=failed,queue=mail}", 1.0),
        ("relay_requests_refused_total{protocol=http,slug=idempotency-conflict}", 1.0),
        ("relay_requests_refused_total{protocol=http,slug=overloaded}", 0.0),
        ("relay_requests_in_flight{protocol=http}", 0.0),
        ("relay_deliveries_leased_total", 2.0),
        ("relay_deliveries_settled_total{settlement=complete}", 1.0),
        ("relay_deliveries_settled_total{settlement=dead-letter}", 1.0),
        ("relay_handler_duration_seconds_count{queue=mail}", 2.0),
        ("relay_job_duration_seconds_bucket{le=+Inf}", 2.0),
        ("relay_worker_handlers_started_total", 2.0),
        ("relay_workers", 1.0),
        ("relay_queue_paused{queue=mail}", 0.0),
    ] {
        assert_eq!(found.get(name), Some(&value), "{name} in\n{text}");
    }
    assert!(found["relay_store_commit_operations_count"] >= 2.0);
    assert_eq!(
        found["relay_store_commit_operations_count"], found["relay_store_commit_duration_seconds_count"],
        "each commit has a size and a duration"
    );
    relay.stop();
}

#[test]
fn each_entry_of_a_batch_that_is_refused_counts_under_its_slug_and_a_batch_that_is_refused_counts_once() {
    let args = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json"];
    let relay = Running::start(args.iter().chain(&["--queue", "mail", "--payload-max", "1KiB"]));
    let http = relay.ready["listening"]["http"].as_str().unwrap().to_owned();
    let batch = |body: &str| send(&http, "POST", "/v1/queues/mail/batch", "", body);
    let large = "x".repeat(1_025);
    let entries = serde_json::json!([
        { "text": "taken" }, { "text": "a", "key": "k" }, { "text": "b", "key": "k" },
        { "text": "a", "delay": "soon" }, { "text": "a", "payload": 1 }, { "text": large },
    ]);
    let answer = json(&batch(&entries.to_string()));
    let mut told = BTreeMap::new();
    for slug in answer["entries"].as_array().unwrap().iter().filter_map(|entry| entry["problem"]["slug"].as_str()) {
        *told.entry(slug).or_insert(0.0) += 1.0;
    }
    let refused = [("idempotency-conflict", 1.0), ("malformed-request", 2.0), ("payload-too-large", 1.0)];
    assert_eq!(told, BTreeMap::from(refused), "{answer}");

    let counted = || {
        let text = get(&admin(&relay), "/metrics").1;
        let name = "relay_requests_refused_total{protocol=http,slug=";
        let slugs = parsed(&text).into_iter().filter_map(|(key, count)| {
            let slug = key.strip_prefix(name)?.trim_end_matches('}').to_owned();
            (count > 0.0).then_some((slug, count))
        });
        slugs.collect::<BTreeMap<_, _>>()
    };
    let of = |refused: [(&str, f64); 3]| BTreeMap::from(refused.map(|(slug, count)| (slug.to_owned(), count)));
    assert_eq!(counted(), of(refused));
    assert_eq!(batch("[{").0, 400);
    assert_eq!(counted(), of([refused[0], ("malformed-request", 3.0), refused[2]]));
    relay.stop();
}

#[test]
fn readiness_fails_first_in_a_drain_while_everything_else_goes_on() {
    let args = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json"];
    let mut relay = Running::start(args.iter().chain(&["--drain-delay", "1h"]));
    let admin = admin(&relay);
    assert_eq!(json(&get(&admin, "/readyz")), serde_json::json!({ "ready": true, "reasons": [], "refusing": [] }));
    relay.signal(Signal::SIGTERM);
    relay.wait_for_line("stopping: ");
    let unready = get(&admin, "/readyz");
    assert_eq!((unready.0, &json(&unready)["reasons"][0]["reason"]), (503, &Value::from("draining")));
    assert!(get(&admin, "/metrics").1.contains("relay_ready 0\n"));
    assert_eq!(get(&admin, "/livez").0, 200);
    let http = relay.ready["listening"]["http"].as_str().unwrap().to_owned();
    assert_eq!(get(&http, "/v1/whoami").0, 200);
    assert_eq!(relay.force(Signal::SIGTERM).0, Some(130));
}

#[test]
fn others_than_this_machine_need_a_token() {
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json"];
    let refused = run(serve.iter().chain(&["--admin", "0.0.0.0:0"]));
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("--admin-token-file"), "{}", stderr(&refused));

    let dir = tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "too-short\n").unwrap();
    let with_token = |address| ["--admin", address, "--admin-token-file", file.to_str().unwrap()];
    let behind = ["--admin-tls", "terminated-in-front"];
    let refused = run(serve.iter().chain(&with_token("0.0.0.0:0")).chain(&behind));
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("at least 16"), "{}", stderr(&refused));

    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    let relay = Running::start(serve.iter().chain(&with_token("127.0.0.1:0")));
    let admin = admin(&relay);
    let refused = get(&admin, "/metrics");
    assert_eq!((refused.0, &json(&refused)["slug"]), (401, &Value::from("unauthenticated")));
    assert_eq!(ask(&admin, "GET", "/metrics", "Authorization: Bearer 0123456789abcdeX\r\n").0, 401);
    assert_eq!(ask(&admin, "GET", "/metrics", "Authorization: Bearer 0123456789abcdef\r\n").0, 200);
    // Orchestrators have no credentials.
    assert_eq!((get(&admin, "/livez").0, get(&admin, "/readyz").0), (200, 200));
}

#[test]
fn health_checks_have_a_port_of_their_own_with_two_paths() {
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--drain-delay", "1h"];
    // Also where others can reach it: no token is asked for.
    let mut relay = Running::start(serve.iter().chain(&["--health", "0.0.0.0:0"]));
    assert!(relay.ready["listening"]["admin"].is_null());
    let port = relay.ready["listening"]["health"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let health = format!("127.0.0.1:{port}");
    assert_eq!(get(&health, "/livez").0, 200);
    assert_eq!(json(&get(&health, "/readyz")), serde_json::json!({ "ready": true, "reasons": [], "refusing": [] }));
    for path in ["/", "/metrics", "/v1/queues", "/v1/dead", "/v1/overview", "/livez/x"] {
        let answer = get(&health, path);
        assert_eq!((answer.0, &json(&answer)["slug"]), (404, &Value::from("not-found")), "{path}");
    }
    relay.signal(Signal::SIGTERM);
    relay.wait_for_line("stopping: ");
    let unready = get(&health, "/readyz");
    let reason = serde_json::json!({ "reason": "draining", "detail": "" });
    assert_eq!((unready.0, &json(&unready)["reasons"][0]), (503, &reason), "and no details");
    assert_eq!(relay.force(Signal::SIGTERM).0, Some(130));
}

#[test]
fn web_pages_of_others_may_not_ask() {
    let relay = Running::dev(&["--admin", "127.0.0.1:0"], "cat");
    let admin = admin(&relay);
    for headers in ["Host: rebound.example\r\n", "Origin: http://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        let refused = ask(&admin, "GET", "/metrics", headers);
        assert_eq!((refused.0, &json(&refused)["slug"]), (403, &Value::from("forbidden")), "{headers}");
    }
    assert_eq!(get(&admin, "/nothing").0, 404);
}

#[test]
fn the_admin_port_is_there_before_the_broker_is() {
    let (_held, nobody) = crate::cli_support::nobody();
    let nats = nobody.replace("http://", "nats://");
    let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--nats", &nats];
    let mut child = crate::cli_support::relay(args).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let line = lines.find(|line| line.as_ref().unwrap().contains("operators ask http://")).unwrap().unwrap();
    let address = line.rsplit_once("http://").unwrap().1.trim();
    let unready = get(address, "/readyz");
    assert_eq!((unready.0, &json(&unready)["reasons"][0]["reason"]), (503, &Value::from("starting")));
    assert!(get(address, "/metrics").1.contains("relay_ready 0\n"));
    assert_eq!(get(address, "/livez").0, 200);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn dead_letters_and_workers_are_counted_by_queue() {
    let dev = ["dev", "--json", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--max-attempts", "1"];
    let relay = Running::start(dev.iter().chain(&["--queue", "mail", "--queue", "fax", "--", "sh", "-c", "exit 65"]));
    let none = ["relay_dead_letters{queue=\"mail\"} 0\n", "relay_queue_workers{queue=\"fax\"} 1\n"];
    let admin = relay.ready["listening"]["admin"].as_str().unwrap().to_owned();
    metrics_with(&admin, &none);
    relay.stop();
    let dir = tempdir().unwrap();
    let serve =
        ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json", "--queue", "mail"];
    let data = ["--max-attempts", "1", "--data", dir.path().to_str().unwrap()];
    let failing = ["--worker-listen", "127.0.0.1:0"];
    let server = Running::start(serve.iter().chain(&data).chain(&failing));
    let worker = ["worker", "--json", "--connect", &server.workers(), "--queue", "mail", "--", "sh", "-c", "exit 65"];
    let worker = Running::start(worker);
    assert_eq!(code(&run_with(["submit", "--wait", "--queue", "mail", "--server", &server.url()], b"x")), 1);
    worker.stop();
    server.stop();
    // A process counts at its start, and not before half a minute is over again.
    let server = Running::start(serve.iter().chain(&data));
    metrics_with(
        &self::admin(&server),
        &["relay_dead_letters{queue=\"mail\"} 1\n", "relay_queue_workers{queue=\"mail\"} 0\n"],
    );
    server.stop();
}

#[test]
fn a_worker_has_an_admin_port_of_its_own() {
    let args =
        ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--json"];
    let server = Running::start(args);
    let connect = server.workers();
    let ports = ["--admin", "127.0.0.1:0", "--health", "127.0.0.1:0"];
    let args = ["worker", "--connect", &connect, "--json"];
    let worker = Running::start(args.iter().chain(&ports).chain(&["--", "cat"]));
    assert_eq!(get(worker.ready["worker"]["health"].as_str().unwrap(), "/readyz").0, 200);
    let address = worker.ready["worker"]["admin"].as_str().unwrap().to_owned();
    assert_eq!(code(&run_with(["submit", "--wait", "--server", &server.url()], b"x")), 0);
    assert_eq!(get(&address, "/readyz").0, 200);
    let text =
        metrics_with(&address, &["relay_worker_running 0\n", "relay_worker_deliveries_total{end=\"succeeded\"} 1\n"]);
    assert_eq!(parsed(&text)["relay_jobs_settled_total{outcome=succeeded,queue=default}"], 1.0);
    worker.stop();
    server.stop();
}

#[test]
fn whoami_says_how_much_waits_and_how_much_may_still_come_also_where_there_is_an_admin_port() {
    let args = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json"];
    let server = Running::start(args);
    let client = server.url().trim_start_matches("http://").to_owned();
    let limits = || json(&get(&client, "/v1/whoami"))["queue_limits"][0].clone();
    let (before, max) = (limits(), limits()["max_queued"].as_u64().unwrap());
    assert_eq!((&before["queued"], &before["left"]), (&Value::from(0), &Value::from(max)), "{before}");
    assert_eq!(send(&client, "POST", "/v1/queues/default/jobs", "", "x").0, 202);
    let after = limits();
    assert_eq!((&after["queued"], &after["left"]), (&Value::from(1), &Value::from(max - 1)), "{after}");
    server.stop();
}

/// A broker of which some things can't be read, as the test says.
#[derive(Clone)]
pub(crate) struct Faulty {
    policies: Arc<dyn PolicyStore>,
    jobs: Arc<dyn JobQueue>,
    fails: Arc<Mutex<BTreeMap<&'static str, BrokerErrorKind>>>,
    hangs: Arc<AtomicBool>,
    looks: Arc<AtomicUsize>,
}

impl Faulty {
    /// `broker` with faults that can be switched on.
    pub(crate) fn wrap(broker: &mut Broker) -> Self {
        let (policies, jobs) = (Arc::clone(&broker.policies), Arc::clone(&broker.jobs));
        let faulty = Self { policies, jobs, fails: Arc::default(), hangs: Arc::default(), looks: Arc::default() };
        broker.policies = Arc::new(faulty.clone());
        broker.jobs = Arc::new(faulty.clone());
        faulty
    }

    /// From now on what is called so fails like this: `policies`, or the name of a queue.
    pub(crate) fn fail(&self, faults: &[(&'static str, BrokerErrorKind)]) {
        *self.fails.lock().unwrap() = faults.iter().copied().collect();
    }

    /// From now on looks at queues get no answer.
    pub(crate) fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    /// How many looks at the work of queues there were.
    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    fn check(&self, what: &str) -> Result<(), BrokerError> {
        match self.fails.lock().unwrap().get(what) {
            None => Ok(()),
            Some(kind) => Err(BrokerError::new(*kind, "look", format!("the cable of {what} was pulled"))),
        }
    }
}

#[async_trait]
impl PolicyStore for Faulty {
    async fn policy(&self, queue: &QueueName) -> Result<Option<QueuePolicy>, BrokerError> {
        self.policies.policy(queue).await
    }

    async fn recent(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        self.policies.recent(queue).await
    }

    async fn policies(&self) -> Result<Vec<(QueueName, QueuePolicy)>, BrokerError> {
        self.check("policies")?;
        let mut policies = self.policies.policies().await?;
        policies.retain(|(queue, _)| self.check(&format!("list of {queue}")).is_ok());
        Ok(policies)
    }

    async fn put_policy(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
        seen: Option<&QueuePolicy>,
    ) -> Result<(), BrokerError> {
        self.policies.put_policy(queue, policy, seen).await
    }

    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<(), BrokerError> {
        self.policies.set_paused(queue, paused).await
    }
}

#[async_trait]
impl JobQueue for Faulty {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        self.jobs.enqueue(job).await
    }
    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        self.jobs.status(client, job).await
    }
    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        self.jobs.is_in(client, job, queues).await
    }
    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        self.jobs.cancel(client, job).await
    }
    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        self.jobs.rerun(client, job, from).await
    }
    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.jobs.erase(client, job).await
    }
    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.jobs.list(client, filter).await
    }
    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.check(queue.as_str())?;
        self.jobs.depth(queue).await
    }
    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        self.check("oldest")?;
        self.jobs.oldest(queue).await
    }
    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.jobs.waiting(client, queue).await
    }

    async fn stored(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.jobs.stored(client, queue).await
    }
    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        self.jobs.count(queue).await
    }
    async fn load(&self, queue: &QueueName, within: Duration) -> Result<Load, BrokerError> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.check(queue.as_str())?;
        self.jobs.load(queue, within).await
    }
    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        self.jobs.kept_pace(queue).await
    }
    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.jobs.keep_pace(queue, pace).await
    }
    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.jobs.sweep(limit).await
    }
}

/// A ready process that looks at a broker with the queues `mail` and `other`, which it was started for.
async fn looking() -> (Port, Faulty) {
    let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
    let mut broker = store.broker();
    let queues: Vec<QueueName> = ["mail", "other"].map(|queue| queue.parse().unwrap()).into();
    for queue in &queues {
        broker.policies.put_policy(queue, &QueuePolicy::default(), None).await.unwrap();
    }
    let faulty = Faulty::wrap(&mut broker);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let telemetry = Telemetry::new(Clock::system(), None);
    let mut port = Port::open(listener, None, telemetry.clone());
    port.admin().serves_until(CancellationToken::new());
    port.watch(Watched::Broker { broker: telemetry.broker(broker), queues, check: None });
    port.admin().samples().wait_for(|sample| sample.queues.len() == 2).await.unwrap();
    (port, faulty)
}

/// The refusals once they are `wanted`, as `/readyz` answers them; the process is ready and its metrics agree.
async fn refused(port: &Port, wanted: &[&str]) -> Value {
    let mut samples = port.admin().samples();
    loop {
        let address = port.address().unwrap().to_string();
        let (answer, text) =
            tokio::task::spawn_blocking(move || (get(&address, "/readyz"), get(&address, "/metrics").1)).await.unwrap();
        let body = json(&answer);
        assert_eq!((answer.0, &body["ready"], &body["reasons"]), (200, &Value::from(true), &serde_json::json!([])));
        assert!(text.contains("relay_ready 1\n"));
        let what: Vec<_> =
            body["refusing"].as_array().unwrap().iter().map(|one| one["what"].as_str().unwrap()).collect();
        if what == wanted {
            for known in ["broker", "storage", "queue", "newer-version"] {
                let line = format!("relay_refusing{{what=\"{known}\"}} {}\n", u8::from(wanted.contains(&known)));
                assert!(text.contains(&line), "{line} in\n{text}");
            }
            return body["refusing"].clone();
        }
        port.admin().look_soon();
        samples.changed().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_withdraws_no_process_and_is_named_until_it_is_back() {
    use BrokerErrorKind::Unavailable;
    let (port, faulty) = looking().await;
    assert_eq!(refused(&port, &[]).await, serde_json::json!([]));
    faulty.fail(&[("policies", Unavailable), ("mail", Unavailable), ("other", Unavailable)]);
    let named = refused(&port, &["broker"]).await;
    assert!(named[0]["detail"].as_str().unwrap().contains("the cable of policies was pulled"), "{named}");
    let metrics = port.admin().metrics();
    assert!(metrics.contains("relay_queue_jobs{queue=\"mail\",state=\"waiting\"} 0\n"), "what was known stays");
    faulty.fail(&[]);
    refused(&port, &[]).await;
    port.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_missing_or_can_not_be_read_is_named_and_the_others_are_looked_at() {
    let (port, faulty) = looking().await;
    for (faults, named) in [
        // It can't be read: its policy, its messages, or anything of it in time.
        (&[("mail", BrokerErrorKind::Corrupt)][..], "mail: look: the cable of mail was pulled"),
        (&[("mail", BrokerErrorKind::Unavailable)], "mail: look: the cable of mail was pulled"),
        // It can't be named with the others, for whichever reason: the others answer.
        (&[("policies", BrokerErrorKind::Unavailable)], "look: the cable of policies was pulled"),
        // It was removed.
        (&[("list of mail", BrokerErrorKind::NotFound)], "mail: there is no such queue any more"),
        (&[("mail", BrokerErrorKind::NotFound)], "mail: look: the cable of mail was pulled"),
    ] {
        faulty.fail(faults);
        let refusing = refused(&port, &["queue"]).await;
        assert_eq!(refusing[0]["detail"], named);
        assert!(port.admin().metrics().contains("relay_queue_jobs{queue=\"other\",state=\"waiting\"} 0\n"));
        faulty.fail(&[]);
        refused(&port, &[]).await;
    }
    port.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_figure_that_can_not_be_read_now_means_that_nothing_is_refused() {
    let (port, faulty) = looking().await;
    let overloaded = BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) };
    faulty.fail(&[("mail", overloaded), ("oldest", BrokerErrorKind::Unavailable)]);
    let mut samples = port.admin().samples();
    for _ in 0..2 {
        port.admin().look_soon();
        samples.changed().await.unwrap();
    }
    assert_eq!(refused(&port, &[]).await, serde_json::json!([]));
    assert!(port.admin().metrics().contains("relay_queue_jobs{queue=\"mail\",state=\"waiting\"} 0\n"));
    port.close().await;
}

#[test]
fn jobs_of_a_newer_relay_withdraw_no_process_and_are_named() {
    let dir = tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--json"];
    let server = Running::start(args.iter().chain(&["--admin", "127.0.0.1:0", "--data", data]));
    assert_eq!(code(&run_with(["submit", "--server", &server.url()], b"x")), 0);
    // The same fields behind a version that this build does not read.
    let store = rusqlite::Connection::open(dir.path().join("relay.db")).unwrap();
    let mut envelope: Vec<u8> = store.query_row("SELECT envelope FROM payloads", [], |row| row.get(0)).unwrap();
    let version = envelope.windows(2).position(|pair| pair == [0xa1, b'v']).unwrap() + 2;
    envelope[version] = 100;
    assert_eq!(store.execute("UPDATE payloads SET envelope = ?1", [envelope]).unwrap(), 1);

    let worker = Running::start(["worker", "--connect", &server.workers(), "--json", "--", "cat"]);
    let admin = admin(&server);
    let text = metrics_with(&admin, &["relay_refusing{what=\"newer-version\"} 1\n"]);
    assert!(text.contains("relay_ready 1\n"), "{text}");
    let answer = get(&admin, "/readyz");
    let refusing = &json(&answer)["refusing"];
    assert_eq!((answer.0, &refusing[0]["what"]), (200, &Value::from("newer-version")));
    assert_eq!(refusing.as_array().unwrap().len(), 1);
    // Nothing else is held up.
    assert_eq!(code(&run_with(["submit", "--wait", "--server", &server.url()], b"y")), 0);
    worker.stop();
    server.stop();
}
