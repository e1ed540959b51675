//! Spans as a collector gets them, from built binaries: one trace from a caller to the result of its job.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::process::Command;

use crate::cli_support::{Running, relay};
use axum::Router;
use axum::extract::State;
use axum::routing::post;
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A span as it arrived.
#[derive(Clone, Debug)]
struct Arrived {
    name: String,
    trace: String,
    id: String,
    parent: String,
    kind: i32,
    failed: bool,
    attributes: BTreeMap<String, String>,
    service: String,
}

/// A receiver of OTLP over HTTP.
struct Collector {
    address: SocketAddr,
    spans: watch::Receiver<Vec<Arrived>>,
    _serving: JoinSet<std::io::Result<()>>,
}

impl Collector {
    async fn start() -> Self {
        let (sender, spans) = watch::channel(Vec::new());
        let router = Router::new().route("/v1/traces", post(take)).with_state(sender);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await });
        Self { address, spans, _serving: serving }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans once there are `count` of them.
    async fn spans(&mut self, count: usize) -> Vec<Arrived> {
        self.spans.wait_for(|spans| spans.len() >= count).await.unwrap().clone()
    }
}

async fn take(State(spans): State<watch::Sender<Vec<Arrived>>>, body: axum::body::Bytes) {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let text = |value: Option<&Value>| match value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => panic!("{other:?}"),
    };
    for of_process in request.resource_spans {
        let pairs = of_process.resource.iter().flat_map(|resource| &resource.attributes);
        let service = pairs.clone().find(|pair| pair.key == "service.name").unwrap();
        let service = text(service.value.as_ref().and_then(|value| value.value.as_ref()));
        for span in of_process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let attributes = span
                .attributes
                .iter()
                .map(|pair| (pair.key.clone(), text(pair.value.as_ref().and_then(|value| value.value.as_ref()))));
            let arrived = Arrived {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                kind: span.kind,
                failed: span.status.is_some_and(|status| status.code == 2),
                attributes: attributes.collect(),
                name: span.name,
                service: service.clone(),
            };
            spans.send_modify(|spans| spans.push(arrived));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A process without what the environment of the tests says of traces.
fn process(args: &[&str]) -> Command {
    let mut command = relay(args);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command
}

/// Submits a job of the caller's trace and waits for its result: its text, and its header.
async fn do_job(server: &Running, sampled: &str) -> (String, String) {
    let url = format!("{}/v1/queues/default/jobs", server.url());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(url).header("traceparent", format!("00-{TRACE}-{CALLER}-{sampled}"));
    let answer = request.header("prefer", "wait=50").body("work").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let header = answer.headers()["traceparent"].to_str().unwrap().to_owned();
    (answer.text().await.unwrap(), header)
}

fn install_crypto() {
    // Fails only if it is there already.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_one_trace_from_its_caller_to_its_result_across_processes() {
    install_crypto();
    let mut collector = Collector::start().await;
    let url = collector.url();
    let serve =
        ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--json"];
    let traced = ["--retry-base", "10ms", "--otlp-endpoint", &url];
    let server = Running::start_command(process(&[&serve[..], &traced].concat()));
    let workers = server.workers();
    let handler = "[ \"$RELAY_ATTEMPT\" = 2 ] || exit 1; printf %s \"$TRACEPARENT\"";
    let worker = ["worker", "--connect", &workers, "--json", "--", "sh", "-c", handler];
    let mut worker = process(&worker);
    // The variable that every program has for it does the same as the flag.
    worker.env("OTEL_EXPORTER_OTLP_ENDPOINT", &url).env("OTEL_SERVICE_NAME", "resizer");
    let worker = Running::start_command(worker);

    let (output, header) = do_job(&server, "01").await;
    let spans = collector.spans(4).await;
    let of = |name: &str| spans.iter().filter(|span| span.name == name).cloned().collect::<Vec<_>>();
    let [submit] = &of("submit default")[..] else { panic!("{spans:#?}") };
    assert_eq!((submit.parent.as_str(), submit.kind, submit.failed), (CALLER, 2, false), "a server's, of its caller");
    let mut attempts = of("attempt default");
    attempts.sort_by_key(|span| span.attributes["relay.attempt"].clone());
    let [first, second] = &attempts[..] else { panic!("{spans:#?}") };
    let [result] = &of("result default")[..] else { panic!("{spans:#?}") };
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    for child in [first, second, result] {
        assert_eq!(child.parent, submit.id, "{child:#?}");
        for same in ["messaging.message.id", "relay.run_id", "relay.client"] {
            assert_eq!(child.attributes[same], submit.attributes[same], "{child:#?}");
        }
    }
    assert_eq!((first.failed, first.attributes["relay.attempt.end"].as_str()), (true, "retry"));
    assert_eq!(first.attributes["error.type"], "exit-code");
    assert_eq!((second.failed, second.attributes["relay.attempt.end"].as_str()), (false, "done"));
    assert_eq!((result.attributes["relay.outcome"].as_str(), &*result.attributes["relay.attempt"]), ("succeeded", "2"));
    assert_eq!((second.service.as_str(), result.service.as_str()), ("resizer", "relay"), "each says who it is");
    assert_eq!(submit.attributes["messaging.destination.name"], "default");
    assert_eq!(output, format!("00-{TRACE}-{}-01", second.id), "what a handler calls is part of its attempt");
    assert_eq!(header, format!("00-{TRACE}-{}-01", submit.id));
    worker.stop();
    server.stop();
    assert_eq!(collector.spans(4).await.len(), 4, "each span comes once");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_of_a_trace_that_its_caller_does_not_record_or_when_it_is_off() {
    install_crypto();
    let mut collector = Collector::start().await;
    let dev = ["dev", "--listen", "127.0.0.1:0", "--json", "--", "sh", "-c", "printf %s \"$TRACEPARENT\""];
    for off in [true, false] {
        let mut command = process(&dev);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
        if off {
            command.env("OTEL_SDK_DISABLED", "true");
        }
        let server = Running::start_command(command);
        let (output, header) = do_job(&server, "00").await;
        if off {
            let caller = format!("00-{TRACE}-{CALLER}-00");
            assert_eq!((output.as_str(), header.as_str()), (caller.as_str(), caller.as_str()));
        } else {
            assert!(output.starts_with(&format!("00-{TRACE}-")) && output.ends_with("-00"), "{output}");
        }
        // Spans, if there were any, would be sent before it ends.
        server.stop();
    }
    assert!(collector.spans(0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_of_a_request_and_of_its_jobs_attempt_name_the_callers_trace() {
    install_crypto();
    let dev = ["dev", "--listen", "127.0.0.1:0", "--json", "--log", "debug", "--log-format", "json", "--", "cat"];
    let server = Running::start_command(process(&dev));
    do_job(&server, "00").await;
    server.signal(Signal::SIGTERM);
    let lines = server.wait().1;
    for message in ["request answered", "attempt started"] {
        let line = lines.lines().find(|line| line.contains(message)).unwrap_or_else(|| panic!("{lines}"));
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["trace_id"], TRACE, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_never_answers_stops_no_job_and_is_told_of_once() {
    install_crypto();
    let silent = StdListener::bind("127.0.0.1:0").unwrap();
    let gone = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), gone] {
        let url = format!("http://{address}");
        let dev = ["dev", "--listen", "127.0.0.1:0", "--json", "--otlp-endpoint", &url, "--", "cat"];
        let mut server = Running::start_command(process(&dev));
        for _ in 0..5 {
            assert_eq!(do_job(&server, "01").await.0, "work");
        }
        if address == gone {
            server.wait_for_line("the collector of traces takes no spans");
        }
        server.signal(Signal::SIGTERM);
        let (code, text) = server.wait();
        assert_eq!(code, Some(0), "{text}");
        assert!(!text.contains("takes no spans") || address != gone, "it is said once a minute: {text}");
    }
}

#[test]
fn an_endpoint_that_is_none_and_a_sampler_that_nobody_knows_are_refused_at_start() {
    let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--otlp-endpoint"];
    let refused = |url: &str, sampler: &str| {
        let mut command = process(&[&serve[..], &[url]].concat());
        let output = command.env("OTEL_TRACES_SAMPLER", sampler).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused("collector:4317", "always_on").contains("--otlp-endpoint"));
    assert!(refused("http://127.0.0.1:4318", "sometimes").contains("OTEL_TRACES_SAMPLER=sometimes"));
}
