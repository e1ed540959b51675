//! Who may use whom within a package. The order of the packages is held by the compiler.

use crate::code::{paths, without_comments_and_strings};
use crate::files::{Finding, TextFile, all, assert_none, places};

/// Files under `under` name nothing of `never`, except what is in `except`.
struct Layer {
    under: &'static str,
    never: &'static [&'static str],
    except: &'static [&'static str],
    why: &'static str,
}

const LAYERS: &[Layer] = &[
    Layer {
        under: "bridge/src/contract/",
        never: &["tokio", "relay_bridge::broker"],
        except: &[],
        why: "the contract does no I/O and knows no broker",
    },
    Layer {
        under: "workers/src/handler/",
        never: &[
            "relay_bridge::broker",
            "relay_bridge::dead_letters",
            "relay_embedded",
            "relay_bridge::job_queue",
            "relay_bridge::leasing",
            "relay_bridge::provision",
            "relay_remote",
            "relay_bridge::result_log",
            "relay_bridge::settlement",
            "relay_workers::settle",
            "relay_workers::lease",
        ],
        except: &["relay_bridge::leasing::Progress"],
        why: "a handler can't settle: it returns how the attempt went",
    },
    Layer {
        under: "src/api/",
        never: &[
            "axum",
            "hyper",
            "relay::app",
            "relay::auth",
            "relay::cli",
            "relay::client",
            "relay::ingress",
            "relay_workers",
            "relay_embedded",
        ],
        except: &[],
        why: "a client needs the HTTP contract and nothing of the server",
    },
    Layer {
        under: "src/auth/",
        never: &[
            "axum",
            "http",
            "hyper",
            "relay::app",
            "relay::cli",
            "relay::client",
            "relay::ingress",
            "relay_bridge::broker",
        ],
        except: &[],
        why: "what a transport saw comes in as text",
    },
    Layer {
        under: "src/client/",
        never: &[
            "axum",
            "hyper",
            "relay::app",
            "relay::auth",
            "relay::cli",
            "relay::ingress",
            "relay_workers",
            "relay_embedded",
            "relay_bridge::broker",
        ],
        except: &[],
        why: "the client pulls in nothing of the server",
    },
    Layer {
        under: "src/config/",
        never: &["clap", "relay::admin", "relay::app", "relay::cli", "relay::client", "relay::ingress", "tokio"],
        except: &[],
        why: "it knows what may be written, and nothing of who reads it",
    },
    Layer {
        under: "src/telemetry/",
        never: &[
            "axum",
            "http",
            "hyper",
            "relay::admin",
            "relay::app",
            "relay::cli",
            "relay::client",
            "relay::ingress",
        ],
        except: &[],
        why: "it counts at the broker's seams, and knows no ingress",
    },
    Layer {
        under: "src/admin/",
        never: &["relay::app", "relay::cli", "relay::client"],
        except: &[],
        why: "it is told what to show by whoever starts it",
    },
    Layer {
        under: "src/ingress/",
        never: &[
            "relay::admin",
            "relay::app",
            "relay::cli",
            "relay::client",
            "relay::telemetry",
            "relay_embedded",
            "relay_workers",
        ],
        except: &[],
        why: "ingress knows seams, and neither its caller nor an adapter",
    },
    Layer {
        under: "src/bridge/",
        never: &[
            "axum",
            "hyper",
            "relay::app",
            "relay::auth",
            "relay::broker",
            "relay::cli",
            "relay::client",
            "relay::ingress",
            "relay_embedded",
            "relay_remote",
        ],
        except: &["relay::client::retry::jitter"],
        why: "the bridge joins seams and handlers: it serves nobody, and is told which brokers there are",
    },
];

fn crossings(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        for named in paths(&file.path, without_tests(&without_comments_and_strings(&file.text))) {
            let path = named.path.join("::");
            for layer in LAYERS.iter().filter(|layer| file.path.starts_with(layer.under)) {
                let hits = layer.never.iter().any(|never| is_within(&path, never));
                if hits && !layer.except.contains(&path.as_str()) {
                    findings.push(file.finding(named.line, format!("`{path}`: {}", layer.why)));
                }
            }
        }
    }
    findings
}

/// Unit tests, which stand last in a file, may stage what they like.
fn without_tests(code: &str) -> &str {
    code.split("#[cfg(test)]\nmod tests {").next().unwrap_or(code)
}

fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn nobody_reaches_across_a_layer() {
    assert_none(&crossings(&all(&[".rs"])));
}

#[test]
fn every_layer_is_of_files_that_are_there() {
    let files = all(&[".rs"]);
    for layer in LAYERS {
        assert!(files.iter().any(|file| file.path.starts_with(layer.under)), "nothing is under {}", layer.under);
    }
}

#[test]
fn a_crossing_is_found_in_every_spelling() {
    for (path, code) in [
        ("bridge/src/contract/job.rs", "use tokio::sync::mpsc;"),
        ("bridge/src/contract/wire/mod.rs", "fn x() { crate::broker::Broker::new() }"),
        ("src/ingress/http/mod.rs", "use {std::fmt, relay_embedded::Embedded};"),
        ("src/ingress/http/jobs.rs", "use crate::{error, client::Client};"),
        ("src/ingress/http/gate.rs", "use super::super::super::cli;"),
        ("workers/src/handler/exec/mod.rs", "use relay_bridge::leasing::{Progress, Receipt};"),
        ("workers/src/handler/mod.rs", "use crate::settle::Settler;"),
        ("src/ingress/http/jobs.rs", "use crate::client::Client;"),
        ("src/client/http.rs", "use axum::http::StatusCode;"),
        ("src/auth/live.rs", "use crate::ingress::tcp;"),
        ("src/api/receipt.rs", "use relay_workers::Attempt;"),
    ] {
        let text = format!("//! Doc.\n{code}\n");
        assert_eq!(places(&crossings(&[TextFile::new(path, &text)])), [(path, 2)], "{path}: {code}");
    }
}

#[test]
fn what_looks_like_a_crossing_and_is_none_is_not_found() {
    for (path, code) in [
        ("bridge/src/contract/job.rs", "// use tokio::sync;"),
        ("bridge/src/contract/job.rs", "const X: &str = \"tokio::sync\";"),
        ("src/client/http.rs", "use axum_like::Router;"),
        ("src/client/mod.rs", "use super::api; use crate::client::http;"),
        ("workers/src/handler/mod.rs", "use relay_bridge::leasing::Progress;"),
        ("workers/src/worker.rs", "use relay_bridge::leasing::Leasing;"),
        ("src/cli/submit.rs", "use crate::client::Client;"),
        ("src/ingress/http/gate.rs", "fn x() {}\n#[cfg(test)]\nmod tests {\n    use relay_embedded::Embedded;\n}"),
    ] {
        assert_none(&crossings(&[TextFile::new(path, code)]));
    }
}
